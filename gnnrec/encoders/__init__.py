"""Graph encoders under one contract: a `GraphInput` in, one vector per user and per item out.

A new encoder is one file here, a line in `ENCODERS`, and a name in `ModelConfig.encoder`.
"""

from __future__ import annotations

from gnnrec.config import ModelConfig
from gnnrec.encoders.base import Encoder
from gnnrec.encoders.graphsage import GraphSAGE
from gnnrec.encoders.lightgcn import LightGCN

__all__ = ["ENCODERS", "Encoder", "GraphSAGE", "LightGCN", "build_encoder"]

ENCODERS: dict[str, type[Encoder]] = {"lightgcn": LightGCN, "graphsage": GraphSAGE}


def build_encoder(config: ModelConfig) -> Encoder:
    """Return the configured encoder with fresh parameters (torch's global generator)."""
    return ENCODERS[config.encoder](config)
