"""The README's table of the engine, printed from the committed rows.

Run it after a measuring script has written new ones: python benchmarks/engine.py
"""

from __future__ import annotations

import csv
from pathlib import Path

LARGEST = 63_999_893  # edges of the made log of 64 million
RESULTS = Path(__file__).parent / "results"


def rows(name: str, **wanted: str) -> list[dict[str, str]]:
    """Rows of results/NAME.csv with these values."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8") as file:
        found = [r for r in csv.DictReader(file) if all(r[k] == v for k, v in wanted.items())]
    assert found, f"{name}.csv has no row with {wanted}"
    return found


def published() -> list[tuple[str, str, str]]:
    """Quality and time on LightGCN's splits."""
    lines = []
    for row in rows("published"):
        other = {
            "transferred": f"numbers from {row['numbers_from']}, nothing chosen here",
            "searched": "numbers searched on its own training part",
        }[row["mode"]]
        gains = [
            f"{100 * (float(row[f'{m}_to_{label}']) - 1):+.1f} %"
            for label in ("lightgcn", "best")
            for m in ("recall", "ndcg")
        ]
        lines.append(
            (
                f"{row['data']}, Recall@20 / NDCG@20, {other}",
                f"{float(row['recall@20']):.4f} / {float(row['ndcg@20']):.4f} "
                f"in {float(row['seconds_total']):.0f} s",
                f"LightGCN, published: {gains[0]} / {gains[1]}; best verified: "
                f"{gains[2]} / {gains[3]}",
            )
        )
    return lines


def propagation() -> tuple[str, str, str]:
    """One layer, forwards and backwards."""
    ways = {r["way"]: r for r in rows("propagation", width="64")}
    scipy = next(r for name, r in ways.items() if name.startswith("scipy"))
    pyg = next(r for name, r in ways.items() if name.startswith("PyG"))
    return (
        "one propagation step on gowalla, 64 wide, forward and backward",
        f"{1000 * float(ways['gnnrec']['both_seconds']):.0f} ms",
        f"PyG `LGConv` {float(pyg['ratio']):.0f} times as long, scipy CSR "
        f"{float(scipy['ratio']):.1f} times",
    )


def ranking() -> tuple[str, str, str]:
    """All of Gowalla's users."""
    ways = {r["way"]: r for r in rows("ranking")}
    return (
        "top 20 for all 29,858 users of gowalla, seen items left out",
        f"{float(ways['gnnrec']['seconds']):.1f} s",
        f"`implicit` {float(ways['implicit']['ratio']):.1f} times as long",
    )


def latency() -> list[tuple[str, str, str]]:
    """One user at 40,000 items."""
    return [
        (
            f"top 20 for one user, 40,000 items, {encoder}",
            f"p99 {float(rows('latency', encoder=encoder)[0]['p99_ms']):.1f} ms",
            "",
        )
        for encoder in ("lightgcn", "graph-filter")
    ]


def ingest() -> list[tuple[str, str, str]]:
    """20 million rows to a graph."""
    return [
        (
            f"{int(row['n_rows']) / 1e6:.0f} million rows with text ids, {row['format']}, "
            "to a graph",
            f"{float(row['seconds_min']):.1f} s, {float(row['peak_bytes_per_row']):.0f} bytes a "
            "row",
            f"pandas `factorize` and scipy {float(row['pandas_over_this']):.1f} times as long",
        )
        for row in rows("ingest", way="gnnrec")
    ]


def growth() -> list[tuple[str, str, str]]:
    """What an edge costs at 64 million."""
    step = rows("growth", measure="propagation", edges=str(LARGEST))[0]
    training = rows("growth", measure="pretraining", edges=str(LARGEST))[0]
    return [
        (
            "64 million edges, one propagation step",
            f"{float(step['ns_per_edge']):.0f} ns and {float(step['bytes_per_edge']):.0f} bytes "
            "an edge",
            f"{float(step['time_ratio']):.2f} and {float(step['bytes_ratio']):.2f} times those "
            f"at 4 million; {float(step['gather_ratio']):.2f} times a bare gather",
        ),
        (
            "64 million edges, pretraining (64 steps)",
            f"{float(training['seconds']):.0f} s, peak {float(training['peak_gb']):.1f} GB",
            "",
        ),
    ]


def markdown() -> str:
    """Return the table."""
    lines = [*published(), propagation(), ranking(), *latency(), *ingest(), *growth()]
    head = ["| what | gnnrec | beside |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines)])


if __name__ == "__main__":
    print(markdown())
