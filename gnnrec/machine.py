"""The machine and the versions that a measured row was made with."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from gnnrec.checkpoint import versions
from gnnrec.device import peak_memory_bytes

MACHINE_FIELDS = ("hardware", "versions", "date")


def hardware(device: str = "cpu") -> str:
    """Processor, cores and threads, and the GPU where the work ran on one, as one field."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    found = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        found += f", {torch.cuda.get_device_name(device)}"
    return found


def machine(device: str = "cpu") -> dict[str, str]:
    """The fields that every committed row ends with: hardware, versions, date."""
    return {
        "hardware": hardware(device),
        "versions": " ".join(f"{k}={v}" for k, v in versions().items()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def reset_peak_memory() -> None:
    """Start a new maximum for `peak_memory_bytes`, where the system can (Linux); else nothing.

    Memory that is free but kept by the allocator goes back first: over the runs of a suite it grew
    to gigabytes, and would count as the next run's.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Peak resident memory since `reset_peak_memory`, in MiB, to a tenth."""
    return round(peak_memory_bytes() / 2**20, 1)
