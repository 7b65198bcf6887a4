"""Gowalla and Yelp2018 in LightGCN's split, from raw files to metrics, beside published figures.

    python benchmarks/published.py                  # both, about five minutes on two cores
    python benchmarks/published.py --data gowalla --mode searched --json
    python benchmarks/published.py --data gowalla --mode mixed      # an hour or more

Modes of the graph filter (`gnnrec.filters`), a LightGCN in closed form with seven numbers:

- transferred: the numbers come from the other data set's training part. Nothing is chosen and
  nothing is trained on the target, whose part of the cost is one decomposition and the ranking.
- searched: the numbers are chosen on a tenth of the target's own training interactions, held out
  for it; then the filter is computed on all of them.

Only when asked for:

- mixed: the searched filter, and a LightGCN with free vectors (`gnnrec.baselines.lightgcn`) trained
  for --steps on what the search had visible. The weight of their mixture (`gnnrec.mixture`) is
  chosen by NDCG@20 of the held-out tenth; then both are made again on all training interactions.

The published test part is ranked once for each row. Recall@20 and NDCG@20, full ranking.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import argparse  # noqa: E402 (loading the libraries is part of the time)
import functools  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import report  # noqa: E402

from gnnrec.baselines.lightgcn import (  # noqa: E402
    DIM,
    LAYERS,
    NEGATIVES,
    TEMPERATURE,
    LightGCN,
    train_config,
    train_lightgcn,
)
from gnnrec.checkpoint import Checkpoint  # noqa: E402
from gnnrec.config import ModelConfig, TransferConfig  # noqa: E402
from gnnrec.datasets import Dataset, load  # noqa: E402
from gnnrec.device import peak_memory_bytes, resolve_device  # noqa: E402
from gnnrec.evaluate import Results, evaluate_scores  # noqa: E402
from gnnrec.features import GraphInput  # noqa: E402
from gnnrec.filters import GraphFilter  # noqa: E402
from gnnrec.mixture import mixture, spread  # noqa: E402
from gnnrec.model import build_model  # noqa: E402
from gnnrec.sampling import Episode  # noqa: E402
from gnnrec.scores import ScoreVectors  # noqa: E402
from gnnrec.search import MAX_SEARCH_USERS, HeldOut  # noqa: E402
from gnnrec.split import carve_validation  # noqa: E402
from gnnrec.target import Target  # noqa: E402
from gnnrec.train import batch_loss  # noqa: E402
from gnnrec.transfer import Adapted, adapt  # noqa: E402

_IMPORTS = time.perf_counter() - _STARTED

# Recall@20, NDCG@20: LightGCN's own, and the best that was found verified on this split.
PUBLISHED = {
    "gowalla": {"lightgcn": (0.1830, 0.1554), "best": (0.1920, 0.1597)},
    "yelp2018": {"lightgcn": (0.0649, 0.0530), "best": (0.0744, 0.0617)},
}
OTHER = {"gowalla": "yelp2018", "yelp2018": "gowalla"}
MODES = ("transferred", "searched")
MIXED = "mixed"
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of the LightGCN against the filter, both of unit spread
BATCH, STEPS = 8192, 6000


class Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def target_of(data: Dataset) -> Target:
    """The training part."""
    log = data.interactions
    return Target(log.users, log.items, log.n_users, log.n_items)


@functools.cache
def searched(
    name: str, model: ModelConfig, evaluations: int, device: str
) -> tuple[Adapted, float, float]:
    """Choose the filter's numbers on a held-out tenth of a set's training interactions.

    Returns the adapted filter and the seconds for reading the data and for the search.
    """
    clock = Clock()
    target = target_of(load(name))
    read = clock.lap()
    torch.manual_seed(0)
    fresh = Checkpoint("fresh", model, build_model(model).state_dict())
    config = TransferConfig(retrain="scratch", search_evaluations=evaluations)
    train, validation = carve_validation(np.arange(len(target.users)))
    adapted = adapt(fresh, target, train, validation, config, device=device)
    return adapted, read, clock.lap()


def quality(name: str, results: Results) -> dict[str, Any]:
    """Recall and NDCG, and both over the published figures."""
    recall, ndcg = results.metrics["recall@20"], results.metrics["ndcg@20"]
    out: dict[str, Any] = {"recall@20": round(recall, 5), "ndcg@20": round(ndcg, 5)}
    for label, (published_recall, published_ndcg) in PUBLISHED[name].items():
        out[f"recall_to_{label}"] = round(recall / published_recall, 4)
        out[f"ndcg_to_{label}"] = round(ndcg / published_ndcg, 4)
    return out


def row(name: str, mode: str, model: ModelConfig, evaluations: int, device: str) -> dict[str, Any]:
    """Measure one mode on one data set."""
    own = mode == "searched"
    adapted, *seconds = searched(name if own else OTHER[name], model, evaluations, device)
    choosing = seconds[1] if own else 0.0
    clock = Clock()
    data = load(name)
    target = target_of(data)
    read = clock.lap()
    x = target.graph_input(rank=model.spectral_rank, device=device)
    with torch.no_grad():
        scores = adapted.model(x)
    computing = clock.lap()
    assert data.test is not None
    results = evaluate_scores(
        scores, x.graph.user_items, data.test.users, data.test.items, ks=(20,)
    )
    ranking = clock.lap()
    (stage,) = adapted.stages
    out = {"data": name, "mode": mode} | quality(name, results)
    return out | {
        "seconds_total": round(_IMPORTS + read + choosing + computing + ranking, 1),
        "seconds_imports": round(_IMPORTS, 1),
        "seconds_read": round(read, 1),
        "seconds_search": round(choosing, 1),
        "seconds_decompose": round(computing, 1),
        "seconds_rank": round(ranking, 1),
        "seconds_on_the_source": 0.0 if own else round(sum(seconds), 1),
        "numbers_from": name if own else OTHER[name],
        "validation_ndcg@20": round(-stage.best_value, 5),
        "evaluations": stage.steps,
        "spectral_rank": model.spectral_rank,
        **{name: round(p.item(), 4) for name, p in adapted.model.named_parameters()},
        "n_train": len(target.users),
        "n_test": len(data.test.users),
        "n_test_users": len(results.users),
        "table_sha256": data.sha256,
        "peak_memory_mb": peak_memory_bytes() // 2**20,
    }


def both_parts(
    adapted: Adapted, x: GraphInput, steps: int, label: str
) -> tuple[ScoreVectors, ScoreVectors, float, dict[str, float]]:
    """Compute the filter on a graph and train a LightGCN on it.

    Returns the scores of both, the LightGCN's loss at the end (the mean of a few more batches), and
    the seconds of both.
    """
    clock = Clock()
    assert isinstance(adapted.model, GraphFilter)
    with torch.no_grad():
        first = adapted.model(x)
    seconds = {"decompose": clock.lap()}
    config = train_config(steps, BATCH)
    model, _ = train_lightgcn(x, config, label=label)
    seconds["train"] = clock.lap()
    with torch.no_grad():
        return first, model(x), final_loss(model, x, steps), seconds


def final_loss(model: LightGCN, x: GraphInput, steps: int) -> float:
    """The mean loss of eight fresh batches of the edges trained on."""
    episode, config = Episode(x, *x.graph.edges()), train_config(steps, BATCH)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(8):
        batch = episode.batch(BATCH, config.n_negatives, config.user_balance, rng)
        losses.append(batch_loss(model, episode, batch, config).item())  # type: ignore[arg-type]
    return float(np.mean(losses))


def choose_weight(
    first: ScoreVectors, second: ScoreVectors, part: HeldOut
) -> tuple[float, dict[float, float], float]:
    """Return the weight that ranks held-out interactions best, NDCG@20 of all, and that of none.

    The last one is the LightGCN's own.
    """
    users, row = np.unique(part.users, return_inverse=True)
    seen = part.input.graph.user_items[users]
    first, second = first.of(users), second.of(users)
    spreads = (spread(first), spread(second))

    def ndcg(scores: ScoreVectors) -> float:
        return evaluate_scores(scores, seen, row, part.items, ks=(20,)).metrics["ndcg@20"]

    values = {w: ndcg(mixture(first, second, w, spreads)) for w in WEIGHTS}
    say({"validation": {w: round(v, 5) for w, v in values.items()}})
    return max(values, key=lambda w: values[w]), values, ndcg(second)


def mixed_row(
    name: str, model: ModelConfig, evaluations: int, device: str, steps: int, validation_only: bool
) -> dict[str, Any]:
    """Choose a mixture on a held-out tenth, make it again on everything, rank the test part."""
    adapted, read, choosing = searched(name, model, evaluations, device)
    clock = Clock()
    data = load(name)
    target = target_of(data)
    read += clock.lap()
    train, validation = carve_validation(np.arange(len(target.users)))
    x = target.graph_input(train, rank=model.spectral_rank, device=device)
    part = HeldOut(x, target.users[validation], target.items[validation])
    part = part.some_users(MAX_SEARCH_USERS, 0)
    first, second, loss, seconds = both_parts(adapted, x, steps, f"{name} without a tenth")
    clock.lap()
    weight, values, alone = choose_weight(first, second, part)
    weighing, training, decomposing = clock.lap(), seconds["train"], seconds["decompose"]
    out: dict[str, Any] = {"data": name, "mode": MIXED}
    ranking, test_users = 0.0, 0
    if not validation_only:
        x = target.graph_input(rank=model.spectral_rank, device=device)
        first, second, loss, seconds = both_parts(adapted, x, steps, f"{name}, everything")
        training, decomposing = training + seconds["train"], decomposing + seconds["decompose"]
        assert data.test is not None
        clock.lap()
        results = evaluate_scores(
            mixture(first, second, weight),
            x.graph.user_items,
            data.test.users,
            data.test.items,
            ks=(20,),
        )
        ranking, test_users = clock.lap(), len(results.users)
        out |= quality(name, results)
    assert data.test is not None
    total = _IMPORTS + read + choosing + decomposing + training + weighing + ranking
    return out | {
        "seconds_total": round(total, 1),
        "seconds_imports": round(_IMPORTS, 1),
        "seconds_read": round(read, 1),
        "seconds_search": round(choosing, 1),
        "seconds_decompose": round(decomposing, 1),
        "seconds_train": round(training, 1),
        "seconds_weigh": round(weighing, 1),
        "seconds_rank": round(ranking, 1),
        "seconds_on_the_source": 0.0,
        "numbers_from": name,
        "validation_ndcg@20": round(values[weight], 5),
        "validation_ndcg@20_lightgcn": round(alone, 5),
        **{f"validation_ndcg@20_weight_{w:g}": round(v, 5) for w, v in values.items()},
        "mix_weight": weight,
        "steps": steps,
        "batch_size": BATCH,
        "n_negatives": NEGATIVES,
        "dim": DIM,
        "n_layers": LAYERS,
        "temperature": TEMPERATURE,
        "learning_rate": train_config(steps, BATCH).learning_rate,
        "loss_at_the_end": round(loss, 5),
        "evaluations": adapted.stages[0].steps,
        "spectral_rank": model.spectral_rank,
        **{name: round(p.item(), 4) for name, p in adapted.model.named_parameters()},
        "n_train": len(target.users),
        "n_test": len(data.test.users),
        "n_test_users": test_users,
        "table_sha256": data.sha256,
        "peak_memory_mb": peak_memory_bytes() // 2**20,
    }


def say(record: dict[str, Any]) -> None:
    """Show progress where it does not mix with the result."""
    print(record, file=sys.stderr, flush=True)


def main() -> None:
    """Run the asked rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", choices=list(PUBLISHED))
    parser.add_argument("--mode", action="append", choices=[*MODES, MIXED])
    parser.add_argument("--evaluations", type=int, default=60, help="budget of a search")
    parser.add_argument("--rank", type=int, default=128, help="spectral rank")
    parser.add_argument("--steps", type=int, default=STEPS, help="mixed: of each training")
    parser.add_argument(
        "--validation-only", action="store_true", help="mixed: leave the test part alone"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    modes = arguments.mode or MODES
    only_mixed = set(modes) == {MIXED}
    if arguments.validation_only and not only_mixed:
        parser.error("--validation-only goes with --mode mixed alone")
    if MIXED in modes and not only_mixed:
        parser.error("--mode mixed has columns of its own; run it apart from the other modes")
    model = ModelConfig(encoder="graph-filter", spectral_rank=arguments.rank)
    device = str(resolve_device())
    names = arguments.data or list(PUBLISHED)
    budget = arguments.evaluations
    rows = []
    for name in names:
        for mode in modes:
            if mode == MIXED:
                last = (arguments.steps, arguments.validation_only)
                rows.append(mixed_row(name, model, budget, device, *last))
            else:
                rows.append(row(name, mode, model, budget, device))
            say(rows[-1])
    as_asked = budget == 60 and arguments.rank == 128
    if only_mixed:
        whole = as_asked and arguments.steps >= STEPS and not arguments.validation_only
        report(rows, "_".join(["published_mixed", *names]), arguments.json, write=whole)
    else:
        whole = as_asked and not (arguments.data or arguments.mode)
        report(rows, "published", arguments.json, write=whole)


if __name__ == "__main__":
    main()
