"""Requests to answers: what a worker's thread does. Nothing here changes what is served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gnnrec.errors import DataError
from gnnrec.lists import allowed_mask
from gnnrec.recommender import Recommender
from gnnrec.scores import rows_of
from gnnrec.service.holder import Served
from gnnrec.service.schemas import (
    HistoriesRequest,
    HistoryList,
    HistoryLists,
    Ranked,
    SimilarList,
    SimilarLists,
    SimilarRequest,
    UserList,
    UserLists,
    UsersRequest,
)


def for_users(served: Served, body: UsersRequest) -> UserLists:
    """As `Recommender.recommend`, a list per user.

    Raises:
        DataError: No allowed item is in the catalogue.
    """
    recommender = served.recommender
    log = recommender.log
    codes = log.user_codes(body.users)
    seen = None if body.include_seen else rows_of(recommender.seen, codes)
    allowed = allowed_mask(log, body.allow, body.exclude)
    scores, items = recommender.vectors.of(codes).top_k(
        min(body.k, log.n_items), seen=seen, allowed=allowed
    )
    lists = [
        UserList(user=user, known=code >= 0, items=ranked)
        for user, code, ranked in zip(
            body.users, codes.tolist(), _ranked(recommender, scores, items), strict=True
        )
    ]
    return UserLists(version=served.version, lists=lists)


def for_histories(served: Served, body: HistoriesRequest) -> HistoryLists:
    """As `Recommender.recommend_to_histories`, a list per history.

    Raises:
        DataError: No allowed item is in the catalogue.
    """
    recommender = served.recommender
    log, scorer = recommender.log, recommender.histories()
    rows = scorer.rows(body.histories)
    scores, items = scorer.scores(rows).top_k(
        min(body.k, log.n_items),
        seen=None if body.include_seen else rows,
        allowed=allowed_mask(log, body.allow, body.exclude),
    )
    lists = [
        HistoryList(known_items=known, items=ranked)
        for known, ranked in zip(
            np.diff(rows.indptr).tolist(), _ranked(recommender, scores, items), strict=True
        )
    ]
    return HistoryLists(version=served.version, lists=lists)


def for_items(served: Served, body: SimilarRequest) -> SimilarLists:
    """As `Recommender.similar_items`, a list per item.

    Raises:
        DataError: An item is not in the catalogue.
    """
    recommender = served.recommender
    frame = recommender.similar_items(body.items, body.k)
    codes = recommender.log.item_codes(body.items)
    per_item = min(body.k, recommender.log.n_items - 1)
    rows = [
        Ranked(item=_plain(item), score=score)
        for item, score in zip(frame["similar_item"], frame["score"].tolist(), strict=True)
    ]
    if len(rows) != per_item * len(codes):
        raise DataError(f"expected {per_item} items for each of {len(codes)}; found {len(rows)}")
    lists = [
        SimilarList(
            item=_plain(recommender.log.item_ids[code]),
            items=rows[place * per_item : (place + 1) * per_item],
        )
        for place, code in enumerate(codes.tolist())
    ]
    return SimilarLists(version=served.version, lists=lists)


def _ranked(
    recommender: Recommender, scores: np.ndarray, items: np.ndarray
) -> Iterable[list[Ranked]]:
    ids = recommender.log.item_ids
    for values, codes in zip(scores.tolist(), items.tolist(), strict=True):
        yield [
            Ranked(item=_plain(ids[code]), score=score)
            for score, code in zip(values, codes, strict=True)
            if code >= 0
        ]


def _plain(value: Any) -> int | str:  # noqa: ANN401 (an id of the log: int64 or str)
    return value if isinstance(value, str) else int(value)
