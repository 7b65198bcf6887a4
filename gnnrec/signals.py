"""Ctrl-C and SIGTERM: an exception at once, or after the step that must not be cut in two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class StoppedError(BaseException):
    """The process was asked to stop; not an Exception, so that no handler of errors takes it.

    Attributes:
        exit_code: 128 and the signal's number, as shells count: 130 for SIGINT, 143 for SIGTERM.
        kept: Says what is kept for the same command, given again; empty where nothing is.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.kept = ""


@dataclass
class _Asked:
    depth: int = 0
    number: int | None = None


_asked = _Asked()


@contextmanager
def listening() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a StoppedError; a signal that is ignored stays ignored."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            try:
                before[number] = signal.signal(number, _answer)
            except ValueError:  # not the main thread, which has the signals
                break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.number = None


@contextmanager
def held() -> Iterator[None]:
    """Note the first signal for `check`, which the end of this block is too; a second one stops."""
    _asked.depth += 1
    try:
        yield
    finally:
        _asked.depth -= 1
    if not _asked.depth:
        check()


def asked() -> bool:
    """Whether a signal was noted."""
    return _asked.number is not None


def stop() -> None:
    """Note a stop that another process of the same training was asked for."""
    _asked.number = _asked.number or signal.SIGTERM


def check() -> None:
    """Raise a StoppedError if a signal was noted."""
    if _asked.number is not None:
        number, _asked.number = _asked.number, None
        raise StoppedError(number)


def _answer(number: int, frame: FrameType | None) -> None:
    if _asked.depth and _asked.number is None:
        _asked.number = number
        os.write(2, b"\nstopping after this step; again to stop at once\n")
        return
    _asked.number = None
    raise StoppedError(number)
