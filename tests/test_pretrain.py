import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig
from gnnrec.episodes import Source, _thinning, sample_episode
from gnnrec.errors import ConfigError, DataError
from gnnrec.pretrain import pretrain


def block_log(seed=0, n_users=120, n_items=60, per_user=9, text=True):
    """Two groups of users who choose from two groups of items, by a power law within each."""
    rng = np.random.default_rng(seed)
    popularity = (np.arange(n_items) // 2 + 1.0) ** -0.8
    users, items = [], []
    for user in range(n_users):
        weights = popularity * np.where(np.arange(n_items) % 2 == user % 2, 1.0, 0.05)
        chosen = rng.choice(n_items, per_user, replace=False, p=weights / weights.sum())
        users.append(np.full(per_user, user))
        items.append(chosen)
    vectors = None
    if text:
        vectors = rng.standard_normal((n_items, 6)).astype(np.float32)
        vectors[:, 0] += np.where(np.arange(n_items) % 2, 3.0, -3.0)
    return Source("blocks", np.concatenate(users), np.concatenate(items), n_users, n_items, vectors)


def config(encoder="lightgcn", text_dim=6, seed=0, **changes):
    train = TrainConfig(
        loss="softmax",
        n_negatives=100,
        batch_size=64,
        learning_rate=0.01,
        pull_to_start=0.0,
        max_steps=40,
        evaluate_every=20,
        patience=10,
        user_balance=0.5,
    )
    values = dict(
        model=ModelConfig(encoder=encoder, dim=8, n_layers=2, text_dim=text_dim, spectral_rank=8),
        train=train,
        steps_per_episode=4,
        n_validation_episodes=3,
        min_users=40,
        max_users=120,
        max_edges=10_000,
        keep_low=0.2,
        keep_high=0.8,
        thinned_share=0.5,
        seed=seed,
    )
    return PretrainConfig(**{**values, **changes})


def numbered(n_users=30, per_user=8, shuffle=True):
    """User u chose items 8u .. 8u + 7 and no one else did; item i's text is its number's code."""
    n_items = n_users * per_user
    users = np.repeat(np.arange(n_users), per_user)
    order = np.random.default_rng(0).permutation(n_items) if shuffle else np.arange(n_items)
    return Source(
        "numbered", users[order], np.arange(n_items)[order], n_users, n_items, np.eye(n_items)
    )


def edges(episode):
    visible = set(zip(*(codes.tolist() for codes in episode.input.graph.edges()), strict=True))
    return visible, set(zip(episode.users.tolist(), episode.items.tolist(), strict=True))


@given(seed=st.integers(0, 10_000), thinned=st.sampled_from([0.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_episodes_hide_edges_and_keep_text_beside_its_item(seed, thinned):
    source = numbered()
    settings_ = config(min_users=5, thinned_share=thinned)
    episode = sample_episode(source, settings_, np.random.default_rng(seed))
    graph = episode.input.graph
    visible, hidden = edges(episode)
    assert visible and hidden and not visible & hidden
    assert len(hidden) == len(episode.users)
    for users, items in (graph.edges(), (episode.users, episode.items)):
        assert users.dtype == items.dtype == np.int64
        assert 0 <= users.min() and users.max() < graph.n_users <= source.n_users
        assert 0 <= items.min() and items.max() < graph.n_items <= source.n_items
    # No node without an edge, and no edge that the source has not.
    assert {u for u, _ in visible | hidden} == set(range(graph.n_users))
    assert {i for _, i in visible | hidden} == set(range(graph.n_items))
    # Each item's text says which source item it is, and with it whose.
    item_of = episode.input.text.argmax(dim=1).numpy()
    assert len(np.unique(item_of)) == graph.n_items
    owners = {u: {item_of[i] // 8 for v, i in visible | hidden if v == u} for u, _ in visible}
    assert all(len(found) == 1 for found in owners.values())
    assert len({min(found) for found in owners.values()}) == len(owners)


def test_an_episode_is_decided_by_its_generator():
    source, settings_ = block_log(), config()
    first, second, other = (
        sample_episode(source, settings_, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert edges(first) == edges(second) != edges(other)
    np.testing.assert_array_equal(first.users, second.users)
    assert torch.equal(first.input.text, second.input.text)


def test_episodes_differ_in_size_and_density_within_the_bounds():
    source = block_log(n_users=400, per_user=20)
    settings_ = config(min_users=60, max_users=200, thinned_share=0.0)
    episodes = [
        sample_episode(source, settings_, np.random.default_rng(seed)) for seed in range(60)
    ]
    n_users = np.array([e.input.graph.n_users for e in episodes])
    assert n_users.max() <= 200 and n_users.min() < 80 and np.median(n_users) > 65
    shares = np.array([e.input.graph.n_edges for e in episodes], dtype=float)
    shares /= shares + [len(e.users) for e in episodes]
    assert 0.1 < shares.min() < 0.35 < 0.6 < shares.max() < 0.9
    n_items = [e.input.graph.n_items for e in episodes]
    assert min(n_items) < 40 and max(n_items) > 55


def test_the_number_of_edges_is_bounded():
    source, settings_ = block_log(n_users=800), config(max_users=800, min_users=800, max_edges=500)
    for seed in range(10):
        episode = sample_episode(source, settings_, np.random.default_rng(seed))
        assert episode.input.graph.n_edges + len(episode.users) < 620


def test_a_thin_draw_stays_within_the_number_of_edges():
    # Few users with few edges each: thinned, most draws would fall below the least size.
    source = block_log(n_users=3000, n_items=600, per_user=2)
    settings_ = config(min_users=30, max_users=40, max_edges=500, thinned_share=1.0)
    for seed in range(10):
        episode = sample_episode(source, settings_, np.random.default_rng(seed))
        assert episode.input.graph.n_edges + len(episode.users) < 620


def test_thinning_makes_popularity_steeper():
    # Everyone chose almost everything: popularity is flat until it is thinned.
    users, items = (a.ravel() for a in np.indices((80, 50)))
    source = Source("flat", users, items, 80, 50, None)

    def spread(thinned):
        settings_ = config(thinned_share=thinned, min_users=80, keep_low=0.79)
        found = []
        for seed in range(20):
            episode = sample_episode(source, settings_, np.random.default_rng(seed))
            counts = episode.input.graph.item_degrees
            found.append(counts.std() / counts.mean())
        return np.mean(found)

    assert spread(1.0) > 3 * spread(0.0)


@pytest.mark.parametrize("n_items", [1, 2, 7, 101, 250])
def test_thinning_is_a_power_law_over_the_ranks_of_all_items(n_items):
    rng, same = np.random.default_rng(n_items), np.random.default_rng(n_items)
    shares = _thinning(n_items, n_items, rng)
    ranks = same.choice(n_items, n_items, replace=False) + 1.0
    assert sorted(ranks) == list(range(1, n_items + 1))
    dense = ranks ** -same.uniform(0.0, 1.5)
    np.testing.assert_allclose(shares, dense / np.quantile(dense, 0.99), rtol=1e-12)
    some = _thinning(n_items // 2, n_items, np.random.default_rng(0))
    assert len(some) == n_items // 2 and len(np.unique(some)) == len(some)


def masked_over_all_edges(source, config, rng):
    """What `sample_episode` keeps, by masks over all edges of the source: (users, items)."""
    low, high = (min(n, source.n_users) for n in (config.min_users, config.max_users))
    n_users = round(np.exp(rng.uniform(np.log(low), np.log(high))))
    keep = np.isin(source.users, rng.permutation(source.n_users)[:n_users])
    if rng.random() < 0.5:
        keep &= (rng.random(source.n_items) < rng.uniform(0.1, 1.0))[source.items]
    if rng.random() < config.thinned_share:
        share = (rng.permutation(source.n_items) + 1.0) ** -rng.uniform(0.0, 1.5)
        keep &= rng.random(len(keep)) < (share / np.quantile(share, 0.99))[source.items]
    keep &= rng.random(len(keep)) < config.max_edges / max(keep.sum(), 1)
    return source.users[keep], source.items[keep]


@pytest.mark.parametrize("thinned", [0.0, 1.0])
def test_episodes_have_the_sizes_that_masks_over_all_edges_give(thinned):
    source = block_log(n_users=400, n_items=150, per_user=30, text=False)
    settings_ = config(min_users=100, max_users=400, max_edges=3000, thinned_share=thinned)
    drawn, expected = [], []
    for seed in range(250):
        episode = sample_episode(source, settings_, np.random.default_rng(seed))
        graph = episode.input.graph
        items = np.concatenate([graph.edges()[1], episode.items])
        drawn.append((graph.n_users, graph.n_items, len(items), np.bincount(items).max()))
        users, items = masked_over_all_edges(source, settings_, np.random.default_rng(seed))
        counts = np.bincount(items)
        expected.append((len(np.unique(users)), (counts > 0).sum(), len(items), counts.max()))
    error = np.sqrt((np.var(drawn, axis=0) + np.var(expected, axis=0)) / len(drawn))
    assert (np.abs(np.mean(drawn, axis=0) - np.mean(expected, axis=0)) < 4 * error).all()
    np.testing.assert_allclose(np.std(drawn, axis=0), np.std(expected, axis=0), rtol=0.2)


class Counted:
    """A generator that adds up how many values it was asked for."""

    def __init__(self, seed):
        self.rng, self.n = np.random.default_rng(seed), 0

    def __getattr__(self, name):
        def draw(*arguments, **options):
            values = getattr(self.rng, name)(*arguments, **options)
            self.n += np.size(values)
            return values

        return draw


def test_the_work_of_an_episode_is_that_of_its_users_and_not_of_the_source():
    # No draw is too thin here: that one takes as many edges as it may, from anywhere.
    settings_ = config(min_users=50, max_users=50, thinned_share=0.0)
    for n_users in (300, 3000):
        source = block_log(n_users=n_users, n_items=100, per_user=20, text=False)
        for seed in range(5):
            rng = Counted(seed)
            sample_episode(source, settings_, rng)
            # The users, their items, an edge's visibility, the order of the hidden ones.
            assert rng.n < 50 + 100 + 2 * 50 * 20 + 10


def test_neither_the_order_of_a_source_nor_its_repeats_matter():
    source = block_log()
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(source.users)), 2))
    again = dataclasses.replace(source, users=source.users[order], items=source.items[order])
    for seed in range(5):
        one, other = (sample_episode(s, config(), np.random.default_rng(seed))
                      for s in (source, again))  # fmt: skip
        assert edges(one) == edges(other)
        assert torch.equal(one.input.text, other.input.text)


def test_a_source_without_text_gives_episodes_without_text():
    episode = sample_episode(block_log(text=False), config(), np.random.default_rng(0))
    assert episode.input.text is None


@pytest.mark.parametrize("n", [0, 1, 49])
def test_a_tiny_source_is_refused(n):
    source = block_log()
    tiny = dataclasses.replace(source, name="tiny", users=source.users[:n], items=source.items[:n])
    with pytest.raises(DataError, match=f"source tiny: found {n} interactions.*at least 50"):
        pretrain([source, tiny], config())


def test_collaborative_filtering_without_text_has_nothing_to_carry():
    with pytest.raises(ConfigError, match="neumf without text has only ids"):
        pretrain([block_log(text=False)], config("neumf", 0))


@pytest.mark.parametrize(
    ("encoder", "text_dim"),
    [*((name, 6) for name in ("lightgcn", "graphsage", "gmf", "mlp", "neumf")), ("lightgcn", 0)],
)
def test_pretraining_lowers_the_validation_loss(encoder, text_dim, tmp_path):
    source = block_log(text=bool(text_dim))
    model, result = pretrain([source], config(encoder, text_dim), log=tmp_path / "pretrain.jsonl")
    assert result.history[0]["step"] == 0
    assert result.best_value < result.history[0]["value"] - 0.01
    assert not model.training and model.residual is None
    assert len((tmp_path / "pretrain.jsonl").read_text().splitlines()) == len(result.history)
    # Nothing in it is tied to the source.
    sizes = {size for p in model.parameters() for size in p.shape}
    assert not sizes & {source.n_users, source.n_items}


def test_the_same_seed_gives_the_same_model():
    short = TrainConfig(
        n_negatives=20, batch_size=16, learning_rate=0.01, max_steps=6, evaluate_every=3
    )
    states = [
        pretrain([block_log(), block_log(1)], config(seed=seed, train=short))[0].state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
