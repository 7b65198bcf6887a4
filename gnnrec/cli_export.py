"""The command that takes a recommender elsewhere: gnnrec export."""

from __future__ import annotations

from typing import Annotated

import typer

from gnnrec.options import Json, Out, RecommenderFolder, emit, say


def export(
    folder: RecommenderFolder,
    out: Out,
    index: Annotated[
        str | None, typer.Option(help="A faiss index too: flat (exact), hnsw or ivf.")
    ] = None,
    lists: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The K best items of all users too.")
    ] = None,
    program: Annotated[
        bool, typer.Option("--program/--no-program", help="A torch.export program.")
    ] = True,
    json_: Json = False,
) -> None:
    """Write a saved recommender as Parquet, a program, a faiss index."""
    from gnnrec.export import export_command

    emit(json_, export_command(folder, out, index, lists, program, say))
