"""What every measuring script shares: the machine as fields, repeated timing, rows in and out."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gnnrec.console import text_table
from gnnrec.machine import hardware, machine
from gnnrec.storage import whole_file

__all__ = ["RESULTS", "asked", "hardware", "machine", "report", "timed"]

RESULTS = Path(__file__).parent / "results"


def timed(
    ways: dict[str, Callable[[], object]], repeats: int = 5, warm_up: int = 1
) -> dict[str, dict[str, float]]:
    """Time several ways in turn, so that a slow moment of the machine meets all of them.

    Args:
        ways: Name -> what to time.
        repeats: Rounds; every way runs once in each.
        warm_up: Rounds before these that are not counted.

    Returns:
        Name -> {"min", "median", "max"} in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {
        name: {"min": min(v), "median": statistics.median(v), "max": max(v)}
        for name, v in seconds.items()
    }


def asked(about: str, targets: Sequence[str]) -> tuple[Sequence[str], bool]:
    """Read a script's --target, which may be repeated, and --json; all targets by default."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--target", action="append", choices=targets, help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    return arguments.target or targets, arguments.json


def report(
    rows: list[dict[str, Any]],
    name: str,
    as_json: bool,
    write: bool = True,
    folder: Path = RESULTS,
) -> None:
    """Write rows to FOLDER/NAME.csv and show them, as one JSON object or a table.

    Args:
        rows: Every row has the same keys; the machine's fields are added here.
        name: Of the benchmark.
        as_json: Print one JSON object on stdout instead of a table.
        folder: Where to write.
        write: False leaves the committed rows as they are (a quick run on a smaller size).
    """
    full = [row | machine() for row in rows]
    if write:
        folder.mkdir(exist_ok=True)
        with (
            whole_file(folder / f"{name}.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=list(full[0]))
            writer.writeheader()
            writer.writerows(full)
    if as_json:
        json.dump({"benchmark": name, "rows": full}, sys.stdout, indent=1)
        print()
    else:
        print(text_table(rows))
