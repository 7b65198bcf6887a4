"""Recommendation by transfer learning on graphs.

    from gnnrec import Recommender
    recommender = Recommender.from_pretrained("runs/checkpoint").fit(log, items=items)
    recommender.recommend(k=10)

Names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnrec.checkpoint import Checkpoint
    from gnnrec.config import PretrainConfig, TransferConfig
    from gnnrec.encoders import Encoder
    from gnnrec.errors import GnnrecError
    from gnnrec.evaluate import Results
    from gnnrec.graph import BipartiteGraph
    from gnnrec.interactions import Columns, Interactions
    from gnnrec.recommender import Recommender

__version__ = "0.1.0"

_HOME = {
    "BipartiteGraph": "graph",
    "Checkpoint": "checkpoint",
    "Columns": "interactions",
    "Encoder": "encoders",
    "GnnrecError": "errors",
    "Interactions": "interactions",
    "PretrainConfig": "config",
    "Recommender": "recommender",
    "Results": "evaluate",
    "TransferConfig": "config",
}
__all__ = [
    "BipartiteGraph",
    "Checkpoint",
    "Columns",
    "Encoder",
    "GnnrecError",
    "Interactions",
    "PretrainConfig",
    "Recommender",
    "Results",
    "TransferConfig",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'gnnrec' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gnnrec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
