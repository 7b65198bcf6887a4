"""What a killed training goes on from: the state of each of its stages, beside the output.

With several ranks (`gnnrec.ranks`) each keeps its own, of the same step: a state gets its name when
all have theirs on the disk, and where a kill came between two names, the newest step that all have
is taken.

A stage is one run of the training loop, or one search. A command has them in an order that its
settings and data decide, so a stage is known by its number and its label. Outside a command
(`resumable`) nothing is kept and nothing costs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from gnnrec.errors import CheckpointError, ConfigError, GnnrecError
from gnnrec.ledger import alone
from gnnrec.ranks import ALONE, Ranks, current
from gnnrec.signals import StoppedError
from gnnrec.storage import read_json, whole_file, write_json

LEAST_SECONDS = 1.0  # between two writes of a stage that goes on
_SHARE = 20  # and so many times as long as the last write took
Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """A stage at the beginning of a step, or at its end: plain values, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Stage:
    """One stage's place on the disk; without a path, nothing is ever kept."""

    def __init__(self, path: Path | None, label: str, say: Say, ranks: Ranks | None = None) -> None:
        self.path, self.label, self.say = path, label, say
        self.ranks = ranks or ALONE
        self._next, self._step = 0.0, -1

    @property
    def active(self) -> bool:
        """Whether states are kept."""
        return self.path is not None

    def load(self) -> State | None:
        """Return the state that is kept; None where there is none, or none that is whole."""
        if self.path is None:
            return None
        found = {_place(s): s for path in (self.path, self._coming) if (s := self._usable(path))}
        ours = (sorted(found) + [0, 0])[:2]
        both = zip(*(self.ranks.counts(place) for place in ours), strict=True)
        common = set.intersection(*(set(places) for places in both)) - {0}
        if not common:
            return None
        state = found[max(common)]
        self._step = int(state.values["step"])
        if not state.values["done"]:
            self.say(f"{self.label} goes on at step {self._step}")
        return state

    def _usable(self, path: Path) -> State | None:
        if not path.is_file():
            return None
        try:
            state = _read(path)
            if state.values["label"] != self.label:
                raise ValueError(f"of the stage {state.values['label']!r}")
            _place(state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self.say(f"{path}: not usable ({error}); {self.label} begins anew")
            return None
        return state

    @property
    def _coming(self) -> Path:
        """Where a state is until all ranks have theirs."""
        assert self.path is not None
        return self.path.with_suffix(".coming")

    def due(self) -> bool:
        """Whether a write costs a small part of the time since the last one."""
        return self.active and time.monotonic() >= self._next

    def save(self, state: State) -> None:
        """Keep a state in place of the last, unless it holds NaN; a full disk stops no training."""
        if self.path is None:
            return
        tables = [t for t in state.tensors.values() if t.is_floating_point()]
        if sum(self.ranks.total(not all(t.isfinite().all() for t in tables))):
            return
        started = time.monotonic()
        whole, failed = State({"label": self.label, **state.values}, state.tensors), ""
        try:
            _write(self.path if self.ranks.alone else self._coming, whole)
        except ConfigError as error:
            failed = f": {error}"
        if sum(self.ranks.total(bool(failed))):
            self.say(f"note: the state of {self.label} could not be kept{failed}")
        else:
            if not self.ranks.alone:
                self._coming.replace(self.path)
            self._step = int(state.values["step"])
        ended = time.monotonic()
        self._next = ended + max(LEAST_SECONDS, _SHARE * (ended - started))

    def where(self) -> str:
        """Say where the last good state is; "" where none is kept."""
        if self.path is None or self._step < 0:
            return ""
        return f"; its last good state, of step {self._step}, is in {self.path}"


class Progress:
    """The stages of one command, in one folder."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder, self.say, self._n_stages = folder, say, 0

    def stage(self, label: str) -> Stage:
        """Return the next stage."""
        self._n_stages += 1
        ranks = current()
        name = f"{self._n_stages:03d}" if ranks.alone else f"{self._n_stages:03d}.{ranks.rank:04d}"
        return Stage(self.folder / f"{name}.state", label, self.say, ranks)


_current: ContextVar[Progress | None] = ContextVar("progress", default=None)


def next_stage(label: str) -> Stage:
    """Return the running command's next stage; one that keeps nothing outside of a command."""
    progress = _current.get()
    return Stage(None, label, lambda line: None) if progress is None else progress.stage(label)


def folder_of(out: Path) -> Path:
    """Return where the states of an output's training are, while there is no output yet."""
    return out.parent / f"{out.resolve().name}.resume"


@contextmanager
def resumable(out: Path, about: Mapping[str, Any], say: Say) -> Iterator[None]:
    """Keep the states of all stages within, and take up those of a run that was killed.

    Args:
        out: The output; the folder beside it is removed when the block ends well.
        about: All that decides what is computed, as JSON. The versions and the number of threads
            are added: with others, the last bits may be others.
        say: Told in a line what is taken up and what is not.

    Raises:
        ConfigError: The folder holds something else, or another process is at it.
    """
    folder, ranks = folder_of(out), current()
    if folder.is_dir() and not any(folder.glob("resume*.json")):
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(
                f"{folder}: found other files, expected a place for the state of the training; "
                "name another --out"
            )
    key, own = _digest(about), "" if ranks.alone else f".{ranks.rank:04d}"
    about_file = folder / f"resume{own}.json"
    with _first(folder, ranks):
        if _key(about_file) != key:
            # The first rank clears what others left, before they begin.
            left = [p for end in (".state", ".coming") for p in folder.glob(f"*{own}{end}")]
            if ranks.rank == 0:
                left = [*folder.glob("*.state"), *folder.glob("*.coming")]
            if left and ranks.rank == 0:
                say(f"{folder}: is of another run (other settings, data or versions); begins anew")
            for path in left:
                path.unlink(missing_ok=True)
        with whole_file(about_file) as work:
            write_json(work, {"key": key})
        if ranks.rank == 0:
            ranks.wait()
        token = _current.set(Progress(folder, say))
        try:
            yield
        except StoppedError as stopped:
            if any(folder.glob("*.state")):
                stopped.kept = (
                    f"the state is kept in {folder}; the same command again goes on from there"
                )
            raise
        except (GnnrecError, OSError):
            if not any(folder.glob("*.state")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            _current.reset(token)
        ranks.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _first(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Let the first rank hold the folder; the others begin when it has looked at what is there."""
    if ranks.rank == 0:
        with alone(folder):
            yield
        return
    ranks.wait()
    folder.mkdir(parents=True, exist_ok=True)
    yield


def _place(state: State) -> int:
    """Return a number that grows from state to state of a stage."""
    values = state.values
    return 1 + 4 * int(values["step"]) + 2 * bool(values.get("judged")) + bool(values["done"])


def _key(about_file: Path) -> str:
    try:
        return str(read_json(about_file).get("key"))
    except CheckpointError:
        return "missing or damaged"


def _digest(about: Mapping[str, Any]) -> str:
    from gnnrec import __version__

    versions = [__version__, torch.__version__, np.__version__, scipy.__version__]
    whole = {"about": about, "versions": versions, "threads": torch.get_num_threads()}
    if not current().alone:
        whole["ranks"] = current().size
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _write(path: Path, state: State) -> None:
    """Write a state whole: the sha256 of what follows, a line of JSON, a safetensors file."""
    tables = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
    body = json.dumps(state.values).encode() + b"\n" + bytes_of(tables)
    with whole_file(path) as work:
        work.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def _read(path: Path) -> State:
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("its sha256 is not the one at its head")
    line, _, tables = body.partition(b"\n")
    return State(json.loads(line), tensors_of(tables))
