"""What the shipped checkpoints reach on films, beside the same model from scratch.

    python benchmarks/shipped.py            # about an hour on one core; what is done is skipped
    python benchmarks/shipped.py --table    # Markdown of the rows that are there

One checkpoint of each family with texts, on the two film logs that none of them has seen, at 5 and
20 % of their training interactions. Splits, seeds and settings are those of the suites.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import RESULTS, machine

from gnnrec.checkpoint import Checkpoint
from gnnrec.compare import compare
from gnnrec.config import TransferConfig
from gnnrec.ledger import read_rows, write_rows
from gnnrec.sources import open_log
from gnnrec.zoo import resolve

ARMS = {
    "channels.text": ("scratch", "zero-shot", "final:1"),
    "neumf.text": ("scratch", "zero-shot", "final:1"),
    "two-tower.text": ("scratch", "zero-shot", "final:1", "text:1"),
}
TARGETS = ("ml-100k", "ml-latest-small")
FRACTIONS, SEEDS = (0.05, 0.2), (0, 1, 2)
OUT = RESULTS / "shipped.csv"


def rows_of(name: str, target: str, fraction: float) -> list[dict[str, Any]]:
    """Run a cell: a row for popularity and each arm, with its difference to scratch."""
    rows, differences = compare(
        Checkpoint.load(resolve(name)),
        open_log(target),
        ARMS[name],
        TransferConfig(fraction=fraction),
        seeds=SEEDS,
        report=lambda line: print(name, target, fraction, line, file=sys.stderr, flush=True),
    )
    found = []
    for row in rows:
        to_twin = [
            d for d in differences if d["arm"] == row["arm"] and d["against"] == "scratch"
        ] or [{}]
        out = {"checkpoint": name, "target": target, "fraction": fraction, "arm": row["arm"]}
        out |= {k: f"{row['metrics'][k]:.5f}" for k in ("ndcg@20", "recall@20")}
        out["ndcg@20_seed_sd"] = f"{row['seed_sd']:.5f}"
        for end in ("relative", "relative_low", "relative_high", "p"):
            out[f"{end}_to_scratch"] = f"{to_twin[0][end]:.5f}" if end in to_twin[0] else ""
        out |= {"seeds": " ".join(map(str, SEEDS)), "n_test_users": row["n_test_users"]}
        out |= {"split_sha256": row["split_sha256"]}
        out |= {"train_seconds": f"{row['seconds']['train']:.1f}"}
        found.append(out | machine())
    return found


def table() -> str:
    """Markdown: a line per checkpoint and cell."""
    lines = [
        "| checkpoint | target | kept | popularity | from scratch | zero-shot | `final:1` | "
        "`text:1` | the last of these to scratch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in read_rows(OUT):
        key = row["checkpoint"], row["target"], row["fraction"]
        cells.setdefault(key, {})[row["arm"]] = row
    for (name, target, fraction), arms in cells.items():
        shown = [
            f"{float(arms[arm]['ndcg@20']):.4f}" if arm in arms else ""
            for arm in ("popularity", "scratch", "zero-shot", "final:1", "text:1")
        ]
        last = arms[ARMS[name][-1]]
        mid, low, high = (
            100 * float(last[f"relative{e}_to_scratch"]) for e in ("", "_low", "_high")
        )
        shown.append(f"{ARMS[name][-1]} {mid:+.1f} % [{low:+.1f}, {high:+.1f}]")
        kept = f"{100 * float(fraction):g} %"
        lines.append(f"| {' | '.join([name, target, kept, *shown])} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the rows as Markdown")
    if parser.parse_args().table:
        print(table())
        return
    rows: list[dict[str, Any]] = list(read_rows(OUT))
    done = {(row["checkpoint"], row["target"], row["fraction"]) for row in rows}
    cells = [(n, t, f) for f in FRACTIONS for t in TARGETS for n in ARMS]
    for name, target, fraction in cells:
        if (name, target, str(fraction)) in done:
            continue
        rows += rows_of(name, target, fraction)
        write_rows(OUT, list(rows[0]), rows)


if __name__ == "__main__":
    main()
