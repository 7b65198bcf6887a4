"""Retraining the last layers of a sentence encoder on interactions: text:K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from gnnrec.config import TrainConfig, TransferConfig
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.graph import BipartiteGraph
from gnnrec.loop import TrainResult, optimise
from gnnrec.losses import softmax_loss
from gnnrec.sampling import collisions
from gnnrec.text import TextEncoder
from gnnrec.text_layers import RANK, Delta, HiddenTexts, TextTail

_SCALE = 8.0  # of a cosine against popularity's logits, before it is learned
_MAX_TOKENS = 2_000_000  # kept hidden states of one log: 1.5 GB at 384 numbers in half precision
_MAX_HELD_OUT = 2_000
_MAX_HISTORY = 20
_CALIBRATE = TrainConfig(learning_rate=2e-2, pull_to_start=0.0, max_steps=60, batch_size=256)


@dataclass
class TextTask:
    """A log as texts and interactions: users choose items, and items have texts.

    Attributes:
        texts: n_items texts, "" where an item has none.
        users, items: (n,) int64 codes of the training edges.
        held_out: The same of validation edges; may be empty.
        n_users: How many.
        read: What the frozen layers made of the texts, by digest; kept for who reads them again,
            as the arms of a comparison and a refit do.
    """

    texts: list[str]
    users: np.ndarray
    items: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray]
    n_users: int
    read: dict[str, HiddenTexts] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnText:
    """A catalogue's texts as a model's own text encoder makes them vectors.

    Attributes:
        delta: What the encoder's last layers learned.
        table: (n_items, dim) float32, zero rows without a text; None where no item has one.
        written: (n_texts, dim) float32 of what users wrote, or None.
        trained: Names of the parameters that were retrained.
        result: What that did; None where nothing was retrained.
        n_trained, n_frozen: Numbers of parameters.
    """

    delta: Delta
    table: Tensor | None
    written: Tensor | None
    trained: list[str]
    result: TrainResult | None = None
    n_trained: int = 0
    n_frozen: int = 0


class _Log:
    """A task as training reads it: items with texts only, their hidden states and vectors.

    A user is the mean of the vectors of some of its items. Those come from a memory that each batch
    renews for the items in it (cross-batch memory, Wang et al. 2020): the encoder moves slowly, and
    one batch of texts is all that a step pays for.
    """

    def __init__(self, task: TextTask, tail: TextTail, seed: int) -> None:
        n_items = len(task.texts)
        degrees = np.bincount(task.items, minlength=n_items)
        there = np.array([bool(text) for text in task.texts])
        # Where there are too many, the most chosen items; words are about tokens.
        order = np.argsort(-degrees, kind="stable")
        order = order[there[order]]
        words = np.cumsum([2 + len(task.texts[i]) // 4 for i in order])
        self.codes = np.sort(order[: max(1, int(np.searchsorted(words, _MAX_TOKENS)))])
        place = np.full(n_items, -1)
        place[self.codes] = np.arange(len(self.codes))
        self.n_items = len(self.codes)
        self.hidden = self._read([task.texts[i] for i in self.codes], task, tail)
        kept = place[task.items] >= 0
        users, items = task.users[kept], place[task.items[kept]]
        self.graph = BipartiteGraph(users, items, task.n_users, self.n_items)
        self.rows: sp.csr_array = self.graph.user_items
        self.count = self.graph.user_degrees
        many = self.count[users] > 1  # of one item nothing would be left
        self.users, self.items = users[many], items[many]
        self.weight = self.count[self.users] ** -0.5
        self.weight = self.weight / max(self.weight.sum(), 1e-12)
        self.bias = torch.log1p(torch.from_numpy(self.graph.item_degrees)).float()
        held_users, held_items = task.held_out
        asked = (place[held_items] >= 0) & (self.count[held_users] > 0)
        asked_rows = np.flatnonzero(asked)
        if len(asked_rows) > _MAX_HELD_OUT:
            rng = numpy_generator(seed, "text validation")
            asked_rows = rng.choice(asked_rows, _MAX_HELD_OUT, replace=False)
        self.held_out = held_users[asked_rows], place[held_items[asked_rows]]
        self.memory, self.centre = torch.empty(0), torch.empty(0)

    @staticmethod
    def _read(texts: list[str], task: TextTask, tail: TextTail) -> HiddenTexts:
        key = tail.reads(texts)
        if key not in task.read:
            task.read.clear()  # it is large
            task.read[key] = tail.hidden(texts, progress=True)
        return task.read[key]

    def renew(self, tail: TextTail) -> None:
        """Compute all vectors anew."""
        with torch.no_grad():
            self.memory = tail(self.hidden, np.arange(self.n_items))
        self.centre = self.memory.mean(dim=0)

    def remembered(self) -> dict[str, Tensor]:
        """The vectors as the last batches left them; see `gnnrec.loop.Remembers`."""
        return {"memory": self.memory, "centre": self.centre}

    def remember(self, tables: dict[str, Tensor]) -> None:
        """Put them back."""
        self.memory.copy_(tables["memory"])
        self.centre = tables["centre"].to(self.centre, copy=True)

    def some_others(
        self, users: np.ndarray, items: np.ndarray, rng: np.random.Generator
    ) -> sp.csr_array:
        """Draw a few of each user's items, never the one that is asked for, as (n, n_items) rows.

        Between one and twenty, few as likely as many: a source's users have chosen more than a
        target's, and from the mean of hundreds an encoder learns what a handful does not show.
        """
        chosen = []
        for user, item in zip(users, items, strict=True):
            own = self.rows.indices[self.rows.indptr[user] : self.rows.indptr[user + 1]]
            own = own[own != item]
            n = min(len(own), int(math.exp(rng.uniform(0.0, math.log(_MAX_HISTORY + 1)))))
            chosen.append(rng.choice(own, n, replace=False))
        starts = np.concatenate([[0], np.cumsum([len(part) for part in chosen])])
        shape = (len(users), self.n_items)
        ones = np.ones(starts[-1], dtype=np.float32)
        return sp.csr_array((ones, np.concatenate(chosen), starts), shape=shape)

    def user_vectors(self, rows: sp.csr_array) -> Tensor:
        """Return (n, dim) unit means of the vectors of the items in each row."""
        memory = nn.functional.normalize(self.memory - self.centre, dim=1).cpu().numpy()
        vectors = torch.from_numpy(np.ascontiguousarray(rows @ memory)).to(self.memory)
        return nn.functional.normalize(vectors, dim=1)


class _TwoTowers(nn.Module):
    """score(u, i) = s cos(mean text of u's items, text of i) + log(1 + d_i)."""

    def __init__(self, tail: TextTail) -> None:
        super().__init__()
        self.tail = tail
        self.log_scale = nn.Parameter(torch.tensor(math.log(_SCALE), device=tail.device))

    def loss(self, log: _Log, config: TrainConfig, rng: np.random.Generator) -> Tensor:
        chosen = rng.choice(len(log.users), config.batch_size, p=log.weight)
        users, items = log.users[chosen], log.items[chosen]
        n = min(config.n_negatives, log.n_items)
        negatives = rng.choice(log.n_items, n, replace=False)
        asked, place = np.unique(np.concatenate([items, negatives]), return_inverse=True)
        mine = log.user_vectors(log.some_others(users, items, rng))
        if self._learns_texts():
            vectors = self.tail(log.hidden, asked)
            log.memory[torch.from_numpy(asked)] = vectors.detach()
        else:
            vectors = log.memory[torch.from_numpy(asked)]
        vectors = nn.functional.normalize(vectors - log.centre, dim=1)
        scores = self.log_scale.exp() * mine @ vectors.T + log.bias.to(vectors)[asked]
        row = torch.arange(len(users), device=scores.device)
        own, other = (torch.from_numpy(p).to(scores.device) for p in np.split(place, [len(items)]))
        known = torch.from_numpy(collisions(log.rows, users, negatives)).to(scores.device)
        return softmax_loss(scores[row, own], scores[:, other], known, log.n_items)

    def _learns_texts(self) -> bool:
        return any(p.requires_grad for p in self.tail.low_rank.parameters())

    def held_out_loss(self, log: _Log, chunk: int = 256) -> float:
        """Mean -log softmax over the items with texts of the held-out edges."""
        log.renew(self.tail)
        users, items = log.held_out
        total = 0.0
        for begin in range(0, len(users), chunk):
            who, what = users[begin : begin + chunk], items[begin : begin + chunk]
            vectors = nn.functional.normalize(log.memory - log.centre, dim=1)
            scores = self.log_scale.exp() * log.user_vectors(log.rows[who]) @ vectors.T
            scores = scores + log.bias.to(scores)
            known = log.rows[who].toarray() > 0
            own = scores[torch.arange(len(who)), torch.from_numpy(what)]
            scores = scores.masked_fill(torch.from_numpy(known).to(scores.device), -torch.inf)
            total += float((torch.logsumexp(scores, dim=1) - own).sum())
        return total / max(len(users), 1)


def tune_text(
    tasks: list[TextTask],
    encoder: TextEncoder,
    n_layers: int,
    config: TrainConfig,
    seed: int,
    *,
    log: Path | None = None,
    fixed_steps: int | None = None,
    label: str = "text",
) -> tuple[Delta, TrainResult, list[str], int]:
    """Retrain the last layers of a sentence encoder on what users choose.

    First the one number that weighs texts against popularity, then the layers' low-rank
    differences with it. The loss is the sampled softmax of all arms, on two towers that share the
    encoder: a user is the mean text of its items, with popularity beside it, so that what is
    learned is what popularity does not tell.

    Args:
        tasks: Logs, taken in turn.
        encoder: With the differences to begin with.
        n_layers: K.
        config: Of the second stage.
        seed: Of fresh differences, batches and negatives.
        log: JSON lines of the evaluations go here.
        fixed_steps: So many steps of the second stage; by default held-out edges choose.
        label: Shown on the progress bar.

    Returns:
        All differences in half precision, what training did, the retrained parameters' names, and
        how many parameters the whole encoder has.

    Cost: a pass of the frozen layers over the texts once; K layers there and back over a batch's
    positive and negative items each step, over all items each evaluation.
    """
    torch.manual_seed(derive_seed(seed, "text"))
    tail = TextTail(encoder.base(), n_layers, RANK, encoder.delta)
    model = _TwoTowers(tail)
    # Nothing is read of the texts where nothing is to be trained.
    logs = [] if fixed_steps == 0 else [_Log(task, tail, seed) for task in tasks]
    logs = [part for part in logs if len(part.users)]
    names = [f"tail.low_rank.{name}" for name, _ in tail.low_rank.named_parameters()]
    last = tail.first + n_layers - 1
    depths = {
        f"tail.low_rank.{name}": last - int(name.partition("/")[0])
        for name, _ in tail.low_rank.named_parameters()
    }
    result = TrainResult()
    if logs:
        for part in logs:
            part.renew(tail)
        judged = [part for part in logs if len(part.held_out[0])]
        rng = numpy_generator(seed, "text batches")

        def evaluate(towers: _TwoTowers) -> float:
            return float(np.mean([towers.held_out_loss(part) for part in judged]))

        for stage, trained in ((_CALIBRATE, ["log_scale"]), (config, ["log_scale", *names])):
            settings = stage
            if stage is config and fixed_steps is not None:
                settings = config.model_copy(update={"max_steps": fixed_steps})
            result = optimise(
                model,
                lambda step, settings=settings: model.loss(  # type: ignore[misc]
                    logs[step % len(logs)], settings, rng
                ),
                trained,
                evaluate if judged and fixed_steps is None and stage is config else None,
                settings,
                log=log,
                label=f"{label}:{n_layers}",
                depths=depths,
                decay_learning_rate=stage is config,
                rng=rng,
                memories=logs,
            )
    shown = [name.removeprefix("tail.low_rank.").replace("/", ".") for name in names]
    named = [f"text_encoder.layers.{name}" for name in shown]
    return tail.delta(encoder.delta), result, named, tail.n_frozen


def own_text(
    encoder: TextEncoder,
    task: TextTask,
    n_layers: int,
    config: TransferConfig,
    *,
    written: Sequence[str] | None = None,
    log: Path | None = None,
    fixed_steps: int | None = None,
) -> OwnText:
    """Encode a target's texts, the encoder's last `n_layers` layers retrained on it before.

    Args:
        encoder: Of the checkpoint.
        task: The target.
        n_layers: None are retrained if 0.
        config: `text` and the seed.
        written: What users wrote; encoded too.
        log: JSON lines of the evaluations go here.
        fixed_steps: See `tune_text`.
    """

    def tables(encoder: TextEncoder) -> tuple[Tensor | None, Tensor | None]:
        return tuple(  # type: ignore[return-value]
            torch.from_numpy(encoder.encode(texts)) if texts else None
            for texts in (task.texts, written)
        )

    if not n_layers:
        return OwnText(encoder.delta, *tables(encoder), [])
    delta, result, names, n_frozen = tune_text(
        [task], encoder, n_layers, config.text, config.seed, log=log, fixed_steps=fixed_steps
    )
    below = {name.removeprefix("text_encoder.layers.") for name in names}
    n_trained = sum(part.numel() for name, part in delta.items() if name in below)
    made = tables(TextEncoder(encoder.model, encoder.device, delta))
    return OwnText(delta, *made, names, result, n_trained, n_frozen)
