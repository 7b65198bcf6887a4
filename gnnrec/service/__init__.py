"""A service over a saved recommender: HTTP and JSON, one process, a few threads.

Light to import: FastAPI and what it needs load with the files beside this one.
"""

from __future__ import annotations

import importlib.util

from gnnrec.errors import ConfigError

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")


def require_serve_extra() -> None:
    """Raise a ConfigError with the pip command where the `[serve]` extra is missing."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDS):
        raise ConfigError("serving needs an extra: pip install 'gnnrec[serve]'")
