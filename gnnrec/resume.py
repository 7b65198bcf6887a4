"""What a killed training goes on from: the state of each of its stages, beside the output.

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
from gnnrec.signals import StoppedError
from gnnrec.storage import read_json, whole_file, write_json

LEAST_SECONDS = 1.0  # between two writes of a stage that goes on
_SHARE = 20  # and so many times as long as the last write took
_ABOUT = "resume.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """A stage at the beginning of a step, or at its end: plain values, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Stage:
    """One stage's place on the disk; without a path, nothing is ever kept."""

    def __init__(self, path: Path | None, label: str, say: Say) -> None:
        self.path, self.label, self.say = path, label, say
        self._next, self._step = 0.0, -1

    @property
    def active(self) -> bool:
        """Whether states are kept."""
        return self.path is not None

    def load(self) -> State | None:
        """Return the state that is kept; None where there is none, or none that is whole."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            state = _read(self.path)
            if state.values["label"] != self.label:
                raise ValueError(f"of the stage {state.values['label']!r}")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self.say(f"{self.path}: not usable ({error}); {self.label} begins anew")
            return None
        self._step = int(state.values["step"])
        if not state.values["done"]:
            self.say(f"{self.label} goes on at step {self._step}")
        return state

    def due(self) -> bool:
        """Whether a write costs a small part of the time since the last one."""
        return self.active and time.monotonic() >= self._next

    def save(self, state: State) -> None:
        """Keep a state in place of the last, unless it holds NaN; a full disk stops no training."""
        if self.path is None:
            return
        if not all(t.isfinite().all() for t in state.tensors.values() if t.is_floating_point()):
            return
        started = time.monotonic()
        try:
            _write(self.path, State({"label": self.label, **state.values}, state.tensors))
            self._step = int(state.values["step"])
        except ConfigError as error:
            self.say(f"note: the state of {self.label} could not be kept: {error}")
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
        return Stage(self.folder / f"{self._n_stages:03d}.state", label, self.say)


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
    folder = folder_of(out)
    if folder.is_dir() and not (folder / _ABOUT).is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(
                f"{folder}: found other files, expected a place for the state of the training; "
                "name another --out"
            )
    key = _digest(about)
    with alone(folder):
        if (folder / _ABOUT).is_file() and _key(folder) != key:
            if any(folder.glob("*.state")):
                say(f"{folder}: is of another run (other settings, data or versions); begins anew")
            for path in folder.glob("*.state"):
                path.unlink()
        with whole_file(folder / _ABOUT) as work:
            write_json(work, {"key": key})
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
        shutil.rmtree(folder, ignore_errors=True)


def _key(folder: Path) -> str:
    try:
        return str(read_json(folder / _ABOUT).get("key"))
    except CheckpointError:
        return "damaged"


def _digest(about: Mapping[str, Any]) -> str:
    from gnnrec import __version__

    versions = [__version__, torch.__version__, np.__version__, scipy.__version__]
    whole = {"about": about, "versions": versions, "threads": torch.get_num_threads()}
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
