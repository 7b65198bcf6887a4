"""A LightGCN whose layers' weights depend on the nodes: channels, gated by what a source taught."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from gnnrec.alike import NEAR_EXPONENT
from gnnrec.bridge import Bridge, Matched
from gnnrec.channels import NAMES, SMALL, Channels, mixed
from gnnrec.config import ModelConfig, Retrain
from gnnrec.context import N_GRAPH, channel_part, context, graph_part, hide
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.newcomers import Arrived, FoldIn, Newcomers
from gnnrec.scores import ScoreVectors, Similarity, Walk

START = {
    "filter": -1.5,
    "near_text": -2.5,
    "low16": -2.5,
    "low64": -2.5,
    "ridge": -2.5,
    "counts": -2.5,
    "text": -1.5,
    "deep_text": -1.5,
    "taste": -2.5,
    "bridge": -2.0,
}
_HIDDEN = 16
_N_ABOUT = 2 + (N_GRAPH + 2) + 3
_HEADS = ("log_weight", "bias.")
_LAYERS = ("user_slope", "item_slope")
_KEPT_OUT = ("filter.",)
Kept = TypeVar("Kept")


class ShrunkCounts(nn.Module):
    """b_i = log(d_i + a) + log(e_i) - log(e_i + a): counts drawn to what a source says of an item.

    A count is Poisson, its rate has a Gamma distribution of mean e_i and shape a, and b_i is the
    log of the posterior mean (Clayton and Kaldor 1987, Biometrics 43, with e_i for the expected
    count). e_i is the twin's popularity in a source times exp(scale) and what such items have here
    by unit of it, or where there is no twin the mean count of the others. The shape is exp(source),
    or exp(prior). What a source makes popular is first where little was seen, and is not where much
    was seen and it was absent, however popular it is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_prior = nn.Parameter(torch.tensor(0.0))
        self.log_source = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, degrees: Tensor, popularity: Tensor, shift: Tensor, means: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return what has the shape of `degrees`.

        Args:
            degrees: Items' counts.
            popularity: That of their twins, zero without one.
            shift: (2,), added to prior and source.
            means: See `Channels.means`.
        """
        prior = (self.log_prior + shift[0]).clamp(-8.0, 6.0).exp()
        source = (self.log_source + shift[1]).clamp(-8.0, 6.0).exp()
        scale = self.log_scale.clamp(-8.0, 6.0).exp()
        return shrunk_counts(degrees, popularity, means, (prior, source, scale))


def shrunk_counts(
    degrees: Tensor,
    popularity: Tensor,
    means: tuple[Tensor, Tensor],
    numbers: tuple[Tensor | float, Tensor | float, Tensor | float],
) -> Tensor:
    """`ShrunkCounts` with the shape without a twin, with one, and the scale, as they are."""
    twin = popularity > 0
    expected = torch.where(twin, numbers[2] * means[0] * popularity, means[1])
    shape = torch.where(twin, numbers[1], numbers[0])
    return torch.log(degrees + shape) + torch.log(expected) - torch.log(expected + shape)


@dataclass(frozen=True)
class Inner:
    """The channels of a graph without some edges, and the (n,) int64 ends of these."""

    channels: Channels
    users: np.ndarray
    items: np.ndarray


class ChannelBlend(nn.Module):
    """score(u, i) = b_i + sum_c g_c(u) h_c(i) z_c(u, i) over the channels z of `gnnrec.channels`.

    g_c(u) = exp(a_c + s_c log(1 + d_u) + network(log d_u, context_c)) and
    h_c(i) = (1 + d_i)^(t_c + network(context_c)), d the visible degrees. The context says what
    kind of graph this is and how well channel c, and how well the others, rank edges hidden from
    it. One network serves all channels, so what pretraining learns is how to trust any layer by
    what it shows, on a graph that was never seen. A pretrained model also carries one bridge a
    source with item texts.

    Users without a visible interaction get the item bias alone.

    Args:
        config: The architecture; `bridges` are the sizes of the source item tables.

    Cost: that of the channels; a score is an inner product of 350 numbers, of 320 more with texts
    and of 64 more for each bridge, and the filter's walk.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.filter = GraphFilter(config.model_copy(update={"encoder": "graph-filter"}))
        n = len(NAMES)
        self.log_weight = nn.Parameter(torch.tensor([START[name] for name in NAMES]))
        self.user_slope = nn.Parameter(torch.zeros(n))
        self.item_slope = nn.Parameter(torch.zeros(n))
        self.bias = ShrunkCounts()
        self.gate_network = _network(1 + _N_ABOUT, 1)
        self.slope_network = _network(_N_ABOUT, 1)
        self.bias_network = _network(N_GRAPH + 2, 2)
        self.bridges = nn.ModuleList(Bridge(size, config.text_dim) for size in config.bridges)

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: None = None
    ) -> ScoreVectors:
        """Return the scores of the given users (all by default); see `Model.forward`."""
        x.check_text(self.config.text_dim)
        return self.scores_of(self.channels(x), self.about(x), users)

    def scores_of(
        self, channels: Channels, about: Tensor, users: Tensor | None = None
    ) -> ScoreVectors:
        """Return the scores by channels of a graph, and by a context that may be another's."""
        if users is None:
            users = torch.arange(channels.graph.n_users, device=channels.device)
        gates, items, bias = self.weights(channels, about, channels.user_degrees[users])
        scores = mixed(channels, users, gates, items)
        return replace(scores, items=torch.cat([scores.items[:, :-1], bias[:, None]], dim=1))

    def channels(self, x: GraphInput) -> Channels:
        """Return a graph's channels; made once a graph."""
        return self._kept(x, "channels", lambda: self._channels(x, x))

    def about(self, x: GraphInput) -> Tensor:
        """Return a graph's context (see `gnnrec.context`); made once a graph."""

        def make() -> Tensor:
            asked = "inner" in x.kept
            inner = self.inner(x)
            if not asked:
                del x.kept["inner"]  # it is as large as the graph's own channels
            if inner is None:
                nobody = np.zeros(0, dtype=np.int64)
                return context(self.channels(x), None, (nobody, nobody))
            return context(self.channels(x), inner.channels, (inner.users, inner.items))

        return self._kept(x, "context", make)

    def inner(self, x: GraphInput) -> Inner | None:
        """Return a graph's part without some edges, and these; kept until it is taken away."""

        def make() -> Inner | None:
            parts = hide(x.graph, x.seed)
            if parts is None:
                return None
            return Inner(self._channels(x.on(parts[0]), x), *parts[1:])

        return self._kept(x, "inner", make)

    def fixed_sha256(self) -> str:
        """Digest of what the channels are made from and no fit changes: filter, bridges, texts."""
        about = (self.config.text_dim, self.config.text_model, self.config.spectral_rank)
        digest = hashlib.sha256(repr(about).encode())
        for table in [*self.filter.parameters(), *self.bridges.buffers()]:
            digest.update(table.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _channels(self, x: GraphInput, whole: GraphInput) -> Channels:
        reads_text = self.config.text_dim > 0
        return Channels(x, self.filter, self.matched(whole), reads_text=reads_text)

    def matched(self, x: GraphInput) -> list[Matched]:
        """What is known of the items from sources; pretraining lays its own over an episode."""
        if "bridges" in x.kept:
            return list(x.kept["bridges"])
        if x.item_text is None:
            return []
        tables = [bridge for bridge in self.bridges if isinstance(bridge, Bridge)]
        matched = [bridge.match(x.item_text) for bridge in tables]
        return [one for one in matched if bool(one.found.any())]  # none is as if never made

    def _kept(self, x: GraphInput, name: str, make: Callable[[], Kept]) -> Kept:
        # By the table of bridges, which copies of a model that is being trained share.
        key, found = x.kept.get(name, (None, None))
        if key is self.bridges:
            return cast("Kept", found)
        with torch.no_grad():
            made = make()
        x.kept[name] = (self.bridges, made)
        return made

    def weights(
        self, channels: Channels, about: Tensor, user_degrees: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gates (n, n_channels) and (n_items, n_channels), and the bias (n_items,)."""
        gates, slopes = self.gates_and_slopes(channels, about, user_degrees)
        items = (torch.log1p(channels.item_degrees)[:, None] * slopes).exp()
        return gates, items, self.item_bias(channels, about)

    def gates_and_slopes(
        self, channels: Channels, about: Tensor, user_degrees: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gates (n, n_channels) and the exponents of 1 + d_i, (n_channels,)."""
        degrees, place = torch.unique(user_degrees, return_inverse=True)
        told = self._told(channels, about)
        gates = self._gates(told, degrees).index_select(0, place)
        return gates, self.item_slope + 0.3 * self.slope_network(told)[:, 0]

    def item_bias(
        self, channels: Channels, about: Tensor, some: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return the bias of all items, or of some of these degrees and popularity of twins."""
        counts = (channels.item_degrees, channels.popularity) if some is None else some
        shift = self.bias_network(graph_part(about))
        bias: Tensor = self.bias(*counts, shift, channels.means())
        return bias

    def _gates(self, told: Tensor, degrees: Tensor) -> Tensor:
        """(n, n_channels) for users of some degrees, (n,); nothing for somebody without any."""
        degree = torch.log1p(degrees)[:, None]
        inputs = torch.cat(
            [
                (degree / 3.0)[:, :, None].expand(-1, len(NAMES), 1),
                told.expand(len(degree), *told.shape),
            ],
            dim=2,
        )
        log_gate = self.log_weight + self.user_slope * degree + self.gate_network(inputs)[..., 0]
        gates: Tensor = log_gate.exp() * (degree > 0)
        return gates

    @torch.no_grad()
    def newcomers(self, x: GraphInput) -> FoldIn:
        """See `Model.newcomers` and `Channels.newcomers`; it keeps a table of items a channel."""
        channels = self.channels(x)
        told, mix = self._told(channels, self.about(x)), channels.newcomers(x, self.filter)

        @torch.no_grad()
        def fold(new: Newcomers) -> Arrived:
            return mix(new, self._gates(told, new.degrees))

        return fold

    @staticmethod
    def _told(channels: Channels, about: Tensor) -> Tensor:
        """(n_channels, _N_ABOUT): what is known of each channel, the others and the graph."""
        own = channel_part(about)
        present = torch.tensor(channels.present, device=own.device)
        means = own.sum(dim=0) / present.sum().clamp_min(1)  # absent ones are zero
        of_all = torch.cat([graph_part(about), means, own[:, 1].max()[None]])
        return torch.cat([own, of_all.expand(len(NAMES), -1)], dim=1)

    def walk(self, graph: BipartiteGraph, out: Tensor, users: Tensor) -> Walk:
        """Put the filter's walk together again from its saved `Walk.out` and the user vectors."""
        walk = self.filter.walk(graph, out, users)
        scale = -SMALL * users[:, 2 * self.config.spectral_rank]
        start = sp.csr_array(sp.diags_array(scale.numpy()) @ walk.start)
        return replace(walk, start=start.astype(np.float32))

    def near(self, graph: BipartiteGraph, weights: sp.csr_array, users: Tensor) -> Similarity:
        """Put the near texts' part together again from its saved weights and the user vectors."""
        scale = -SMALL * users[:, 2 * self.config.spectral_rank + 2]
        start = sp.diags_array(scale.numpy()) @ graph.by_degree(0.0, -NEAR_EXPONENT)
        return Similarity(sp.csr_array(start).astype(np.float32), weights)

    def trained_parameters(self, retrain: Retrain, n_layers: int = 0) -> list[str]:
        """Names of the parameters that a retraining mode trains, in a stable order.

        heads: the channels' weights and the popularity priors. final: also how they depend on the
        nodes' degrees, which stands for the layers. full and scratch: also the networks that read
        the context. The filter's own numbers and the bridges stay.

        Raises:
            ConfigError: More than one final layer.
        """
        if retrain == "final" and n_layers != 1:
            raise ConfigError(
                f"--retrain final:{n_layers}: the channels share one layer of gates; expected "
                "final:1"
            )
        if retrain == "zero-shot":
            return []
        names = [n for n, _ in self.named_parameters() if not n.startswith(_KEPT_OUT)]
        if retrain in ("full", "scratch"):
            return names
        chosen = _HEADS if retrain == "heads" else _HEADS + _LAYERS
        return [name for name in names if name.startswith(chosen)]

    def depths(self, names: list[str]) -> dict[str, int]:
        """Return how far from the scores each named parameter is: weights, slopes, networks."""
        return {
            name: 0 if name.startswith(_HEADS) else 1 if name.startswith(_LAYERS) else 2
            for name in names
        }

    @torch.no_grad()
    def draw_back(self, share: float) -> None:
        """Move every weight, slope and bias a share of the way back to a fresh model's.

        What is computed moves as far: log gates, exponents and log shapes are linear in the numbers
        that change, the networks' last layers among them, and a fresh model's networks are zero
        (Wortsman et al. 2022, arXiv 2109.01903, for weights between a start and a fine-tuned end).
        """
        start = torch.tensor([START[name] for name in NAMES])
        self.log_weight.lerp_(start.to(self.log_weight), share)
        for name, parameter in self.named_parameters():
            if name.startswith((*_LAYERS, "bias.")) or "_network.2." in name:
                parameter.mul_(1.0 - share)

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take everything of a source, its item table too."""
        self.load_state_dict(state)

    def count_parameters(self, trained: list[str] | None = None) -> dict[str, int]:
        """As `Model.count_parameters`; the bridges' tables count as id tables."""
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        biases = {name for name in sizes if name.startswith("bias.")}
        chosen = (set(sizes) if trained is None else set(trained)) - biases
        return {
            "total": sum(n for name, n in sizes.items() if name not in biases),
            "trained": sum(sizes[name] for name in chosen),
            "id_tables": sum(b.numel() for b in self.bridges.buffers()),
            "biases": sum(sizes[name] for name in biases),
        }


def _network(n_in: int, n_out: int) -> nn.Sequential:
    """A small network that starts as zero."""
    last = nn.Linear(_HIDDEN, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, _HIDDEN), nn.Tanh(), last)
