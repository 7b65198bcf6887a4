"""What a fitted recommender serves from: its log, its model, its vectors, and what they make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.device import resolve_device
from gnnrec.errors import ConfigError
from gnnrec.explain import Explainer
from gnnrec.histories import Histories
from gnnrec.interactions import Interactions
from gnnrec.model import Transferable
from gnnrec.scores import ScoreVectors

if TYPE_CHECKING:
    from torch import Tensor


class Served:
    """Holds the parts for any number of readers; a `gnnrec.recommender.Recommender` is one.

    Args:
        checkpoint: What the model came from.
        device: auto, cpu or cuda.
    """

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint = checkpoint
        self.device = resolve_device(device)
        self.text_delta: dict[str, Tensor] | None = checkpoint.text
        self._catalogue: Catalogue | None = None
        self._model: Transferable | None = None
        self._vectors: ScoreVectors | None = None
        self._seen: sp.csr_array | None = None
        self._histories: Histories | None = None
        self._explainer: Explainer | None = None
        self._lock = threading.Lock()

    @property
    def log(self) -> Interactions:
        """The interactions it serves from."""
        return self._fitted().log

    @property
    def catalogue(self) -> Catalogue:
        """The log with titles and text vectors."""
        return self._fitted()

    @property
    def model(self) -> Transferable:
        """The adapted model."""
        self._fitted()
        assert self._model is not None
        return self._model

    @property
    def vectors(self) -> ScoreVectors:
        """User and item vectors on the CPU."""
        self._fitted()
        assert self._vectors is not None
        return self._vectors

    @property
    def seen(self) -> sp.csr_array:
        """(n_users, n_items) CSR of what each user has."""
        self._fitted()
        assert self._seen is not None
        return self._seen

    @property
    def explainer(self) -> Explainer:
        """Explains many scores, by codes; made when first asked for."""
        with self._lock:
            if self._explainer is None:
                parts = self.catalogue, self.model, self.vectors, self.seen
                self._explainer = Explainer(*parts, self.checkpoint.config.spectral_rank)
            return self._explainer

    def histories(self) -> Histories:
        """What scores histories; made at the first call, for all threads."""
        with self._lock:
            if self._histories is None:
                rank = self.checkpoint.config.spectral_rank
                parts = (self.catalogue, self.model, self.vectors)
                self._histories = Histories(*parts, rank, self.device)
            return self._histories

    def restore(self, catalogue: Catalogue, model: Transferable, vectors: ScoreVectors) -> None:
        """Put saved parts in place without computing anything."""
        log = catalogue.log
        ones = np.ones(log.n_interactions, dtype=np.float32)
        shape = (log.n_users, log.n_items)
        seen = sp.csr_array((ones, (log.users, log.items)), shape=shape)
        self._place(catalogue, model.eval(), vectors, seen)

    def _place(
        self, catalogue: Catalogue, model: Transferable, vectors: ScoreVectors, seen: sp.csr_array
    ) -> None:
        self._catalogue, self._model, self._vectors, self._seen = catalogue, model, vectors, seen
        self._histories, self._explainer = None, None

    def _fitted(self) -> Catalogue:
        if self._catalogue is None:
            raise ConfigError("this Recommender has no data yet; call fit, or load a saved one")
        return self._catalogue
