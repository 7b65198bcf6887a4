"""The object a user keeps: a DataFrame in, recommendations out, under the user's own ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gnnrec.blend import ChannelBlend
from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig
from gnnrec.errors import DataError
from gnnrec.explain import Explanation
from gnnrec.filters import GraphFilter
from gnnrec.frames import Frame, as_kind, check_kind
from gnnrec.interactions import Columns, Interactions
from gnnrec.items import ItemTable
from gnnrec.lists import allowed_mask, as_ids, check_k, ranked_frame, similar_frame
from gnnrec.model import Transferable
from gnnrec.scores import rows_of
from gnnrec.served import Served
from gnnrec.split import carve_validation
from gnnrec.text import TextEncoder
from gnnrec.transfer import adapt
from gnnrec.zoo import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from gnnrec.transfer import Adapted


class Recommender(Served):
    """Recommends to the users of one log, and to users it has never seen.

    Any number of threads may ask at once; `fit`, `update` and `forget_user` want it for themselves.

    Make one with `from_pretrained(...).fit(...)`, or `load`.

    Example:
        recommender = Recommender.from_pretrained("runs/books")
        recommender.fit(log, items=items)
        lists = recommender.recommend(k=10)
    """

    def __init__(
        self, checkpoint: Checkpoint, config: TransferConfig | None = None, device: str = "auto"
    ) -> None:
        super().__init__(checkpoint, device)
        self.config = config or TransferConfig()
        self.record: dict[str, Any] = {}
        self._output = "pandas"

    def __repr__(self) -> str:
        about = f"{self.checkpoint.name}, {self.config.retrain}"
        if self._catalogue is None:
            return f"Recommender({about}; no data yet)"
        log = self._catalogue.log
        return (
            f"Recommender({about}; {log.n_users} users, {log.n_items} items, "
            f"{log.n_interactions} interactions)"
        )

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        retrain: str = "final:1",
        seed: int = 0,
        device: str = "auto",
    ) -> Recommender:
        """Start from a checkpoint; `fit` then adapts it.

        Args:
            checkpoint: A name of `gnnrec.zoo` or of the hub, or a folder of `gnnrec pretrain`.
            retrain: zero-shot, heads, final:K, text:K, full or scratch.
            seed: Of everything random in `fit`.
            device: auto, cpu or cuda.

        Raises:
            CheckpointError: The checkpoint is missing, damaged or of a newer format.
            ConfigError: There is no such mode, or this model does not have it.
        """
        config = TransferConfig(retrain=retrain, seed=seed)
        source = Checkpoint.load(resolve(checkpoint))
        source.check_retrain(retrain)
        return cls(source, config, device)

    # Fitting

    def fit(
        self,
        interactions: Frame | Interactions,
        items: Frame | ItemTable | None = None,
        columns: Columns | None = None,
    ) -> Recommender:
        """Adapt to a log: choose the number of steps on a validation part, then refit on all rows.

        What a graph filter and a blend of channels fit are a few numbers that go with any graph:
        they are not fitted again, and read all rows when they recommend.

        Args:
            interactions: Columns user_id and item_id (other names through `columns`), optionally
                weight, timestamp and text (what the user wrote). A row is a positive; repeated
                pairs count once. A table of pandas, polars or pyarrow, or a scipy sparse matrix of
                users x items: see `gnnrec.frames.as_pandas`.
            items: Column item_id and any text columns; items without interactions may be in it. A
                table of pandas, polars or pyarrow.
            columns: Column names of `interactions`; its `item` also names the key of `items`.

        Returns:
            Itself.

        Raises:
            DataError: A frame is not usable; says which row and column.
        """
        columns = columns or Columns()
        if not isinstance(interactions, Interactions):
            interactions = Interactions.from_frame(interactions, columns)
        if items is not None and not isinstance(items, ItemTable):
            items = ItemTable.from_frame(items, interactions.columns.item)
        encoder = self.checkpoint.text_encoder(str(self.device))
        catalogue = Catalogue.build(interactions, items, encoder)
        rows = np.arange(interactions.n_interactions)
        train, validation = carve_validation(rows, self.config.validation, self.config.seed)
        target = catalogue.target()
        first = adapt(self.checkpoint, target, train, validation, self.config, device=self.device)
        self.refit(catalogue, first)
        return self

    def refit(self, catalogue: Catalogue, first: Adapted) -> Adapted:
        """Repeat an adaptation's numbers of steps on all rows of a catalogue, and serve from it.

        A graph filter's and a blend's few numbers, once chosen, go with any graph.
        """
        if isinstance(first.model, (GraphFilter, ChannelBlend)):
            self._serve_adapted(catalogue, first)
            return first
        target = catalogue.target()
        rows = np.arange(len(target.users))
        adapted = adapt(
            self.checkpoint,
            target,
            rows,
            rows[:0],
            self.config,
            device=self.device,
            fixed_steps=first.best_steps,
        )
        self._serve_adapted(catalogue, adapted)
        return adapted

    def _serve_adapted(self, catalogue: Catalogue, adapted: Adapted) -> None:
        self.record["trained"] = adapted.names
        self.text_delta = self.checkpoint.text
        if adapted.text is not None:
            self.text_delta = adapted.text.delta
            table, written = adapted.text.table, adapted.text.written
            catalogue = replace(
                catalogue,
                text=None if table is None else table.numpy(),
                written=None if written is None else written.numpy(),
            )
        self._serve(replace(catalogue, texts=None, read={}), adapted.model)

    def _serve(self, catalogue: Catalogue, model: Transferable) -> None:
        rank = self.checkpoint.config.spectral_rank
        x = catalogue.target().graph_input(rank=rank, device=self.device)
        with torch.no_grad():
            vectors = model(x)
        self._place(catalogue, model, vectors.cpu(), x.graph.user_items)

    def update(
        self,
        interactions: Frame | Interactions,
        items: Frame | ItemTable | None = None,
    ) -> Recommender:
        """Fold new interactions, users and items in without training: one propagation.

        The texts of items that were there before stay as they are; what a user writes now of an
        item that the user had is added to what was there. Where `fit` had no texts, those of new
        items are not read.

        Raises:
            DataError: A frame is not usable.
        """
        catalogue = self._fitted()
        columns = catalogue.log.columns
        if not isinstance(interactions, Interactions):
            interactions = Interactions.from_frame(interactions, columns, may_lack=True)
        if items is not None and not isinstance(items, ItemTable):
            items = ItemTable.from_frame(items, columns.item)
        model = self.checkpoint.config.text_model
        encoder = TextEncoder(model, str(self.device), self.text_delta) if model else None
        self._serve(catalogue.updated(interactions, items, encoder), self.model)
        return self

    def forget_user(self, user: Any) -> Recommender:  # noqa: ANN401 (an id of the user's own type)
        """Delete a user's interactions, texts and id; no score is trained on them afterwards.

        Item vectors that were trained while the user was in the log keep what they learned; call
        `fit` again to remove that too.

        Raises:
            DataError: The user is not in the log, or is the only one.
        """
        catalogue = self._fitted()
        log = catalogue.log
        code = int(log.user_codes([user])[0])
        if code < 0:
            raise DataError(f"user {user!r} is not in the log; nothing to delete")
        if log.n_users == 1:
            raise DataError(f"user {user!r} is the only one in the log; delete the folder instead")
        self._serve(catalogue.without_user(code), self.model)
        return self

    # Recommending

    def set_output(self, kind: str) -> Recommender:
        """Choose what `recommend`, `recommend_to_histories` and `similar_items` return.

        Args:
            kind: pandas (the default), polars or pyarrow. It is not saved.

        Returns:
            Itself.

        Raises:
            ConfigError: There is no such kind, or its library is missing.
        """
        check_kind(kind)
        self._output = kind
        return self

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        k: int = 10,
        *,
        include_seen: bool = False,
        allow: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
    ) -> Frame:
        """Return the k best items of each user, best first.

        Args:
            users: Raw ids; None stands for every user of the log. An id the log does not know
                gets the popular items, and `known` is False.
            k: Length of a list; a user for whom fewer items remain gets fewer rows.
            include_seen: Also recommend what the user already has.
            allow: Only these items may be recommended.
            exclude: These may not.

        Returns:
            Columns: user and item under the log's own names, score (float32), rank (from 1), known.
            A pandas DataFrame, or what `set_output` chose.
            Cost: O(users x n_items x d), in chunks.

        Raises:
            DataError: k is below one, or no allowed item is in the catalogue.
        """
        log, vectors = self._fitted().log, self.vectors
        check_k(k)
        raw: Sequence[Any] | np.ndarray = log.user_ids
        if users is not None:
            raw = as_ids("users", users)
        codes = np.arange(log.n_users) if users is None else log.user_codes(raw)
        seen = None if include_seen else rows_of(self.seen, codes)
        scores, items = vectors.of(codes).top_k(
            min(k, log.n_items), seen=seen, allowed=allowed_mask(log, allow, exclude)
        )
        named = np.asarray(raw, dtype=log.user_ids.dtype if users is None else object)
        found = ranked_frame(log, (log.columns.user, named), codes >= 0, scores, items)
        return as_kind(found, self._output)

    def recommend_to_histories(
        self,
        histories: Sequence[Iterable[Any]],
        k: int = 10,
        *,
        include_seen: bool = False,
        allow: Iterable[Any] | None = None,
        exclude: Iterable[Any] | None = None,
    ) -> Frame:
        """Return the k best items for somebody who has these items; the log does not change.

        Fast, and close to `update` and `recommend`: see `gnnrec.histories` for what is exact.

        Args:
            histories: Raw item ids, a history per list; ids that the log does not know say nothing.
            k: As in `recommend`.
            include_seen: Also recommend what is in the history.
            allow: As in `recommend`.
            exclude: As in `recommend`.

        Returns:
            As `recommend`, but the first column is `history`, its place from 0; `known` is False
            where the log knows none of its items.

        Raises:
            DataError: k is below 1, or what is given is no list of ids.
        """
        log, scorer = self._fitted().log, self.histories()
        check_k(k)
        rows = scorer.rows(histories)
        scores, items = scorer.scores(rows).top_k(
            min(k, log.n_items),
            seen=None if include_seen else rows,
            allowed=allowed_mask(log, allow, exclude),
        )
        places = np.arange(len(histories))
        found = ranked_frame(log, ("history", places), np.diff(rows.indptr) > 0, scores, items)
        return as_kind(found, self._output)

    def similar_items(self, items: Iterable[Any], k: int = 10) -> Frame:
        """Return the k nearest items by cosine of their vectors, popularity left out.

        Returns:
            Columns: the item column, similar_item, score, rank.

        Raises:
            DataError: An id is not in the catalogue, or k is below 1.
        """
        check_k(k)
        found = similar_frame(
            self._fitted().log, self.vectors.item_vectors, as_ids("items", items), k
        )
        return as_kind(found, self._output)

    def explain(self, user: Any, item: Any) -> Explanation:  # noqa: ANN401 (ids of any type)
        """Say why a user gets an item: parts that add up to the score, and what is behind them.

        Raises:
            DataError: The item is not in the catalogue.
        """
        return self.explainer.one(user, item)

    def titles(self, items: Iterable[Any]) -> list[str]:
        """Return the titles of items, "" where there is none or the id is unknown."""
        catalogue = self._fitted()
        codes = catalogue.log.item_codes(as_ids("items", items))
        return [catalogue.titles[code] if code >= 0 else "" for code in codes]

    # Keeping it

    def save(self, folder: str | Path) -> None:
        """Write everything needed to serve and to update; see `gnnrec.saved`."""
        from gnnrec.saved import save_recommender

        save_recommender(self, folder)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Recommender:
        """Read what `save` wrote; the same scores, bit for bit.

        Raises:
            CheckpointError: Missing, altered, or not a recommender.
        """
        from gnnrec.saved import load_recommender

        return load_recommender(cls, folder, device)
