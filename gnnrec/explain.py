"""Why an item: the numbers that a score is the sum of, the own items behind them, and words."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.catalogue import Catalogue
from gnnrec.errors import DataError
from gnnrec.features import GraphInput
from gnnrec.model import Transferable
from gnnrec.parts import parts_of
from gnnrec.scores import ScoreVectors
from gnnrec.terms import Part, steps

_FEW = 5  # paths, and items named in a part
_CLOSE = 0.3  # cosine of two centred texts from which they are called close
_POPULAR = 0.2  # of the catalogue: above this place an item is called popular
_WORTH = 0.1  # of what speaks for an item: a reason of less is not put into words


@dataclass(frozen=True)
class PartShare:
    """One of the numbers that a score is the sum of.

    Attributes:
        name: As the model calls it.
        kind: What it speaks of: people (what people have together), text, source (what a source's
            people have together), learned (several of these in one), popularity.
        value: The number; the values of all parts add up to the score.
        usual: Its mean over the catalogue for this user: only what is above speaks for the item.
        shares: What each of `Explanation.own` adds; with `rest` they add up to the value.
        rest: What stands behind none of them: popularity, what is taken off for the mean user.
        exact: Whether the shares are the model's own terms; if not they are estimates.
    """

    name: str
    kind: str
    value: float
    usual: float
    shares: tuple[float, ...]
    rest: float
    exact: bool


@dataclass(frozen=True)
class Own:
    """An item that the user has.

    Attributes:
        item: Its id.
        title: Or "".
        share: What it adds to the score, over all parts.
        people: How many people have both it and the explained item.
        similarity: Cosine of the two texts, as the model reads them; None without texts.
    """

    item: Any
    title: str
    share: float
    people: int
    similarity: float | None


@dataclass(frozen=True)
class Path:
    """user -> own item -> another user -> the explained item.

    Attributes:
        own: The own item's id.
        user: The other user's id.
        weight: What it adds to the score where `exact`, else one over how much the other user has.
        exact: Whether the model walks this path; others sum over paths of all lengths.
    """

    own: Any
    user: Any
    weight: float
    exact: bool


@dataclass(frozen=True)
class Explanation:
    """Why a user gets an item.

    Attributes:
        user: Its id.
        item: Its id.
        title: Or "".
        score: As `Recommender.recommend` gives it.
        known: Whether anything is known of the user.
        people: How many people have the item.
        place: Its place in the catalogue by popularity, from 1; equals share the best.
        parts: They add up to the score.
        own: The user's items, those that speak most for it first.
        paths: The few heaviest.
        words: Sentences for people.
    """

    user: Any
    item: Any
    title: str
    score: float
    known: bool
    people: int
    place: int
    parts: tuple[PartShare, ...]
    own: tuple[Own, ...]
    paths: tuple[Path, ...]
    words: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every part's shares are exact."""
        return all(part.exact for part in self.parts)

    def plain(self, n_own: int = 10) -> dict[str, Any]:
        """Return it as plain values, with the first own items and what all others add in one."""
        own = [dict(vars(one)) for one in self.own[:n_own]]
        parts = [
            vars(p) | {"shares": list(p.shares[:n_own]), "others": sum(p.shares[n_own:])}
            for p in self.parts
        ]
        paths = [dict(vars(path)) for path in self.paths]
        whole = {"parts": parts, "own": own, "paths": paths, "words": list(self.words)}
        return vars(self) | whole | {"n_own": len(self.own), "exact": self.exact}


class Explainer:
    """Explains the scores of one fitted recommender; made once, then quick.

    What is exact: the parts add up to the score, and a part that is linear in the user's items is
    split into its own terms, with all that belongs to the user as a whole (the gate, the length of
    a vector, the degree) and all that belongs to the item held fixed. A part that is not linear
    (GraphSAGE's layers, the tower) is split by leaving items out, and says so; so does one whose
    terms do not meet the scores as they are served.

    Args:
        catalogue: The log, its titles and text vectors.
        model: As adapted.
        vectors: The scores as they are served, on the processor.
        seen: (n_users, n_items) CSR of what each user has.
        rank: `ModelConfig.spectral_rank` of the checkpoint.

    Cost: that of the model's scores of the graph, then O(n_items d) a user.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        model: Transferable,
        vectors: ScoreVectors,
        seen: sp.csr_array,
        rank: int,
    ) -> None:
        self.catalogue, self.vectors = catalogue, vectors
        self.seen = sp.csr_array(seen)
        self.seen.sort_indices()
        self.holders = sp.csr_array(self.seen.T.tocsr())
        self.degrees = np.diff(self.holders.indptr)
        self.n_had = np.diff(self.seen.indptr)
        self.ranked = np.sort(self.degrees)
        self.x: GraphInput = catalogue.target().graph_input(rank=rank)
        self.parts: list[Part] = parts_of(copy.deepcopy(model).cpu().eval(), self.x, vectors)

    def one(self, user: Any, item: Any) -> Explanation:  # noqa: ANN401 (ids of any type)
        """Explain one item for one user, by their ids; see `Recommender.explain`."""
        log = self.catalogue.log
        code = int(log.item_codes([item])[0])
        if code < 0:
            raise DataError(f"explain: item {item!r} is not in the catalogue")
        found = self.explain(int(log.user_codes([user])[0]), [code])[0]
        return found if found.known else replace(found, user=user)

    @torch.no_grad()
    def explain(self, user: int, items: Sequence[int] | np.ndarray) -> list[Explanation]:
        """Explain some items for one user: codes, -1 for a user nobody knows.

        Cost: the user's scores once, then O(n_own d) an item.
        """
        asked = np.asarray(items, dtype=np.int64)
        own = self.seen[[user]].indices.astype(np.int64) if user >= 0 else asked[:0]
        mine = self.vectors.of(np.array([user]))
        scores = mine.rows(0, 1)[0].double().numpy()
        own_codes, item_codes = torch.from_numpy(own), torch.from_numpy(asked)
        told = [self._told(part, mine, own_codes, item_codes) for part in self.parts]
        return [
            self._one(user, code, place, float(scores[code]), own, told, mine)
            for place, code in enumerate(asked.tolist())
        ]

    def lists(self, frame: pd.DataFrame) -> list[Explanation]:
        """Explain every row of what `Recommender.recommend` returned, in its order."""
        log = self.catalogue.log
        items = log.item_codes(frame[log.columns.item].tolist())
        raw = frame[log.columns.user].tolist()
        found, begin = [], 0
        for user, rows in groupby(raw):
            end = begin + len(list(rows))
            code = int(log.user_codes([user])[0])
            for one in self.explain(code, items[begin:end]):
                found.append(one if code >= 0 else replace(one, user=user))
            begin = end
        return found

    def _told(
        self, part: Part, mine: ScoreVectors, own: Tensor, items: Tensor
    ) -> tuple[Part, np.ndarray, float, np.ndarray, bool]:
        """A part's values of the asked items, its mean, its shares (n_own, k), exactness."""
        values = torch.zeros(len(mine.items))
        shares, exact = torch.zeros(len(own), len(items), dtype=torch.float64), True
        if part.offset is not None:
            values = values + mine.items[:, part.offset] @ mine.users[0, part.offset]
        for piece in part.pieces if len(own) else ():
            split = piece.split(mine, own, items)
            values, shares = values + split.values, shares + split.shares
            exact = exact and split.exact
        chosen = values[items].double().numpy()
        return part, chosen, float(values.mean()), shares.numpy(), exact

    def _one(
        self,
        user: int,
        item: int,
        place: int,
        score: float,
        own: np.ndarray,
        told: list[tuple[Part, np.ndarray, float, np.ndarray, bool]],
        mine: ScoreVectors,
    ) -> Explanation:
        log, titles = self.catalogue.log, self.catalogue.titles
        totals = np.sum([shares[:, place] for _, _, _, shares, _ in told], axis=0)
        # By share, equals by id: not by code, so that renumbering changes nothing.
        ids = [str(log.item_ids[code]) for code in own]
        order = np.array(sorted(range(len(own)), key=lambda n: (-totals[n], ids[n])), dtype=int)
        parts = []
        for part, values, usual, shares, exact in told:
            ordered = tuple(shares[order, place].tolist())
            value = float(values[place])
            rest = value - sum(ordered)
            parts.append(PartShare(part.name, part.kind, value, usual, ordered, rest, exact))
        both = self.seen[:, own].T @ self.holders[[item]].toarray()[0] if len(own) else totals
        alike = self._alike(own, item)
        whole = tuple(
            Own(
                plain_id(log.item_ids[own[n]]),
                titles[own[n]],
                float(totals[n]),
                int(both[n]),
                None if alike is None else float(alike[n]),
            )
            for n in order
        )
        people = int(self.degrees[item])
        rank = 1 + len(self.ranked) - int(np.searchsorted(self.ranked, people, side="right"))
        found = Explanation(
            None if user < 0 else plain_id(log.user_ids[user]),
            plain_id(log.item_ids[item]),
            titles[item],
            score,
            bool(len(own)),
            people,
            rank,
            tuple(parts),
            whole,
            self._paths(user, item, own[order], mine),
            (),
        )
        return replace(found, words=words(found, len(self.degrees)))

    def _alike(self, own: np.ndarray, item: int) -> np.ndarray | None:
        text = self.x.text
        if text is None or not bool(text[item].any()):
            return None
        alike: np.ndarray = (text[torch.from_numpy(own)] @ text[item]).numpy()
        return alike

    def _paths(self, user: int, item: int, own: np.ndarray, mine: ScoreVectors) -> tuple[Path, ...]:
        """The heaviest paths from the user through the own items to the item."""
        log, walk = self.catalogue.log, mine.walk
        if not len(own) or not self.degrees[item]:
            return ()
        if walk is None:
            others = self.holders[own].multiply(self.holders[[item]])
            table = sp.coo_array(others.multiply(1.0 / np.maximum(self.n_had, 1)))
        else:
            start, rows, out = steps(walk, torch.from_numpy(own), torch.tensor([item]))
            table = sp.coo_array((rows[0] * start[:, None]).multiply(rows[1]) * out[0])
        keep = (table.col != user) & (table.data != 0)
        places, users, weights = table.row[keep], table.col[keep], table.data[keep]
        if not len(weights):
            return ()
        least = np.partition(weights, -min(_FEW, len(weights)))[-min(_FEW, len(weights))]
        first = sorted(
            np.flatnonzero(weights >= least).tolist(),
            key=lambda n: (-weights[n], int(places[n]), str(log.user_ids[users[n]])),
        )[:_FEW]
        return tuple(
            Path(
                plain_id(log.item_ids[own[places[n]]]),
                plain_id(log.user_ids[users[n]]),
                float(weights[n]),
                walk is not None,
            )
            for n in first
        )


def plain_id(value: Any) -> Any:  # noqa: ANN401 (an id of the user's own type)
    """Return an id that JSON knows: int or str."""
    return value.item() if isinstance(value, np.generic) else value


def words(e: Explanation, n_items: int) -> tuple[str, ...]:
    """Say in sentences why: the parts above their usual value, the heaviest first."""
    popular = _popularity(e, n_items)
    if not e.known:
        return ("Nothing is known of this user, so the list goes by popularity.", popular)
    lifts: dict[str, float] = {}
    for part in e.parts:
        lifts[part.kind] = lifts.get(part.kind, 0.0) + part.value - part.usual
    lift = sum(value for value in lifts.values() if value > 0) or 1.0
    personal = sum(value for kind, value in lifts.items() if kind != "popularity")
    by_popularity = lifts.get("popularity", 0.0)
    said = []
    ahead = [own for own in e.own if own.share > 0]
    if personal <= _WORTH * lift or not ahead:
        said.append("Little that you have speaks for it in particular.")
    else:
        leading = [own for own in ahead[:2] if own.share > 0.5 * ahead[0].share]
        names = " and ".join(_name(own.item, own.title) for own in leading)
        mostly = "Mostly because" if personal >= by_popularity else "Partly because"
        said.append(f"{mostly} you have {names}.")
        said += _reasons(e, lifts, lift)
    said.append(popular)
    return tuple(said)


def _reasons(e: Explanation, lifts: dict[str, float], lift: float) -> list[str]:
    said = []
    learned = lifts.get("learned", 0.0) > _WORTH * lift
    shared = [own for own in e.own[:_FEW] if own.people > 0 and own.share > 0]
    if (lifts.get("people", 0.0) > _WORTH * lift or learned) and shared:
        first = max(shared, key=lambda own: own.people)
        who = "1 person who has" if first.people == 1 else f"{first.people:,} people who have"
        said.append(
            f"{who} {_name(first.item, first.title)} also "
            f"{'has' if first.people == 1 else 'have'} this."
        )
    near = [own for own in e.own if own.similarity is not None and own.share > 0]
    if (lifts.get("text", 0.0) > _WORTH * lift or learned) and near:
        first = max(near, key=lambda own: own.similarity or 0.0)
        if (first.similarity or 0.0) >= _CLOSE:
            said.append(f"Its text is close to that of {_name(first.item, first.title)}.")
    if lifts.get("source", 0.0) > _WORTH * lift:
        part = next(part for part in e.parts if part.kind == "source")
        best = max(range(len(part.shares)), key=lambda n: part.shares[n])
        if part.shares[best] > 0:
            name = _name(e.own[best].item, e.own[best].title)
            said.append(f"Where the model learned, people who chose {name} chose this too.")
    return said


def _popularity(e: Explanation, n_items: int) -> str:
    if not e.people:
        return "Nobody has it yet."
    who = "1 person has it" if e.people == 1 else f"{e.people:,} people have it"
    if e.place <= _POPULAR * n_items:
        return f"It is popular: {who} (place {e.place:,} of {n_items:,})."
    return f"It is not among the popular ones: {who}."


def _name(item: Any, title: str) -> str:  # noqa: ANN401
    return title or str(item)
