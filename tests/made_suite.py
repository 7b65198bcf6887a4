"""A results folder of a suite with made-up numbers that look like real ones."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BASELINES = ("popularity", "itemknn", "rp3beta", "ease", "ials", "gf-cf", "raw-text")
TRANSFERS = ("zero-shot", "heads", "final:1", "final:2", "full")
METRICS = ("ndcg@20", "recall@20", "ndcg@10", "recall@10", "hit@20", "coverage@20")
# Quality at 2 % and at 100 % of the data, as a multiple of the target's popularity.
LEVELS = {
    "popularity": (1.0, 1.25),
    "itemknn": (0.55, 1.9),
    "rp3beta": (0.6, 1.85),
    "ease": (0.9, 2.25),
    "ials": (0.5, 1.8),
    "gf-cf": (0.7, 2.1),
    "raw-text": (0.98, 1.5),
    "scratch": (0.95, 2.15),
    "shuffled-text": (1.02, 2.1),
    "zero-shot": (1.13, 1.6),
    "heads": (1.16, 1.9),
    "final:1": (1.2, 2.2),
    "final:2": (1.17, 2.28),
    "full": (1.1, 2.26),
}
KEYS = ("suite", "scenario", "target", "source", "arm", "family", "encoder", "fraction", "seed")
COSTS = {
    "seconds_features": 2.5,
    "seconds_pretrain": 140.0,
    "seconds_train": 6.0,
    "seconds_first": 0.35,
    "seconds_evaluate": 0.4,
    "peak_memory_mb": 900.0,
    "energy_wh": 0.25,
}


def family(arm: str) -> str:
    return (
        "baseline"
        if arm in BASELINES
        else {"scratch": "scratch", "shuffled-text": "control"}.get(arm, "transfer")
    )


def made_suite(
    folder: Path,
    *,
    targets: Sequence[str] = ("ml-latest-small", "ifdb"),
    sources: Sequence[str] = ("goodbooks-10k", "ml-1m"),
    encoders: Sequence[str] = ("lightgcn",),
    fractions: Sequence[float] = (0.02, 0.1, 1.0),
    seeds: Sequence[int] = (0, 1),
    arms: Sequence[str] = tuple(LEVELS),
    guard: bool = True,
) -> Path:
    """Write all six files; the matrix of sources is at the smallest fraction only."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    buckets: list[dict[str, Any]] = []
    means: dict[tuple, list[float]] = {}
    for number, target in enumerate(targets):
        for scenario in ("main", "cold-items", "cold-users"):
            for fraction in fractions if scenario == "main" else (1.0,):
                for arm, encoder, source in _arms(
                    arms, encoders, sources, fraction == fractions[0]
                ):
                    keys = ("made", scenario, target, source, arm, family(arm), encoder, fraction)
                    for seed in seeds:
                        value = _quality(number, arm, encoder, source, fraction, scenario)
                        value *= 1 + 0.012 * rng.standard_normal()
                        key = dict(zip(KEYS, (*keys, seed), strict=True))
                        runs.append(key | _run(value, arm, fraction, number, guard, rng))
                        means.setdefault(keys, []).append(value)
                        if scenario == "main":
                            buckets += _buckets(key, value, rng)
                            curves += _curve(key, value, arm, rng)
    _write(folder / "runs.csv", runs)
    _write(folder / "curves.csv", curves)
    _write(folder / "buckets.csv", buckets)
    _write(folder / "differences.csv", _differences(means, sources[0]))
    tuned = [r for r in runs if r["scenario"] == "main" and r["seed"] == seeds[0] and r["settings"]]
    _write(folder / "trials.csv", [_trial(r, n, rng) for r in tuned for n in range(3)])
    _write(
        folder / "overlap.csv",
        [
            {
                "source": source,
                "target": target,
                "users": 0,
                "items": 3 * place,
                "texts": 40 * place,
                "near_texts": 55 * place,
                "n_target_items": 2000 + 700 * number,
                "n_target_users": 671,
            }
            for number, target in enumerate(targets)
            for place, source in enumerate(sources)
        ],
    )
    return folder


def _arms(arms, encoders, sources, everywhere):
    for arm in arms:
        if family(arm) == "baseline":
            yield arm, "", ""
            continue
        for encoder in encoders:
            if arm == "scratch":
                yield arm, encoder, ""
            else:
                for source in sources if everywhere else sources[:1]:
                    yield arm, encoder, source


def _quality(number, arm, encoder, source, fraction, scenario):
    low, high = LEVELS[arm]
    share = math.log(fraction / 0.02) / math.log(50)
    base = (0.065, 0.12, 0.05, 0.03, 0.09)[number % 5]
    value = base * (low + (high - low) * share**1.6)
    if family(arm) == "transfer":
        value *= 1 + 0.05 * math.sin(number * 2.1 + len(source)) - 0.04 * number * (fraction < 0.2)
    if encoder:
        value *= 1 - 0.03 * (sum(map(ord, encoder)) % 3)
    return value * {"main": 1.0, "cold-items": 0.3, "cold-users": 0.8}[scenario]


def _run(value, arm, fraction, number, guard, rng):
    trained = {"scratch": 1.0, "full": 1.0, "heads": 0.05, "final:1": 0.09, "final:2": 0.3}
    share = trained.get(arm, 0.0)
    model = family(arm) != "baseline"
    chosen = arm if rng.random() > 0.15 else "scratch"
    return (
        {
            name: value * factor
            for name, factor in zip(METRICS, (1, 1.4, 0.8, 0.9, 2, 3), strict=True)
        }
        | {
            "n_users": 671 + number,
            "n_items": 2000 + 700 * number,
            "n_kept": int(50_000 * fraction),
            "n_test": 12_000,
            "n_test_users": 660,
            "n_test_users_without_history": int(40 / fraction / 50),
            "split_sha256": f"{number:02d}" + "ab" * 31,
            "settings": json.dumps({"learning_rate": 0.01, "n_folds": 4}) if model else "",
        }
        | {
            name: cost * (1 + 0.1 * rng.random()) if name != "seconds_train" or share else 0.0
            for name, cost in COSTS.items()
        }
        | {
            "parameters_total": 60_000 if model else "",
            "parameters_trained": int(60_000 * share) if model else "",
            "parameters_ids": 170_000 if share else 0,
            "parameters_biases": 2_700 if share else 0,
            "steps": int(400 * share),
            "best_value": 9 - 10 * value if share else "",
            "choice": chosen if guard and arm in ("final:1", "final:2") else "",
            "device": "cpu",
            "hardware": "a processor, 2 cores, 2 threads",
            "versions": "python=3.11 gnnrec=0.1.0",
            "date": "2025-01-02",
        }
    )


def _buckets(key, value, rng):
    steps = {
        "user-activity": ("ndcg@20", ("0", "1-4", "5-19", "20-99", "100+")),
        "item-popularity": ("recall@20", ("unseen", "tail", "middle", "head")),
    }
    for by, (metric, names) in steps.items():
        for place, name in enumerate(names):
            found = {"ndcg@20": "", "recall@20": ""}
            found[metric] = value * (0.5 + 0.3 * place + 0.05 * rng.random())
            yield key | {"by": by, "bucket": name, "n": 100 + place} | found


def _curve(key, value, arm, rng):
    """Losses: lower is better; the best of a curve is the run's best value."""
    if arm in BASELINES or arm == "zero-shot":
        return
    end, fast = 9 - 10 * value, 0.4 if arm == "scratch" else 1.5
    start = end + (1.2 if arm == "scratch" else 0.5)
    for step in range(0, 9):
        shown = start + (end - start) * (1 - math.exp(-fast * step)) / (1 - math.exp(-fast * 8))
        yield key | {
            "stage": "training",
            "step": 25 * step,
            "seconds": 0.7 * step + 0.01 * rng.random(),
            "value": end if step == 8 else shown,
        }


def _differences(means, chosen):
    """Each transfer arm to its twin, popularity, the best without a source; means over targets."""
    places: dict[tuple, list[tuple]] = {}
    for keys in means:
        _, scenario, target, _, _, _, _, fraction = keys
        places.setdefault((scenario, target, fraction), []).append(keys)
    over_targets: dict[tuple, list[float]] = {}
    for group in places.values():
        without = [keys for keys in group if not keys[3]]
        best = max(without, key=lambda keys: np.mean(means[keys]))
        for one in (keys for keys in group if keys[5] == "transfer"):
            twins = [o for o in without if o[4] == "scratch" and o[6] == one[6]]
            popular = [o for o in without if o[4] == "popularity"]
            for kind, others in (
                ("scratch", twins),
                ("popularity", popular),
                ("the best without a source", [best]),
            ):
                for other in others:
                    base = float(np.mean(means[other]))
                    gap = float(np.mean(means[one])) - base
                    half = 0.02 * base * (1 + (len(one[3]) % 3) / 3)
                    for bucket in ("all", "0", "1-4"):
                        yield _difference(one, other, kind, base, gap, half, bucket) | {
                            "chosen": "yes" if one[3] == chosen else "no"
                        }
                    if one[3] == chosen:
                        place = (one[1], one[7], one[4], one[6], kind)
                        over_targets.setdefault(place, []).append(gap / base)
    for (scenario, fraction, arm, encoder, kind), gaps in over_targets.items():
        one = ("made", scenario, "all", "", arm, "transfer", encoder, fraction)
        other = ("made", scenario, "all", "", kind, "", "", fraction)
        found = _difference(one, other, kind, 1.0, float(np.mean(gaps)), 0.015, "all")
        yield found | {"n_targets": len(gaps)}


def _difference(one, other, kind, base, gap, half, bucket):
    metric = "recall@20" if one[1] == "cold-items" else "ndcg@20"
    low, high = gap - half, gap + half
    return {
        "scenario": one[1],
        "target": one[2],
        "fraction": one[7],
        "source": one[3],
        "arm": one[4],
        "against": other[4],
        "metric": metric,
        "n_users": 660,
        "mean_difference": gap,
        "low": low,
        "high": high,
        "relative": gap / base,
        "relative_low": low / base,
        "relative_high": high / base,
        "p": 0.01,
        "p_holm": 0.04,
        "family": f"{one[1]}: against {kind}, {metric}, users {bucket}",
        "bucket": bucket,
        "encoder": one[6],
        "against_source": other[3],
        "against_encoder": other[6],
        "chosen": "yes",
        "n_targets": 1,
        "n_resamples": 10_000,
    }


def _trial(run, number, rng):
    settings = {"learning_rate": 0.01 * 2**number, "n_folds": 4}
    return {
        "target": run["target"],
        "arm": run["arm"],
        "source": run["source"],
        "fraction": run["fraction"],
        "trial": number,
        "settings": json.dumps(settings),
        "value": 8 + rng.random(),
        "seconds": 5.0,
    }


def _write(path, rows):
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
