"""A saved recommender with titles, some of which would do harm if they were read as HTML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gnnrec.config import TransferConfig
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.recommender import Recommender
from gnnrec.runs import transfer_run
from gnnrec.sources import Log

EVIL = "<img src=x onerror=alert(1)>"
GENRES = ("drama", "comedy", "science fiction", "crime")


def item_frame(n_items: int = 27) -> pd.DataFrame:
    """Items i0.. of `conftest.make_log`, the last two of them without interactions."""
    titles = [f"The {GENRES[n % 4]} of number {n}" for n in range(n_items)]
    titles[3] = EVIL
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(n_items)],
            "title": titles,
            "genre": [f"{GENRES[n % 4]}|other" for n in range(n_items)],
            "year": np.arange(n_items) + 1980,
        }
    )


def made_shop(
    checkpoint, frame: pd.DataFrame, config: TransferConfig, folder: Path
) -> tuple[Path, Path, Path]:
    """Write (a recommender, one of another mode, the items file)."""
    items = item_frame()
    items.to_csv(folder / "items.csv", index=False)
    log = Log("shop", Interactions.from_frame(frame), ItemTable.from_frame(items))
    recommender, _ = transfer_run(checkpoint, log, config, device="cpu")
    recommender.save(folder / "shop")
    other = Recommender(checkpoint, config.model_copy(update={"retrain": "zero-shot"}), "cpu")
    other.fit(frame, items).save(folder / "other")
    return folder / "shop", folder / "other", folder / "items.csv"
