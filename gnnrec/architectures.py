"""The architectures by name, and the sizes that each starts from; other packages add theirs.

A package that brings a graph encoder names its class in its `pyproject.toml`, and every command
then knows it:

    [project.entry-points."gnnrec.encoders"]
    smoothing = "their_package.smoothing:Smoothing"
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points

from gnnrec.errors import ConfigError

GROUP = "gnnrec.encoders"

_sizes: dict[str, dict[str, int]] = {
    "lightgcn": {},
    # Each layer is two products a side, every step.
    "graphsage": {"dim": 64, "n_layers": 2},
    "graph-filter": {"n_layers": 1, "spectral_rank": 128},
    "channels": {"n_layers": 1, "spectral_rank": 128},
    "gmf": {"dim": 8, "n_layers": 2},
    "mlp": {"dim": 8, "n_layers": 2},
    "neumf": {"dim": 8, "n_layers": 2},
    "two-tower": {"dim": 384, "n_layers": 1},
}
BUILT_IN = frozenset(_sizes)


_classes: dict[str, type] = {}  # of others


def sizes_of(name: str) -> dict[str, int]:
    """Return an architecture's own default settings of its model.

    An unknown name is looked for among the installed packages' entry points, and only its package
    is imported.

    Raises:
        ValueError: Nobody brings it, or its package cannot be imported.
    """
    for entry in () if name in _sizes else entry_points(group=GROUP, name=name):
        try:
            add(name, entry.load())
        except (ImportError, AttributeError, ConfigError) as error:
            raise ValueError(f"{entry.value}, which brings it, cannot be used ({error})") from error
    if name not in _sizes:
        raise ValueError(f"expected one of {', '.join(architectures())}")
    return _sizes[name]


def architectures() -> tuple[str, ...]:
    """Return all names: the package's own, registered ones, and those of installed packages."""
    return tuple(dict.fromkeys((*_sizes, *(entry.name for entry in entry_points(group=GROUP)))))


def add(name: str, encoder: type) -> None:
    """Make a name known; `gnnrec.encoders.register` is what others call.

    Raises:
        ConfigError: The name is one of the package's own, or none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,63}", name) or name in BUILT_IN:
        raise ConfigError(
            f"an encoder cannot be called {name!r}; expected small letters, digits and hyphens, "
            f"and none of {', '.join(sorted(BUILT_IN))}"
        )
    _classes[name] = encoder
    _sizes[name] = dict(getattr(encoder, "sizes", {}))


def class_of(name: str) -> type:
    """Return the class that was added by a name."""
    return _classes[name]
