"""The commands that look at, check and fetch interaction logs: gnnrec data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gnnrec.console import listed, rounded, text_table
from gnnrec.options import (
    ItemColumn,
    Json,
    LogName,
    MinWeight,
    Mirror,
    TextColumn,
    TimeColumn,
    UserColumn,
    WeightColumn,
    columns_of,
    emit,
    open_named,
)

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at, check and fetch interaction logs."
)


@data_app.command("list")
def data_list(json_: Json = False) -> None:
    """List the registered data sets."""
    from gnnrec.datasets import list_datasets

    rows = [
        {
            "name": spec.name,
            "text": "yes" if spec.has_text else "no",
            "time": "yes" if spec.has_time else "no",
            "licence": spec.licence,
        }
        for spec in list_datasets()
    ]
    emit(json_, {"datasets": rows}, text_table(rows))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument()], mirror: Mirror = None, json_: Json = False
) -> None:
    """Fetch a data set into the cache and check it."""
    from gnnrec.datasets import load

    dataset = load(name, mirror)
    log, spec = dataset.interactions, dataset.spec
    counts = {"n_users": log.n_users, "n_items": log.n_items, "n_interactions": log.n_interactions}
    emit(
        json_,
        {"name": name, **counts, "sha256": dataset.sha256, "licence": spec.licence},
        f"{name}: " + ", ".join(f"{value} {key[2:]}" for key, value in counts.items()),
        f"licence: {spec.licence}",
        f"cite: {spec.citation}",
    )


@data_app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    items: Annotated[
        Path | None, typer.Option(help="Items file: ids and any text columns.")
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="Checkpoint, NAME or DIR: what it needs, and what is missing."),
    ] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    text_column: TextColumn = "text",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Check a log and its items file, and say what will be used."""
    from gnnrec.doubts import doubts
    from gnnrec.readiness import readiness
    from gnnrec.sources import open_file
    from gnnrec.zoo import describe

    checkpoint = None if for_ is None else describe(for_)
    columns = columns_of(user_column, item_column, timestamp_column, weight_column, text_column)
    log = open_file(file, items, columns=columns, min_weight=min_weight)
    data = log.interactions
    found: dict[str, Any] = {
        "file": str(file),
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "n_repeated_rows": data.n_dropped_duplicates,
        "n_below_min_weight": data.n_below_min_weight,
        "interactions_per_user": round(data.n_interactions / data.n_users, 2),
        "has_timestamps": data.timestamps is not None,
        "has_weights": data.weights is not None,
        "n_interactions_with_text": data.n_texts,
    }
    if log.items is not None:
        texts, _ = log.items.align(data.item_ids)
        found["n_items_in_table"] = len(log.items.item_ids)
        found["n_items_with_text"] = sum(1 for text in texts if text)
        found["text_columns"] = list(log.items.columns)
    lines = [f"{name}: {listed(value)}" for name, value in found.items()]
    found["notes"] = doubts(log)
    lines += [f"note: {note}" for note in found["notes"]]
    if checkpoint is not None:
        findings = readiness(checkpoint, log)
        lines += [f"for {for_}:", *(finding.line() for finding in findings)]
        found["for"] = for_
        found["findings"] = [finding.plain() for finding in findings]
    emit(json_, found, *lines, "usable")


@data_app.command("convert")
def data_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    to: Annotated[
        str, typer.Option(help="gnnrec, recbole, movielens, lenskit, surprise or implicit.")
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    from_: Annotated[
        str, typer.Option("--from", help="The file's layout, as --to; auto looks at it.")
    ] = "auto",
    items: Annotated[Path | None, typer.Option(help="Items file, in the same layout.")] = None,
    items_out: Annotated[Path | None, typer.Option(help="Items file to write.")] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    json_: Json = False,
) -> None:
    """Bring a log from another library's layout to gnnrec's, or back."""
    from gnnrec.convert import convert

    columns = columns_of(user_column, item_column, timestamp_column, weight_column)
    done = convert(file, out, to, from_, items=items, items_out=items_out, columns=columns)
    emit(json_, done, *(f"{name}: {value}" for name, value in done.items()))


@data_app.command("pack")
def data_pack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Plain, alike columns.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Pack a log larger than memory into a folder to use in its place."""
    from gnnrec.packed import pack

    columns = columns_of(user_column, item_column, timestamp_column, weight_column)
    done = pack(files, out, columns, min_weight)
    told = (f"{name}: {value}" for name, value in done.items() if name != "columns")
    emit(json_, done, *told)


@data_app.command("stats")
def data_stats(
    source: LogName,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Describe a log as a graph: sizes, degrees, concentration."""
    from gnnrec.graph import BipartiteGraph

    log = open_named(
        source,
        None,
        columns_of(user_column, item_column, timestamp_column, weight_column),
        min_weight,
        mirror,
    ).interactions
    graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
    statistics = graph.statistics()
    told = (f"{name}: {rounded(value)}" for name, value in statistics.items())
    emit(json_, {"source": source, **statistics}, *told)
