"""How long one user waits: `Recommender.recommend` for one id after `Recommender.load`.

    python benchmarks/latency.py                # 40,000 items, 2,000 calls a row
    python benchmarks/latency.py --quick        # a tenth of both; writes no rows

A made-up log of text ids, every user with 10 to 30 items of a power law. The checkpoint is
text-free and pretrained for a few steps: the time does not depend on how well it ranks. A LightGCN
scores by vectors; a graph filter also propagates the user's row over the graph.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import report

from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig
from gnnrec.interactions import Interactions
from gnnrec.recommender import Recommender
from gnnrec.runs import pretrain_run
from gnnrec.sources import Log

WARM_UP = 50
ENCODERS = ("lightgcn", "graph-filter")


def made_up_log(n_users: int, n_items: int, seed: int = 0) -> pd.DataFrame:
    """A row per pair; item popularity falls as a power of its rank, ranks in random order."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), rng.integers(10, 31, n_users))
    ranks = (rng.random(len(users)) ** 3 * n_items).astype(np.int64)
    items = rng.permutation(n_items)[ranks]
    pairs = pd.DataFrame({"user_id": users, "item_id": items}).drop_duplicates(ignore_index=True)
    return pd.DataFrame(
        {"user_id": "u" + pairs.user_id.astype(str), "item_id": "i" + pairs.item_id.astype(str)}
    )


def served(
    folder: Path, encoder: str, n_users: int, n_items: int, items: pd.DataFrame | None = None
) -> Recommender:
    """Pretrain, fit with items (ids alone by default), save, and return what `load` makes of it."""
    frame = made_up_log(n_users, n_items)
    source = Log("made-up", Interactions.from_frame(frame), None)
    config = PretrainConfig(
        model=ModelConfig.model_validate({"encoder": encoder}),
        train=TrainConfig(max_steps=4, evaluate_every=4),
        n_validation_episodes=1,
        max_users=2_000,
        search_evaluations=1,
    )
    pretrain_run([source], config, name="latency").save(folder / "checkpoint")
    if items is None:
        items = pd.DataFrame({"item_id": [f"i{i}" for i in range(n_items)]})
    made = Recommender.from_pretrained(folder / "checkpoint", retrain="zero-shot")
    fitted = made.fit(frame, items=items)
    fitted.save(folder / "recommender")
    return Recommender.load(folder / "recommender")


def milliseconds(call: Callable[[int], object], calls: int) -> dict[str, str]:
    """Percentiles of single calls."""
    for number in range(WARM_UP):
        call(number)
    waits = np.empty(calls)
    for number in range(calls):
        started = time.perf_counter()
        call(number)
        waits[number] = 1e3 * (time.perf_counter() - started)
    shown = {f"p{p}_ms": f"{np.percentile(waits, p):.3f}" for p in (50, 90, 99)}
    return shown | {"max_ms": f"{waits.max():.3f}"}


def cases(recommender: Recommender, k: int, calls: int) -> dict[str, Callable[[int], object]]:
    """Name -> what to time, given the number of the call."""
    rng = np.random.default_rng(1)
    size = max(calls, WARM_UP)
    known = rng.choice(recommender.log.user_ids, size)
    items = recommender.log.item_ids
    hundred = [list(rng.choice(items, 100)) for _ in range(size)]
    thousand = [list(rng.choice(items, 1000)) for _ in range(size)]
    recommend = recommender.recommend
    return {
        "known user": lambda i: recommend([known[i]], k),
        "unknown user": lambda i: recommend([f"nobody {i}"], k),
        "exclude 100 items": lambda i: recommend([known[i]], k, exclude=hundred[i]),
        "allow 1,000 items": lambda i: recommend([known[i]], k, allow=thousand[i]),
    }


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", action="append", choices=ENCODERS, help="default: both")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--calls", type=int, help="default: 2,000")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size; no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    part = 10 if arguments.quick else 1
    n_users, n_items = 20_000 // part, 40_000 // part
    calls = arguments.calls or 2_000 // part
    rows: list[dict[str, Any]] = []
    for encoder in arguments.encoder or ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            recommender = served(Path(folder), encoder, n_users, n_items)
        for name, call in cases(recommender, arguments.k, calls).items():
            print(f"{encoder}: {name}", file=sys.stderr)
            rows.append(
                {
                    "encoder": encoder,
                    "case": name,
                    "n_users": n_users,
                    "n_items": n_items,
                    "k": arguments.k,
                    "calls": calls,
                    **milliseconds(call, calls),
                }
            )
    report(rows, "latency", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
