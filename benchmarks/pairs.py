"""Transfer between pairs of data sets, every arm beside its from-scratch twin.

    python benchmarks/pairs.py                     # all pairs below
    python benchmarks/pairs.py --pair ml-1m:ml-100k:lightgcn
    python benchmarks/pairs.py --table             # Markdown of the rows that are there

One CSV per pair under benchmarks/results/, written when its five seeds are done; a pair whose file
is there is skipped (delete it to run it again). Progress on stderr, the table on stdout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, machine

from gnnrec.checkpoint import Checkpoint
from gnnrec.compare import compare
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.console import text_table
from gnnrec.device import resolve_device
from gnnrec.ledger import read_rows, write_rows
from gnnrec.report import arm_rows, difference_rows
from gnnrec.runs import pretrain_run
from gnnrec.sources import open_log
from gnnrec.text import DEFAULT_TEXT_MODEL

PAIRS = (
    ("ml-1m", "ml-100k", "lightgcn"),
    ("goodbooks-10k", "ifdb", "lightgcn"),
    ("goodbooks-10k", "movietweetings-100k", "lightgcn"),
    ("goodbooks-10k", "ifdb", "graphsage"),
    ("goodbooks-10k", "movietweetings-100k", "graphsage"),
)
ARMS = ("scratch", "zero-shot", "final:1")
FRACTION = 0.1


def pretrained(source: str, encoder: str, device: str) -> Checkpoint:
    """Pretrain with the defaults; kept in runs/ so that two targets share it."""
    folder = Path("runs/pairs") / f"{encoder}.{source}"
    if not folder.is_dir():
        model = ModelConfig(encoder=encoder, text_dim=384, text_model=DEFAULT_TEXT_MODEL)
        config = PretrainConfig(model=model)
        pretrain_run([open_log(source)], config, name=folder.name, device=device).save(folder)
    return Checkpoint.load(folder)


def flat(
    row: dict[str, Any], differences: list[dict[str, Any]], encoder: str, device: str
) -> dict[str, Any]:
    """One CSV row: where, what, quality, paired differences, cost, machine."""
    out: dict[str, Any] = {
        "source": row["source"].split(".", 1)[1],
        "target": row["target"],
        "encoder": encoder,
        "fraction": row["fraction"],
        "arm": row["arm"],
        **{
            k: f"{row['metrics'][k]:.5f}"
            for k in ("ndcg@20", "recall@20", "ndcg@10", "coverage@20")
        },
        "ndcg@20_seed_sd": f"{row['seed_sd']:.5f}",
        "seeds": " ".join(map(str, row["seeds"])),
    }
    for other in ("popularity", "scratch"):
        found = [d for d in differences if d["arm"] == row["arm"] and d["against"] == other]
        for key in ("relative", "relative_low", "relative_high"):
            out[f"{key}_to_{other}"] = f"{found[0][key]:.5f}" if found else ""
    parameters = row["parameters"] or {}
    return (
        out
        | {
            "n_kept": row["n_kept"],
            "n_test": row["n_test"],
            "n_test_users": row["n_test_users"],
            "split_sha256": row["split_sha256"],
            "train_seconds": f"{row['seconds']['train']:.2f}",
            "feature_seconds": row["feature_seconds"],
            "trained_parameters": parameters.get("trained", 0),
            "total_parameters": parameters.get("total", 0),
            "best_steps": " ".join("+".join(map(str, steps)) for steps in row["best_steps"]),
            "device": device,
        }
        | machine()
    )


def markdown() -> str:
    """The table of the README, from the committed rows."""
    lines = [
        "| source -> target | encoder | popularity | from scratch | zero-shot | `final:1` "
        "| `final:1` to popularity | `final:1` to scratch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source, target, encoder in PAIRS:
        found = read_rows(RESULTS / f"pair.{source}.{target}.{encoder}.csv")
        rows = {row["arm"]: row for row in found}
        values = [f"{float(rows[a]['ndcg@20']):.4f}" for a in ("popularity", *ARMS)]
        gains = []
        for other in ("popularity", "scratch"):
            mid, low, high = (
                100 * float(rows["final:1"][f"relative{end}_to_{other}"])
                for end in ("", "_low", "_high")
            )
            gains.append(f"{mid:+.1f} % [{low:+.1f}, {high:+.1f}]")
        lines.append(f"| {source} -> {target} | {encoder} | {' | '.join(values + gains)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the asked pairs, or print the table of those that are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", action="append", help="SOURCE:TARGET:ENCODER")
    parser.add_argument("--table", action="store_true", help="print the README's table")
    arguments = parser.parse_args()
    if arguments.table:
        print(markdown())
        return
    asked = arguments.pair
    pairs = [tuple(p.split(":")) for p in asked] if asked else PAIRS
    device = str(resolve_device())
    RESULTS.mkdir(exist_ok=True)
    for source, target, encoder in pairs:
        out = RESULTS / f"pair.{source}.{target}.{encoder}.csv"
        if out.is_file():
            print(f"{out.name} is there; skipped", file=sys.stderr)
            continue
        checkpoint = pretrained(source, encoder, device)
        rows, differences = compare(
            checkpoint,
            open_log(target),
            ARMS,
            TransferConfig(fraction=FRACTION),
            device=device,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
        print(f"\n{source} -> {target}, {encoder}")
        print(text_table(arm_rows(rows)))
        print(text_table(difference_rows(differences)), flush=True)
        lines = [flat(row, differences, encoder, device) for row in rows]
        write_rows(out, list(lines[0]), lines)


if __name__ == "__main__":
    main()
