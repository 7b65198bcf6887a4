"""The checkpoints that come with the package, by name: "architecture.tag"."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gnnrec.errors import CheckpointError
from gnnrec.hub import PREFIX, fetch
from gnnrec.storage import MANIFEST, file_sha256, read_json

# No torch here: listing what there is answers at once.

ZOO = Path(__file__).parent / "checkpoints"
_REVISION_DIGITS = 8


def available() -> list[str]:
    """Return the names of the shipped checkpoints, sorted."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{MANIFEST}"))


def resolve(name_or_folder: str | Path) -> Path:
    """Return the folder of a checkpoint.

    A path that exists wins over a shipped name. A name may end in "@REVISION", the leading digits
    of what `describe` gives, at least one: it is refused where the installed version ships other
    weights.

    Args:
        name_or_folder: A folder, or a name such as "channels.text" or "channels.text@1f2e3d4c", or
            one of the hub (`gnnrec.hub`), which is downloaded.

    Raises:
        CheckpointError: Neither a path that exists nor a shipped name, or another revision.
    """
    asked = str(name_or_folder)
    if Path(asked).exists():
        return Path(asked)
    if asked.startswith(PREFIX):
        return fetch(asked)
    name, at, wanted = asked.partition("@")
    names = available()
    if name not in names:
        near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see gnnrec models list"
        raise CheckpointError(
            f"{asked}: found no such folder and no such name, expected what gnnrec pretrain wrote "
            f"or one of {', '.join(names) or 'the shipped checkpoints (here are none)'}; {hint}"
        )
    folder = ZOO / name
    if at and not (wanted and file_sha256(folder / MANIFEST).startswith(wanted.lower())):
        raise CheckpointError(
            f"{asked}: found the revision {revision(folder)} of {name}, expected {wanted!r}; drop "
            "the revision or install the version of gnnrec that ships it"
        )
    return folder


def revision(folder: Path) -> str:
    """Return eight hexadecimal digits that change with any byte of a checkpoint's folder."""
    return file_sha256(folder / MANIFEST)[:_REVISION_DIGITS]


def describe(name_or_folder: str | Path) -> dict[str, Any]:
    """Say what a checkpoint is, from its small files: nothing is verified, no weight is read.

    Returns:
        `name`, `revision`, `encoder`, `reads_text`, `text_model`, `bytes` of the folder, `sources`
        as its training record has them, `licences` of these, each once.

    Raises:
        CheckpointError: No such checkpoint, or its files are not what pretraining writes.
    """
    folder = resolve(name_or_folder)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder}: found no {MANIFEST}, expected a folder that gnnrec pretrain wrote; name "
            "another"
        )
    model = read_json(folder / "config.json").get("model")
    sources = read_json(folder / "training.json").get("sources")
    if not isinstance(model, dict) or not isinstance(sources, list):
        raise CheckpointError(
            f"{folder}: found no model in config.json or no sources in training.json, expected "
            "both; write it again"
        )
    return {
        "name": folder.resolve().name,
        "revision": revision(folder),
        "encoder": model.get("encoder"),
        "reads_text": bool(model.get("text_dim")),
        "text_model": model.get("text_model") if model.get("text_dim") else None,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "sources": sources,
        "licences": list(dict.fromkeys(s.get("licence", "not stated") for s in sources)),
    }


def card(folder: Path) -> str:
    """Return a checkpoint's README.

    Raises:
        CheckpointError: It has none.
    """
    try:
        return (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder}: found no readable README.md, expected a checkpoint's card; write it again"
        ) from error
