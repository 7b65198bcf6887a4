"""A recommender as a `torch.export` program: codes in, lists out, without gnnrec.

It is made for elsewhere. gnnrec writes it and never loads one: a program is code.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from gnnrec.errors import ConfigError
from gnnrec.propagate import to_torch_csr
from gnnrec.scores import ScoreVectors, Similarity, Walk
from gnnrec.tower import TowerScores


class _Product(nn.Module):
    """A constant sparse matrix times a table, as `gnnrec.propagate` multiplies."""

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: sp.csr_array) -> None:
        super().__init__()
        csr = to_torch_csr(matrix)
        # Copies: a view of a sparse tensor cannot be traced.
        self.register_buffer("starts", csr.crow_indices().clone())
        self.register_buffer("columns", csr.col_indices().clone())
        self.register_buffer("values", csr.values().clone())

    def forward(self, x: Tensor) -> Tensor:
        return embedding_bag(
            self.columns,
            x,
            self.starts,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )


class _WalkScores(nn.Module):
    """The scores of `gnnrec.scores.Walk` for users by code."""

    out: Tensor

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        matrix = walk.operator.scipy()
        self.n_users = walk.start.shape[0]
        self.start = _Product(sp.csr_array(walk.start.T.tocsr()))
        self.to_users = _Product(matrix)
        self.to_items = _Product(sp.csr_array(matrix.T.tocsr()))
        self.register_buffer("out", walk.out.clone())

    def forward(self, users: Tensor, known: Tensor) -> Tensor:
        """Return (n, n_items); zeros for who is not known."""
        wanted = known.new_zeros(self.n_users, users.shape[0])
        wanted = wanted.scatter(0, users[None], known[None])  # a column per user
        arrived: Tensor = self.to_items(self.to_users(self.start(wanted)))
        return (self.out[:, None] * arrived).T


class _NearScores(nn.Module):
    """The scores of `gnnrec.scores.Similarity` for users by code."""

    def __init__(self, part: Similarity) -> None:
        super().__init__()
        assert not isinstance(part.weights, Tensor), "a recommender's weights are sparse"
        self.n_users = part.start.shape[0]
        self.start = _Product(sp.csr_array(part.start.T.tocsr()))
        self.weights = _Product(sp.csr_array(part.weights.T.tocsr()))

    def forward(self, users: Tensor, known: Tensor) -> Tensor:
        """Return (n, n_items); zeros for who is not known."""
        wanted = known.new_zeros(self.n_users, users.shape[0])
        wanted = wanted.scatter(0, users[None], known[None])  # a column per user
        arrived: Tensor = self.weights(self.start(wanted))
        return arrived.T


class _TowerPart(nn.Module):
    """The scores of `gnnrec.tower.TowerScores` for users by code."""

    users: Tensor
    items: Tensor
    fusion: Tensor

    def __init__(self, scores: TowerScores) -> None:
        super().__init__()
        self.tower = copy.deepcopy(scores.tower).requires_grad_(False)  # the model keeps its own
        self.register_buffer("users", scores.users.clone())
        self.register_buffer("items", scores.items.clone())
        self.register_buffer("fusion", scores.fusion.detach().clone())

    def forward(self, users: Tensor, known: Tensor) -> Tensor:
        """Return (n, n_items); zeros for who is not known."""
        mine = self.users.index_select(0, users) * known[:, None]
        hidden = self.tower.above(mine[:, None, :-1] + self.items)
        return (hidden @ self.fusion) * mine[:, -1:]


class Lists(nn.Module):
    """The best items of users by code; what `program.pt2` holds.

    Args:
        vectors: All scores of a recommender, on the processor.

    Raises:
        ConfigError: A part of the scores is of no kind that can be written down here.
    """

    users: Tensor
    items: Tensor
    bias: Tensor

    def __init__(self, vectors: ScoreVectors) -> None:
        super().__init__()
        self.register_buffer("users", vectors.users[:, :-1].clone())
        self.register_buffer("items", vectors.items[:, :-1].clone())
        self.register_buffer("bias", vectors.items[:, -1].clone())
        self.parts = nn.ModuleList()
        if vectors.walk is not None:
            self.parts.append(_WalkScores(vectors.walk))
        if isinstance(vectors.part, TowerScores):
            self.parts.append(_TowerPart(vectors.part))
        elif isinstance(vectors.part, Similarity):
            self.parts.append(_NearScores(vectors.part))
        elif vectors.part is not None:
            found = type(vectors.part).__name__
            raise ConfigError(
                f"export: found scores with a part of the kind {found}, expected an inner product, "
                "a walk or a tower; leave the program out with --no-program"
            )

    def forward(self, users: Tensor, seen: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Rank the catalogue.

        Args:
            users: (n,) int64 user codes; -1 for somebody unknown, who gets the popular items.
            seen: (n, m) int64 item codes that a user must not get, filled up with -1.
            k: Length of a list, at most n_items.

        Returns:
            (scores, items): (n, k) float32 and int64, best first; -inf and -1 where fewer than k
            items remain. Cost: O(n n_items d) time and n n_items numbers of memory, with a walk
            also n times the interactions, with a tower times its width.
        """
        known = (users >= 0).to(self.items.dtype)
        users = users.clamp_min(0)
        scores = self.users.index_select(0, users) * known[:, None] @ self.items.T + self.bias
        for part in self.parts:
            scores = scores + part(users, known)
        n_items = self.items.shape[0]
        nothing = scores.new_full((scores.shape[0], 1), -torch.inf)  # a column for the filling
        scores = torch.cat([scores, nothing], dim=1)
        scores = scores.scatter(1, torch.where(seen >= 0, seen, n_items), -torch.inf)
        # By place first: of equal scores the lower code comes first.
        places = torch.topk(scores, k, dim=1).indices.sort(dim=1).values
        values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
        return values, torch.where(values > -torch.inf, places.gather(1, order), -1)


def write_program(vectors: ScoreVectors, path: Path) -> None:
    """Write the program of a recommender's lists; see `Lists.forward` for how it is called.

    Users, what they have and k may be of any number when it runs.

    Raises:
        ConfigError: The scores are of another kind, or torch is too old.
    """
    sizes: Any = importlib.import_module("torch.fx.experimental._config")
    if not hasattr(sizes, "backed_size_oblivious"):
        raise ConfigError(
            f"export: found torch {torch.__version__}, expected 2.7 or newer for a program; "
            "pip install --upgrade torch, or leave it out with --no-program"
        )
    lists = Lists(vectors).eval()
    n = torch.export.Dim("n")
    example = (torch.tensor([0, -1]), torch.tensor([[0, -1], [0, -1]]), min(2, len(vectors.items)))
    shapes = {"users": {0: n}, "seen": {0: n, 1: torch.export.Dim("m")}, "k": torch.export.Dim.AUTO}
    with warnings.catch_warnings(), torch.no_grad(), sizes.patch(backed_size_oblivious=True):
        # Without it one user, or a list of one item, would be another program.
        warnings.simplefilter("ignore")
        program = torch.export.export(lists, example, dynamic_shapes=shapes)
        torch.export.save(program, path)
