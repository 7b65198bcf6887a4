"""The commands that measure many runs and show them: gnnrec bench and gnnrec report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gnnrec.options import Device, Json, Mirror, emit, say


def bench(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.toml", help="What to run.")],
    out: Annotated[
        Path | None, typer.Option(help="Results folder (default: runs/bench/NAME).")
    ] = None,
    limit_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop between runs after so many minutes.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Filter, as target=A|B,arm=scratch; also source, encoder, scenario, "
            "fraction, seed."
        ),
    ] = None,
    device: Device = "auto",
    mirror: Mirror = None,
    json_: Json = False,
) -> None:
    """Run a benchmark suite, a row per run; again, it goes on."""
    from gnnrec.bench import run_bench
    from gnnrec.suite_file import load_suite

    settings = load_suite(suite)
    emit(
        json_,
        run_bench(
            settings,
            out or Path("runs/bench") / settings.name,
            device=device,
            mirror=mirror,
            only=only or (),
            limit_minutes=limit_minutes,
            say=say,
        ),
    )


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results folder of gnnrec bench.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: DIR).")] = None,
    json_: Json = False,
) -> None:
    """Make one HTML page and a Markdown file of a suite's results."""
    from gnnrec.suite_report import report_command

    emit(json_, report_command(folder, out, say))
