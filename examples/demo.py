"""The main job on real data: pretrain on MovieLens 1M, transfer to a tenth of MovieLens 100K.

Run by `make demo`. Everything is computed at every run but downloads and text vectors.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from gnnrec.checkpoint import Checkpoint
from gnnrec.compare import compare
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.console import text_table
from gnnrec.device import peak_memory_bytes, resolve_device
from gnnrec.evaluate import plain
from gnnrec.report import (
    arm_plot,
    arm_rows,
    difference_rows,
    page,
    paragraph,
    table,
)
from gnnrec.runs import pretrain_run, transfer_run
from gnnrec.sources import Log, open_log
from gnnrec.storage import whole_file, write_json
from gnnrec.text import DEFAULT_TEXT_MODEL

OUT = Path("runs/demo")
FRACTION = 0.1
SEEDS = (0, 1, 2, 3, 4)


def overlap(source: Log, target: Log) -> dict[str, float]:
    """Share of the target's items, and of its interactions, whose title the source also has."""
    known = set(source.interactions.item_ids.tolist())
    shared = np.array([title in known for title in target.interactions.item_ids.tolist()])
    return {
        "shared_items": int(shared.sum()),
        "target_items": len(shared),
        "share_of_items": float(shared.mean()),
        "share_of_interactions": float(shared[target.interactions.items].mean()),
    }


def main() -> None:
    """Pretrain, compare, recommend, write runs/demo."""
    started = time.perf_counter()
    device = str(resolve_device())
    source, target = open_log("ml-1m"), open_log("ml-100k")
    shared = overlap(source, target)
    print(
        f"overlap: {shared['shared_items']} of {shared['target_items']} films of ML-100K are in "
        f"ML-1M ({shared['share_of_interactions']:.0%} of its interactions): a near domain"
    )
    model = ModelConfig(encoder="lightgcn", text_dim=384, text_model=DEFAULT_TEXT_MODEL)
    OUT.mkdir(parents=True, exist_ok=True)
    made = pretrain_run([source], PretrainConfig(model=model), name="checkpoint", device=device)
    made.save(OUT / "checkpoint")
    checkpoint = Checkpoint.load(OUT / "checkpoint")

    config = TransferConfig(retrain="final:1", fraction=FRACTION)
    rows, differences = compare(
        checkpoint,
        target,
        ("scratch", "zero-shot", "final:1"),
        config,
        seeds=SEEDS,
        device=device,
        report=lambda line: print(line, flush=True),
    )
    names = {"zero-shot": "zero-shot", "final:1": "transferred"}
    for row in rows:
        row["retrain"], row["arm"] = row["arm"], names.get(row["arm"], row["arm"])
    for row in differences:
        row["arm"] = names.get(row["arm"], row["arm"])
        row["against"] = names.get(row["against"], row["against"])

    recommender, _ = transfer_run(checkpoint, target, config, device=device)
    recommender.save(OUT / "recommender")
    user = recommender.log.user_ids[0]
    top = recommender.recommend([user], k=10)
    ten = [
        {"rank": int(rank), "film": title, "score": float(score)}
        for rank, title, score in zip(
            top["rank"],
            recommender.titles(top[recommender.log.columns.item]),
            top["score"],
            strict=True,
        )
    ]
    cost = {
        "pretraining seconds": made.training["seconds"]["train"],
        "text seconds": made.training["seconds"]["features"],
        "pretraining peak memory MB": made.training["peak_memory_bytes"] // 2**20,
        "total seconds": round(time.perf_counter() - started, 1),
        "peak memory MB": peak_memory_bytes() // 2**20,
        "device": device,
        "cores": os.cpu_count(),
    }
    for row in rows:
        row["pretraining_seconds"] = made.training["seconds"]["train"]
        row["overlap"] = shared
    with whole_file(OUT / "results.json") as path:
        write_json(path, plain(rows))
    with whole_file(OUT / "differences.json") as path:
        write_json(path, plain(differences))
    kept = f"{rows[0]['n_kept']} interactions kept of {target.interactions.n_interactions}"
    document = page(
        "gnnrec demo: MovieLens 1M to a tenth of MovieLens 100K",
        [
            paragraph(
                f"{kept}, {len(SEEDS)} seeds, {rows[0]['n_test_users']} test users, full ranking. "
                f"{shared['share_of_items']:.0%} of the target's films are in the source too: a "
                "near domain. All trained arms share the loss, the settings and the step budget."
            ),
            arm_plot(rows),
            table("Arms on the untouched test part", arm_rows(rows)),
            table("Paired differences over users", difference_rows(differences)),
            table(f"Ten films for user {user}", ten),
            table("Cost", [cost]),
        ],
    )
    with whole_file(OUT / "index.html") as path:
        path.write_text(document, encoding="utf-8")

    print(f"\n{kept}, {rows[0]['n_test_users']} test users, {len(SEEDS)} seeds")
    print(text_table(arm_rows(rows)))
    print()
    print(text_table(difference_rows(differences)))
    print(f"\nten films for user {user}:")
    print(text_table(ten))
    print("\ncost:", ", ".join(f"{name} {value}" for name, value in cost.items()))
    print(f"written: {OUT}/results.json, differences.json, index.html, checkpoint, recommender")


if __name__ == "__main__":
    sys.exit(main())
