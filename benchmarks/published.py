"""Gowalla and Yelp2018 in LightGCN's split, from raw files to metrics, beside published figures.

    python benchmarks/published.py                  # both, about five minutes on two cores
    python benchmarks/published.py --data gowalla --mode searched --json

Modes of the graph filter (`gnnrec.filters`), a LightGCN in closed form with seven numbers:

- transferred: the numbers come from the other data set's training part. Nothing is chosen and
  nothing is trained on the target, whose part of the cost is one decomposition and the ranking.
- searched: the numbers are chosen on a tenth of the target's own training interactions, held out
  for it; then the filter is computed on all of them.

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

from gnnrec.checkpoint import Checkpoint  # noqa: E402
from gnnrec.config import ModelConfig, TransferConfig  # noqa: E402
from gnnrec.datasets import Dataset, load  # noqa: E402
from gnnrec.device import peak_memory_bytes, resolve_device  # noqa: E402
from gnnrec.evaluate import evaluate_scores  # noqa: E402
from gnnrec.model import build_model  # noqa: E402
from gnnrec.split import carve_validation  # noqa: E402
from gnnrec.transfer import Adapted, Target, adapt  # noqa: E402

_IMPORTS = time.perf_counter() - _STARTED

# Recall@20, NDCG@20: LightGCN's own, and the best that was found verified on this split.
PUBLISHED = {
    "gowalla": {"lightgcn": (0.1830, 0.1554), "best": (0.1920, 0.1597)},
    "yelp2018": {"lightgcn": (0.0649, 0.0530), "best": (0.0744, 0.0617)},
}
OTHER = {"gowalla": "yelp2018", "yelp2018": "gowalla"}
MODES = ("transferred", "searched")


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
    recall, ndcg = results.metrics["recall@20"], results.metrics["ndcg@20"]
    (stage,) = adapted.stages
    out: dict[str, Any] = {
        "data": name,
        "mode": mode,
        "recall@20": round(recall, 5),
        "ndcg@20": round(ndcg, 5),
    }
    for label, (published_recall, published_ndcg) in PUBLISHED[name].items():
        out[f"recall_to_{label}"] = round(recall / published_recall, 4)
        out[f"ndcg_to_{label}"] = round(ndcg / published_ndcg, 4)
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


def main() -> None:
    """Run the asked rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", choices=list(PUBLISHED))
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--evaluations", type=int, default=60, help="budget of a search")
    parser.add_argument("--rank", type=int, default=128, help="spectral rank")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = ModelConfig(encoder="graph-filter", spectral_rank=arguments.rank)
    device = str(resolve_device())
    rows = []
    for name in arguments.data or list(PUBLISHED):
        for mode in arguments.mode or MODES:
            rows.append(row(name, mode, model, arguments.evaluations, device))
            print(rows[-1], file=sys.stderr, flush=True)
    everything = not (arguments.data or arguments.mode) and arguments.evaluations == 60
    report(rows, "published", arguments.json, write=everything)


if __name__ == "__main__":
    main()
