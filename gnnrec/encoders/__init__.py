"""Graph encoders under one contract: a `GraphInput` in, one vector per user and per item out.

A new encoder is one file here, a line in `ENCODERS`, and a name in `gnnrec.architectures`; one of
another package is registered, by hand or by its entry point.
"""

from __future__ import annotations

from gnnrec.architectures import add, class_of
from gnnrec.config import ModelConfig
from gnnrec.encoders.base import Encoder
from gnnrec.encoders.graphsage import GraphSAGE
from gnnrec.encoders.lightgcn import LightGCN
from gnnrec.errors import ConfigError

__all__ = ["ENCODERS", "Encoder", "GraphSAGE", "LightGCN", "build_encoder", "register"]

ENCODERS: dict[str, type[Encoder]] = {"lightgcn": LightGCN, "graphsage": GraphSAGE}


def build_encoder(config: ModelConfig) -> Encoder:
    """Return the configured encoder with fresh parameters (torch's global generator)."""
    kind = ENCODERS.get(config.encoder) or _checked(config.encoder, class_of(config.encoder))
    return kind(config)


def register(name: str, encoder: type[Encoder]) -> None:
    """Make a graph encoder known by a name, to settings, suites and checkpoints of this process.

    Registering a name again replaces the class, as a notebook does that is run twice.

    Args:
        name: Small letters, digits and hyphens; none of the package's own.
        encoder: The class; see `Encoder` for what it has to keep to.

    Raises:
        ConfigError: It is not such a name, or not a class of encoders.
    """
    add(name, _checked(name, encoder))


def _checked(name: str, kind: object) -> type[Encoder]:
    if isinstance(kind, type) and issubclass(kind, Encoder):
        return kind
    raise ConfigError(f"the encoder {name} is {kind!r}; expected a class derived from Encoder")
