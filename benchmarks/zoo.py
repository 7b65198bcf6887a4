"""The recipe of the checkpoints that come with the package (gnnrec/checkpoints/).

    python benchmarks/zoo.py                            # makes all of them again
    python benchmarks/zoo.py --only channels.text       # one of them; may be repeated
    python benchmarks/zoo.py --only channels.shop --quick --out runs/zoo    # a few steps, elsewhere

Models pretrained on sources whose licences allow passing on what was learned from them (CC0, MIT,
CC BY, CC BY-SA; nothing of MovieLens, Gowalla or Yelp). They carry no item table. What the channel
blends hold is how to weigh a graph's layers, under a thousand numbers; what the collaborative
filter and the two towers hold is how to read texts and how to join them; none has a row, id or text
of a source. A row each goes to benchmarks/results/zoo.csv when all are made.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import report

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig
from gnnrec.registry import get_spec
from gnnrec.runs import pretrain_run
from gnnrec.sources import open_log
from gnnrec.text import DEFAULT_TEXT_MODEL, TextEncoder
from gnnrec.zoo import ZOO, describe

ALL = ("goodbooks-10k", "online-retail", "movietweetings-100k", "ifdb")
RECIPES: dict[str, tuple[tuple[str, ...], bool]] = {  # name -> sources, whether it reads text
    "channels.text": (ALL, True),
    "channels.graph": (ALL, False),
    "channels.books": (("goodbooks-10k",), True),
    "channels.shop": (("online-retail",), True),
    "channels.films": (("movietweetings-100k",), True),
    "channels.fiction": (("ifdb",), True),
    "neumf.text": (ALL, True),
    "two-tower.text": (ALL, True),
}
ALLOWED = ("CC0", "MIT", "CC BY")  # beginnings of licences
MAX_BYTES = 2_000_000
_LOOPS = ("weigh", "train", "text")


def settings(encoder: str, text: bool, quick: bool) -> PretrainConfig:
    """What a family's checkpoints are pretrained with."""
    model: dict[str, Any] = {"encoder": encoder}
    if text:
        model |= {"text_model": DEFAULT_TEXT_MODEL, "text_dim": TextEncoder().dim}
    if encoder == "two-tower":
        model["text_layers"] = 1
    config = PretrainConfig(
        model=ModelConfig.model_validate(model),
        keep_low=0.02,
        min_users=300,
        max_users=4_000,
        bridge_items=0,
        n_lessons=80,
        variants=0.0,
        draw_back=0.0,
    )
    # Their targets are other domains: what pulls to the start is as strong as what few sources say,
    # and nothing is drawn back afterwards.
    pulled = {"max_steps": 640, "learning_rate": 3e-3, "pull_to_start": 1e-3, "evaluate_every": 160}
    weigh = config.weigh.model_copy(update=pulled)
    config = config.model_copy(update={"weigh": weigh})
    if not quick:
        return config
    few = {"max_steps": 20, "evaluate_every": 10}
    parts = {name: getattr(config, name).model_copy(update=few) for name in _LOOPS}
    return config.model_copy(update={"n_lessons": 4, "max_users": 600, **parts})


def make(name: str, out: Path, quick: bool) -> dict[str, Any]:
    """Pretrain, put the sources' attribution on the card, save, load again; return a row."""
    sources, text = RECIPES[name]
    for source in sources:
        licence = get_spec(source).licence
        if not licence.startswith(ALLOWED):
            raise SystemExit(f"{source}: licence {licence!r} does not allow a shipped checkpoint")
    logs = [open_log(source) for source in sources]
    made = pretrain_run(logs, settings(name.split(".")[0], text, quick), name=name)
    credited = []
    for record in made.training["sources"]:
        spec = get_spec(record["name"])
        credited.append(
            record
            | {
                "title": spec.title,
                "citation": spec.citation,
                "homepage": spec.homepage,
                "licence_note": spec.licence_note,
            }
        )
    made = replace(made, training=made.training | {"sources": credited})
    folder = made.save(out / name)
    loaded = Checkpoint.load(folder)
    about = describe(folder)
    if about["bytes"] > MAX_BYTES:
        raise SystemExit(f"{folder}: {about['bytes']} bytes, at most {MAX_BYTES} may be shipped")
    record = loaded.training
    blend = loaded.config.encoder == "channels"  # others choose their best step by likelihood
    return {
        "checkpoint": name,
        "revision": about["revision"],
        "sources": " ".join(sources),
        "text": text,
        "n_interactions": sum(source["n_interactions"] for source in record["sources"]),
        "n_numbers": sum(t.numel() for t in (*loaded.state.values(), *loaded.text.values())),
        "bytes": about["bytes"],
        "steps": record["steps"],
        "best_step": record["best_step"],
        "validation_ndcg@20": f"{-record['best_value']:.5f}" if blend else "",
        "validation_loss": "" if blend else f"{record['best_value']:.5f}",
        "feature_seconds": record["seconds"]["features"],
        "train_seconds": record["seconds"]["train"],
        "total_seconds": record["seconds"]["total"],
        "peak_memory_bytes": record["peak_memory_bytes"],
    }


def main() -> None:
    """Make the asked checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=RECIPES, help="default: all")
    parser.add_argument("--out", type=Path, default=ZOO, help="default: the package's own folder")
    parser.add_argument("--quick", action="store_true", help="a few steps; needs another --out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out.resolve() == ZOO.resolve():
        parser.error("--quick makes nothing worth shipping; name another --out")
    rows = []
    for name in arguments.only or RECIPES:
        print(name, file=sys.stderr, flush=True)
        rows.append(make(name, arguments.out, arguments.quick))
    whole = arguments.only is None and arguments.out.resolve() == ZOO.resolve()
    report(rows, "zoo", arguments.json, write=whole)


if __name__ == "__main__":
    main()
