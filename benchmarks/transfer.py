"""The README's tables of the transfer suite, from the committed rows.

    gnnrec bench benchmarks/suites/transfer.toml     # makes runs/bench/transfer, in shards
    python benchmarks/transfer.py --keep runs/bench/transfer   # copies what is committed
    python benchmarks/transfer.py                    # prints the tables

What was to be reached, as `gnnrec report` judges it, then every target and fraction. Only fractions
of which every seed is there are shown.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from common import RESULTS

from gnnrec.suite_report import readme_block

FOLDER = RESULTS / "transfer"
KEPT = ("runs.csv", "curves.csv", "trials.csv", "overlap.csv", "differences.csv", "suite.toml")
ARM = "final:1"
MEASURE = "ndcg@20"


def rows_of(name: str) -> list[dict[str, str]]:
    """Read one of the committed files."""
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mean(rows: list[dict[str, str]]) -> float:
    """Mean NDCG@20 over seeds."""
    return sum(float(row[MEASURE]) for row in rows) / len(rows)


def markdown() -> str:
    """A row per target and fraction: the best arm without a source, the twin, and `final:1`."""
    runs = [row for row in rows_of("runs.csv") if row["scenario"] == "main"]
    differences = [
        row
        for row in rows_of("differences.csv")
        if row["scenario"] == "main"
        and (row["metric"], row["bucket"], row["arm"]) == (MEASURE, "all", ARM)
        and row["target"] != "all"
    ]
    n_seeds = len({row["seed"] for row in runs})
    lines = [
        f"| target | kept | best without a source | from scratch | `{ARM}` | to the best | "
        "to scratch |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(row["target"] for row in runs):
        here = [row for row in runs if row["target"] == target]
        for fraction in sorted({float(row["fraction"]) for row in here}):
            found = [
                row
                for row in differences
                if row["target"] == target
                and float(row["fraction"]) == fraction
                and row["chosen"] == "yes"
            ]
            against = {row["family"].split("against ")[1].split(",")[0]: row for row in found}
            best, twin = against.get("the best without a source"), against.get("scratch")
            if best is None or twin is None:
                continue

            def cell(*wanted: str) -> list[dict[str, str]]:
                return [
                    row
                    for row in here  # noqa: B023
                    if float(row["fraction"]) == fraction  # noqa: B023
                    and (row["arm"], row["encoder"], row["source"]) == wanted
                ]

            own = best["encoder"]
            parts = [
                cell(best["against"], best["against_encoder"], ""),
                cell("scratch", own, ""),
                cell(ARM, own, best["source"]),
            ]
            name = best["against"]
            if name == "scratch" and best["against_encoder"] != own:
                name = f"{best['against_encoder']} {name}"
            if any(len(part) < n_seeds for part in parts):
                continue
            values = [f"{mean(part):.4f}" for part in parts]
            gains = [
                f"{100 * float(row['relative']):+.1f} % [{100 * float(row['relative_low']):+.1f}, "
                f"{100 * float(row['relative_high']):+.1f}]"
                for row in (best, twin)
            ]
            lines.append(
                f"| {target} | {100 * fraction:g} % | {name} {values[0]} | {values[1]} "
                f"| {values[2]} | {gains[0]} | {gains[1]} |"
            )
    return "\n".join(lines)


def benefits() -> str:
    """What transfer was to reach on the suite, and whether it did."""
    return readme_block(FOLDER).strip()


def keep(folder: Path) -> None:
    """Copy what is committed of a results folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(folder / name, FOLDER / name)


def main() -> None:
    """Copy rows, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="results folder to copy from")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        keep(arguments.keep)
    print(benefits(), markdown(), sep="\n\n")


if __name__ == "__main__":
    main()
