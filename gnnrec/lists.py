"""What surrounds a ranking: which items may appear, and the table that comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.errors import DataError
from gnnrec.interactions import Interactions
from gnnrec.rank import top_k_from


def as_ids(what: str, ids: Iterable[Any]) -> list[Any]:
    """Return ids as a list.

    Raises:
        DataError: It is one id, whose letters would be taken for ids, or a whole table.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise DataError(f"{what}: found {ids!r}, expected a list of ids; write [{ids!r}]")
    if len(getattr(ids, "shape", (1,))) != 1:
        raise DataError(f"{what}: found a table, expected a list of ids; give one of its columns")
    return list(ids)


def allowed_mask(
    log: Interactions, allow: Iterable[Any] | None, exclude: Iterable[Any] | None
) -> np.ndarray | None:
    """Return (n_items,) bool of what may be recommended; None where everything may.

    Raises:
        DataError: No allowed item is in the catalogue.
    """
    if allow is None and exclude is None:
        return None
    mask = np.full(log.n_items, allow is None)
    if allow is not None:
        codes = log.item_codes(as_ids("allow", allow))
        mask[codes[codes >= 0]] = True
        if not mask.any():
            raise DataError("the allow list names no item of the catalogue; check its ids")
    if exclude is not None:
        codes = log.item_codes(as_ids("exclude", exclude))
        mask[codes[codes >= 0]] = False
    return mask


def ranked_frame(
    log: Interactions,
    who: tuple[str, np.ndarray],
    known: np.ndarray,
    scores: np.ndarray,
    items: np.ndarray,
) -> pd.DataFrame:
    """Return a row per recommended item, list after list.

    Args:
        log: Whose item ids are written, under its own column name.
        who: Name and (n,) values of the column that says whose list it is.
        known: (n,) bool.
        scores: (n, k), best first.
        items: (n, k) codes; -1 is no item.
    """
    present = items >= 0
    row, column = np.nonzero(present)
    return pd.DataFrame(
        {
            who[0]: pd.Series(who[1][row]).infer_objects(),
            log.columns.item: log.item_ids[items[present]],
            "score": scores[present],
            "rank": column + 1,
            "known": known[row],
        }
    )


def check_k(k: int) -> None:
    """Raise a DataError unless lists have a length."""
    if k < 1:
        raise DataError(f"k must be at least 1, found {k}")


def similar_frame(log: Interactions, vectors: Tensor, items: list[Any], k: int) -> pd.DataFrame:
    """Return the k nearest items of each by cosine; see `Recommender.similar_items`.

    Args:
        log: Whose items.
        vectors: (n_items, d).
        items: Raw ids.
        k: How many.

    Raises:
        DataError: An id is not in the catalogue.
    """
    codes = log.item_codes(items)
    if (codes < 0).any():
        missing = items[int((codes < 0).argmax())]
        raise DataError(f"similar_items: item {missing!r} is not in the catalogue")
    asked = torch.nn.functional.normalize(vectors[codes], dim=1)
    # Lengths divide the products: a table of unit vectors would be written at every call.
    lengths = vectors.norm(dim=1).clamp_min(1e-12)[:, None]
    own = sp.csr_array(
        (np.ones(len(codes), dtype=np.float32), (np.arange(len(codes)), codes)),
        shape=(len(codes), log.n_items),
    )
    scores, found = top_k_from(
        lambda rows: ((vectors @ asked[rows].T) / lengths).T,
        len(codes),
        log.n_items,
        min(k, log.n_items),
        seen=own,
    )
    row, column = np.nonzero(found >= 0)
    return pd.DataFrame(
        {
            log.columns.item: log.item_ids[codes[row]],
            "similar_item": log.item_ids[found[row, column]],
            "score": scores[row, column],
            "rank": column + 1,
        }
    )
