"""What a checkpoint needs of a user's files, what they lack, and what that is likely to cost."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gnnrec.sources import Log

FEW_INTERACTIONS = 500  # below, the little that can be hidden tells hardly anything
_MOST = 0.9  # of the items: with fewer texts the rest is worth a word
_LONELY = 0.3  # of the users or items: above, most of what is served is popularity


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What: texts, users, items, interactions, timestamps, weights.
        found: In numbers.
        needed: By whom, or what for.
        effect: What follows for the recommendations.
        good: Whether nothing is to be done.
    """

    subject: str
    found: str
    needed: str
    effect: str
    good: bool

    def line(self) -> str:
        """The finding as a sentence for people."""
        mark = "ok  " if self.good else "note"
        return f"{mark} {self.subject}: {self.found}; {self.needed}. {self.effect}."

    def plain(self) -> dict[str, Any]:
        """The finding as plain values."""
        return asdict(self)


def readiness(checkpoint: dict[str, Any], log: Log) -> list[Finding]:
    """Compare a log and its items table with what a checkpoint reads.

    Args:
        checkpoint: As `gnnrec.zoo.describe` tells of it.
        log: The target.
    """
    data = log.interactions
    user_degrees = np.bincount(data.users, minlength=data.n_users)
    item_degrees = np.bincount(data.items, minlength=data.n_items)
    return [
        _texts(checkpoint, log, item_degrees),
        _interactions(data.n_interactions, checkpoint["encoder"]),
        _users(user_degrees),
        _items(item_degrees, checkpoint["reads_text"]),
        _times(data.timestamps is not None),
    ]


def _texts(checkpoint: dict[str, Any], log: Log, item_degrees: np.ndarray) -> Finding:
    name = checkpoint["name"]
    if not checkpoint["reads_text"]:
        found = "an items table" if log.items is not None else "no items table"
        return Finding(
            "texts",
            found,
            f"{name} reads none",
            "Interactions alone decide what is like what",
            True,
        )
    needed = f"{name} reads item texts through {checkpoint['text_model']}"
    n_written, n = log.interactions.n_texts, log.interactions.n_interactions
    said = f"; users wrote on {n_written} of {n} interactions" if n_written else ""
    if log.items is None and n_written:
        return Finding(
            "texts", f"no items table{said}", needed,
            "What they wrote stands for the items; those that nobody wrote of have no text: give "
            "--items with item_id and any text columns",
            False,
        )  # fmt: skip
    if log.items is None:
        return Finding(
            "texts", "no items table", needed,
            "All that it learned of texts stays silent, and items without interactions cannot be "
            "told apart: give --items with item_id and any text columns, or take a checkpoint "
            "without text",
            False,
        )  # fmt: skip
    texts, _ = log.items.align(log.interactions.item_ids)
    there = np.array([bool(text) for text in texts])
    share = float(there.mean()) if len(there) else 0.0
    of_edges = float(item_degrees @ there / max(item_degrees.sum(), 1))
    found = (
        f"{int(there.sum())} of {len(there)} items of the log have one ({100 * share:.0f} %, "
        f"{100 * of_edges:.0f} % of the interactions){said}"
    )
    if importlib.util.find_spec("sentence_transformers") is None:
        return Finding(
            "texts", found, needed, "It cannot read them yet: pip install 'gnnrec[text]'", False
        )
    if share >= _MOST:
        return Finding("texts", found, needed, "All of it can be used", True)
    return Finding(
        "texts", found, needed,
        "The others are ranked by interactions and popularity alone: check that the ids of both "
        "files are written alike",
        False,
    )  # fmt: skip


def _interactions(n: int, encoder: str) -> Finding:
    needed = "retraining hides parts of them to learn from"
    found = f"{n} distinct pairs"
    if n >= FEW_INTERACTIONS:
        return Finding("interactions", found, needed, "Enough to retrain the last layers", True)
    cure = "--retrain zero-shot" if encoder == "channels" else "--retrain zero-shot or heads"
    return Finding(
        "interactions", found, f"{needed}, and with fewer than {FEW_INTERACTIONS} that is noise",
        f"Start with {cure}, and retrain when there are more", False,
    )  # fmt: skip


def _users(degrees: np.ndarray) -> Finding:
    single = int((degrees <= 1).sum())
    share = single / max(len(degrees), 1)
    found = (
        f"{len(degrees)} users with {degrees.mean():.1f} interactions on average, {single} of them "
        f"({100 * share:.0f} %) with one"
    )
    needed = "a list is personal by what the user did"
    if share <= _LONELY:
        return Finding("users", found, needed, "Most lists will be personal", True)
    return Finding(
        "users", found, needed,
        "Users with one interaction get lists near popularity",
        False,
    )  # fmt: skip


def _items(degrees: np.ndarray, reads_text: bool) -> Finding:
    rare = int((degrees <= 2).sum())
    share = rare / max(len(degrees), 1)
    found = (
        f"{len(degrees)} items, {rare} of them ({100 * share:.0f} %) with one or two interactions"
    )
    needed = "what is like an item is told by its users" + (" and its text" if reads_text else "")
    if share <= _LONELY or reads_text:
        effect = "Texts help where users are few" if share > _LONELY else "Most items are known"
        return Finding("items", found, needed, effect, True)
    return Finding(
        "items", found, needed,
        "Rare items are seldom recommended: a checkpoint that reads text reaches them",
        False,
    )  # fmt: skip


def _times(there: bool) -> Finding:
    needed = "only a test by time reads them (split = time)"
    if there:
        return Finding(
            "timestamps", "there are some", needed, "Both kinds of test can be made", True
        )
    return Finding(
        "timestamps", "there are none", needed,
        "The test part is drawn at random from each user, which flatters every model a little",
        True,
    )  # fmt: skip
