"""Who is told how a training goes: a file of JSON lines, and callbacks of the user's own.

    with watched(Mine()):
        recommender.fit(log)

Whatever trains inside tells them: `pretrain_run`, `transfer_run`, `Recommender.fit`. An exception
of a callback ends the training.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gnnrec.errors import ConfigError
from gnnrec.ranks import current
from gnnrec.storage import append_json, cannot_write


@dataclass(frozen=True)
class Evaluation:
    """What is known at one evaluation.

    Attributes:
        label: Of the training, such as "pretraining" or "final:1 training".
        step: Optimiser steps before it; evaluations of a search.
        value: What is made small: a validation loss, or -NDCG@20.
        loss: Of the last step; None before the first and in a search.
        seconds: Since the training began; None in a search.
    """

    label: str
    step: int
    value: float
    loss: float | None = None
    seconds: float | None = None


class Callback(Protocol):
    """What `watched` takes. With several processes only the first one's are told."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Take an evaluation; one that goes on after a kill is told the earlier ones again."""
        ...

    def on_end(self, label: str, summary: Mapping[str, Any]) -> None:
        """Take the end of a training: steps, best_step, best_value, seconds."""
        ...


_WATCHING: ContextVar[tuple[Callback, ...]] = ContextVar("callbacks", default=())


@contextmanager
def watched(*callbacks: Callback) -> Iterator[None]:
    """Tell callbacks of every training inside."""
    token = _WATCHING.set((*_WATCHING.get(), *callbacks))
    try:
        yield
    finally:
        _WATCHING.reset(token)


def tell(log: Path | None, label: str, record: Mapping[str, float]) -> None:
    """Append an evaluation to a log, where there is one, and tell the callbacks."""
    if log is not None:
        append_json(log, {"label": label, **record})
    loss = record.get("loss") if record["step"] else None
    found = Evaluation(label, int(record["step"]), record["value"], loss, record.get("seconds"))
    for callback in _listeners():
        callback.on_evaluation(found)


def tell_end(label: str, summary: Mapping[str, Any]) -> None:
    """Tell the callbacks that a training has ended."""
    for callback in _listeners():
        callback.on_end(label, summary)


def _listeners() -> tuple[Callback, ...]:
    return _WATCHING.get() if current().rank == 0 else ()


class TensorBoard:
    """Writes value and loss of every evaluation for TensorBoard, under the training's label.

    A second training of the same label gets a number.

    Args:
        folder: Where its event files go; a new file beside what is there.

    Raises:
        ConfigError: tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "--tensorboard needs tensorboard, which is missing: pip install "
                "'gnnrec[tensorboard]'"
            )
        self.folder = Path(folder)
        self._writer: Any = None
        self._ended: Counter[str] = Counter()
        self._going: set[str] = set()

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Write the numbers; the file is made at the first."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self.folder))
            except OSError as error:
                raise cannot_write(self.folder, error) from error
        label = evaluation.label
        self._going.add(label)
        name = f"{label} {self._ended[label] + 1}" if self._ended[label] else label
        self._writer.add_scalar(f"{name}/value", evaluation.value, evaluation.step)
        if evaluation.loss is not None:
            self._writer.add_scalar(f"{name}/loss", evaluation.loss, evaluation.step)

    def on_end(self, label: str, summary: Mapping[str, Any]) -> None:
        """Put what there is on the disk."""
        if label in self._going:
            self._going.remove(label)
            self._ended[label] += 1
            self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def on_board(folder: Path | None) -> Iterator[None]:
    """Write what trains inside for TensorBoard, unless the folder is None.

    Of several processes (`gnnrec.ranks`) the first writes.
    """
    if folder is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    board = TensorBoard(folder)
    try:
        with watched(board):
            yield
    finally:
        board.close()
