"""The commands that look at checkpoints: gnnrec models."""

from __future__ import annotations

from typing import Annotated

import typer

from gnnrec.console import text_table
from gnnrec.options import Json, emit

models_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at checkpoints: those that ship, and others.",
)
Name = Annotated[str, typer.Argument(metavar="NAME-or-DIR")]


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """List the shipped checkpoints."""
    from gnnrec.zoo import available, describe

    found = [describe(name) for name in available()]
    emit(
        json_,
        {"models": found},
        text_table(
            [
                {
                    "name": one["name"],
                    "revision": one["revision"],
                    "text": "yes" if one["reads_text"] else "no",
                    "kB": round(one["bytes"] / 1000),
                    "sources": ", ".join(source["name"] for source in one["sources"]),
                }
                for one in found
            ]
        )
        if found
        else "no checkpoint is shipped with this installation",
    )


@models_app.command("info")
def models_info(name: Name, json_: Json = False) -> None:
    """Show a checkpoint's card: what it reads, sources, licences."""
    from gnnrec.zoo import card, describe, resolve

    folder = resolve(name)
    found = describe(folder) | {"folder": str(folder), "card": card(folder)}
    about = f"revision {found['revision']}, {found['bytes']} bytes, in {folder}"
    emit(json_, found, found["card"], about)


@models_app.command("push")
def models_push(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="hf-hub:OWNER/NAME")],
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
    json_: Json = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub."""
    from gnnrec.hub import push
    from gnnrec.zoo import resolve

    address = push(resolve(name), to, private=private)
    emit(json_, {"name": name, "commit": address}, f"{name} -> {address}")


@models_app.command("verify")
def models_verify(name: Name, json_: Json = False) -> None:
    """Check a checkpoint's hashes, shapes and golden output."""
    from gnnrec.checkpoint import Checkpoint
    from gnnrec.zoo import describe, resolve

    folder = resolve(name)
    Checkpoint.load(folder)
    found = describe(folder)
    emit(
        json_,
        {"name": found["name"], "revision": found["revision"], "verified": True},
        f"{found['name']}@{found['revision']}: hashes, shapes and golden output agree",
    )
