"""A target as the models read it: its log, the titles of its items, and their text vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnnrec.features import text_table
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.text import TextEncoder
from gnnrec.transfer import Target


@dataclass(frozen=True)
class Catalogue:
    """A target as the models read it: the log with every item of the items table in it.

    Attributes:
        log: Interactions; items without any come last in its vocabulary.
        titles: n_items titles, "" where unknown.
        text: (n_items, text_dim) float32 with zero rows for missing texts, or None.
        texts: n_items texts, "" where there is none; None once they are not needed any more.
        text_delta: Digest of what the text model's last layers learned before they made `text`.
    """

    log: Interactions
    titles: list[str]
    text: np.ndarray | None
    texts: tuple[str, ...] | None = None
    text_delta: str = ""

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
        if items is None:
            return cls(log, [""] * log.n_items, None)
        log = log.with_items(items.item_ids)
        texts, titles = items.align(log.item_ids)
        if encoder is None or not any(texts):
            return cls(log, titles, None)
        vectors = encoder.encode(texts)
        return cls(log, titles, vectors, tuple(texts), encoder.delta_sha256)

    def target(self) -> Target:
        """Return the codes and text vectors for `gnnrec.transfer.adapt`."""
        log = self.log
        text = text_table(self.text, log.n_items)
        return Target(
            log.users, log.items, log.n_users, log.n_items, text, self.texts, self.text_delta
        )
