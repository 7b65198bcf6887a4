"""Device choice, seeded generators and peak memory: everything that asks the machine a question."""

from __future__ import annotations

import hashlib
import re
import resource
import sys
from typing import TYPE_CHECKING

from gnnrec.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device to run on; `auto` takes a CUDA GPU when there is one.

    Apple's MPS is not chosen: it has no CSR product.

    Raises:
        ConfigError: The named device does not exist on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d{1,2})?", name):
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name!r}: found {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive an independent 63-bit seed for a named purpose.

    Two purposes never share a stream, and adding a purpose changes no other stream.
    """
    text = repr((seed, *names))  # quoted, so that ("a", "b") and ("a/b",) differ
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for a named purpose (see `derive_seed`)."""
    import numpy as np

    return np.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU torch generator for a named purpose (see `derive_seed`)."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *names))


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
