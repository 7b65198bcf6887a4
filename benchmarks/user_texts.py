"""Does it help to read what users write? ml-latest-small with and without its 3,683 tags.

    taskset -c 0 python benchmarks/user_texts.py            # the rows
    taskset -c 0 python benchmarks/user_texts.py --choose   # the weight, on validation rows alone

Raw text, and `channels.text` as it is and retrained, at two fractions of the training interactions
and three seeds, without the guard, which may put a fresh model in a checkpoint's place. The split
is the same with and without tags; a tag counts where its interaction is visible. NDCG@20, full
ranking, over all test users and over those who wrote; the difference is that of the same arm
without tags, paired over users (`gnnrec.stats.paired_bootstrap`).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch
from common import report

from gnnrec import edge_texts
from gnnrec.arms import Arm, Prepared, baseline_arm, prepare, run_arm
from gnnrec.baselines import BASELINES
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig
from gnnrec.evaluate import evaluate_scores
from gnnrec.interactions import Columns
from gnnrec.sources import open_log
from gnnrec.stats import paired_bootstrap
from gnnrec.zoo import resolve

TARGET, COLUMN = "ml-latest-small", "tag"
FRACTIONS, SEEDS = (0.2, 1.0), (0, 1, 2)
ARMS = ("raw-text", "zero-shot", "final:1")
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
METRIC = "ndcg@20"


def prepared(checkpoint: Checkpoint, tags: bool, fraction: float, seed: int) -> Prepared:
    """Split the target, which its tags do not change."""
    log = open_log(TARGET, columns=Columns(text=COLUMN) if tags else None)
    config = TransferConfig(fraction=fraction, seed=seed)
    return prepare(log, checkpoint.text_encoder(), config)


def measured(target: Prepared, checkpoint: Checkpoint, arm: str, seed: int) -> Arm:
    """Fit or adapt an arm, and measure it on the test part."""
    if arm == "raw-text":
        return baseline_arm(target, arm, BASELINES[arm])
    config = TransferConfig(fraction=target.split.fraction, seed=seed, retrain=arm, guard=False)
    return run_arm(target, checkpoint, config)


def on_validation(target: Prepared, checkpoint: Checkpoint, arm: str) -> np.ndarray:
    """NDCG@20 of the users with validation rows, in an arm that trains nothing."""
    split, data = target.split, target.target
    x = data.graph_input(split.train, rank=checkpoint.config.spectral_rank)
    with torch.no_grad():
        scores = BASELINES[arm](x) if arm == "raw-text" else checkpoint.model()(x)
    hidden = data.users[split.validation], data.items[split.validation]
    return evaluate_scores(scores, x.graph.user_items, *hidden, (20,)).per_user[METRIC]


def choose(checkpoint: Checkpoint) -> None:
    """Print what each weight reaches on validation rows, relative to no tags."""
    for arm in ARMS[:2]:
        for fraction in FRACTIONS:
            without, found = [], {weight: [] for weight in WEIGHTS}
            for seed in SEEDS:
                plain = on_validation(prepared(checkpoint, False, fraction, seed), checkpoint, arm)
                without.append(plain.mean())
                with_tags = prepared(checkpoint, True, fraction, seed)
                for weight in WEIGHTS:
                    edge_texts.WEIGHT = weight
                    found[weight].append(on_validation(with_tags, checkpoint, arm).mean())
            base = np.mean(without)
            gains = {w: f"{100 * (np.mean(v) / base - 1):+.3f} %" for w, v in found.items()}
            print(arm, fraction, f"without {base:.5f}", gains, flush=True)


def rows_of(checkpoint: Checkpoint, fraction: float) -> list[dict[str, Any]]:
    """Run all arms with and without tags at one fraction."""
    per_user: dict[tuple[str, bool], list[np.ndarray]] = {}
    seconds: dict[tuple[str, bool], float] = {}
    n_visible = []
    for seed in SEEDS:
        both = {tags: prepared(checkpoint, tags, fraction, seed) for tags in (False, True)}
        assert both[True].split_sha256 == both[False].split_sha256
        edge_text = both[True].visible().edge_text
        n_visible.append(0 if edge_text is None else edge_text.rows.nnz)
        for arm in ARMS:
            for tags, target in both.items():
                started = time.perf_counter()
                results = measured(target, checkpoint, arm, seed).results
                key = arm, tags
                seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - started
                per_user.setdefault(key, []).append(results.per_user[METRIC])
                shown = f"{results.metrics[METRIC]:.5f} {'with' if tags else 'without'} tags"
                print(fraction, seed, arm, shown, file=sys.stderr, flush=True)
    log = both[True].log.interactions
    assert log.texts is not None
    wrote = np.isin(np.unique(both[True].test_users), log.users[log.texts.astype(bool)])
    rows = []
    for arm in ARMS:
        first, second = (np.mean(per_user[arm, tags], axis=0) for tags in (True, False))
        for group, chosen in (("all", np.full(len(wrote), True)), ("wrote", wrote)):
            found = paired_bootstrap(first[chosen], second[chosen])
            rows.append(
                {
                    "target": TARGET,
                    "arm": arm,
                    "fraction": fraction,
                    "seeds": len(SEEDS),
                    "users": group,
                    "n_users": found["n_users"],
                    "texts_visible": f"{np.mean(n_visible):.0f}",
                    "texts_left_out": both[True].log.n_texts_left_out,
                    "weight": edge_texts.WEIGHT,
                    f"{METRIC}_with": f"{first[chosen].mean():.5f}",
                    f"{METRIC}_without": f"{second[chosen].mean():.5f}",
                    **{
                        name: f"{found[name]:.5f}"
                        for name in ("mean_difference", "low", "high", "relative")
                    },
                    "p": f"{found['p']:.4f}",
                    "seconds_with": f"{seconds[arm, True] / len(SEEDS):.2f}",
                    "seconds_without": f"{seconds[arm, False] / len(SEEDS):.2f}",
                }
            )
    return rows


def main() -> None:
    """Measure, or choose the weight."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--choose", action="store_true", help="weights, on validation rows")
    parser.add_argument("--quick", action="store_true", help="one fraction; writes no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.load(resolve("channels.text"))
    if arguments.choose:
        choose(checkpoint)
        return
    fractions = FRACTIONS[:1] if arguments.quick else FRACTIONS
    rows = [row for fraction in fractions for row in rows_of(checkpoint, fraction)]
    report(rows, "user_texts", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
