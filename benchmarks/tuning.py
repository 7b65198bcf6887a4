"""What a quarter of an hour of `gnnrec tune` brings, on five targets, against the defaults.

    python benchmarks/tuning.py                            # 15 minutes a target, then the tests
    python benchmarks/tuning.py --target ml-100k --minutes 2 --out runs/try

A fifth of each target's training interactions is kept. The search sees nothing else: it cuts them
three times (`validation` columns: best trial, defaults, and the difference with its standard error
over users). Then the defaults and what the search wrote are measured on the untouched test part,
three seeds averaged per user, paired bootstrap over users. Checkpoints are shipped ones that never
saw the target. Started again, a search goes on where it was. One row a target goes to
results/tuning.csv when all are made.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import report

from gnnrec.arms import prepare, run_arm
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig, with_settings
from gnnrec.sources import open_log
from gnnrec.stats import paired_bootstrap
from gnnrec.tune import MEASURE, tune
from gnnrec.zoo import resolve

TARGETS = {  # target -> a checkpoint that did not learn from it
    "ml-latest-small": "channels.text",
    "ml-100k": "channels.text",
    "movietweetings-100k": "channels.books",
    "ifdb": "channels.books",
    "online-retail": "channels.books",
}
FRACTION, N_SEEDS = 0.2, 3


def row_of(target: str, minutes: float, out: Path) -> dict[str, Any]:
    """Search, then measure what was found and the defaults."""
    checkpoint, log = Checkpoint.load(resolve(TARGETS[target])), open_log(target)
    config = TransferConfig(fraction=FRACTION)
    tuned = tune(
        checkpoint, log, config, out / target, minutes=minutes,
        say=lambda line: print(target, line, file=sys.stderr, flush=True),
    )  # fmt: skip
    per_user: dict[str, list[np.ndarray]] = {"defaults": [], "tuned": []}
    for seed in range(N_SEEDS):
        prepared = prepare(log, checkpoint.text_encoder(), config.model_copy(update={"seed": seed}))
        for name, settings in (("defaults", {}), ("tuned", tuned.settings)):
            if name == "tuned" and not settings:
                per_user[name].append(per_user["defaults"][-1])  # the same run
                continue
            arm = run_arm(prepared, checkpoint, with_settings(config, settings, seed=seed))
            per_user[name].append(arm.results.per_user[MEASURE])
    means = {name: np.mean(values, axis=0) for name, values in per_user.items()}
    found = paired_bootstrap(means["tuned"], means["defaults"])
    search = tuned.report
    return {
        "target": target,
        "checkpoint": checkpoint.name,
        "fraction": FRACTION,
        "minutes": minutes,
        "n_trials": search["n_trials"],
        "n_pruned": search["n_pruned"],
        "validation_defaults": f"{search['defaults']['value']:.5f}",
        "validation_best": f"{search['best']['value']:.5f}",
        "validation_gain": f"{search['best']['gain']:.5f}",
        "validation_standard_error": f"{search['best']['standard_error']:.5f}",
        "kept": search["kept"],
        "settings": " ".join(f"{k}={v}" for k, v in tuned.settings.items()),
        "n_seeds": N_SEEDS,
        "test_defaults": f"{means['defaults'].mean():.5f}",
        "test_tuned": f"{means['tuned'].mean():.5f}",
        "test_relative": f"{found['relative']:.4f}",
        "test_relative_low": f"{found['relative_low']:.4f}",
        "test_relative_high": f"{found['relative_high']:.4f}",
    }


def main() -> None:
    """Search and measure on the asked targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--minutes", type=float, default=15.0, help="default: 15 a target")
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"), help="of the searches")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    rows = [row_of(name, arguments.minutes, arguments.out) for name in arguments.target or TARGETS]
    whole = arguments.target is None and arguments.minutes == 15.0
    report(rows, "tuning", arguments.json, write=whole)


if __name__ == "__main__":
    main()
