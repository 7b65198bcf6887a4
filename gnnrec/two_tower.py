"""Two towers of one text encoder: what a user's items say, against what an item says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.features import GraphInput
from gnnrec.filters import unit
from gnnrec.heads import ItemBias
from gnnrec.newcomers import Arrived, FoldIn, Newcomers
from gnnrec.retrain import Retrainable
from gnnrec.scores import ScoreVectors

_START = 4.0  # of a cosine of texts against popularity's logits


class TwoTower(Retrainable):
    """score(u, i) = known_u s d_u^t cos(W p_u, W' q_i) + b_i.

    q_i is item i's text vector, p_u the first LightGCN layer of them (the user's items, popular
    ones less), both from one sentence encoder: its last layers are the towers, which text:K
    retrains, and W and W', which start as no change, their last one. b is popularity with a learned
    prior count. Nothing of it belongs to an item or a user, so all of it is carried over but b and
    the weight of the cosine.

    Args:
        config: dim is the height of W, text_dim its width.

    Source: the two towers of Huang et al. 2013 with shared weights, as Reimers and Gurevych 2019
    train them for sentences. Cost: an inner product of dim + 1 numbers a pair.
    """

    new_on_target = ("bias.", "log_scale", "degree_slope")
    head_names = ("bias.", "log_scale", "degree_slope")
    final_names = ()
    calibrating_names = ("bias.", "log_scale", "degree_slope")
    id_names = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.user = nn.Linear(config.text_dim, config.dim, bias=False)
        self.item = nn.Linear(config.text_dim, config.dim, bias=False)
        for side in (self.user, self.item):
            nn.init.eye_(side.weight)
        self.log_scale = nn.Parameter(torch.tensor(_START).log())
        self.degree_slope = nn.Parameter(torch.tensor(0.0))
        self.bias = ItemBias(0)

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: None = None
    ) -> ScoreVectors:
        """Return the scores of the given users (all by default); see `Model.forward`."""
        x.check_text(self.config.text_dim)
        wanted = torch.arange(x.graph.n_users, device=x.device) if users is None else users
        degrees = x.user_degrees.index_select(0, wanted)
        bias = self.bias(x)[:, None]
        if x.text is None:
            return ScoreVectors(torch.ones_like(degrees)[:, None], bias)
        first = x.propagated_text(1)[0][1]
        assert first is not None
        mine = self._users(first.index_select(0, wanted), degrees)
        theirs = unit(self.item(x.text))
        return ScoreVectors(mine, torch.cat([theirs, bias], dim=1))

    @torch.no_grad()
    def newcomers(self, x: GraphInput) -> FoldIn:
        """See `Model.newcomers`; a user of the graph gets their own vector again."""
        text = x.text

        @torch.no_grad()
        def fold(new: Newcomers) -> Arrived:
            if text is None:
                return Arrived(torch.ones_like(new.degrees)[:, None])
            return Arrived(self._users(new.sums(text, -0.5, -0.5), new.degrees))

        return fold

    def _users(self, first: Tensor, degrees: Tensor) -> Tensor:
        """(n, dim + 1) from the users' first layer and their degrees."""
        gate = (self.log_scale + self.degree_slope * torch.log1p(degrees)).exp() * (degrees > 0)
        mine = gate[:, None] * unit(self.user(first))
        return torch.cat([mine, torch.ones_like(degrees)[:, None]], dim=1)

    def n_retrained_layers(self) -> int:
        """The projections; the layers below them are the text encoder's."""
        return 1

    def layer_parameters(self, layer: int) -> list[str]:
        """Those of the projections."""
        return ["user.weight", "item.weight"]

    @property
    def n_residual(self) -> None:
        """It has no residual ids."""
        return None
