"""What is odd about a log that can be used: said beside the counts, and never a reason to stop."""

from __future__ import annotations

import time

import numpy as np

from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.sources import Log
from gnnrec.tables import shown

_MISSING = ("NULL", "null", "None", "NaN", "nan", "NA", "N/A", "<NA>", "\\N", "undefined")
_LONG = 1000  # characters; ids are names, and a quote left open makes one of whole rows
_DAY = 86_400.0
_RECENT = 1e9  # September 2001: a log of later times has none of 1970
_HALF = 0.5


def doubts(log: Log, now: float | None = None) -> list[str]:
    """Look for signs that a file was read otherwise than it was meant. O(n_interactions + n_ids).

    Args:
        log: What was read.
        now: Seconds since 1970; by default the clock's.

    Returns:
        One sentence for each, none where nothing is odd.
    """
    data = log.interactions
    found = _ids(data.user_ids, data.columns.user) + _ids(data.item_ids, data.columns.item)
    if data.n_merged_ids:
        found.append(
            f"{data.n_merged_ids} ids differ from another one only in white space around them or "
            "in being a number; each was taken for the same"
        )
    found += _shape(data) + _times(data.timestamps, time.time() if now is None else now)
    return found if log.items is None else found + _texts(log.items, data)


def _ids(ids: np.ndarray, column: str) -> list[str]:
    if ids.dtype != object:
        return []
    found, known = [], set(ids.tolist())
    missing = [word for word in _MISSING if word in known]
    if missing:
        found.append(
            f"{column}: {shown(missing[0])} is an id like any other; where it stands for a missing "
            "one, drop those rows"
        )
    long = max(map(len, known))
    if long > _LONG:
        found.append(f"{column}: an id has {long} characters; look for a quote or a wrong column")
    breaks = sum("\n" in text or "\r" in text for text in known)
    if breaks:
        found.append(f"{column}: {breaks} ids contain a line break; look for a quote left open")
    return found


def _shape(data: Interactions) -> list[str]:
    if data.n_interactions == data.n_users * data.n_items:
        return [
            f"every user has every item ({data.n_users} x {data.n_items}): nothing is left to "
            "recommend or to learn from"
        ]
    full = int((np.bincount(data.users, minlength=data.n_users) == data.n_items).sum())
    return [f"{full} users have every item; their lists will be empty"] if full else []


def _times(times: np.ndarray | None, now: float) -> list[str]:
    if times is None or not len(times):
        return []
    found = []
    late = int((times > now + _DAY).sum())
    if late:
        found.append(f"{late} of {len(times)} timestamps are in the future; check their unit")
    early = int((np.abs(times) < _RECENT / 100).sum())
    if early and float(np.median(times)) > _RECENT:
        found.append(
            f"{early} of {len(times)} timestamps are of early 1970 and most are after 2001; check "
            "for mixed units, or zeros for missing ones"
        )
    return found


def _texts(items: ItemTable, data: Interactions) -> list[str]:
    found = []
    n_known = int((data.item_codes(items.item_ids) >= 0).sum())
    if n_known < _HALF * data.n_items:
        found.append(
            f"the items file has {n_known} of the {data.n_items} items of the log; check that ids "
            "are written alike"
        )
    if not any(items.texts):
        found.append("the items file has no text: no column but numbers, addresses and ids")
    if items.n_duplicates:
        found.append(
            f"{items.n_duplicates} rows of the items file repeat an id; the first was kept"
        )
    return found
