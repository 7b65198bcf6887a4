"""Neural collaborative filtering (He et al. 2017) whose embeddings can be made on any graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.features import GraphInput
from gnnrec.filters import unit
from gnnrec.heads import IdTables, ItemBias
from gnnrec.newcomers import Arrived, FoldIn, Newcomers
from gnnrec.retrain import Retrainable
from gnnrec.scores import ScoreVectors
from gnnrec.tower import Tower, TowerScores

NCF = ("gmf", "mlp", "neumf")
_ROOT, _TEXTS = "ncf users", "ncf texts"  # what it keeps of a graph
_START = 4.0  # of a cosine of texts against popularity's logits
_PRODUCT = 4  # width of the product's embeddings against the tower's
_SMALL = 0.1  # the spread of fresh ids where there are no texts


class EmbeddingHeads(nn.Module):
    """p_u and q_i from what is known of the nodes: texts, and on a target the items' own ids.

    p_u = W (text of u's items) + d_u^-1/2 times the sum of a_i over u's items (as FISM, Kabbur et
    al. 2013); q_i = W' (text of i) + b_i. The texts are those of LightGCN layers 1 and 3 (users)
    and 0 and 2 (items), as unit vectors; a and b are the residual ids. Users come through the
    graph, so that one who arrives later has a vector too.

    Args:
        text_dim: Length of the text vectors; 0 without.
        width: Of an embedding.
    """

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.user = nn.Linear(text_dim, width, bias=False) if text_dim else None
        self.item = nn.Linear(text_dim, width, bias=False) if text_dim else None
        if self.user is not None and self.item is not None:
            # The same on both sides: their product starts as the texts' own.
            nn.init.orthogonal_(self.user.weight)
            self.item.weight.data.copy_(self.user.weight.data)

    def forward(
        self, texts: tuple[Tensor, Tensor] | None, ids: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """Return the user and the item embeddings, (n, width) and (n_items, width).

        Args:
            texts: Unit vectors of users and items, or None.
            ids: What the residual ids add to either.
        """
        if texts is None or self.user is None or self.item is None:
            return list(ids)
        return [self.user(texts[0]) + ids[0], self.item(texts[1]) + ids[1]]


class ItemIds(IdTables):
    """Two free vectors per target item: one stands for it among a user's, one as a candidate."""

    of_users: nn.Parameter
    of_items: nn.Parameter

    def __init__(self, n_items: int, width: int, spread: float) -> None:
        of_users, of_items = (spread * torch.randn(n_items, width) for _ in range(2))
        super().__init__(of_users=of_users, of_items=of_items)

    def forward(self, x: GraphInput) -> tuple[Tensor, Tensor]:
        """Return (n_users, width) and (n_items, width)."""
        mine, theirs = (self.whole(name, x.graph.n_items) for name in self.names)
        if _ROOT not in x.kept:
            x.kept[_ROOT] = x.operator(x.graph.by_degree(-0.5, 0.0))
        of_users: Tensor = x.kept[_ROOT](mine)
        return of_users, theirs


class NeuMF(Retrainable):
    """score(u, i) = known_u s h . [p * q; phi([p'; q'])] + b_i.

    He et al. 2017: the product is generalised matrix factorisation (GMF, equation 9), phi a tower
    of ReLU layers (MLP, equation 10), h the fusion of both (NeuMF, equation 12); each has its own
    embeddings. `config.encoder` is gmf, mlp or neumf. Three things make it transferable: the
    embeddings come from heads (`EmbeddingHeads`) and not from tables of users and items; the item
    bias b is popularity with a learned prior count, and with b = 0, s = 1 the score is the paper's
    logit; a user without interactions gets the bias alone.

    Args:
        config: dim is the width of the tower's last layer (the paper's predictive factors),
            n_layers its hidden layers. The tower's embeddings are dim 2^(n_layers - 1) wide, those
            of the product, which cost a pair little, four times that.
        n_target_items: Size of the residual id tables; None for a model without them.

    Cost: an inner product a pair for GMF; for MLP also the tower's products but the first.
    """

    new_on_target = ("bias.", "residual.")
    head_names = ("heads.", "bias.", "log_scale", "residual.")
    final_names = ("fusion.",)
    calibrating_names = ("bias.", "log_scale")
    id_names = ("residual.",)

    def __init__(self, config: ModelConfig, n_target_items: int | None = None) -> None:
        super().__init__()
        self.config = config
        tower = config.dim * 2 ** (config.n_layers - 1)
        self.widths = {"gmf": _PRODUCT * tower, "mlp": tower}
        parts = {"gmf": ("gmf",), "mlp": ("mlp",), "neumf": ("gmf", "mlp")}[config.encoder]
        self.heads = nn.ModuleDict(
            {p: EmbeddingHeads(config.text_dim, self.widths[p]) for p in parts}
        )
        self.tower = Tower(tower, config.n_layers) if "mlp" in parts else None
        fresh = {"gmf": torch.ones(self.widths["gmf"]), "mlp": _fresh(config.dim)}
        self.fusion = nn.ParameterDict({part: nn.Parameter(fresh[part]) for part in parts})
        self.log_scale = nn.Parameter(torch.tensor(_START).log())
        self.bias = ItemBias(0)
        # Beside texts, ids start without effect; alone they have to differ to learn anything.
        spread = 0.0 if config.text_dim else _SMALL
        self.residual = (
            nn.ModuleDict(
                {part: ItemIds(n_target_items, self.widths[part], spread) for part in parts}
            )
            if n_target_items is not None
            else None
        )

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: None = None
    ) -> ScoreVectors:
        """Return the scores of the given users (all by default); see `Model.forward`."""
        x.check_text(self.config.text_dim)
        wanted = torch.arange(x.graph.n_users, device=x.device) if users is None else users
        known = (x.user_degrees.index_select(0, wanted) > 0).float()[:, None]
        scale = self.log_scale.exp()
        texts = self.texts(x, wanted)
        user_parts, item_parts, part = [], [], None
        for name, heads in self.heads.items():
            ids = self.ids(x, name, wanted)
            p, q = heads(texts, ids)
            if name == "gmf":
                user_parts.append(p * self.fusion[name] * scale * known)
                item_parts.append(q)
            else:
                assert self.tower is not None
                mine = torch.cat([self.tower.user(p), known], dim=1)
                part = self.tower_scores(mine, self.tower.item(q))
        user_parts.append(torch.ones_like(known))
        # Relative to the mean item: what the binary loss calls neither likely nor unlikely.
        mean = max(x.graph.all_edges, 1) / max(x.graph.n_items, 1)
        item_parts.append((self.bias(x) - self.bias.slope * math.log(mean))[:, None])
        return ScoreVectors(torch.cat(user_parts, 1), torch.cat(item_parts, 1), part=part)

    @torch.no_grad()
    def newcomers(self, x: GraphInput) -> FoldIn:
        """See `Model.newcomers`; a user of the graph gets their own scores again."""
        texts = None
        if x.text is not None and self.config.text_dim:
            of_items = x.propagated_text(3)[1]
            assert of_items[0] is not None and of_items[2] is not None
            texts = of_items[0] + of_items[2]
        ids = {}
        for name, width in self.widths.items():
            ids[name] = x.item_degrees.new_zeros(x.graph.n_items, width)
            if self.residual is not None and name in self.residual:
                own = self.residual[name].of_users
                assert isinstance(own, Tensor)
                ids[name][: len(own)] = own

        @torch.no_grad()
        def fold(new: Newcomers) -> Arrived:
            known = (new.degrees > 0).float()[:, None]
            read = None if texts is None else unit(new.sums(texts, -0.5, -0.5))
            parts, tower = [], None
            for name, heads in self.heads.items():
                p = new.sums(ids[name], -0.5, 0.0)
                assert isinstance(heads, EmbeddingHeads)
                if read is not None and heads.user is not None:
                    p = heads.user(read) + p
                if name == "gmf":
                    parts.append(p * self.fusion[name] * self.log_scale.exp() * known)
                else:
                    assert self.tower is not None
                    tower = torch.cat([self.tower.user(p), known], dim=1)
            return Arrived(torch.cat([*parts, torch.ones_like(known)], dim=1), tower=tower)

        return fold

    def tower_scores(self, users: Tensor, items: Tensor) -> TowerScores:
        """Return the tower's part of the scores from the tables of its first layer."""
        assert self.tower is not None
        return TowerScores(users, items, self.tower, self.fusion["mlp"] * self.log_scale.exp())

    def texts(self, x: GraphInput, users: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the unit text vectors of users and of all items, None without text."""
        if x.text is None or not self.config.text_dim:
            return None

        if _TEXTS not in x.kept:
            of_users, of_items, _ = x.propagated_text(3)
            first, third, start, second = of_users[1], of_users[3], of_items[0], of_items[2]
            assert first is not None and third is not None
            assert start is not None and second is not None
            x.kept[_TEXTS] = unit(first + third), unit(start + second)
        both: tuple[Tensor, Tensor] = x.kept[_TEXTS]
        return both[0].index_select(0, users), both[1]

    def ids(self, x: GraphInput, part: str, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return what residual ids add to the vectors of users and of all items; zeros without."""
        if self.residual is None:
            width = self.widths[part]
            return (
                x.item_degrees.new_zeros(len(users), width),
                x.item_degrees.new_zeros(x.graph.n_items, width),
            )
        mine, theirs = self.residual[part](x)
        return mine.index_select(0, users), theirs

    def take(self, parts: dict[str, NeuMF], share: float = 0.5) -> None:
        """Start from a trained GMF and a trained MLP, the fusion weighed by `share` of GMF.

        He et al. 2017, equation 13.
        """
        weights = {"gmf": share, "mlp": 1.0 - share}
        with torch.no_grad():
            for name, part in parts.items():
                self.heads[name].load_state_dict(part.heads[name].state_dict())
                self.fusion[name].copy_(weights[name] * part.fusion[name] * part.log_scale.exp())
                if part.tower is not None and self.tower is not None:
                    self.tower.load_state_dict(part.tower.state_dict())
            self.log_scale.zero_()
            self.bias.load_state_dict(parts["gmf"].bias.state_dict())

    def n_retrained_layers(self) -> int:
        """The tower's layers; a product alone has its fusion."""
        return 1 if self.tower is None else self.config.n_layers

    def layer_parameters(self, layer: int) -> list[str]:
        """Those of a layer of the tower."""
        if self.tower is None:
            return []
        return [f"tower.{name}" for name in self.tower.layer_parameters(layer)]

    @property
    def n_residual(self) -> int | None:
        """Rows of the residual id tables; None without any."""
        if self.residual is None:
            return None
        return len(next(iter(self.residual.values())).of_items)  # type: ignore[arg-type]


def _fresh(width: int) -> Tensor:
    return torch.empty(width).uniform_(-(width**-0.5), width**-0.5)
