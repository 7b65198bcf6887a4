"""LightGCN as it was published: a free vector for each user and item, learned on one graph."""

from __future__ import annotations

import math
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from gnnrec.baselines.base import check_count, check_number
from gnnrec.config import ModelConfig, TrainConfig
from gnnrec.device import numpy_generator, torch_generator
from gnnrec.features import GraphInput
from gnnrec.loop import TrainResult
from gnnrec.model import Model
from gnnrec.neighbours import Blocks
from gnnrec.propagate import propagate
from gnnrec.sampling import Episode
from gnnrec.scores import ScoreVectors
from gnnrec.train import fit

_START = 0.1  # standard deviation of the tables' entries at the start
_NULL = 1e-3  # of the largest singular value: directions below are rounding errors
_TIES = 1e-6  # weight of log popularity: it orders equal scores, and users without interactions
_BATCH = (256, 8192)  # edges a step: the range
_ROOTS = 4  # edges a step, in square roots of the number of edges
NEGATIVES = 1024
DIM, LAYERS, TEMPERATURE = 64, 2, 0.15


class LightGCN(nn.Module):
    """score(u, i) = cos(z_u, z_i) / temperature, z = sum over layers k of A^k e.

    e is a table with a free row for each user and item, A the symmetrically normalised adjacency.
    Nothing here can be carried to another graph. Users and items without interactions have no
    personal score: their rows have learned nothing, or only that they are negatives.

    Source: He et al. 2020 (arXiv 2002.02126, equations 3 and 4), layers summed; the cosine with a
    temperature is that of Wu et al. 2022 (arXiv 2201.02327).

    Args:
        n_users: Rows of the users' table.
        n_items: Rows of the items' table.
        dim: Width of both.
        n_layers: Propagation layers, at least 1.
        temperature: What cosines are divided by.
        seed: Seeds the tables: normal, small. See `start_from_spectrum`.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        *,
        dim: int = DIM,
        n_layers: int = LAYERS,
        temperature: float = TEMPERATURE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = ModelConfig(encoder="lightgcn", dim=dim, n_layers=n_layers)
        self.temperature = temperature
        generator = torch_generator(seed, "lightgcn tables")
        self.users, self.items = (
            nn.Parameter(_START * torch.randn(n, dim, generator=generator))
            for n in (n_users, n_items)
        )

    @torch.no_grad()
    def start_from_spectrum(self, x: GraphInput) -> None:
        """Set the leading columns of both tables to the graph's singular vectors.

        They are where training goes first, and cost less than the steps that it would take there.
        """
        low = x.spectrum
        width = min(int((low.sigma > _NULL * low.sigma.max()).sum()), self.users.shape[1])
        vectors = torch.cat([low.user[:, :width], low.item[:, :width]])
        if width:
            vectors *= _START / vectors.std().clamp_min(1e-12)
            self.users[:, :width] = vectors[: len(self.users)]
            self.items[:, :width] = vectors[len(self.users) :]

    def depths(self, names: list[str]) -> dict[str, int]:
        """Return how many layers below the last each parameter is: the tables are the only ones."""
        return dict.fromkeys(names, 0)

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: Blocks | None = None
    ) -> ScoreVectors:
        """Return the scores of the given users (all by default); see `Model.forward`.

        Vectors are cosines' unit vectors times temperature^-1/2 each, then one column more.

        Args:
            x: The graph whose users and items the tables are of.
            users: (n,) int64 codes, or None.
            blocks: Always None: free vectors are propagated over the whole graph.

        Cost: O(n_layers n_edges dim).
        """
        assert blocks is None, "a LightGCN with free vectors samples no neighbours"
        layers = propagate(x.adjacency, self.users, self.items, self.config.n_layers)
        user_sum, item_sum = (reduce(torch.add, cast(list[Tensor], tables)) for tables in layers)
        user_degrees = x.user_degrees
        if users is not None:
            user_sum, user_degrees = user_sum.index_select(0, users), user_degrees[users]
        bias = _TIES * torch.log1p(x.item_degrees)
        return ScoreVectors(
            nn.functional.pad(self._scaled(user_sum, user_degrees), (0, 1), value=1.0),
            torch.cat([self._scaled(item_sum, x.item_degrees), bias[:, None]], dim=1),
        )

    def _scaled(self, rows: Tensor, degrees: Tensor) -> Tensor:
        scale = (degrees > 0) * self.temperature**-0.5
        scaled: Tensor = nn.functional.normalize(rows, dim=1) * scale[:, None]
        return scaled


def train_lightgcn(
    x: GraphInput,
    config: TrainConfig,
    *,
    dim: int = DIM,
    n_layers: int = LAYERS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    label: str = "lightgcn",
) -> tuple[LightGCN, TrainResult]:
    """Train a LightGCN on all edges of a graph, the learning rate decaying by a cosine to zero.

    The edges that are learned are also those that messages pass along, as published: with free
    vectors there is no rule "this edge exists" that a hidden edge would unlearn.

    Args:
        x: The graph.
        config: The loop's settings; all `max_steps` steps are made and the last tables kept.
        dim: Width of the tables.
        n_layers: Propagation layers.
        temperature: What cosines are divided by.
        seed: Seeds the tables, the edges and the negatives.
        label: Shown on the progress bar.

    Returns:
        The model in evaluation mode, and what the training did (nothing without edges).

    Raises:
        GnnrecError: The loss is not finite.

    Cost: each step O(n_layers n_edges dim + batch_size n_negatives dim).
    """
    graph = x.graph
    model = LightGCN(
        graph.n_users, graph.n_items, dim=dim, n_layers=n_layers, temperature=temperature, seed=seed
    ).to(x.device)
    if not graph.n_edges:
        return model.eval(), TrainResult()
    model.start_from_spectrum(x)
    users, items = graph.edges()
    episode = Episode(x, users, items)
    result = fit(
        cast(Model, model),  # the loop asks it for vectors, its configuration and its depths
        lambda step: episode,
        ["users", "items"],
        None,
        config,
        numpy_generator(seed, "lightgcn batches"),
        label=label,
        decay_learning_rate=True,
    )
    return model.eval(), result


def lightgcn(
    x: GraphInput,
    *,
    n_layers: int = LAYERS,
    temperature: float = TEMPERATURE,
    learning_rate: float = 0.01,
    passes: int = 6,
) -> ScoreVectors:
    """LightGCN with free vectors of 64 columns and a sampled softmax; see `LightGCN`.

    A step takes as many edges as four times the square root of their number, from 256 to 8192, and
    up to 1024 uniform negatives: on a larger graph steps are larger and more at once.

    Args:
        x: The graph; its seed is taken.
        n_layers: Propagation layers.
        temperature: What cosines are divided by.
        learning_rate: Adam's at the start.
        passes: How often each edge is drawn on average.

    Raises:
        ConfigError: A setting is out of range.

    Cost: see `train_lightgcn`.
    """
    check_count("lightgcn-ids: n_layers", n_layers)
    check_number("lightgcn-ids: temperature", temperature, above=True)
    check_number("lightgcn-ids: learning_rate", learning_rate, above=True)
    check_count("lightgcn-ids: passes", passes)
    n_edges = x.graph.n_edges
    size = min(max(_ROOTS * math.isqrt(n_edges), _BATCH[0]), _BATCH[1])
    steps = max(1, math.ceil(passes * n_edges / size))
    config = train_config(steps, size, learning_rate=learning_rate)
    model, _ = train_lightgcn(x, config, n_layers=n_layers, temperature=temperature, seed=x.seed)
    with torch.no_grad():
        scores: ScoreVectors = model(x)
    return scores


def train_config(
    steps: int, batch_size: int, n_negatives: int = NEGATIVES, learning_rate: float = 0.01
) -> TrainConfig:
    """The loop's settings for free vectors: edges drawn evenly, no pull to the start."""
    return TrainConfig(
        max_steps=steps,
        batch_size=batch_size,
        n_negatives=n_negatives,
        learning_rate=learning_rate,
        pull_to_start=0.0,
        user_balance=0.0,
    )
