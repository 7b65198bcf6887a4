"""Several arms on one target over several seeds, with paired intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gnnrec.arms import Arm, popularity_arm, prepare, run_arm
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig
from gnnrec.sources import Log
from gnnrec.stats import paired_bootstrap, seed_spread

PRIMARY = "ndcg@20"


def compare(
    checkpoint: Checkpoint,
    log: Log,
    arms: tuple[str, ...],
    config: TransferConfig,
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    device: str = "cpu",
    report: Callable[[str], None] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run popularity and the given retraining modes, each with the same settings.

    The test part is fixed by config.split_seed; a seed draws the kept fraction, the validation
    rows and everything random in training. Metrics are averaged over seeds per user first, then
    users are resampled.

    Args:
        checkpoint: The pretrained model.
        log: The target.
        arms: Values of --retrain.
        config: Shared by all arms but for `retrain` and `seed`.
        seeds: At least one.
        device: Where to train.
        report: Told each arm's value as it comes.

    Returns:
        (rows, differences). A row per arm: arm, metrics (mean over seeds and users), seed_mean and
        seed_sd of NDCG@20, mean seconds, parameters. A difference per pair of arms, later minus
        earlier, on NDCG@20: mean, relative, 95 % intervals, p.
    """
    runs: dict[str, list[Arm]] = {}
    meta: dict[str, Any] = {}
    for seed in seeds:
        settings = config.model_copy(update={"seed": seed})
        prepared = prepare(log, checkpoint.text_encoder(device), settings)
        if not meta:
            kept = prepared.split.kept
            meta = {
                "target": log.name,
                "source": checkpoint.name,
                "fraction": config.fraction,
                "n_users": prepared.target.n_users,
                "n_items": prepared.target.n_items,
                "n_kept": len(kept),
                "n_test": len(prepared.test_users),
                "n_test_users": len(np.unique(prepared.test_users)),
                "split_sha256": prepared.split_sha256,
                "feature_seconds": round(prepared.feature_seconds, 3),
            }
        for name in ("popularity", *arms):
            started = time.perf_counter()
            if name == "popularity":
                arm = popularity_arm(prepared)
            else:
                arm_settings = settings.model_copy(update={"retrain": name})
                arm = run_arm(prepared, checkpoint, arm_settings, device=device)
            runs.setdefault(name, []).append(arm)
            if report is not None:
                value = arm.results.metrics[PRIMARY]
                seconds = time.perf_counter() - started
                report(f"seed {seed}  {name:<11} {PRIMARY} {value:.4f}  {seconds:5.1f} s")
    rows = [_row(name, done, seeds, meta) for name, done in runs.items()]
    averaged = {
        name: np.mean([arm.results.per_user[PRIMARY] for arm in done], axis=0)
        for name, done in runs.items()
    }
    names = list(averaged)
    differences = [
        {"arm": b, "against": a, "metric": PRIMARY, **paired_bootstrap(averaged[b], averaged[a])}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    return rows, differences


def _row(
    name: str, done: list[Arm], seeds: tuple[int, ...], meta: dict[str, Any]
) -> dict[str, Any]:
    metrics = {
        key: float(np.mean([arm.results.metrics[key] for arm in done]))
        for key in done[0].results.metrics
    }
    values = [arm.results.metrics[PRIMARY] for arm in done]
    mean, spread = seed_spread(values)
    adapted = done[0].adapted
    parameters = None
    if adapted is not None:
        parameters = adapted.count_parameters()
    return {
        "arm": name,
        "metrics": metrics,
        "seeds": list(seeds),
        "per_seed": values,
        "seed_mean": mean,
        "seed_sd": spread,
        "seconds": {
            key: float(np.mean([arm.seconds[key] for arm in done])) for key in done[0].seconds
        },
        "best_steps": [[] if a.adapted is None else list(a.adapted.best_steps) for a in done],
        "parameters": parameters,
        **meta,
    }
