"""What a source and a target share: users, items, texts. And a source without it.

Two logs that share items or users are not two domains: what looks like transfer may be the same
interactions seen twice.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gnnrec.errors import DataError
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.sources import Log

NumberIds = Literal["counters", "names"]

_CELLS = 4_000_000  # cosines in memory at a time: 16 MB


@dataclass(frozen=True)
class Side:
    """One log with everything that is compared: its ids, texts and text vectors.

    Attributes:
        log: Its items are all items that have an interaction or a text.
        texts: n_items texts, "" where an item has none.
        vectors: (n_items, dim) float32 unit vectors, zero rows for missing texts, or None.
    """

    log: Interactions
    texts: list[str]
    vectors: np.ndarray | None = None


@dataclass(frozen=True)
class Overlap:
    """What a source shares with a target.

    Attributes:
        users: Raw user ids of the target that the source has.
        items: Raw item ids.
        texts: Items of the target whose normalised text is that of a source item.
        near_texts: Items of the target with a source text above the cosine; None without vectors.
        named_users: Of `users`, those that are not digits alone. A row counter is in every log that
            counts from one.
        named_items: Of `items`.
        source_users: (n_source_users,) bool, for `without`: the users that the target has.
        source_items: (n_source_items,) bool: the items that the target has, by id or text.
    """

    users: int
    items: int
    texts: int
    near_texts: int | None
    named_users: int
    named_items: int
    source_users: np.ndarray
    source_items: np.ndarray

    def counts(self) -> dict[str, int | None]:
        """The numbers of a row."""
        names = ("users", "items", "texts", "near_texts", "named_users", "named_items")
        return {name: getattr(self, name) for name in names}


def overlap(
    source: Side, target: Side, near: float = 0.9, number_ids: NumberIds = "counters"
) -> Overlap:
    """Compare a source with a target.

    Args:
        source: The log to pretrain on.
        target: The log to adapt to.
        near: Cosine of text vectors above which two texts are the same item.
        number_ids: Whether equal ids of digits alone mark a source user or item as shared
            ("names"), or are taken for row counters ("counters"). All are counted either way.

    Cost: O(n_source_items n_target_items dim) time for the cosines, 16 MB of them in memory.
    """
    users = _shared(source.log.user_ids, target.log.user_codes(source.log.user_ids))
    items = _shared(source.log.item_ids, target.log.item_codes(source.log.item_ids))
    mine, theirs = [[normalise(text) for text in side.texts] for side in (source, target)]
    both = (set(mine) & set(theirs)) - {""}
    same = np.array([text in both for text in mine], dtype=bool)
    near_source, near_target = np.zeros(len(mine), dtype=bool), None
    if source.vectors is not None and target.vectors is not None:
        near_source, near_target = near_texts(source.vectors, target.vectors, near)
    by_id = items.any if number_ids == "names" else items.named
    return Overlap(
        users=int(users.any.sum()),
        items=int(items.any.sum()),
        texts=sum(text in both for text in theirs),
        near_texts=None if near_target is None else int(near_target.sum()),
        named_users=int(users.named.sum()),
        named_items=int(items.named.sum()),
        source_users=users.any if number_ids == "names" else users.named,
        source_items=by_id | same | near_source,
    )


def near_texts(
    source: np.ndarray, target: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray]:
    """Say which rows have a row on the other side at a larger cosine than `near`.

    Args:
        source: (n, dim) float32 unit vectors or zero rows.
        target: (m, dim) likewise.
        near: The cosine.

    Returns:
        (n,) and (m,) bool.
    """
    in_source = np.zeros(len(source), dtype=bool)
    in_target = np.zeros(len(target), dtype=bool)
    step = max(1, _CELLS // max(len(target), 1))
    for begin in range(0, len(source), step):
        close = source[begin : begin + step] @ target.T > near
        in_source[begin : begin + step] = close.any(axis=1)
        in_target |= close.any(axis=0)
    return in_source, in_target


def normalise(text: str) -> str:
    """Return the words of a text in lower case, without accents' encodings and punctuation."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def without(log: Log, found: Overlap) -> Log:
    """Return a source without the users and items that the target has too.

    Args:
        log: The source.
        found: Its overlap, found with all items of the source's table in its `Side`.

    Raises:
        DataError: Nothing is left.
    """
    data = log.interactions
    users, items = found.source_users, found.source_items
    rows = ~users[data.users] & ~items[data.items]
    if not rows.any():
        raise DataError(
            f"source {log.name}: nothing is left without what the target shares with it, expected "
            "some interactions; name another source, or strict = false"
        )
    kept = Interactions.from_frame(data.select(rows).to_frame(), data.columns, None, log.name)
    table = log.items
    if table is not None:
        codes = data.with_items(table.item_ids).item_codes(table.item_ids)
        stays = ~items[codes]
        table = ItemTable(
            table.item_ids[stays],
            [text for text, stay in zip(table.texts, stays, strict=True) if stay],
            [title for title, stay in zip(table.titles, stays, strict=True) if stay],
        )
    return replace(log, interactions=kept, items=table)


@dataclass(frozen=True)
class _Shared:
    any: np.ndarray
    named: np.ndarray


def _shared(ids: np.ndarray, codes: np.ndarray) -> _Shared:
    shared = codes >= 0
    digits = np.array([str(value).isdigit() for value in ids.tolist()], dtype=bool)
    return _Shared(shared, shared & ~digits)
