"""Several arms over seeds: means, spreads and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from gnnrec.compare import PRIMARY, compare
from gnnrec.interactions import Interactions
from gnnrec.runs import popularity_arm, prepare
from gnnrec.sources import Log


def test_rows_and_differences(checkpoint, frame, transfer_config):
    log = Log("shop", Interactions.from_frame(frame), None)
    config = transfer_config.model_copy(update={"fraction": 0.5})
    said: list[str] = []
    rows, differences = compare(
        checkpoint, log, ("zero-shot", "heads"), config, seeds=(0, 1), report=said.append
    )
    assert [row["arm"] for row in rows] == ["popularity", "zero-shot", "heads"]
    assert len(said) == 6
    values = [
        popularity_arm(prepare(log, None, config.model_copy(update={"seed": seed}))).results.metrics
        for seed in (0, 1)
    ]
    for key in values[0]:
        assert rows[0]["metrics"][key] == pytest.approx(np.mean([v[key] for v in values]))
    assert rows[0]["per_seed"] == pytest.approx([v[PRIMARY] for v in values])
    for row in rows:
        assert row["seed_mean"] == pytest.approx(np.mean(row["per_seed"]))
        assert row["split_sha256"] == rows[0]["split_sha256"]
    assert rows[0]["parameters"] is None and rows[2]["parameters"]["total"] > 0
    assert [(d["arm"], d["against"]) for d in differences] == [
        ("zero-shot", "popularity"),
        ("heads", "popularity"),
        ("heads", "zero-shot"),
    ]
    for d in differences:
        means = {row["arm"]: row["metrics"][PRIMARY] for row in rows}
        assert d["mean_difference"] == pytest.approx(means[d["arm"]] - means[d["against"]])
        assert d["low"] <= d["mean_difference"] <= d["high"]
