"""The README's tables and sentences of the transfer suite, from the committed rows.

    gnnrec bench benchmarks/suites/transfer.toml     # makes runs/bench/transfer, in shards
    python benchmarks/transfer.py --keep runs/bench/transfer   # copies what is committed
    python benchmarks/transfer.py                    # prints all of it
    python benchmarks/transfer.py --readme           # writes it into the README

What was to be reached, as `gnnrec report` judges it, then every target and fraction. Only fractions
of which every seed is there are shown.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common import RESULTS

from gnnrec.suite_report import readme_block

FOLDER = RESULTS / "transfer"
README = Path(__file__).parents[1] / "README.md"
KEPT = ("runs.csv", "curves.csv", "trials.csv", "overlap.csv", "differences.csv", "suite.toml")
ARM = "final:1"
MEASURE = "ndcg@20"
COLD_MEASURE = "recall@20_cold"
FIRST = ("ml-latest-small", 0.2)  # the cell that the README begins with
BEST = "the best without a source"

Row = dict[str, str]


class Cell(NamedTuple):
    """A target at a fraction: what `final:1` is compared with, and their rows by seed."""

    target: str
    fraction: float
    best: Row
    twin: Row
    rows: tuple[list[Row], list[Row], list[Row]]
    n_without: int

    @property
    def best_name(self) -> str:
        """The best arm without a source; a model from scratch by its encoder, if another's."""
        name, encoder = self.best["against"], self.best["against_encoder"]
        return (
            f"{encoder} {name}" if name == "scratch" and encoder != self.best["encoder"] else name
        )


def rows_of(name: str, folder: Path = FOLDER) -> list[Row]:
    """Read one of the committed files."""
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mean(rows: list[Row], metric: str = MEASURE) -> float:
    """Mean over seeds."""
    return sum(float(row[metric]) for row in rows) / len(rows)


def relative(row: Row) -> str:
    """A difference in percent with its interval."""
    low, high = (100 * float(row[f"relative_{end}"]) for end in ("low", "high"))
    return f"{percent(row)} [{low:+.1f}, {high:+.1f}]"


def percent(row: Row) -> str:
    """A difference in percent."""
    return f"{100 * float(row['relative']):+.1f} %"


def verdict(row: Row) -> str:
    """Whether the whole interval is on one side of zero."""
    if float(row["relative_low"]) > 0:
        return "ahead"
    return "behind" if float(row["relative_high"]) < 0 else "level"


def compared(scenario: str, metric: str = MEASURE, folder: Path = FOLDER) -> list[Row]:
    """The differences of `final:1` with the chosen source over all users, by target."""
    return [
        row
        for row in rows_of("differences.csv", folder)
        if (row["scenario"], row["metric"], row["bucket"], row["arm"])
        == (scenario, metric, "all", ARM)
        and (row["target"] != "all" and row["chosen"] == "yes")
    ]


def against(rows: Iterable[Row]) -> dict[str, Row]:
    """By what is compared with."""
    return {row["family"].split("against ")[1].split(",")[0]: row for row in rows}


def cells() -> list[Cell]:
    """Every target and fraction of which all seeds are there."""
    runs = [row for row in rows_of("runs.csv") if row["scenario"] == "main"]
    differences = compared("main")
    n_seeds = len({row["seed"] for row in runs})
    found = []
    for target in dict.fromkeys(row["target"] for row in runs):
        for fraction in sorted({float(r["fraction"]) for r in runs if r["target"] == target}):
            where = (target, fraction)
            here = [r for r in runs if (r["target"], float(r["fraction"])) == where]
            told = against(r for r in differences if (r["target"], float(r["fraction"])) == where)
            if BEST not in told or "scratch" not in told:
                continue
            best, twin = told[BEST], told["scratch"]
            own = best["encoder"]
            parts = tuple(
                [r for r in here if (r["arm"], r["encoder"], r["source"]) == wanted]
                for wanted in (
                    (best["against"], best["against_encoder"], ""),
                    ("scratch", own, ""),
                    (ARM, own, best["source"]),
                )
            )
            without = {(r["arm"], r["encoder"]) for r in here if not r["source"]}
            n_without = sum(arm != "shuffled-text" for arm, _ in without)
            if all(len(part) == n_seeds for part in parts):
                found.append(Cell(target, fraction, best, twin, parts, n_without))
    return found


def markdown() -> str:
    """A row per target and fraction: the best arm without a source, the twin, and `final:1`."""
    lines = [
        f"| target | kept | best without a source | from scratch | `{ARM}` | to the best | "
        "to scratch |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells():
        best, twin, own = (f"{mean(part):.4f}" for part in cell.rows)
        lines.append(
            f"| {cell.target} | {100 * cell.fraction:g} % | {cell.best_name} {best} | {twin} "
            f"| {own} | {relative(cell.best)} | {relative(cell.twin)} |"
        )
    return "\n".join(lines)


def summary() -> str:
    """A row per target: in how many fractions `final:1` is ahead, level and behind."""
    lines = [
        f"| target | sources | `{ARM}` to the same model from scratch: ahead, level, behind "
        "| from, to | to the best without a source: ahead, level, behind | from, to |",
        "|---|---|---|---|---|---|",
    ]
    found = cells()
    for target in [*dict.fromkeys(cell.target for cell in found), "all"]:
        sources = dict.fromkeys(c.best["source"] for c in found if c.target == target)
        parts = [", ".join(sources).replace("+", ", ")]
        for kind in ("twin", "best"):
            rows = [getattr(cell, kind) for cell in found if target in (cell.target, "all")]
            said = [verdict(row) for row in rows]
            rows.sort(key=lambda row: float(row["relative"]))
            parts.append(", ".join(str(said.count(v)) for v in ("ahead", "level", "behind")))
            parts.append(f"{percent(rows[0])}, {percent(rows[-1])}")
        lines.append(f"| {target} | {' | '.join(parts)} |")
    return "\n".join(lines)


def opening() -> str:
    """One result, and every cell where `final:1` is behind."""
    found = cells()
    first = next(cell for cell in found if (cell.target, cell.fraction) == FIRST)
    best, _, own = (mean(part) for part in first.rows)
    *names, last = first.best["source"].split("+")
    behind = [
        f"{100 * cell.fraction:g} % of {cell.target} ({percent(cell.twin)})"
        for cell in found
        if verdict(cell.twin) == "behind"
    ]
    others = [
        f"{100 * cell.fraction:g} % of {cell.target} ({percent(cell.best)} to {cell.best_name})"
        for cell in found
        if verdict(cell.best) == "behind" and cell.best_name != "scratch"
    ]
    return (
        f"**A real result.** {100 * first.fraction:g} % of {first.target}'s training interactions "
        f"are kept. `channels`, pretrained on {', '.join(names)} and {last} together, with `{ARM}` "
        f"retrained, is {relative(first.best)} ahead of the best of {first.n_without} arms that "
        f"saw no source, NDCG@20 {own:.4f} against {best:.4f}.\n\n"
        f"**And where it loses,** beyond the interval: behind the same model from scratch with "
        f"{'; '.join(behind) or 'none of them'}; behind another that saw no source with "
        f"{'; '.join(others) or 'none of them'}."
    )


def cold() -> str:
    """A row per target: recall@20 on cold items, and what `final:1` gains for cold users."""
    runs = [row for row in rows_of("runs.csv") if row["scenario"] == "cold-items"]
    users = compared("cold-users")
    lines = [
        "| target | cold items among themselves: raw text | from scratch | zero-shot | "
        f"`{ARM}` | in the full ranking: raw text | `{ARM}` | cold users: `{ARM}` to scratch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in dict.fromkeys(row["target"] for row in users):
        told = against(row for row in users if row["target"] == target)["scratch"]

        def value(arm: str, metric: str, target: str = target, told: Row = told) -> str:
            source = told["source"] if arm in (ARM, "zero-shot") else ""
            encoder = "" if arm == "raw-text" else told["encoder"]
            wanted = (target, arm, source, encoder)
            rows = [r for r in runs if (r["target"], r["arm"], r["source"], r["encoder"]) == wanted]
            return f"{mean(rows, metric):.3f}"

        values = [value(arm, COLD_MEASURE) for arm in ("raw-text", "scratch", "zero-shot", ARM)]
        values += [value(arm, "recall@20") for arm in ("raw-text", ARM)]
        lines.append(f"| {target} | {' | '.join(values)} | {relative(told)} |")
    return "\n".join(lines)


def strict() -> str:
    """`final:1` to its twin where what the target knows was dropped from the sources."""
    rows = compared("main", folder=RESULTS / "strict")
    rows = [row for row in rows if row["against"] == "scratch" and "the best" not in row["family"]]
    listed = "; ".join(
        f"{row['target']} {100 * float(row['fraction']):g} % {relative(row)}" for row in rows
    )
    return f"`{ARM}` to the same model from scratch: {listed}."


def benefits() -> str:
    """What transfer was to reach on the suite, and whether it did."""
    return readme_block(FOLDER).strip()


PARTS = {
    "opening": opening,
    "benefits": benefits,
    "summary": summary,
    "markdown": markdown,
    "cold": cold,
    "strict": strict,
}


def write_readme() -> None:
    """Put every part between its marks in the README."""
    text = README.read_text(encoding="utf-8")
    for name, part in PARTS.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        said = f"{marks[0]}\n\n{part()}\n\n{marks[1]}"
        text, n = re.subn(pattern, lambda _, said=said: said, text, flags=re.DOTALL)
        if n != 1:
            raise SystemExit(
                f"{README.name}: {n} places between {marks[0]} and {marks[1]}; expected one"
            )
    README.write_text(text, encoding="utf-8")


def keep(folder: Path) -> None:
    """Copy what is committed of a results folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(folder / name, FOLDER / name)


def main() -> None:
    """Copy rows, write them into the README, or print what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="results folder to copy from")
    parser.add_argument("--readme", action="store_true", help="write the README's parts")
    arguments = parser.parse_args()
    if arguments.keep is not None:
        keep(arguments.keep)
    if arguments.readme:
        write_readme()
    else:
        print(*(part() for part in PARTS.values()), sep="\n\n")


if __name__ == "__main__":
    main()
