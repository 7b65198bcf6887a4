"""The command that searches a transfer's settings: gnnrec tune."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gnnrec.options import (
    ConfigFile,
    Device,
    ItemColumn,
    Json,
    MinWeight,
    Mirror,
    Out,
    Seed,
    Target,
    TextColumn,
    TimeColumn,
    UserColumn,
    WeightColumn,
    columns_of,
    emit,
    open_named,
    say,
)


def tune(
    checkpoint: Annotated[str, typer.Argument(metavar="NAME-or-DIR")],
    target: Target,
    out: Out,
    items: Annotated[Path | None, typer.Option(help="Items file of a FILE target.")] = None,
    retrain: Annotated[
        str | None, typer.Option(help="Keep this mode; searched too by default.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after so many (default: 15).")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after so many, in all.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the search.")] = 1,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    text_column: TextColumn = "text",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Search a transfer's settings on the target's training part.

    Writes tuned.toml, for gnnrec transfer --config. Started again, it goes on where it was.
    """
    from gnnrec.checkpoint import Checkpoint
    from gnnrec.config import TransferConfig, load_config
    from gnnrec.tune import require_tune_extra
    from gnnrec.tune import tune as search
    from gnnrec.zoo import resolve

    require_tune_extra()
    settings = load_config(TransferConfig, config, {"seed": seed, "retrain": retrain})
    source = Checkpoint.load(resolve(checkpoint))
    source.check_retrain(settings.retrain)
    log = open_named(
        target,
        items,
        columns_of(user_column, item_column, timestamp_column, weight_column, text_column),
        min_weight,
        mirror,
    )
    tuned = search(
        source,
        log,
        settings,
        out,
        retrain=retrain,
        n_trials=trials,
        minutes=15.0 if minutes is None and trials is None else minutes,
        workers=workers,
        device=device,
        say=say,
    )
    words = ["gnnrec", "transfer", checkpoint, "--target", target]
    words += [
        "--config",
        str(out / "tuned.toml"),
        *([] if items is None else ["--items", str(items)]),
    ]
    for option, name, usual in (
        ("--user-column", user_column, "user_id"),
        ("--item-column", item_column, "item_id"),
        ("--timestamp-column", timestamp_column, "timestamp"),
        ("--weight-column", weight_column, "weight"),
        ("--text-column", text_column, "text"),
        ("--min-weight", min_weight, None),
    ):
        words += [] if name == usual else [option, str(name)]
    say(f"next: {shlex.join(words)} --out DIR")
    emit(json_, tuned.report)
