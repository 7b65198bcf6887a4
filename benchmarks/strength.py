"""What zero-shot gains by finding how far to leave popularity (`gnnrec.strength`).

    python benchmarks/strength.py                   # all targets; pretrains what choosing.py does
    python benchmarks/strength.py --target ml-100k  # one; may be repeated

The candidates of `choosing.py`, one a source and with or without text, each on targets that it did
not see, with a tenth and with all of their training interactions. NDCG@20 on the untouched test
part, full ranking, of popularity, of the checkpoint as it is, and with the strength that hidden
interactions of the kept part chose. Which strengths there are and by how much one has to be better
was decided on another split of these targets, seed 0; here are seeds 1 and 2. A row a target,
fraction, candidate and seed goes to results/strength.csv.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from choosing import TARGETS, candidates_for
from common import asked, report

from gnnrec.arms import popularity_arm, prepare
from gnnrec.blend import ChannelBlend
from gnnrec.config import TransferConfig
from gnnrec.evaluate import evaluate_scores
from gnnrec.sources import open_log
from gnnrec.strength import find_strength, strengthened
from gnnrec.text import DEFAULT_TEXT_MODEL, TextEncoder

FRACTIONS, SEEDS = (0.1, 1.0), (1, 2)


def rows_of(target: str) -> list[dict[str, Any]]:
    """Rank a target with each candidate, as it is and with the strength that it finds."""
    log, candidates, rows = open_log(target), candidates_for(target), []
    for fraction in FRACTIONS:
        for seed in SEEDS:
            config = TransferConfig(fraction=fraction, seed=seed, split_seed=seed)
            prepared = prepare(log, TextEncoder(DEFAULT_TEXT_MODEL), config)
            popular = popularity_arm(prepared).results.metrics["ndcg@20"]
            test = prepared.test_users, prepared.test_items
            for candidate in candidates:
                model = candidate.model().eval()
                assert isinstance(model, ChannelBlend)
                x = prepared.visible(candidate.config.spectral_rank)
                strength = find_strength(model, x)
                with torch.no_grad():
                    scores = model(x)
                found = [
                    evaluate_scores(strengthened(scores, s), x.graph.user_items, *test, (20,))
                    for s in (1.0, strength)
                ]
                row = {"target": target, "fraction": fraction, "candidate": candidate.name}
                row |= {"seed": seed, "strength": strength, "popularity_ndcg@20": f"{popular:.5f}"}
                for name, results in zip(("as_it_is", "found"), found, strict=True):
                    row[f"{name}_ndcg@20"] = f"{results.metrics['ndcg@20']:.5f}"
                rows.append(row)
                print(*row.values(), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure on the asked targets; print how often the strength helped and harmed."""
    targets, as_json = asked(__doc__, TARGETS)
    rows = [row for target in targets for row in rows_of(target)]
    values = [
        np.array([float(row[f"{name}_ndcg@20"]) for row in rows])
        for name in ("as_it_is", "found", "popularity")
    ]
    print(
        f"{len(rows)} rows: better in {(values[1] > values[0]).sum()}, worse in "
        f"{(values[1] < values[0]).sum()}; below popularity in {(values[0] < values[2]).sum()} "
        f"as it is, in {(values[1] < values[2]).sum()} with the strength found",
        file=sys.stderr,
    )
    report(rows, "strength", as_json, write=set(targets) == set(TARGETS))


if __name__ == "__main__":
    main()
