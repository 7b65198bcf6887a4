"""What two logs share, and a source without it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec import overlap as module
from gnnrec.errors import DataError
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.overlap import Side, near_texts, normalise, overlap, without
from gnnrec.sources import Log


def side(users: list, items: list, texts: list[str], vectors: np.ndarray | None = None) -> Side:
    frame = pd.DataFrame({"user_id": users, "item_id": items})
    return Side(Interactions.from_frame(frame), texts, vectors)


SOURCE = (["ann", "bob", "7", "cy"], ["a", "b", "3", "d"], ["Toy Story (1995)", "x", "", "Jaws"])


def test_ids_and_texts_are_counted_in_the_target():
    source = side(*SOURCE)
    target = side(
        ["bob", "7", "dan", "dan"], ["3", "z", "b", "y"], ["", "toy  story, 1995", "other", "JAWS"]
    )
    found = overlap(source, target)
    assert found.counts() == {
        "users": 2,
        "items": 2,
        "texts": 2,
        "near_texts": None,
        "named_users": 1,
        "named_items": 1,
    }
    # 7 and 3 may be row counters; an empty text is nobody's.
    assert found.source_users.tolist() == [False, True, False, False]
    assert found.source_items.tolist() == [True, True, False, True]
    named = overlap(source, target, number_ids="names")
    assert named.source_users.tolist() == [False, True, True, False]
    assert named.source_items.tolist() == [True, True, True, True]
    assert named.counts() == found.counts()


def test_near_texts_are_those_above_the_cosine():
    vectors = np.eye(3, dtype=np.float32)
    close = np.array([[0.95, np.sqrt(1 - 0.95**2), 0], [0, 0, 0]], dtype=np.float32)
    source = side(["a"] * 3, ["p", "q", "r"], ["1", "2", "3"], vectors)
    target = side(["b"] * 2, ["s", "t"], ["4", "5"], close)
    found = overlap(source, target, 0.9)
    assert found.near_texts == 1 and found.source_items.tolist() == [True, False, False]
    assert overlap(source, target, 0.96).near_texts == 0


@given(seed=st.integers(0, 99), n=st.integers(1, 9), m=st.integers(0, 9), cells=st.integers(1, 30))
def test_cosines_in_chunks_equal_all_at_once(seed, n, m, cells):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((k, 3)).astype(np.float32) for k in (n, m))
    close = a @ b.T > 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CELLS", cells)
        in_a, in_b = near_texts(a, b, 0.3)
    assert in_a.tolist() == close.any(axis=1).tolist()
    assert in_b.tolist() == close.any(axis=0).tolist()


def test_texts_are_compared_by_their_words():
    assert normalise("The  SHIP, (1995)!") == "the ship 1995" and normalise("...") == ""
    assert normalise("\N{LATIN SMALL LIGATURE FI}lm") == "film"


def test_a_source_without_what_is_shared():
    frame = pd.DataFrame(
        {
            "user_id": ["ann", "ann", "bob", "cy", "cy", "cy"],
            "item_id": ["a", "b", "c", "a", "c", "d"],
            "timestamp": range(6),
        }
    )
    table = ItemTable.from_frame(
        pd.DataFrame({"item_id": ["d", "a", "new", "c"], "title": ["D", "A", "N", "C"]})
    )
    log = Log("films", Interactions.from_frame(frame), table, "free")
    everything = log.interactions.with_items(table.item_ids)
    texts, _ = table.align(everything.item_ids)
    target = side(["bob"], ["d"], ["n"])
    found = overlap(Side(everything, texts), target)
    left = without(log, found)
    kept = left.interactions.to_frame()
    assert sorted(zip(kept.user_id, kept.item_id, strict=True)) == [
        ("ann", "a"),
        ("ann", "b"),
        ("cy", "a"),
        ("cy", "c"),
    ]
    assert left.interactions.n_users == 2 and left.interactions.n_items == 3
    assert left.items is not None and left.items.item_ids.tolist() == ["a", "c"]
    assert left.items.texts == ["A", "C"] and (left.name, left.licence) == ("films", "free")
    with pytest.raises(DataError, match="source films: nothing is left"):
        without(log, overlap(Side(everything, texts), Side(everything, texts)))
