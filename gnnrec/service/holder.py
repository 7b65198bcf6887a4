"""The recommender that is served, and how another one takes its place."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.recommender import Recommender
from gnnrec.storage import MANIFEST


@dataclass(frozen=True)
class Served:
    """A recommender and its number, from 1."""

    recommender: Recommender
    version: int


class Holder:
    """Holds what is served. A request takes `current` once and keeps it until it ends.

    So a swap is one assignment: requests that have begun end on the old recommender, whose memory
    goes with the last of them.

    Args:
        folder: Of a saved recommender; it is read again at each reload, so it may have been
            replaced, or be a link that now leads elsewhere.
        device: auto, cpu or cuda.

    Raises:
        CheckpointError: The folder is not a whole, unaltered recommender.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self._device = folder, device
        self._loading = threading.Lock()
        self.current = Served(self._load(), 1)
        self.ready = False

    def _load(self) -> Recommender:
        folder = self.folder.resolve()  # a link may turn elsewhere meanwhile
        before = _manifest(folder)
        recommender = Recommender.load(folder, self._device)
        if _manifest(folder) != before:
            raise CheckpointError(f"{folder}: it was replaced while it was read; load it again")
        return recommender

    def prepare(self) -> None:
        """Compute what histories and similar items need, so that no request waits for it."""
        _prepare(self.current.recommender)
        self.ready = True

    def reload(self) -> Served:
        """Load the folder again and swap; while it loads, and if it is refused, the old one serves.

        Raises:
            CheckpointError: The folder is not a whole, unaltered recommender.
            ConfigError: Another reload is running.
        """
        if not self._loading.acquire(blocking=False):
            raise ConfigError("a reload is running already; ask again when it is done")
        try:
            fresh = self._load()
            _prepare(fresh)
            self.current = Served(fresh, self.current.version + 1)
            return self.current
        finally:
            self._loading.release()


def _manifest(folder: Path) -> bytes | None:
    """What says which folder this is; None where `load` is about to say what is wrong."""
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else None


def _prepare(recommender: Recommender) -> None:
    recommender.histories()
    log = recommender.log
    recommender.recommend(log.user_ids[:1].tolist(), 1)
    recommender.similar_items(log.item_ids[:1].tolist(), 1)
