"""Made-up logs with texts, a suite over them, and a text encoder that needs no transformer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_log

from gnnrec import text
from gnnrec.datasets import CACHE_VARIABLE
from gnnrec.text import TextEncoder

WORDS = ("war", "peace", "sea", "stars", "love", "ghost", "ship", "king")
SIZES = {  # users, items, rows drawn
    "shop": (40, 30, 400),
    "kiosk": (30, 20, 250),
    "books": (60, 40, 900),
    "films": (50, 40, 700),
}
FEW = "{ max_steps = 4, evaluate_every = 2, n_negatives = 20, batch_size = 32 }"
SUITE = f"""
name = "tiny"
targets = ["shop", "kiosk"]
sources = ["books", ["books", "films"]]
fractions = [0.5, 1.0]
matrix = [0.5]
seeds = [0, 1]
encoders = ["lightgcn"]
arms = ["popularity", "raw-text", "scratch", "zero-shot", "heads", "shuffled-text"]
shuffled = "heads"
scenarios = ["main", "cold-items", "cold-users"]
cold_fractions = [1.0]
text_model = "made-up"

[transfer]
train = {FEW}
calibrate = {FEW}

[tuning]
n_trials = 2
fractions = [0.5, 1.0]

[encoder.lightgcn.pretrain]
n_validation_episodes = 2
min_users = 20
model = {{ dim = 8, n_layers = 2, spectral_rank = 8 }}
train = {FEW}

[data]
shop = {{ file = "shop.csv", items = "shop.items.csv" }}
kiosk = {{ file = "kiosk.csv" }}
books = {{ file = "books.csv", items = "books.items.csv" }}
films = {{ file = "films.csv", items = "films.items.csv" }}
"""


def write_logs(folder: Path) -> Path:
    """Write the logs, their items and suite.toml; kiosk has no items."""
    for seed, (name, size) in enumerate(SIZES.items()):
        make_log(*size, seed=seed).to_csv(folder / f"{name}.csv", index=False)
        rng = np.random.default_rng(seed)
        texts = [f"{name} {i} {' '.join(rng.choice(WORDS, 3))}" for i in range(size[1])]
        items = pd.DataFrame({"item_id": [f"i{i}" for i in range(size[1])], "title": texts})
        items.to_csv(folder / f"{name}.items.csv", index=False)
    (folder / "suite.toml").write_text(SUITE)
    return folder


def stand_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Encode a text by the words it has."""
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    monkeypatch.setattr(text, "require_text_extra", lambda: None)
    monkeypatch.setattr(TextEncoder, "dim", len(WORDS))

    def run(self: TextEncoder, texts: list[str]) -> np.ndarray:
        table = np.array([[t.count(w) for w in WORDS] for t in texts], dtype=np.float32) + 0.1
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    monkeypatch.setattr(TextEncoder, "_run", run)
