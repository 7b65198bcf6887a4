"""One arm on one target: the split it is given, fitted or adapted, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from gnnrec.baselines import Popularity
from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig
from gnnrec.evaluate import Results, evaluate_scores
from gnnrec.features import GraphInput
from gnnrec.metrics import per_user_metrics
from gnnrec.scores import ScoreVectors
from gnnrec.sources import Log
from gnnrec.split import Split, make_split
from gnnrec.target import Target
from gnnrec.text import TextEncoder
from gnnrec.transfer import Adapted, adapt


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison on a target's test part.

    Attributes:
        name: As in a suite.
        results: Its measures.
        adapted: What transfer made of the model; None of a baseline.
        seconds: train; first, from the same start until the first list of a user; evaluate, from
            the end of the training until all test users are ranked and measured.
    """

    name: str
    results: Results
    adapted: Adapted | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Prepared:
    """A target ready for a comparison: catalogue, split and codes, made once for all arms.

    Attributes:
        log: The target.
        catalogue: Its log and texts.
        split: Rows to train, validate and test on.
        target: What arms adapt to.
        test_users: (n_test,) int64 codes.
        test_items: (n_test,) int64 codes.
        feature_seconds: Time to encode the texts.
        at_test: What arms are tested on, where it is not `target`: with users that come in only
            then, whose codes are the highest.
        folded_in: Rows of `at_test` that are visible at the test beside the kept ones.
        cold_items: (n_items,) bool, items without a training interaction, which are ranked among
            themselves as well.
    """

    log: Log
    catalogue: Catalogue
    split: Split
    target: Target
    test_users: np.ndarray
    test_items: np.ndarray
    feature_seconds: float
    at_test: Target | None = None
    folded_in: np.ndarray | None = None
    cold_items: np.ndarray | None = None

    @property
    def split_sha256(self) -> str:
        """Digest of the split in raw ids."""
        log = self.catalogue.log
        return self.split.sha256(log.user_ids[log.users], log.item_ids[log.items])

    @property
    def visible_rows(self) -> np.ndarray:
        """Rows that arms may see at the test: validation rows are labels that they were given."""
        kept = self.split.kept
        return kept if self.folded_in is None else np.concatenate([kept, self.folded_in])

    def visible(self, rank: int = 1, device: torch.device | str = "cpu") -> GraphInput:
        """The graph that arms are tested on, of the visible rows."""
        target = self.at_test or self.target
        return target.graph_input(self.visible_rows, rank=rank, device=device)


def prepare(
    log: Log, encoder: TextEncoder | None, config: TransferConfig, kind: str = ""
) -> Prepared:
    """Encode a target's texts and split its log by the configured protocol.

    Args:
        log: The target.
        encoder: What the checkpoint's text vectors come from; None reads no text.
        config: Fraction, test share, validation share, seeds.
        kind: ratio or time; by default config.split. none holds nothing out for testing.
    """
    started = time.perf_counter()
    catalogue = Catalogue.build(log.interactions, log.items, encoder)
    return prepare_catalogue(log, catalogue, config, time.perf_counter() - started, kind)


def prepare_catalogue(
    log: Log,
    catalogue: Catalogue,
    config: TransferConfig,
    feature_seconds: float,
    kind: str = "",
    test_rows: np.ndarray | None = None,
) -> Prepared:
    """As `prepare` with a catalogue that is there; `test_rows` are for the kind given."""
    data = catalogue.log
    split = make_split(
        data.users,
        data.n_users,
        data.timestamps,
        kind=kind or config.split,  # type: ignore[arg-type]
        test=config.test,
        fraction=config.fraction,
        validation=config.validation,
        seed=config.seed,
        split_seed=config.split_seed,
        test_rows=test_rows,
    )
    return Prepared(
        log,
        catalogue,
        split,
        catalogue.target(),
        data.users[split.test],
        data.items[split.test],
        feature_seconds,
    )


def run_arm(
    prepared: Prepared,
    checkpoint: Checkpoint,
    config: TransferConfig,
    *,
    device: torch.device | str = "cpu",
    ks: tuple[int, ...] = (10, 20),
    log_file: Path | None = None,
) -> Arm:
    """Adapt on the training part and measure on the test part; popularity is `popularity_arm`."""
    split = prepared.split
    started = time.perf_counter()
    adapted = adapt(
        checkpoint,
        prepared.target,
        split.train,
        split.validation,
        config,
        device=device,
        log=log_file,
    )
    train_seconds = time.perf_counter() - started
    started = time.perf_counter()
    x = adapted.reads(prepared.visible(adapted.model.config.spectral_rank, device))
    with torch.no_grad():
        scores = adapted.model(x)
    return _measure(prepared, config.retrain, x, scores, adapted, train_seconds, started, ks)


def baseline_arm(
    prepared: Prepared,
    name: str,
    fit: Callable[[GraphInput], ScoreVectors],
    *,
    device: torch.device | str = "cpu",
    ks: tuple[int, ...] = (10, 20),
) -> Arm:
    """Fit a model without a source to the graph that arms are tested on, and measure it."""
    started = time.perf_counter()
    x = prepared.visible(device=device)
    scores = fit(x)
    seconds = time.perf_counter() - started
    return _measure(prepared, name, x, scores, None, seconds, time.perf_counter(), ks)


def popularity_arm(prepared: Prepared, ks: tuple[int, ...] = (10, 20)) -> Arm:
    """Measure popularity on the same graph and test part."""
    return baseline_arm(prepared, "popularity", Popularity(), ks=ks)


def _measure(
    prepared: Prepared,
    name: str,
    x: GraphInput,
    scores: ScoreVectors,
    adapted: Adapted | None,
    train_seconds: float,
    started: float,
    ks: tuple[int, ...],
) -> Arm:
    test, seen = (prepared.test_users, prepared.test_items), x.graph.user_items
    somebody = prepared.test_users[:1]
    scores.of(somebody).top_k(max(ks), sp.csr_array(seen[somebody]))
    first = train_seconds + time.perf_counter() - started
    results = evaluate_scores(scores, seen, *test, ks)
    evaluate = time.perf_counter() - started
    seconds = {"train": train_seconds, "first": first, "evaluate": evaluate}
    if prepared.cold_items is not None:
        among = max(ks)
        recall = recall_among(scores, prepared.cold_items, *test, among)
        results.per_user[f"recall@{among}_cold"] = recall
        results.metrics[f"recall@{among}_cold"] = float(recall.mean())
    return Arm(name, results, adapted, seconds)


def recall_among(
    scores: ScoreVectors, allowed: np.ndarray, users: np.ndarray, items: np.ndarray, k: int
) -> np.ndarray:
    """Return recall@k of each test user where only some items are ranked, among themselves.

    Args:
        scores: Of all users.
        allowed: (n_items,) bool; nobody has an interaction with them.
        users: (n_test,) int64 codes.
        items: (n_test,) int64 codes of allowed items.
        k: The cut.

    Returns:
        (n_test_users,) float64, users ascending.
    """
    some = np.unique(users)
    shape = (len(some), len(allowed))
    found = (np.ones(len(users), dtype=np.float32), (np.searchsorted(some, users), items))
    _, top = scores.of(some).top_k(k, allowed=allowed)
    relevant = sp.csr_array(found, shape=shape)
    return per_user_metrics(top, relevant, (k,))[f"recall@{k}"]
