from dataclasses import replace

import numpy as np
import pytest
import torch
from dense import random_model
from test_pretrain import block_log

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TrainConfig, TransferConfig
from gnnrec.errors import ConfigError
from gnnrec.target import Target
from gnnrec.text_tuning import OwnText
from gnnrec.transfer import adapt

MODES = ["zero-shot", "heads", "final:1", "final:2", "full", "scratch"]
FRESH = ("bias.", "residual.", "calibration.")


def checkpoint_of(encoder="lightgcn", text_dim=6):
    model = random_model(encoder, 1, text_dim, n_layers=2, rank=8)
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Checkpoint("made up", model.config, state)


def target_of(seed=0, text=True):
    log = block_log(seed, n_users=40, n_items=30, per_user=6)
    vectors = torch.from_numpy(log.item_text) if text else None
    return Target(log.users, log.items, log.n_users, log.n_items, vectors)


def config(retrain, seed=0, **changes):
    values = dict(
        loss="softmax", n_negatives=50, batch_size=32, learning_rate=0.01, pull_to_start=0.01,
        max_steps=20, evaluate_every=5, patience=50, user_balance=0.5,
    )  # fmt: skip
    train = TrainConfig(**{**values, **changes})
    calibrate = train.model_copy(update={"max_steps": min(4, train.max_steps), "evaluate_every": 2})
    return TransferConfig(retrain=retrain, calibrate=calibrate, train=train, n_folds=3, seed=seed)


def rows_of(target, seed=0):
    order = np.random.default_rng(seed).permutation(len(target.users))
    return order[20:], order[:20]


def run(retrain, encoder="lightgcn", target=None, fixed_steps=None, seed=0, **changes):
    target = target_of() if target is None else target
    return adapt(
        checkpoint_of(encoder),
        target,
        *rows_of(target),
        config(retrain, seed, **changes),
        fixed_steps=fixed_steps,
    )


def scores(model, x):
    with torch.no_grad():
        vectors = model(x)
    return vectors.users @ vectors.items.T


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
@pytest.mark.parametrize("retrain", MODES[:-1])
def test_frozen_parameters_keep_the_checkpoints_bits(retrain, encoder):
    checkpoint = checkpoint_of(encoder)
    adapted = run(retrain, encoder, fixed_steps=(2, 5))
    found = dict(adapted.model.named_parameters())
    for name, value in checkpoint.state.items():
        if name in adapted.trained or name.startswith(FRESH):
            continue
        assert torch.equal(found[name], value), name
    kind, _, count = retrain.partition(":")
    assert adapted.trained == adapted.model.trained_parameters(kind, int(count or 0))
    moved = [
        name
        for name in adapted.trained
        if name in checkpoint.state
        and not name.startswith(FRESH)
        and not torch.equal(found[name], checkpoint.state[name])
    ]
    assert bool(moved) == (retrain != "zero-shot")
    assert not adapted.model.training


@pytest.mark.parametrize("retrain", MODES)
def test_only_a_retrained_model_has_residual_ids(retrain):
    residual = run(retrain, fixed_steps=(2, 2)).model.residual
    assert (residual is None) == (retrain == "zero-shot")
    if residual is not None:
        assert len(residual.items) == 30 and residual.items.abs().max() > 0


def test_zero_shot_is_the_checkpoint_with_a_fresh_bias():
    adapted = run("zero-shot")
    assert adapted.trained == [] and adapted.stages == () and adapted.steps == 0
    expected = checkpoint_of().model()
    x = target_of().graph_input(rank=8)
    torch.testing.assert_close(scores(adapted.model, x), scores(expected, x))


def test_scratch_takes_nothing_but_the_architecture():
    other = checkpoint_of()
    changed = Checkpoint(
        "changed", other.config, {name: torch.full_like(p, 7.0) for name, p in other.state.items()}
    )
    target = target_of()
    models = [
        adapt(c, target, *rows_of(target), config("scratch"), fixed_steps=(1, 3)).model
        for c in (other, changed)
    ]
    for (name, left), (_, right) in zip(
        models[0].named_parameters(), models[1].named_parameters(), strict=True
    ):
        assert torch.equal(left, right), name
    full = [
        adapt(c, target, *rows_of(target), config("full"), fixed_steps=(1, 3)).model
        for c in (other, changed)
    ]
    assert not torch.equal(full[0].user_head.weight, full[1].user_head.weight)


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
@pytest.mark.parametrize("retrain", ["heads", "final:1", "full", "scratch"])
def test_training_does_not_worsen_the_validation_loss(retrain, encoder):
    adapted = run(retrain, encoder)
    calibrating, training = adapted.stages
    for stage in adapted.stages:
        assert stage.history[0]["step"] == 0
        assert stage.best_value == min(r["value"] for r in stage.history)
    # The second stage starts where the best of the first was, and both together help.
    assert training.history[0]["value"] == pytest.approx(calibrating.best_value, abs=1e-5)
    assert training.best_value < calibrating.history[0]["value"]
    assert adapted.steps == calibrating.steps + training.steps
    assert adapted.best_steps == (calibrating.best_step, training.best_step)


@pytest.mark.parametrize("steps", [(), (0, 0)])
@pytest.mark.parametrize("retrain", ["heads", "full"])
def test_zero_steps_train_nothing(retrain, steps):
    adapted = run(retrain, fixed_steps=steps)
    assert adapted.steps == 0 and adapted.count_parameters()["trained"] == 0
    for name, p in adapted.model.named_parameters():
        if not name.startswith(FRESH):
            assert torch.equal(p, checkpoint_of().state[name])
    x = target_of().graph_input(rank=8)
    expected = scores(run("zero-shot").model, x)
    torch.testing.assert_close(scores(adapted.model, x), expected, atol=1e-5, rtol=1e-5)


def test_fixed_steps_run_exactly_and_ignore_the_validation_rows():
    target = target_of()
    train, validation = rows_of(target)
    results = [
        adapt(checkpoint_of(), target, train, rows, config("full"), fixed_steps=(3, 7))
        for rows in (validation, validation[:0])
    ]
    assert all([(s.steps, s.history) for s in r.stages] == [(3, []), (7, [])] for r in results)
    for left, right in zip(*(r.model.parameters() for r in results), strict=True):
        assert torch.equal(left, right)


def test_validation_rows_are_not_trained_on():
    # With other validation edges but equal steps, the same parameters come out.
    target = target_of()
    train, validation = rows_of(target)
    moved = Target(target.users.copy(), target.items.copy(), 40, 30, target.item_text)
    moved.items[validation] = (moved.items[validation] + 1) % 30
    models = [
        adapt(checkpoint_of(), t, train, validation, config("full"), fixed_steps=(2, 4)).model
        for t in (target, moved)
    ]
    for left, right in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
def test_the_first_stage_moves_the_calibration_alone(encoder):
    adapted, before = run("full", encoder, fixed_steps=(3, 0)), checkpoint_of(encoder).state
    found = dict(adapted.model.named_parameters())
    calibrating = adapted.model.calibrating(list(found))
    moved = {n for n, p in before.items() if n in found and not torch.equal(found[n], p)}
    assert {n for n in moved if not n.startswith(FRESH)} <= set(calibrating)
    assert any(n.startswith("spectral.") for n in moved)
    assert not any(n.startswith(("user_head.", "item_head.", "residual.")) for n in calibrating)
    assert adapted.steps == 3


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
def test_the_seed_decides_everything(encoder):
    ends = [run("scratch", encoder, seed=seed).model.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def edge_cases():
    text = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32))
    none = np.array([], dtype=np.int64)
    same = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
    return {
        "no interaction": Target(none, none, 2, 5, text),
        "one interaction": Target(np.array([1]), np.array([3]), 2, 5, text),
        "one user": Target(np.zeros(4, dtype=np.int64), np.arange(4), 1, 5, text),
        "one item": Target(np.arange(6), np.zeros(6, dtype=np.int64), 6, 1, text[:1]),
        "identical users": Target(*same, 6, 5, text),
        "no text": Target(*same, 6, 5, None),
    }


@pytest.mark.parametrize("case", sorted(edge_cases()))
@pytest.mark.parametrize("retrain", ["zero-shot", "final:1", "scratch"])
@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
def test_degenerate_targets_do_not_crash(case, retrain, encoder):
    target = edge_cases()[case]
    n = len(target.users)
    rows = np.arange(n)
    for train, validation, steps in (
        (rows, rows[:0], None),
        (rows, rows[:0], (1, 3)),
        (rows[: n - 1], rows[n - 1 :], None),
    ):
        adapted = adapt(
            checkpoint_of(encoder),
            target,
            train,
            validation,
            config(retrain, max_steps=3),
            fixed_steps=steps,
        )
        found = scores(adapted.model, target.graph_input(rank=8))
        assert found.shape == (target.n_users, target.n_items) and torch.isfinite(found).all()


def test_wrong_modes_are_refused():
    with pytest.raises(ConfigError, match="final:9"):
        run("final:9")
    with pytest.raises(ConfigError, match="half"):
        run("half")


def test_the_log_holds_the_evaluations(tmp_path):
    target = target_of()
    adapted = adapt(
        checkpoint_of(), target, *rows_of(target), config("heads"), log=tmp_path / "log.jsonl"
    )
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == sum(len(stage.history) for stage in adapted.stages) == 3 + 5
    assert '"label": "heads calibrating"' in lines[0] and '"label": "heads training"' in lines[-1]


def test_adapted_scores_read_the_models_own_texts():
    """Validation, tuning and the test part see what the retrained text encoder made."""
    target, adapted = target_of(), run("zero-shot")
    rows = rows_of(target)[0]
    table = torch.roll(target.item_text, 1, dims=0)
    own = replace(adapted, text=OwnText({}, table, None, []))
    expected = scores(adapted.model, target.graph_input(rows, rank=8).with_text(table, None))
    found, x = own.scores(target, rows)
    torch.testing.assert_close(found.users @ found.items.T, expected)
    assert torch.equal(x.text, target.graph_input(rows).with_text(table, None).text)
    plain, _ = adapted.scores(target, rows)
    assert (plain.users @ plain.items.T - expected).abs().max() > 1e-3
