"""What pretraining makes up of a source: a log whose items come in variants, and bridges."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_pretrain import block_log

from gnnrec import variation
from gnnrec.config import ModelConfig, PretrainConfig
from gnnrec.episodes import Source, sample_episode
from gnnrec.variation import made_bridge, with_variants

LOG = block_log(0, text=False)
# Orthogonal, so that a variant's text says which item it was.
SOURCE = dataclasses.replace(LOG, item_text=np.eye(LOG.n_items, 80, dtype=np.float32))
BLANK = 3
SOURCE.item_text[BLANK] = 0.0


@given(seed=st.integers(0, 10_000))
def test_every_interaction_is_one_with_a_variant_of_its_item(seed):
    found = with_variants(SOURCE, np.random.default_rng(seed))
    lengths = np.linalg.norm(found.item_text, axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1.0, rtol=1e-5)
    own = np.where(lengths > 0, found.item_text.argmax(axis=1), BLANK)
    pairs = found.users * found.n_items + found.items
    assert len(np.unique(pairs)) == len(pairs)  # nobody has a variant twice
    assert found.users.max() < found.n_users and found.items.max() < found.n_items
    # All users were drawn: theirs are the items that they had, by way of the variants.
    there = set(zip(found.users.tolist(), own[found.items].tolist(), strict=True))
    assert there == set(zip(SOURCE.users.tolist(), SOURCE.items.tolist(), strict=True))
    counts = np.bincount(own)
    assert counts.max() <= variation._MOST_VARIANTS and found.item_text.dtype == np.float32


def test_variants_have_near_texts_and_are_chosen_together():
    shares, counts = [], []
    for seed in range(20):
        found = with_variants(SOURCE, np.random.default_rng(seed))
        cosines = found.item_text @ SOURCE.item_text.T
        known = np.linalg.norm(found.item_text, axis=1) > 0
        shares.append(cosines[known].max(axis=1).mean())
        counts.append(len(found.users) / len(SOURCE.users))
    # A text and noise of a random length: cosines around .77 to .97.
    assert 0.7 < min(shares) < max(shares) < 0.99 and max(shares) - min(shares) > 0.1
    assert min(counts) < 1.1 and max(counts) > 1.5


def test_a_large_log_gives_some_of_its_users_and_one_without_texts_none(monkeypatch):
    monkeypatch.setattr(variation, "_MOST_USERS", 20)
    monkeypatch.setattr(variation, "_MOST_EDGES", 50)
    found = with_variants(LOG, np.random.default_rng(0))
    assert found.item_text is None and found.n_users == 20
    again = with_variants(LOG, np.random.default_rng(0))
    assert again.items.tolist() == found.items.tolist()
    other = with_variants(LOG, np.random.default_rng(1))
    assert other.items.tolist() != found.items.tolist()


def test_a_bridge_is_thinned_as_its_episode_is():
    # Everyone chose everything: all that items differ by is what thinning and drift leave them.
    users, items = (a.ravel() for a in np.indices((900, 50)))
    source = Source("flat", users, items, 900, 50, None)
    config = PretrainConfig(
        model=ModelConfig(encoder="channels"), min_users=90, max_users=100, thinned_share=1.0
    )
    alike = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        episode = sample_episode(source, config, rng)
        assert 0 < episode.item_shares.min() <= episode.item_shares.max() <= 1
        bridge = made_bridge(source, episode, rng)
        there = (bridge.popularity > 0).numpy()
        left, said = episode.item_shares[there], bridge.popularity.numpy()[there]
        if left.std() > 0.05:
            alike.append(np.corrcoef(np.log(said), np.log(left))[0, 1])
    assert len(alike) > 6 and np.mean(alike) > 0.4
