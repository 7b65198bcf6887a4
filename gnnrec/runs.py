"""Whole runs, as the command line and scripts start them: data in, folder and report out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gnnrec.arms import Arm, Prepared, popularity_arm, prepare, run_arm
from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint, versions
from gnnrec.config import PretrainConfig, TransferConfig, parse_retrain
from gnnrec.device import peak_memory_bytes, resolve_device
from gnnrec.episodes import Source
from gnnrec.errors import ConfigError, DataError
from gnnrec.evaluate import evaluate_scores, plain
from gnnrec.interactions import Interactions, read_interactions
from gnnrec.loop import TrainResult
from gnnrec.pretrain import pretrain
from gnnrec.ranks import current
from gnnrec.recommender import Recommender
from gnnrec.sources import Log, describe, held_out_sha256
from gnnrec.split import carve_validation, share_with_history
from gnnrec.stats import paired_bootstrap
from gnnrec.text import TextEncoder
from gnnrec.text_tuning import TextTask, tune_text
from gnnrec.transfer import adapt

_N_RESAMPLES = 1_000  # for two bounds in a report; `gnnrec bench` takes ten times as many
_TEXT_VALIDATION = 0.05  # of a source's edges, on which its text encoder's steps are chosen


def pretrain_run(
    logs: list[Log],
    config: PretrainConfig,
    *,
    name: str,
    device: str = "auto",
    log_file: Path | None = None,
) -> Checkpoint:
    """Pretrain on one or several logs and return the checkpoint with its training record."""
    started = time.perf_counter()
    where = resolve_device(device)
    encoder, tuned = _text_encoder(logs, config, str(where), log_file)
    with current().in_turn():
        catalogues = [Catalogue.build(x.interactions, x.items, encoder) for x in logs]
    for log, catalogue in zip(logs, catalogues, strict=True):
        if encoder is not None and not catalogue.has_text:
            raise ConfigError(
                f"source {log.name} has no text and the encoder reads text; leave it out, "
                "give --items, or pretrain with --no-text"
            )
    text_seconds = 0.0 if tuned is None else tuned.seconds
    features = time.perf_counter() - started - text_seconds
    sources = [
        Source(
            log.name,
            c.log.users,
            c.log.items,
            c.log.n_users,
            c.log.n_items,
            c.text,
            c.target().edge_text,
        )
        for log, c in zip(logs, catalogues, strict=True)
    ]
    model, result = pretrain(sources, config, device=where, log=log_file)
    record = {
        "sources": [describe(log) for log in logs],
        "config": config.model_dump(),
        **result.summary(),
        "seconds": {
            "features": round(features, 3),
            "text": round(text_seconds, 3),
            "train": round(result.seconds, 3),
            "total": round(time.perf_counter() - started, 3),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "seed": config.seed,
        "device": str(where),
        "versions": versions(),
    }
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    return Checkpoint(name, model.config, state, record, {} if encoder is None else encoder.delta)


def _text_encoder(
    logs: list[Log], config: PretrainConfig, device: str, log_file: Path | None
) -> tuple[TextEncoder | None, TrainResult | None]:
    """Make what encodes the sources' texts, its last layers retrained on them if asked for."""
    if not config.model.text_dim or config.model.text_model is None:
        return None, None
    encoder = TextEncoder(config.model.text_model, device)
    if not config.model.text_layers:
        return encoder, None
    tasks = []
    for log in logs:
        data = log.interactions
        texts = [] if log.items is None else log.items.align(data.item_ids)[0]
        if not any(texts):
            continue  # refused below, with its name
        train, held_out = carve_validation(
            np.arange(data.n_interactions), _TEXT_VALIDATION, config.seed
        )
        held = data.users[held_out], data.items[held_out]
        tasks.append(TextTask(texts, data.users[train], data.items[train], held, data.n_users))
    delta, result, _, _ = tune_text(
        tasks, encoder, config.model.text_layers, config.text, config.seed, log=log_file
    )
    return TextEncoder(encoder.model, device, delta), result


def transfer_run(
    checkpoint: Checkpoint,
    log: Log,
    config: TransferConfig,
    *,
    test: str | Path | Interactions | None = None,
    device: str = "auto",
    ks: tuple[int, ...] = (10, 20),
    log_file: Path | None = None,
) -> tuple[Recommender, dict[str, Any]]:
    """Adapt, measure on a held-out part, refit on everything; return what to save and the report.

    Args:
        checkpoint: The pretrained model.
        log: The target.
        config: See `TransferConfig`.
        test: None holds out a part by config.split; "none" holds out nothing; a file or a log is
            the test part, and then the whole target is for training.
        device: auto, cpu or cuda.
        ks: Cut-offs of the report.
        log_file: JSON lines of the training.
    """
    started = time.perf_counter()
    parse_retrain(config.retrain)
    where = resolve_device(device)
    held_out: Interactions | None = None
    if isinstance(test, Interactions):
        held_out = test
    elif test is not None and str(test) != "none":
        held_out = read_interactions(test, log.interactions.columns)
    kind = "" if test is None else "none"
    with current().in_turn():
        prepared = prepare(log, checkpoint.text_encoder(str(where)), config, kind)
    split_report = {"kind": prepared.split.kind, "sha256": prepared.split_sha256}
    dropped = 0
    if held_out is not None:
        prepared, dropped = _with_test(prepared, held_out)
        split_report = {"kind": "given", "sha256": held_out_sha256(held_out)}
    arm: Arm | None = None
    if len(prepared.test_users):
        arm = run_arm(prepared, checkpoint, config, device=where, ks=ks, log_file=log_file)
        adapted = arm.adapted
        assert adapted is not None
    else:
        split = prepared.split
        adapted = adapt(
            checkpoint,
            prepared.target,
            split.train,
            split.validation,
            config,
            device=where,
            log=log_file,
        )
    recommender = Recommender(checkpoint, config, device)
    refitted = recommender.refit(prepared.catalogue, adapted)
    data = prepared.catalogue.log
    report: dict[str, Any] = {
        "arm": config.retrain,
        "metrics": {} if arm is None else arm.results.metrics,
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "n_train": len(prepared.split.train),
        "n_validation": len(prepared.split.validation),
        "n_test": len(prepared.test_users),
        "n_test_already_in_log": dropped,
        "split": split_report
        | {"seed": config.split_seed, "fraction": config.fraction}
        | _history_share(prepared),
        "seconds": {
            "features": round(prepared.feature_seconds, 3),
            "train": round(adapted.seconds + refitted.seconds, 3),
            "evaluate": round(arm.seconds["evaluate"], 3) if arm else 0.0,
            "total": round(time.perf_counter() - started, 3),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": adapted.count_parameters(),
        "trained": adapted.names,
        "steps": adapted.steps,
        "best_steps": list(adapted.best_steps),
        "choice": adapted.choice,
        "strength": adapted.strength,
        "source": checkpoint.name,
        "target": log.name,
        "retrain": config.retrain,
        "seed": config.seed,
        "device": str(where),
        "versions": versions(),
    }
    if arm is not None:
        report["by_user_activity"] = arm.results.by_user_activity
        report["by_item_popularity"] = arm.results.by_item_popularity
        popular = popularity_arm(prepared, ks).results
        report["popularity_metrics"] = popular.metrics
        measure = f"ndcg@{max(ks)}"
        ours, theirs = arm.results.per_user[measure], popular.per_user[measure]
        difference = paired_bootstrap(ours, theirs, _N_RESAMPLES, config.seed)
        report["to_popularity"] = {"metric": measure, **difference}
    report = plain(report)
    recommender.record |= {"report": report}
    return recommender, report


def evaluate_run(
    recommender: Recommender, held_out: Interactions, ks: tuple[int, ...] = (10, 20)
) -> dict[str, Any]:
    """Measure a saved recommender on a test log, and report under the same keys as a transfer.

    Users it does not know are ranked by popularity and counted; so are items outside its
    catalogue, which no list can hold. Pairs that are already in its log are left out.
    """
    started = time.perf_counter()
    catalogue = recommender.catalogue
    log, n_users, n_items = catalogue.log, catalogue.log.n_users, catalogue.log.n_items
    wide = log.with_users(held_out.user_ids).with_items(held_out.item_ids)
    test = held_out.recoded(wide)
    users, items, dropped = _without_known(test, log, wide.n_items)
    if not len(users):
        raise DataError(
            f"found all {dropped} test pairs in the recommender's own log, expected held-out "
            "ones; adapt again without them (gnnrec transfer --test FILE)"
        )
    extra = wide.n_users - n_users
    codes = np.append(np.arange(n_users), np.full(extra, -1))
    seen = recommender.seen.copy()
    seen.resize((wide.n_users, n_items))
    results = evaluate_scores(recommender.vectors.of(codes), seen, users, items, ks)
    record = recommender.record.get("report", {})
    seconds = round(time.perf_counter() - started, 3)
    return {
        "arm": record.get("arm", recommender.config.retrain),
        "metrics": results.metrics,
        "n_users": n_users,
        "n_items": n_items,
        "n_interactions": log.n_interactions,
        "n_test": len(users),
        "n_test_already_in_log": dropped,
        "n_unknown_users": int((np.unique(users) >= n_users).sum()),
        "n_unknown_items": int((np.unique(items) >= n_items).sum()),
        "split": {"kind": "given", "sha256": held_out_sha256(held_out)},
        "seconds": {"features": 0.0, "train": 0.0, "evaluate": seconds, "total": seconds},
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters": record.get("parameters", recommender.model.count_parameters([])),
        "steps": record.get("steps", 0),
        "source": recommender.checkpoint.name,
        "retrain": recommender.config.retrain,
        "seed": recommender.config.seed,
        "versions": versions(),
        "by_user_activity": results.by_user_activity,
        "by_item_popularity": results.by_item_popularity,
    }


def _with_test(prepared: Prepared, held_out: Interactions) -> tuple[Prepared, int]:
    """Lay a given test log over a prepared target; unknown users become users without edges."""
    catalogue = prepared.catalogue
    log = catalogue.log.with_users(held_out.user_ids)
    wide = log.with_items(held_out.item_ids)
    users, items, dropped = _without_known(held_out.recoded(wide), catalogue.log, wide.n_items)
    if not len(users):
        raise DataError(
            f"found all {dropped} test pairs in the target log, expected pairs that were held out; "
            "leave them out of --target"
        )
    target = replace(prepared.target, n_users=log.n_users)
    return replace(prepared, target=target, test_users=users, test_items=items), dropped


def _without_known(
    test: Interactions, log: Interactions, n_items: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Drop test pairs that the log holds; (users, items, how many were dropped)."""
    known = np.isin(test.users * n_items + test.items, log.users * n_items + log.items)
    return test.users[~known], test.items[~known], int(known.sum())


def _history_share(prepared: Prepared) -> dict[str, float]:
    if prepared.split.kind != "time":
        return {}
    users, split = prepared.catalogue.log.users, prepared.split
    return {"test_users_with_history": share_with_history(users, split.kept, split.test)}
