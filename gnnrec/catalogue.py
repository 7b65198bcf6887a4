"""A target as the models read it: its log, its items' titles, and the texts as vectors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from gnnrec.features import text_table
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.target import Target
from gnnrec.text import TextEncoder
from gnnrec.text_layers import HiddenTexts


@dataclass(frozen=True)
class Catalogue:
    """A target as the models read it: the log with every item of the items table in it.

    Attributes:
        log: Interactions; items without any come last in its vocabulary.
        titles: n_items titles, "" where unknown.
        text: (n_items, text_dim) float32 with zero rows for missing texts, or None.
        texts: n_items texts, "" where there is none; None once they are not needed any more.
        text_delta: Digest of what the text model's last layers learned before they made `text`.
        written: (n_texts, text_dim) float32, what users wrote: a vector for each distinct text of
            the log, as `Interactions.text_codes` numbers them; or None.
        read: What a text model's frozen layers made of the texts; see `TextTask.read`.
    """

    log: Interactions
    titles: list[str]
    text: np.ndarray | None
    written: np.ndarray | None = None
    texts: tuple[str, ...] | None = None
    text_delta: str = ""
    read: dict[str, HiddenTexts] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def build(
        cls,
        log: Interactions,
        items: ItemTable | None,
        encoder: TextEncoder | None,
    ) -> Catalogue:
        """Join a log and an items table; encode the texts if the model reads text.

        Raises:
            ConfigError: The model reads text and the `[text]` extra is missing.
        """
        text, texts, titles = None, None, [""] * log.n_items
        if items is not None:
            log = log.with_items(items.item_ids)
            texts, titles = items.align(log.item_ids)
            if encoder is not None and any(texts):
                text = encoder.encode(texts)
        made = cls(
            log,
            titles,
            text,
            texts=None if text is None or texts is None else tuple(texts),
            text_delta="" if encoder is None else encoder.delta_sha256,
        )
        return made._with_log(log, encoder)

    @property
    def has_text(self) -> bool:
        """Whether there is anything for a model that reads text: of items or of users."""
        return self.text is not None or self.written is not None

    def updated(
        self,
        interactions: Interactions,
        items: ItemTable | None,
        encoder: TextEncoder | None,
    ) -> Catalogue:
        """Append interactions, users and items; see `Recommender.update`."""
        log = self.log.with_users(interactions.user_ids).with_items(interactions.item_ids)
        if items is not None:
            log = log.with_items(items.item_ids)
        log = log.merged(interactions.recoded(log))
        fresh = log.item_ids[self.log.n_items :]
        texts, titles = items.align(fresh) if items else ([""] * len(fresh), [""] * len(fresh))
        text = self.text
        if text is not None:
            new_text = np.zeros((len(fresh), text.shape[1]), dtype=np.float32)
            if any(texts):
                assert encoder is not None
                new_text = encoder.encode(texts)
            text = np.concatenate([text, new_text])
        made = replace(self, titles=self.titles + titles, text=text)
        return made._with_log(log, encoder)

    def without_user(self, code: int) -> Catalogue:
        """Leave a user out: the id, the interactions, and the texts that nobody else wrote."""
        log = self.log.select(self.log.users != code)
        log = replace(
            log,
            users=log.users - (log.users > code),
            user_ids=np.delete(log.user_ids, code),
        )
        return self._with_log(log, None)

    def _with_log(self, log: Interactions, encoder: TextEncoder | None) -> Catalogue:
        """Exchange the log; only texts that the catalogue does not know are encoded."""
        known: dict[str, np.ndarray] = {}
        if self.written is not None:
            known = dict(zip(self.log.text_codes[1], self.written, strict=True))
        distinct = [] if log.texts is None else log.text_codes[1]
        fresh = [text for text in distinct if text not in known]
        if fresh and encoder is not None:
            known |= dict(zip(fresh, encoder.encode(fresh), strict=True))
        written = np.stack([known[text] for text in distinct]) if known and distinct else None
        return replace(self, log=log, written=written)

    def target(self) -> Target:
        """Return the codes and text vectors for `gnnrec.transfer.adapt`."""
        log = self.log
        text = text_table(self.text, log.n_items)
        codes, distinct = (None, None) if self.written is None else log.text_codes
        return Target(
            log.users,
            log.items,
            log.n_users,
            log.n_items,
            text,
            codes,
            None if distinct is None else text_table(self.written, len(distinct)),
            self.texts,
            None if distinct is None else tuple(distinct),
            self.text_delta,
            self.read,
        )
