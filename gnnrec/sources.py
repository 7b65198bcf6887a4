"""A named log, whether a registered data set or a user's file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnnrec.datasets import get_spec, list_datasets, load
from gnnrec.errors import ConfigError, DataError
from gnnrec.interactions import Columns, Interactions, read_interactions
from gnnrec.items import ItemTable, read_items
from gnnrec.packed import ABOUT, open_packed
from gnnrec.split import Split
from gnnrec.tables import shown


@dataclass(frozen=True)
class Log:
    """A named log and its items table.

    `licence` is known for registered sets, and `n_texts_left_out` counts what users wrote of pairs
    that are no interaction.
    """

    name: str
    interactions: Interactions
    items: ItemTable | None
    licence: str | None = None
    n_texts_left_out: int = 0

    @property
    def has_text(self) -> bool:
        """Whether an item has a text, or a user wrote one."""
        of_items = self.items is not None and any(self.items.texts)
        return of_items or self.interactions.texts is not None


def open_log(
    name_or_file: str,
    items_file: str | Path | None = None,
    *,
    columns: Columns | None = None,
    min_weight: float | None = None,
    mirror: str | Path | None = None,
) -> Log:
    """Open a registered data set by name, or a user's file.

    A file wins over a registered name. `items_file` replaces a registered set's own table. Of
    `columns` a registered set heeds the name of the text column alone: what its users wrote is read
    where it is named.

    Raises:
        DataError: The file is not usable.
        ConfigError: Neither a file nor a registered name, or a set without such a text column.
    """
    names = [spec.name for spec in list_datasets()]
    if Path(name_or_file).exists() or name_or_file not in names:
        if not Path(name_or_file).exists():
            raise ConfigError(
                f"{name_or_file}: neither a file nor a registered data set; registered: "
                f"{', '.join(names)}"
            )
        return open_file(name_or_file, items_file, columns=columns, min_weight=min_weight)
    dataset = load(name_or_file, mirror, user_texts=_asks_for_texts(name_or_file, columns))
    log = dataset.interactions
    if min_weight is not None:
        if log.weights is None:
            raise ConfigError(f"--min-weight: {name_or_file} has no weights")
        frame = log.select(log.weights >= min_weight).to_frame()
        log = Interactions.from_frame(frame, log.columns, None, name_or_file)
    items = dataset.items
    if items_file is not None:
        items = _matching(read_items(items_file, log.columns.item), log, items_file, name_or_file)
    return Log(name_or_file, log, items, dataset.spec.licence, dataset.n_texts_left_out)


def _asks_for_texts(name: str, columns: Columns | None) -> bool:
    """Whether the text column of a registered set is named; the default name asks for nothing."""
    wanted, texts = (columns or Columns()).text, get_spec(name).user_texts
    if wanted == Columns().text:
        return False
    if texts is not None and wanted != texts.column:
        raise ConfigError(
            f"{name}: found --text-column {wanted}, expected {texts.column}; correct it or leave "
            "it out"
        )
    return True


def open_file(
    path: str | Path,
    items_file: str | Path | None = None,
    *,
    columns: Columns | None = None,
    min_weight: float | None = None,
) -> Log:
    """Open a user's log, and the items file that goes with it.

    Raises:
        DataError: A file is not usable, or no id of the items file is an item of the log.
    """
    if (Path(path) / ABOUT).is_file():
        if min_weight is not None:
            raise ConfigError(f"--min-weight: {path} is packed; give it to gnnrec data pack")
        log = open_packed(Path(path))
    else:
        log = read_interactions(path, columns, min_weight)
    items = None
    if items_file is not None:
        items = _matching(read_items(items_file, log.columns.item), log, items_file, path)
    return Log(Path(path).name, log, items)


def _matching(
    items: ItemTable, log: Interactions, items_file: str | Path, log_file: str | Path
) -> ItemTable:
    if not (log.item_codes(items.item_ids) >= 0).any():
        raise DataError(
            f"{items_file}: found no id that is an item of {log_file} ({shown(items.item_ids[0])} "
            f"against {shown(log.item_ids[0])}), expected the same ids; name the column of "
            "both with --item-column"
        )
    return items


def describe(log: Log) -> dict[str, Any]:
    """Name, counts, licence and digest of a log, for a training record."""
    data = log.interactions
    rows = np.arange(data.n_interactions)
    whole = Split(rows, rows[:0], rows[:0], "none", 0, 1.0, len(rows))
    return {
        "name": log.name,
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "sha256": whole.sha256(data.user_ids[data.users], data.item_ids[data.items]),
        "licence": log.licence or "not stated",
    }


def fingerprint(log: Log) -> str:
    """Digest of all that a training can read of a log, in its order: rows, ids, items, texts."""
    data, items = log.interactions, log.items
    parts: list[Any] = [data.users, data.items, data.user_ids, data.item_ids]
    parts += [data.weights, data.timestamps, data.texts]
    if items is not None:
        parts += [items.item_ids, items.texts, items.titles]
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype != object:
            digest.update(np.ascontiguousarray(part).tobytes())
        elif part is not None:
            digest.update(json.dumps([str(value) for value in part]).encode())
        digest.update(b"|")
    return digest.hexdigest()


def held_out_sha256(held_out: Interactions) -> str:
    """Digest of a given test part, in raw ids."""
    rows = np.arange(held_out.n_interactions)
    split = Split(rows[:0], rows[:0], rows, "given", 0, 1.0, 0)
    return split.sha256(held_out.user_ids[held_out.users], held_out.item_ids[held_out.items])
