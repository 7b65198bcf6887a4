"""The files of a suite's results folder: their columns, and the rows that a run leaves in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gnnrec.arms import Arm, Prepared
from gnnrec.energy import Energy
from gnnrec.machine import MACHINE_FIELDS, peak_memory_mb
from gnnrec.plan import KEYS, Task
from gnnrec.trials import Settings, as_json

PRIMARY = "ndcg@20"
_METRICS = (
    *("ndcg@20", "recall@20", "ndcg@10", "recall@10", "hit@20", "coverage@20"),
    *("mrr@20", "map@20", "precision@20", "novelty@20", "average_popularity@20", "gini@20"),
    "recall@20_cold",
)
_COUNTS = ("n_users", "n_items", "n_kept", "n_test", "n_test_users")
_SECONDS = (
    *("seconds_features", "seconds_pretrain", "seconds_train"),
    *("seconds_first", "seconds_evaluate"),
)
_PARAMETERS = {
    "parameters_total": "total",
    "parameters_trained": "trained",
    "parameters_ids": "id_tables",
    "parameters_biases": "biases",
}
RUN_COLUMNS = (
    *KEYS,
    *_METRICS,
    *_COUNTS,
    *("n_test_users_without_history", "split_sha256", "settings"),
    *_SECONDS,
    *("peak_memory_mb", "energy_wh"),
    *_PARAMETERS,
    *("steps", "best_value", "choice", "device"),
    *MACHINE_FIELDS,
    *("run", "part_sha256"),
)
BUCKET_COLUMNS = (*KEYS, "by", "bucket", "n", "ndcg@20", "recall@20", "run")
CURVE_COLUMNS = (*KEYS, "stage", "step", "seconds", "value", "run")
TRIAL_COLUMNS = (
    *("target", "arm", "source", "fraction", "trial", "settings", "value", "seconds"),
    *("encoder", "part_sha256"),
)
OVERLAP_COLUMNS = (
    *("source", "target", "users", "items", "texts", "near_texts"),
    *("n_target_items", "n_target_users", "named_users", "named_items"),
)


@dataclass(frozen=True)
class Outcome:
    """A finished run, before it is written."""

    task: Task
    prepared: Prepared
    arm: Arm
    settings: Settings
    seconds_pretrain: float
    energy: Energy = field(default_factory=Energy)


def run_row(outcome: Outcome, split_sha256: str, activity: np.ndarray) -> dict[str, Any]:
    """The columns of `RUN_COLUMNS` between the keys and the machine.

    Args:
        outcome: The run.
        split_sha256: Of its split.
        activity: (n_test_users,) visible interactions of the test users.
    """
    arm, prepared = outcome.arm, outcome.prepared
    adapted = arm.adapted
    target = prepared.at_test or prepared.target
    counts = {} if adapted is None else adapted.count_parameters()
    value = adapted.stages[-1].best_value if adapted is not None and adapted.stages else math.inf
    return {
        **{name: arm.results.metrics.get(name) for name in _METRICS},
        "n_users": target.n_users,
        "n_items": target.n_items,
        "n_kept": len(prepared.split.kept),
        "n_test": len(prepared.test_users),
        "n_test_users": len(arm.results.users),
        "n_test_users_without_history": int((activity == 0).sum()),
        "split_sha256": split_sha256,
        "settings": as_json(outcome.settings),
        "seconds_features": round(prepared.feature_seconds, 3),
        "seconds_pretrain": round(outcome.seconds_pretrain, 3),
        "seconds_train": round(arm.seconds["train"], 3),
        "seconds_first": round(arm.seconds["first"], 3),
        "seconds_evaluate": round(arm.seconds["evaluate"], 3),
        "peak_memory_mb": peak_memory_mb(),
        "energy_wh": outcome.energy.watt_hours,
        **{column: counts.get(name, 0) for column, name in _PARAMETERS.items()},
        "steps": 0 if adapted is None else adapted.steps,
        "best_value": value if math.isfinite(value) else None,
        "choice": getattr(adapted, "choice", None),
    }


def bucket_rows(arm: Arm) -> list[dict[str, Any]]:
    """One row per bucket of users by activity, and of test interactions by item popularity."""
    by_user = [
        {"by": "user-activity", "bucket": row["bucket"], "n": row["n_users"]}
        | {name: row[name] for name in ("ndcg@20", "recall@20")}
        for row in arm.results.by_user_activity
    ]
    by_item = [
        {"by": "item-popularity", "bucket": row["bucket"], "n": row["n_interactions"]}
        | {"ndcg@20": None, "recall@20": row["recall@20"]}
        for row in arm.results.by_item_popularity
    ]
    return by_user + by_item


def curve_rows(arm: Arm) -> list[dict[str, Any]]:
    """One row per evaluation; seconds run on from stage to stage, and are empty where unknown."""
    rows: list[dict[str, Any]] = []
    before = 0.0
    for number, stage in enumerate(() if arm.adapted is None else arm.adapted.stages, start=1):
        for record in stage.history:
            seconds = record.get("seconds")
            seconds = None if seconds is None else round(before + seconds, 4)
            row = {"stage": number, "step": record["step"], "seconds": seconds}
            rows.append(row | {"value": record["value"]})
        before += stage.seconds
    return rows
