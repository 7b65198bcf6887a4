"""Checks in each of some processes: parts of sums, tables, graphs, gradients beside the whole."""

import sys

import numpy as np
import torch

from gnnrec.config import ModelConfig, TrainConfig
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph, GraphPart
from gnnrec.heads import IdTables
from gnnrec.model import build_model
from gnnrec.ranks import ALONE, together
from gnnrec.sampling import Episode
from gnnrec.train import batch_loss, held_out_loss

N_USERS, N_ITEMS, TEXT = 53, 31, 12


def close(found, expected, tolerance=1e-5):
    scale = max(float(expected.abs().max()), 1e-6)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert float((found - expected).abs().max()) <= tolerance * scale, (found, expected)


def edges():
    rng = np.random.default_rng(3)
    n = 400
    # The last users have hardly any edges, so that a part is narrower than the spectrum.
    return (rng.beta(0.6, 2.0, n) * N_USERS).astype(int), (rng.beta(0.8, 1.5, n) * N_ITEMS).astype(
        int
    )


def check_tables(ranks):
    whole = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    mine = whole[ranks.block(11)].clone().requires_grad_()
    weight = torch.randn(ranks.size, 11, 3, generator=torch.Generator().manual_seed(1))
    gathered = ranks.gathered(mine, 11)
    assert torch.equal(gathered, whole)
    (gathered * weight[ranks.rank]).sum().backward()  # each rank's part of one loss
    close(mine.grad, weight.sum(dim=0)[ranks.block(11)])

    part = (whole * (ranks.rank + 1.0)).requires_grad_()
    total = ranks.sum(part)
    close(total, whole * sum(range(1, ranks.size + 1)))
    (total * weight[ranks.rank]).sum().backward()
    close(part.grad, weight.sum(dim=0))

    tables = IdTables(a=whole.clone())
    tables.share(ranks)
    assert len(tables.a) == len(whole[ranks.block(11)]) < 11
    assert torch.equal(tables.whole("a", 13)[:11], whole)
    tables.share(ALONE)
    assert torch.equal(tables.a, whole)


def check_graph(ranks, text):
    users, items = edges()
    whole = BipartiteGraph(users, items, N_USERS, N_ITEMS)
    part = GraphPart(users, items, N_USERS, N_ITEMS, ranks)
    counts = ranks.counts(part.n_users)
    assert sum(counts) == N_USERS == part.all_users
    assert part.all_edges == whole.n_edges == sum(ranks.counts(part.n_edges))
    assert np.array_equal(part.item_degrees, whole.item_degrees)
    rows = slice(part.first_user, part.first_user + part.n_users)
    x, y = GraphInput(part, text, spectral_rank=8), GraphInput(whole, text, spectral_rank=8)
    of_users = torch.randn(N_USERS, 4, generator=torch.Generator().manual_seed(2))
    of_items = torch.randn(N_ITEMS, 4, generator=torch.Generator().manual_seed(4))
    for name in ("adjacency", "user_mean"):
        close(getattr(x, name)(of_items), getattr(y, name)(of_items)[rows])
        close(getattr(x, name).T(of_users[rows]), getattr(y, name).T(of_users))
    close(x.item_mean(of_users[rows]), y.item_mean(of_users))
    close(x.context, y.context)
    close(x.mean_user(of_users[rows]), y.mean_user(of_users))
    s, t = x.spectrum, y.spectrum
    close(s.sigma, t.sigma)
    close((s.user * s.sigma) @ s.item.T, ((t.user * t.sigma) @ t.item.T)[rows])
    found = x.reference_users.numpy() + part.first_user
    expected = y.reference_users.numpy()
    assert np.array_equal(found, expected[(expected >= rows.start) & (expected < rows.stop)])


def check_model(ranks, name, loss, text):
    """One batch: the parts of its loss, and of the gradients, add up to those of the whole."""
    users, items = edges()
    rng = np.random.default_rng(7)
    hidden = rng.random(len(users)) < 0.5
    config = ModelConfig(encoder=name, dim=6, n_layers=2, spectral_rank=8, text_dim=TEXT)
    train = TrainConfig(batch_size=24, n_negatives=9, loss=loss)
    losses, gradients, held_out = [], [], []
    for graph in (BipartiteGraph, GraphPart):
        torch.manual_seed(1)
        model = build_model(config, N_ITEMS)
        tables = [m for m in model.modules() if isinstance(m, IdTables)]
        for table in tables:
            with torch.no_grad():
                for entry in map(table.get_parameter, table.names):
                    entry.normal_()
        own = () if graph is BipartiteGraph else (ranks,)
        visible = graph(users[~hidden], items[~hidden], N_USERS, N_ITEMS, *own)
        for table in tables:
            table.share(ranks if own else ALONE)
        episode = Episode(GraphInput(visible, text, spectral_rank=8), users[hidden], items[hidden])
        batch = episode.batch(24, 9, 0.5, np.random.default_rng(11))
        value = batch_loss(model, episode, batch, train)
        value.backward()
        losses.append(torch.tensor(ranks.total(value.item())[0] if own else value.item()))
        of_rows = {id(table.get_parameter(n)) for table in tables for n in table.names}
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
        if own:
            ranks.add_up([p.grad for p in parameters if id(p) not in of_rows])
        gradients.append(
            [
                ranks.gathered(p.grad, N_ITEMS) if own and id(p) in of_rows else p.grad
                for p in parameters
            ]
        )
        with torch.no_grad():
            held_out.append(torch.tensor(held_out_loss(model, episode, max_edges=70, chunk=20)))
    close(losses[1], losses[0])
    close(held_out[1], held_out[0])
    scale = max(float(g.abs().max()) for g in gradients[0])
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert float((mine - theirs).abs().max()) < 1e-4 * scale, name


def check():
    """Check all parts of this rank."""
    with together("cpu") as ranks:
        text = torch.randn(N_ITEMS, TEXT, generator=torch.Generator().manual_seed(9))
        check_tables(ranks)
        check_graph(ranks, text)
        for name in ("lightgcn", "graphsage", "gmf", "neumf", "two-tower"):
            for loss in ("softmax", "bpr", "binary"):
                check_model(ranks, name, loss, text)
    print("all parts add up", file=sys.stderr)  # noqa: T201
