"""The options that commands share, and how their results get out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gnnrec.interactions import Columns
    from gnnrec.sources import Log

# Nothing heavier than typer is imported before a command runs: --help answers at once.

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random (default: 0).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder with copies of the data sets.")]
UserColumn = Annotated[str, typer.Option(help="Column of user ids.")]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids, in the items file too.")]
TimeColumn = Annotated[str, typer.Option("--timestamp-column", help="Column of times.")]
WeightColumn = Annotated[str, typer.Option(help="Column of weights or ratings.")]
TextColumn = Annotated[
    str, typer.Option(help="Column of what users wrote; of a registered set only if named.")
]
MinWeight = Annotated[float | None, typer.Option(help="Leave out rows below this weight.")]
Tensorboard = Annotated[Path | None, typer.Option(help="Folder to write TensorBoard's files to.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Cutoffs = Annotated[list[int], typer.Option("-k", min=1, help="Cut-off; may be repeated.")]
RecommenderFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a recommender.")]
Target = Annotated[str, typer.Option(help="NAME or FILE.")]
OwnColumn = Annotated[str | None, typer.Option(help="Default: the log's.")]
LogName = Annotated[str, typer.Argument(metavar="NAME-or-FILE")]


def say(*lines: str) -> None:
    """Print for people, on stderr: notes, tables, warnings."""
    if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
        for line in lines:
            print(line, file=sys.stderr)  # noqa: T201


def emit(as_json: bool, value: dict[str, Any], *lines: str) -> None:
    """Print a result: the lines for people, and with --json one object, alone on stdout."""
    say(*lines)
    if as_json and os.environ.get("RANK", "0") == "0":
        from gnnrec.evaluate import plain

        print(json.dumps(plain(value), allow_nan=False))  # noqa: T201


def columns_of(user: str, item: str, timestamp: str, weight: str, text: str = "text") -> Columns:
    """Make the column names from their options."""
    from gnnrec.interactions import Columns

    return Columns(user=user, item=item, timestamp=timestamp, weight=weight, text=text)


def open_named(
    source: str,
    items: Path | None,
    columns: Columns,
    min_weight: float | None,
    mirror: Path | None,
) -> Log:
    """Open a log by name or file, and say what is in it."""
    from gnnrec.doubts import doubts
    from gnnrec.sources import open_log

    log = open_log(source, items, columns=columns, min_weight=min_weight, mirror=mirror)
    data = log.interactions
    say(
        f"{log.name}: {data.n_users} users, {data.n_items} items, {data.n_interactions} "
        f"interactions ({data.n_dropped_duplicates} repeated rows collapsed)"
    )
    if data.texts is not None:
        say(f"{data.n_texts} interactions have a text ({log.n_texts_left_out} texts left out)")
    if log.licence is None:  # a file; registered sets were looked at
        say(*(f"note: {note}" for note in doubts(log)))
    return log
