"""Which checkpoint fits a target: each ranks interactions hidden from it, without training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from gnnrec.blend import ChannelBlend
from gnnrec.catalogue import Catalogue
from gnnrec.channels import OF_TEXT
from gnnrec.checkpoint import Checkpoint
from gnnrec.console import text_table
from gnnrec.device import numpy_generator, resolve_device
from gnnrec.errors import ConfigError, DataError
from gnnrec.features import GraphInput
from gnnrec.lessons import Lesson, ranked_ndcg, unseen
from gnnrec.model import Transferable
from gnnrec.scores import ScoreVectors
from gnnrec.sources import Log
from gnnrec.split import split_per_user
from gnnrec.strength import STRENGTHS, K, hidden_ndcg, strengthened
from gnnrec.target import Target
from gnnrec.text import TextEncoder, text_available

_SHARE = 0.2  # of every user's interactions, hidden
_MAX_USERS = 1_500  # ranked with one seed
_CHUNK_SCORES = 2_000_000  # of one channel, in memory at a time
_NOISE = 2.0  # standard errors


@dataclass
class _Candidate:
    """A checkpoint, its model, and each user's NDCG@20 at each strength, summed over the seeds."""

    checkpoint: Checkpoint
    model: Transferable
    reached: np.ndarray


@dataclass
class _Group:
    """Candidates that see one and the same graph input; blends also share its channels.

    `silent` are those that read no text in a group whose input has some.
    """

    rank: int
    text: str | None  # the name of the encoder
    channels: bytes | None
    members: list[_Candidate] = field(default_factory=list)
    silent: list[_Candidate] = field(default_factory=list)


def rank_checkpoints(
    log: Log,
    checkpoints: Sequence[Checkpoint],
    *,
    n_seeds: int = 3,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Rank checkpoints for a target by NDCG@20, zero-shot, on interactions hidden from all.

    A fifth of every user's interactions is hidden, with each seed another one, and all checkpoints
    rank the whole catalogue for the same up to 1,500 users a seed. A user counts once, with its
    mean over the seeds; differences to the best checkpoint are paired by user, and what is within
    two standard errors of it is tied with it. The best was picked on the same users, so its lead
    is a little flattered.

    What is personal in a checkpoint's scores counts as much beside the items' bias as is best on
    average (`gnnrec.strength`): how far to leave popularity is the first thing that fine-tuning
    finds out, and a checkpoint that only errs there is no worse a start.

    Args:
        log: The target.
        checkpoints: At least one, of different names.
        n_seeds: How often another fifth is hidden.
        seed: Decides which.
        device: auto, cpu or cuda.

    Returns:
        `candidates` best first, each with `name`, its best `strength` and there its `ndcg@20` and
        `standard_error`, its `difference` to the best and `difference_error`, `tied`,
        `reads_text`, `text` ("used", "silent": the target has none, "not read") and `saw_target`
        (it was pretrained on this log, hidden part included: a source of the same three counts, or
        of the same registered name); `best`, `tied` with it, `popularity` with the same four
        numbers, `target_has_text`, `n_test_users`, `n_seeds`, `seconds` and the target's counts.

        Cost: encoding the item texts once ever, then for each seed the decompositions of one graph
        and of its part (blends that differ in their weights alone share them), and a product of a
        few numbers a user and item for each candidate, ranked six times.

    Raises:
        ConfigError: No checkpoint, two of one name, or no seed.
        DataError: The log has too few interactions to hide any.
    """
    started = time.perf_counter()
    names = [checkpoint.name for checkpoint in checkpoints]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"select: found the checkpoints {', '.join(names) or 'none'}, expected at least one "
            "and none twice; name others"
        )
    if n_seeds < 1:
        raise ConfigError(f"select: found {n_seeds} seeds, expected at least 1")
    where = resolve_device(device)
    has_text = log.has_text and text_available()
    encoders = {c.name: c.text_encoder(str(where)) if has_text else None for c in checkpoints}
    candidates, groups = _grouped(checkpoints, encoders, where)
    by_name = {None if e is None else e.name: e for e in (None, *encoders.values())}
    targets = {
        name: Catalogue.build(log.interactions, log.items, encoder).target()
        for name, encoder in by_name.items()
    }
    features = time.perf_counter() - started
    plain = targets[None]
    for candidate in candidates:
        candidate.reached = np.zeros((plain.n_users, len(STRENGTHS)))
    popularity, asked = np.zeros(plain.n_users), np.zeros(plain.n_users)
    for number in range(n_seeds):
        hiding = _Hiding.draw(plain, seed, number)
        if hiding is None:
            continue
        asked[hiding.users] += 1
        popularity[hiding.users] += hiding.ndcg(_popularity(plain, hiding))
        for group in groups:
            _measure(group, targets[group.text], hiding, where)
    users = np.flatnonzero(asked)
    if not len(users):
        raise DataError(
            f"{log.name}: found {len(plain.users)} interactions, too few to hide a fifth of; "
            "expected a user with several"
        )
    reached = {c.checkpoint.name: c.reached[users] / asked[users, None] for c in candidates}
    strongest = {name: int(values.mean(axis=0).argmax()) for name, values in reached.items()}
    per_user = {name: values[:, strongest[name]] for name, values in reached.items()}
    best = max(names, key=lambda name: per_user[name].mean())  # the first of equal ones
    rows: list[dict[str, Any]] = [
        {"name": c.checkpoint.name, "strength": STRENGTHS[strongest[c.checkpoint.name]]}
        | _compared(per_user[c.checkpoint.name], per_user[best])
        | _reading(c.checkpoint, has_text)
        | {"saw_target": _saw(c.checkpoint, log)}
        for c in candidates
    ]
    rows.sort(key=lambda row: (row["name"] != best, -row[f"ndcg@{K}"]))
    data = log.interactions
    return {
        "target": log.name,
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "target_has_text": has_text,
        "best": best,
        "tied": [row["name"] for row in rows if row["tied"] and row["name"] != best],
        "candidates": rows,
        "popularity": _compared(popularity[users] / asked[users], per_user[best]),
        "n_test_users": len(users),
        "n_seeds": n_seeds,
        "seed": seed,
        "seconds": {
            "features": round(features, 3),
            "total": round(time.perf_counter() - started, 3),
        },
    }


def _grouped(
    checkpoints: Sequence[Checkpoint],
    encoders: dict[str, TextEncoder | None],
    device: torch.device,
) -> tuple[list[_Candidate], list[_Group]]:
    """Load the models and put together what can share a graph's features."""
    candidates: list[_Candidate] = []
    groups: list[_Group] = []
    for checkpoint in checkpoints:
        model = checkpoint.model().to(device).eval()
        candidates.append(_Candidate(checkpoint, model, np.zeros((0, len(STRENGTHS)))))
    # Text readers first: their channels hold all that a text-free blend sees.
    for candidate in sorted(candidates, key=lambda c: not c.checkpoint.config.text_dim):
        config, shared = candidate.checkpoint.config, _shared(candidate.model)
        encoder = encoders[candidate.checkpoint.name]
        text = None if encoder is None else encoder.name
        for group in groups:
            if (group.rank, group.channels) != (config.spectral_rank, shared):
                continue
            if group.text == text:
                group.members.append(candidate)
                break
            if text is None and shared is not None:
                group.silent.append(candidate)
                break
        else:
            groups.append(_Group(config.spectral_rank, text, shared, [candidate]))
    return candidates, groups


def _shared(model: Transferable) -> bytes | None:
    """What a blend's channels depend on beside the graph; None where they are its own."""
    if not isinstance(model, ChannelBlend) or len(model.bridges):
        return None
    numbers = [parameter.detach().cpu().reshape(1) for parameter in model.filter.parameters()]
    return torch.cat(numbers).numpy().tobytes()


@dataclass(frozen=True)
class _Hiding:
    """A target with some edges hidden.

    Attributes:
        rows: (n,) int64, the visible edges' rows.
        users: (m,) int64 codes of the users who are ranked, sorted.
        test_users, test_items: Their hidden edges.
        seen: (m, n_items) CSR of their visible edges.
    """

    rows: np.ndarray
    users: np.ndarray
    test_users: np.ndarray
    test_items: np.ndarray
    seen: sp.csr_array

    @classmethod
    def draw(cls, target: Target, seed: int, number: int) -> _Hiding | None:
        """Hide a fifth of every user's edges; None where that is nothing or everything."""
        split_seed = int(numpy_generator(seed, "select", number).integers(2**31))
        rows, hidden = split_per_user(target.users, target.n_users, _SHARE, split_seed)
        users = np.unique(target.users[hidden])
        if not len(rows) or not len(users):
            return None
        if len(users) > _MAX_USERS:
            rng = numpy_generator(seed, "select users", number)
            users = np.sort(rng.choice(users, _MAX_USERS, replace=False))
        hidden = hidden[np.isin(target.users[hidden], users)]
        visible = sp.csr_array(
            (np.ones(len(rows), dtype=np.float32), (target.users[rows], target.items[rows])),
            shape=(target.n_users, target.n_items),
        )
        seen = sp.csr_array(visible[users])
        return cls(rows, users, target.users[hidden], target.items[hidden], seen)

    @property
    def row(self) -> np.ndarray:
        """(n,) int64, the place in `users` of each hidden edge's user."""
        return np.searchsorted(self.users, self.test_users)

    def lesson(self, model: ChannelBlend, x: GraphInput, start: int, stop: int) -> Lesson:
        """Return the channels' scores of some of `users`, all counting alike."""
        users, row = self.users[start:stop], self.row
        inside = (row >= start) & (row < stop)
        channels, about = model.channels(x), model.about(x)
        with torch.no_grad():
            scores = channels.rows(users)
        return Lesson(
            channels,
            about,
            users,
            scores,
            channels.item_degrees[None],
            channels.popularity[None],
            unseen(sp.csr_array(self.seen[start:stop]), x.device),
            torch.from_numpy(row[inside] - start).to(x.device),
            torch.from_numpy(self.test_items[inside]).to(x.device),
            np.ones(len(users)),
        )

    def ndcg(self, scores: ScoreVectors) -> np.ndarray:
        """Return (m,) NDCG@20 of scores of `users`."""
        return hidden_ndcg(scores, self.seen, self.row, self.test_items)


def _measure(group: _Group, target: Target, hiding: _Hiding, device: torch.device) -> None:
    """Add each member's NDCG@20 with one hiding."""
    x = target.graph_input(hiding.rows, rank=group.rank, device=device)
    if group.channels is None:
        for candidate in group.members:
            with torch.no_grad():
                scores = candidate.model(x, torch.from_numpy(hiding.users).to(device)).cpu()
            for place, strength in enumerate(STRENGTHS):
                values = hiding.ndcg(strengthened(scores, strength))
                candidate.reached[hiding.users, place] += values
        return
    leader = group.members[0].model
    assert isinstance(leader, ChannelBlend)
    size = max(1, _CHUNK_SCORES // target.n_items)
    for start in range(0, len(hiding.users), size):
        part = hiding.lesson(leader, x, start, start + size)
        quiet = part.without(OF_TEXT) if group.silent else part
        for members, seen in ((group.members, part), (group.silent, quiet)):
            for candidate in members:
                assert isinstance(candidate.model, ChannelBlend)
                with torch.no_grad():
                    personal, bias = seen.summands(candidate.model)
                for place, strength in enumerate(STRENGTHS):
                    scores = personal.mul(strength).add_(bias).masked_fill_(~seen.valid, -torch.inf)
                    candidate.reached[part.users, place] += ranked_ndcg(scores, seen)


def _reading(checkpoint: Checkpoint, has_text: bool) -> dict[str, Any]:
    reads = bool(checkpoint.config.text_dim)
    return {
        "reads_text": reads,
        "text": ("used" if has_text else "silent") if reads else "not read",
    }


def _saw(checkpoint: Checkpoint, log: Log) -> bool:
    data = log.interactions
    counts = (data.n_users, data.n_items, data.n_interactions)
    return any(
        (log.licence is not None and source.get("name") == log.name)
        or tuple(source.get(key) for key in ("n_users", "n_items", "n_interactions")) == counts
        for source in checkpoint.training.get("sources", [])
    )


def _compared(values: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """Mean NDCG@20 over users, and its paired difference to the best, with standard errors."""
    gap = values - best
    error = _standard_error(gap)
    return {
        f"ndcg@{K}": float(values.mean()),
        "standard_error": _standard_error(values),
        "difference": float(gap.mean()),
        "difference_error": error,
        "tied": not gap.mean() < -_NOISE * error,
    }


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _popularity(target: Target, hiding: _Hiding) -> ScoreVectors:
    """Scores by visible interactions alone."""
    degrees = np.bincount(target.items[hiding.rows], minlength=target.n_items)
    return ScoreVectors(
        torch.ones(len(hiding.users), 1), torch.from_numpy(degrees).float()[:, None], None
    )


def selection_lines(report: dict[str, Any]) -> list[str]:
    """Return a report of `rank_checkpoints` for people: a table, and what it allows to say."""
    rows = [*report["candidates"], {"name": "(popularity)", "text": ""} | report["popularity"]]
    table = [
        {
            "checkpoint": row["name"],
            "strength": f"{row['strength']:g}" if "strength" in row else "",
            f"ndcg@{K}": row[f"ndcg@{K}"],
            "to the best": f"{row['difference']:+.4f}",
            "+-": row["difference_error"],
            "text": row["text"],
        }
        for row in rows
    ]
    best, tied = report["best"], report["tied"]
    if len(report["candidates"]) == 1:
        verdict = f"{best} is the only candidate"
    elif tied:
        verdict = (
            f"{best} is first, and within the noise of {', '.join(tied)}: "
            f"{report['n_test_users']} users do not tell them apart"
        )
    else:
        verdict = f"{best} is better than every other by more than {_NOISE:g} standard errors"
    lines = [text_table(table), verdict]
    saw = [row["name"] for row in report["candidates"] if row["saw_target"]]
    if saw:
        lines.append(f"pretrained on this very log, so flattered: {', '.join(saw)}")
    if report["popularity"]["tied"]:
        lines.append(
            f"popularity alone is as good as {best} or better here; training may change that "
            "(gnnrec transfer --retrain final:1)"
        )
    return lines
