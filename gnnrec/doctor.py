"""What this machine has: versions, device, memory, extras, folders."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gnnrec.datasets import cache_folder
from gnnrec.text import text_available

_PACKAGES = (
    "gnnrec",
    "torch",
    "torch-geometric",
    "networkx",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
)


def examine() -> dict[str, Any]:
    """Return findings by name; each that is wrong says how to mend it. O(1), no network."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = f"missing: pip install {name}"
    found["cores"] = os.cpu_count()
    found["torch_threads"] = torch.get_num_threads()
    found["device"] = (
        f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    )
    found["memory_bytes"] = _memory()
    found["text"] = "ready" if text_available() else "missing: pip install 'gnnrec[text]'"
    found["plots"] = (
        "ready"
        if importlib.util.find_spec("matplotlib")
        else "missing: pip install 'gnnrec[report]'"
    )
    found["service"] = (
        "ready" if importlib.util.find_spec("fastapi") else "missing: pip install 'gnnrec[serve]'"
    )
    found["faiss"] = (
        "ready" if importlib.util.find_spec("faiss") else "missing: pip install 'gnnrec[export]'"
    )
    folder = cache_folder()
    found["cache"] = str(folder)
    found["cache_writable"] = _writable(folder)
    found["data_mirror"] = os.environ.get("GNNREC_DATA_MIRROR") or "not set"
    found["output_is_a_terminal"] = sys.stderr.isatty()
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _writable(folder: os.PathLike[str]) -> bool | str:
    probe = os.fspath(folder)
    while not os.path.exists(probe):
        probe = os.path.dirname(probe)
    return os.access(probe, os.W_OK) or "no: set GNNREC_CACHE to a folder you can write"
