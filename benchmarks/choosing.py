"""Does `gnnrec select` rank checkpoints as they turn out? Kendall's tau, target by target.

    python benchmarks/choosing.py                   # all targets; pretrains ten checkpoints first
    python benchmarks/choosing.py --target ml-100k  # one; may be repeated

Candidates are channel blends, one a source and with or without text, made as the shipped ones are
but for fewer sub-graphs and their own items; none of a target's own log.
`select` sees a tenth of the target's training interactions and hides parts of it; what is measured
is NDCG@20 on the untouched test part after `final:1` on the same tenth, without the guard, which
would put a fresh model in a candidate's place. No number is fitted over targets to make the
ranking; how much `select` hides and its strengths were decided on seeds 0 and 1 of these targets,
seeds 2 and 3 were not looked at before. Tau is that of the means over seeds. A row a target,
candidate and seed goes to results/choosing.csv; checkpoints and what was measured stay in
runs/choosing, and are not made twice.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import asked, report
from scipy.stats import kendalltau
from zoo import settings

from gnnrec.arms import Prepared, popularity_arm, prepare, run_arm
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig
from gnnrec.runs import pretrain_run
from gnnrec.select import rank_checkpoints
from gnnrec.sources import open_log
from gnnrec.storage import whole_file
from gnnrec.text import DEFAULT_TEXT_MODEL, TextEncoder

SOURCES = ("goodbooks-10k", "ml-1m", "online-retail", "movietweetings-100k", "ifdb")
TARGETS = ("ml-latest-small", "ml-100k", "online-retail", "movietweetings-100k", "ifdb")
FRACTION, N_SEEDS = 0.1, 4
FOLDER = Path("runs/choosing")


def pretrained(source: str, text: bool) -> Checkpoint:
    """Pretrain a blend on one source; kept in runs/ so that all targets share it."""
    folder = FOLDER / f"{source}.{'text' if text else 'graph'}"
    if not folder.is_dir():
        config = settings("channels", text, quick=False)
        config = config.model_copy(update={"n_lessons": 40, "bridge_items": 10_000})
        pretrain_run([open_log(source)], config, name=folder.name).save(folder)
    return Checkpoint.load(folder)


def measured(name: str, seed: int, prepared: Prepared, config: TransferConfig) -> dict[str, float]:
    """Return NDCG@20 of each candidate, and of popularity, after fine-tuning; made once."""
    path = FOLDER / f"{name}.{seed}.json"
    if not path.is_file():
        found = {"popularity": popularity_arm(prepared).results.metrics["ndcg@20"]}
        for candidate in candidates_for(name):
            arm = run_arm(prepared, candidate, config)
            found[candidate.name] = arm.results.metrics["ndcg@20"]
            print(name, seed, candidate.name, found[candidate.name], file=sys.stderr)
        with whole_file(path) as work:
            work.write_text(json.dumps(found), encoding="utf-8")
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def candidates_for(target: str) -> list[Checkpoint]:
    """The blends of all sources but the target itself."""
    return [pretrained(name, text) for name in SOURCES if name != target for text in (True, False)]


def rows_of(target: str) -> list[dict[str, Any]]:
    """Rank the candidates for a target, and measure each of them on it."""
    log = open_log(target)
    candidates = candidates_for(target)
    told, found, seconds = [], [], []
    for seed in range(N_SEEDS):
        config = TransferConfig(
            fraction=FRACTION, seed=seed, split_seed=seed, retrain="final:1", guard=False
        )
        prepared = prepare(log, TextEncoder(DEFAULT_TEXT_MODEL), config)
        kept = np.sort(np.concatenate([prepared.split.train, prepared.split.validation]))
        small = dataclasses.replace(log, interactions=log.interactions.select(kept))
        ranked = rank_checkpoints(small, candidates)
        seconds.append(ranked["seconds"]["total"] - ranked["seconds"]["features"])
        told.append({row["name"]: row["ndcg@20"] for row in ranked["candidates"]})
        found.append(measured(target, seed, prepared, config))

    names = [candidate.name for candidate in candidates]
    pairs = [
        np.mean([[value[name] for name in names] for value in values], axis=0)
        for values in (told, found)
    ]
    tau = kendalltau(*pairs).statistic
    print(f"{target}: tau {tau:.3f}", file=sys.stderr)
    return [
        {
            "target": target,
            "candidate": name,
            "fraction": FRACTION,
            "seed": seed,
            "select_ndcg@20": f"{told[seed][name]:.5f}",
            "measured_ndcg@20": f"{found[seed][name]:.5f}",
            "popularity_ndcg@20": f"{found[seed]['popularity']:.5f}",
            "select_seconds": f"{seconds[seed]:.1f}",
            "kendall_tau": f"{tau:.3f}",
        }
        for name in names
        for seed in range(N_SEEDS)
    ]


def main() -> None:
    """Rank and measure on the asked targets; print the mean tau and its interval."""
    targets, as_json = asked(__doc__, TARGETS)
    rows = [row for target in targets for row in rows_of(target)]
    taus = np.array(list({row["target"]: float(row["kendall_tau"]) for row in rows}.values()))
    rng = np.random.default_rng(0)
    means = rng.choice(taus, (10_000, len(taus))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    print(f"mean tau {taus.mean():.3f} [{low:.3f}, {high:.3f}], targets resampled", file=sys.stderr)
    report(rows, "choosing", as_json, write=set(targets) == set(TARGETS))


if __name__ == "__main__":
    main()
