"""Folders that are written whole or not at all, with a manifest that says if a byte changed.

No pickle: tensors are safetensors, tables Parquet, the rest JSON.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.signals import held

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_MAX_JSON_BYTES = 64 << 20  # a hundred times the longest record written here
_LONGEST_NAME = 255
_OURS, _OLD = "gnnrec-", ".old"  # in names of what is not yet, or no longer, an output


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside the target; on success it is sealed and renamed to it.

    An earlier gnnrec output (a folder with a manifest) is replaced; any other non-empty folder is
    refused, so that nobody's files are lost. Everything is on the disk before it has its name.

    Raises:
        ConfigError: The target is a file or a folder with other content, or cannot be written; what
            was there stays.
    """
    check_replaceable(target)
    with _told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_left(target.parent, target.name)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_OURS}", dir=target.parent))
    try:
        with _told(target), _locked(work):
            yield work
            seal(work)
            os.chmod(work, 0o755)  # mkdtemp's is private
            for path in (*work.iterdir(), work):
                _to_disk(path)
            with held():
                _exchange(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _exchange(work: Path, target: Path) -> None:
    """Give a folder the target's name, in place of what has it."""
    if not target.exists():
        work.rename(target)
    else:
        old = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.{_OURS}", suffix=_OLD, dir=target.parent)
        )
        try:
            target.rename(old / target.name)
            work.rename(target)
        except BaseException:
            if (old / target.name).exists():
                (old / target.name).rename(target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    _to_disk(target.parent)


def clear_left(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of writing an output of that name, or any, in a folder.

    A living writer holds a lock. An earlier output that was moved away and not replaced is put
    back.
    """
    pattern = name if name == "*" else glob.escape(name)
    for path in folder.glob(f".{pattern}.{_OURS}*"):
        target = folder / path.name[1:].rpartition(f".{_OURS}")[0]
        try:
            with _locked(path):
                if path.name.endswith(_OLD) and not target.exists():
                    if (path / target.name).exists():
                        (path / target.name).rename(target)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError:
            continue  # of a living process, or of another user


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Say in one line that a disk is full, or whatever keeps a target from being written."""
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error) from error


def cannot_write(target: Path, error: OSError) -> ConfigError:
    """Return what to say of a file or folder that could not be written."""
    found = error.strerror or str(error)
    cure = "make the folder, or name another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        cure = "make room on the disk, or name another place; what was there before stays"
    return ConfigError(f"{target}: cannot write there ({found}); {cure}")


def _to_disk(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some have it for files alone
            raise
    finally:
        os.close(descriptor)


def check_replaceable(target: Path) -> None:
    """Raise a ConfigError where `whole_folder` would refuse the target: ask before long work."""
    if target.is_file():
        raise ConfigError(f"{target}: found a file, expected a folder to write; name another --out")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ConfigError(
            f"{target}: found a folder with other files, expected a new one or an earlier gnnrec "
            "output; name another --out"
        )
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        found = "a folder without the right to write" if above.is_dir() else "a file"
        raise ConfigError(
            f"{target}: found {found} at {above}, expected a folder to write in; name another --out"
        )


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside the target; on success it is renamed to it.

    Raises:
        ConfigError: The target is a folder, or its folder does not exist or is not writable.
    """
    if target.is_dir():
        raise ConfigError(f"{target}: found a folder, expected a file to write; name another")
    with _told(target):
        clear_left(target.parent, target.name)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.{_OURS}", suffix=target.suffix, dir=target.parent
        )
    os.close(handle)
    try:
        with _told(target), _locked(Path(name)):
            yield Path(name)
            os.chmod(name, 0o644)
            _to_disk(Path(name))
            os.replace(name, target)
            _to_disk(target.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def seal(folder: Path) -> None:
    """Write the manifest: sha256 of every file in the folder."""
    files = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    write_json(folder / MANIFEST, {"files": files})


def verify(folder: Path, required: tuple[str, ...] = ()) -> None:
    """Check a folder against its manifest.

    Raises:
        CheckpointError: Something is missing, altered, or not listed as the manifest says.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: found {found}, expected a folder that gnnrec wrote")
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder}: no {MANIFEST}; not a folder that gnnrec wrote")
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST}: expected an object with 'files'")
    for name in required:
        if name not in files:
            raise CheckpointError(f"{folder}: {name} is missing; this is not the expected kind")
    there = {path.name for path in folder.iterdir() if path.is_file()}
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name or name not in there:
            raise CheckpointError(
                f"{folder}: {name[:_LONGEST_NAME]} is listed in {MANIFEST} and missing"
            )
        if file_sha256(path) != expected:
            raise CheckpointError(
                f"{path}: its sha256 is not the one in {MANIFEST}; the file was changed or "
                "damaged, fetch or write it again"
            )


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write a JSON value, readable and with unicode as it is."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def append_json(path: Path, value: dict[str, Any]) -> None:
    """Append one line to a file of JSON lines.

    Raises:
        ConfigError: It cannot be written.
    """
    with _told(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: Not a file, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
