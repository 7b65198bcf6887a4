"""The commands that answer requests: gnnrec serve and gnnrec explore."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gnnrec.options import Device, Json, RecommenderFolder, emit, say


def serve(
    folder: RecommenderFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    admin_token: Annotated[
        str | None,
        typer.Option(
            envvar="GNNREC_ADMIN_TOKEN", help="Allows POST /admin/reload to whoever sends it."
        ),
    ] = None,
    max_k: Annotated[int, typer.Option(min=1, help="Longest list.")] = 100,
    max_users: Annotated[int, typer.Option(min=1, help="Users in a request.")] = 100,
    max_history: Annotated[int, typer.Option(min=1, help="Items in a history.")] = 1000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of a request.")] = 2**20,
    seconds: Annotated[float, typer.Option(min=0.001, help="Longest time of a request.")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Requests computed at once.")] = 2,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; then 503.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
) -> None:
    """Serve a saved recommender over HTTP.

    SIGHUP, or POST /admin/reload with the token, loads DIR again without dropping a request;
    SIGTERM ends when the requests that have begun are answered.
    """
    from gnnrec.errors import ConfigError
    from gnnrec.service import require_serve_extra

    require_serve_extra()
    if admin_token == "":
        raise ConfigError(
            "--admin-token: found an empty token, expected one; leave it out for none"
        )
    from gnnrec.service.schemas import Limits
    from gnnrec.service.server import serve as run

    limits = Limits(
        max_k=max_k,
        max_users=max_users,
        max_history=max_history,
        max_body_bytes=max_body_bytes,
        seconds=seconds,
        threads=threads,
        queue=queue,
    )
    say(f"loading {folder}")
    run(folder, host, port, limits, admin_token, device)


def explore(
    folder: RecommenderFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8765,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    items: Annotated[
        Path | None, typer.Option(help="Items file whose columns can colour the map.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Recommender of the same log to compare with.")
    ] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Look at a saved recommender on a local page, until Ctrl-C."""
    from gnnrec.explore import explore_command

    def ready(url: str) -> None:
        emit(json_, {"url": url})
        sys.stdout.flush()
        say(f"{url} shows {folder}; Ctrl-C ends it")

    explore_command(folder, port, items, beside, device, open_page=not no_open, ready=ready)
