"""What this machine has: versions, device, memory, extras, folders."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import socket
import sys
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gnnrec.datasets import MIRROR_VARIABLE, cache_folder, list_datasets
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
# What an extra brings, by the module that is looked for.
_EXTRAS = {
    "plots": ("report", "matplotlib"),
    "baselines": ("baselines", "implicit"),
    "tuning": ("tune", "optuna"),
    "hub": ("hub", "huggingface_hub"),
    "service": ("serve", "fastapi"),
    "faiss": ("export", "faiss"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "energy": ("energy", "codecarbon"),
}
_SECONDS = 2.0  # for an answer from the network


def examine() -> dict[str, Any]:
    """Return findings by name; each that is wrong says how to mend it.

    Cost: O(1), and one connection to where data sets are published, which is closed at once.
    """
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found["installed"] = _installed()
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
    for name, (extra, module) in _EXTRAS.items():
        there = importlib.util.find_spec(module)
        found[name] = "ready" if there else f"missing: pip install 'gnnrec[{extra}]'"
    folder = cache_folder()
    found["cache"] = str(folder)
    found["cache_writable"] = _writable(folder)
    found["data_mirror"] = os.environ.get(MIRROR_VARIABLE) or "not set"
    found["network"] = _network()
    found["output_is_a_terminal"] = sys.stderr.isatty()
    return found


def _installed() -> str:
    """How and where: an editable install, or one of a wheel."""
    where = Path(__file__).parent
    try:
        about = json.loads(Distribution.from_name("gnnrec").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return f"not by pip, run from {where}"
    editable = about.get("dir_info", {}).get("editable", False)
    return f"{'editable, ' if editable else ''}{where}"


def _network() -> str:
    """Whether data sets can be fetched from where they are published."""
    address = next(url for spec in list_datasets() for url in spec.urls.values() if url)
    host = urlsplit(address).hostname or ""
    try:
        socket.create_connection((host, 443), _SECONDS).close()
    except OSError as error:
        return (
            f"no: {host} cannot be reached ({error}); what is shipped works, for data sets set "
            f"{MIRROR_VARIABLE} to a folder that has copies"
        )
    return "ready"


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
