"""A made-up tea shop for the examples: its log and its items, written where the example runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

KINDS = {
    "green tea": ["Sencha", "Gyokuro", "Bancha", "Hojicha", "Genmaicha", "Longjing", "Bi Luo Chun"],
    "black tea": ["Assam", "Darjeeling", "Ceylon", "Keemun", "Lapsang Souchong", "Earl Grey"],
    "herbal infusion": ["Chamomile", "Peppermint", "Rooibos", "Hibiscus", "Lemon Balm", "Fennel"],
    "coffee": ["Ethiopia Sidamo", "Colombia Huila", "Brazil Santos", "Kenya AA", "Sumatra"],
    "cup or pot": ["Cast-iron Pot", "Porcelain Cup", "Glass Mug", "Clay Teapot", "Travel Mug"],
}


def shop(folder: str | Path = ".", n_customers: int = 150, seed: int = 0) -> None:
    """Write log.csv (user_id, item_id, timestamp) and items.csv (item_id, title, kind)."""
    rng = np.random.default_rng(seed)
    items = [(f"{kind} {name}", name, kind) for kind, names in KINDS.items() for name in names]
    table = pd.DataFrame(items, columns=["item_id", "title", "kind"])
    table["item_id"] = [f"sku-{number:03d}" for number in range(len(table))]
    kinds = table["kind"].to_numpy()
    popular = rng.permutation(np.arange(1, len(table) + 1)) ** -0.6
    rows = []
    for customer in range(n_customers):
        liked = rng.choice(list(KINDS), 2, replace=False)
        chance = popular * np.where(np.isin(kinds, liked), 8.0, 1.0)
        n = int(rng.integers(3, 9))
        for item in rng.choice(len(table), n, replace=False, p=chance / chance.sum()):
            second = int(1_760_000_000 + rng.integers(0, 30_000_000))
            rows.append((f"customer-{customer:03d}", table["item_id"][item], second))
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).sort_values("timestamp")
    log.to_csv(Path(folder) / "log.csv", index=False)
    table.to_csv(Path(folder) / "items.csv", index=False)
