"""Checkpoints on the Hugging Face hub: "hf-hub:OWNER/NAME", or "hf-hub:OWNER/NAME@REVISION"."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from gnnrec.checkpoint import TEXT_FILE
from gnnrec.errors import CheckpointError, ConfigError, DownloadError
from gnnrec.storage import MANIFEST, verify

PREFIX = "hf-hub:"
FILES = (
    "model.safetensors",
    "config.json",
    "training.json",
    "golden.safetensors",
    "README.md",
    MANIFEST,
)
# With the retrained layers of a sentence encoder, which few checkpoints have.
_PATTERNS = [*FILES, TEXT_FILE]
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """Split "hf-hub:OWNER/NAME[@REVISION]" into repository and revision.

    Raises:
        ConfigError: It is written in another way.
    """
    rest = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not _NAME.fullmatch(rest):
        raise ConfigError(
            f"{name}: found no name of the hub, expected {PREFIX}OWNER/NAME or "
            f"{PREFIX}OWNER/NAME@REVISION"
        )
    repository, _, revision = rest.partition("@")
    return repository, revision or None


def fetch(name: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """Download a checkpoint and return its folder; what is cached is not downloaded again.

    Only a checkpoint's own files are asked for, and their hashes are checked against its manifest.
    Without a network the cached copy serves, if there is one.

    Args:
        name: See `parse_hub_name`.
        endpoint: Address of another hub; by default what HF_ENDPOINT says, or the public one.
        cache: Another folder than huggingface_hub's own.

    Raises:
        ConfigError: The name is written in another way, or huggingface_hub is missing.
        DownloadError: No such repository or revision, or it cannot be reached.
        CheckpointError: The repository holds no checkpoint of gnnrec, or a damaged one.
    """
    repository, revision = parse_hub_name(name)
    _require_hub()
    from huggingface_hub import snapshot_download

    try:
        found = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=_PATTERNS,
                endpoint=endpoint or os.environ.get("HF_ENDPOINT"),
                cache_dir=cache,
                library_name="gnnrec",
            )
        )
    except Exception as error:  # its own errors, the network's and the disk's
        raise DownloadError(
            f"{name}: found no answer ({type(error).__name__}: {_first_line(error)}), expected a "
            "repository of the hub; check the name and the network, and log in if it is private"
        ) from error
    try:
        verify(found, FILES[:-1])
    except CheckpointError as error:
        raise CheckpointError(f"{name}: not a checkpoint of gnnrec ({error})") from error
    return found


def push(folder: Path, name: str, *, private: bool = False, endpoint: str | None = None) -> str:
    """Upload a checkpoint's folder as one commit, and return the commit's address.

    The repository is made if it is not there. The token is the one huggingface_hub knows
    (`hf auth login`, or HF_TOKEN).

    Raises:
        ConfigError: The name is written in another way, or huggingface_hub is missing.
        CheckpointError: The folder is no whole checkpoint.
        DownloadError: The hub cannot be reached or refuses.
    """
    repository, revision = parse_hub_name(name)
    _require_hub()
    verify(folder, FILES[:-1])
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT"), library_name="gnnrec")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            allow_patterns=_PATTERNS,
            commit_message="A checkpoint of gnnrec",
        )
    except Exception as error:
        raise DownloadError(
            f"{name}: the upload failed ({type(error).__name__}: {_first_line(error)}); check the "
            "name, the network and the rights of your token (hf auth login)"
        ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _require_hub() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError(
            'the hub needs huggingface_hub, which is not installed: pip install "gnnrec[hub]"'
        )
