"""Tensor files: safetensors in which every table starts where a product of it wants it to."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gnnrec.errors import CheckpointError

_LINE = 64  # bytes of a cache line, to which torch aligns memory of its own
_GAP = "~"  # beginning of the names of what fills up a line
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tables so that each starts at a multiple of 64 bytes of the file.

    A product of a table that starts elsewhere may differ in its last bit, and a table that is
    mapped from a file starts where it lies in it. The format has no holes, so gaps are tables too.

    Args:
        path: The file.
        tensors: Name -> float32, float16 or int64, none beginning with "~".
    """
    header: dict[str, Any] = {}
    parts: list[tuple[Tensor, int]] = []
    end = 0
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        table = tensor.detach().cpu().contiguous()
        size = table.numel() * table.element_size()
        gap = -size % _LINE
        header[name] = _entry(_TYPES[table.dtype], list(table.shape), end, size)
        if gap:
            header[f"{_GAP}{number}"] = _entry("U8", [gap], end + size, gap)
        parts.append((table, gap))
        end += size + gap
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for table, gap in parts:
            file.write(table.numpy().reshape(-1).data)
            file.write(bytes(gap))


def _entry(kind: str, shape: list[int], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, begin + size]}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, mapped where its tables are aligned, else copied.

    Raises:
        CheckpointError: Not a safetensors file.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error
    return {
        name: table if table.data_ptr() % _LINE == 0 else table.clone()
        for name, table in found.items()
        if not name.startswith(_GAP)
    }
