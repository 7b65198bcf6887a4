"""What the page asks of a saved recommender, as plain values. Ids go out as text."""

from __future__ import annotations

import unicodedata
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from gnnrec.device import numpy_generator
from gnnrec.errors import ConfigError, DataError
from gnnrec.explain import Explainer
from gnnrec.items import ItemTable
from gnnrec.readiness import readiness
from gnnrec.recommender import Recommender
from gnnrec.scores import rows_of
from gnnrec.sources import Log
from gnnrec.spectrum import principal_axes
from gnnrec.tables import read_table

_MAP = 3000  # points: more are a smear, and slow to draw
_OWN = 100  # of a user's items, and of cold ones, shown at most
_HOLDERS = 12
_VALUES = 7  # of a column told apart by colour; the palette's length
_COLUMNS = 8


class Explorer:
    """Answers about one recommender; safe to ask from several threads.

    Args:
        recommender: Fitted.
        name: What to call it.
        beside: The name of another one of the same users and items, and itself: its lists are
            shown next to this one's.
        columns: Column -> n_items texts, that a map can be coloured by.
    """

    def __init__(
        self,
        recommender: Recommender,
        name: str,
        beside: tuple[str, Recommender] | None = None,
        columns: dict[str, list[str]] | None = None,
    ) -> None:
        self.recommender, self.name = recommender, name
        self.beside_name: str | None = None if beside is None else beside[0]
        self.beside: Recommender | None = None if beside is None else beside[1]
        self.columns = columns or {}
        log = recommender.log
        self._items = [str(value) for value in log.item_ids]
        self._users = [str(value) for value in log.user_ids]
        self._titles = recommender.catalogue.titles
        self._found_items = [_folded(f"{i}\n{t}") for i, t in zip(self._items, self._titles)]  # noqa: B905 (one a code)
        self._found_users = [_folded(user) for user in self._users]
        self._degrees = np.bincount(log.items, minlength=log.n_items)
        self._had = np.bincount(log.users, minlength=log.n_users)
        # Most people first, of equals the first in the log.
        self._by_popularity = np.argsort(-self._degrees, kind="stable")
        self._place = np.empty(log.n_items, dtype=np.int64)
        ranked = np.sort(self._degrees)
        self._place = 1 + log.n_items - np.searchsorted(ranked, self._degrees, side="right")
        self._lock = Lock()

    def about(self) -> dict[str, Any]:
        """Say what it is: sizes, what was measured, what the data lack, what it cost."""
        recommender, log = self.recommender, self.recommender.log
        report, checkpoint = recommender.record.get("report", {}), recommender.checkpoint
        text = recommender.catalogue.text
        has_text = None if text is None else np.abs(text).sum(axis=1) > 0
        described = {
            "name": checkpoint.name,
            "encoder": checkpoint.config.encoder,
            "reads_text": bool(checkpoint.config.text_dim),
            "text_model": checkpoint.config.text_model,
        }
        items = None
        if has_text is not None or any(self._titles):
            # The texts themselves are not kept: where there is a vector there was one.
            texts = self._titles if has_text is None else ["there" if t else "" for t in has_text]
            items = ItemTable(log.item_ids, texts, self._titles)
        findings = [one.plain() for one in readiness(described, Log(self.name, log, items))]
        return {
            "name": self.name,
            "source": checkpoint.name,
            "encoder": checkpoint.config.encoder,
            "retrain": recommender.config.retrain,
            "beside": self.beside_name,
            "n_users": log.n_users,
            "n_items": log.n_items,
            "n_interactions": log.n_interactions,
            "n_titles": sum(map(bool, self._titles)),
            "n_cold_items": int((self._degrees == 0).sum()),
            "n_cold_users": int((self._had <= 1).sum()),
            "metrics": report.get("metrics", {}),
            "popularity_metrics": report.get("popularity_metrics", {}),
            "to_popularity": report.get("to_popularity"),
            "seconds": report.get("seconds", {}),
            "parameters": report.get("parameters", {}),
            "peak_memory_bytes": report.get("peak_memory_bytes"),
            "device": report.get("device"),
            "findings": findings,
            "columns": list(self.columns),
            "example": self._users[int(np.argmax(self._had))] if self._users else None,
        }

    def search(self, kind: str, q: str, limit: int = 20) -> dict[str, Any]:
        """Find users by id, or items by id or title; what begins with it first, then by size."""
        texts, sizes = (
            (self._found_users, self._had) if kind == "user" else (self._found_items, self._degrees)
        )
        wanted = _folded(q.strip())
        found = [code for code, text in enumerate(texts) if wanted in text]
        found.sort(key=lambda code: (_rank(texts[code], wanted), -int(sizes[code])))
        first = found[:limit]
        rows = [self._user(c) if kind == "user" else self._item(c) for c in first]
        return {"n": len(found), "rows": rows}

    def user(self, id: str, k: int = 10) -> dict[str, Any]:
        """A user's items and list, beside the popular ones and another list."""
        code = self._code("user", id)
        log = self.recommender.log
        own = np.flatnonzero(log.users == code)
        if log.timestamps is not None:
            own = own[np.argsort(-log.timestamps[own], kind="stable")]
        else:
            own = own[np.argsort(self._place[log.items[own]], kind="stable")]
        items = self._list(self.recommender, code, k)
        beside = None if self.beside is None else self._list(self.beside, code, k)
        have = set(log.items[own].tolist())
        popular = [int(i) for i in self._by_popularity[: k + len(have)] if i not in have][:k]
        return {
            "id": self._users[code],
            "n_own": len(own),
            "ordered_by": "time" if log.timestamps is not None else "popularity",
            "own": [self._item(item) for item in log.items[own[:_OWN]].tolist()],
            "list": [self._item(item) for item in items],
            "popular": [self._item(item) for item in popular],
            "beside": None if beside is None else [self._item(item) for item in beside],
        }

    def words(self, id: str, k: int = 10) -> dict[str, Any]:
        """Sentences on each item of a user's list; the first time they take a while."""
        code = self._code("user", id)
        items = self._list(self.recommender, code, k)
        told = self.explainer.explain(code, items)
        return {"rows": [list(one.words) for one in told]}

    @property
    def explainer(self) -> Explainer:
        """The recommender's, which only one thread makes."""
        with self._lock:
            return self.recommender.explainer

    def why(self, user: str, item: str) -> dict[str, Any]:
        """The numbers behind one item of a user's list; see `gnnrec.explain.Explanation`."""
        codes = self._code("user", user), self._code("item", item)
        found = self.explainer.explain(codes[0], [codes[1]])[0].plain(6)
        for one in [*found["own"], found]:
            one["item"] = str(one["item"])
        paths = []
        for path in found["paths"]:
            own = self._item(self._code("item", str(path["own"])))
            paths.append(path | {"own": own, "user": str(path["user"])})
        return found | {"user": self._users[codes[0]], "paths": paths}

    def item(self, id: str, k: int = 10) -> dict[str, Any]:
        """An item, what is like it, and who has it."""
        code = self._code("item", id)
        log = self.recommender.log
        near = self.recommender.similar_items([log.item_ids[code]], k)
        codes = log.item_codes(near["similar_item"].tolist()).tolist()
        holders = log.users[log.items == code]
        few = sorted(holders.tolist(), key=lambda user: (int(self._had[user]), user))[:_HOLDERS]
        texts = {name: values[code] for name, values in self.columns.items() if values[code]}
        return self._item(code) | {
            "place": int(self._place[code]),
            "n_items": log.n_items,
            "texts": texts,
            "similar": [
                self._item(other) | {"score": float(score)}
                for other, score in zip(codes, near["score"], strict=True)
            ],
            "users": [self._user(user) for user in few],
        }

    def cold(self) -> dict[str, Any]:
        """Items that nobody or hardly anybody has, and users of whom hardly anything is known."""
        items = np.argsort(self._degrees, kind="stable")[:_OWN]
        users = np.argsort(self._had, kind="stable")[:_OWN]
        return {
            "items": [self._item(c) for c in items.tolist() if self._degrees[c] <= 2],
            "users": [self._user(c) for c in users.tolist() if self._had[c] <= 1],
        }

    def map(self) -> dict[str, Any]:
        """Points of a map of items: near ones have near vectors."""
        return self._map

    @cached_property
    def _map(self) -> dict[str, Any]:
        """The two leading principal components of the unit vectors of at most `_MAP` items.

        Of a larger catalogue half are its most popular ones, and half are drawn from the others.
        """
        vectors = self.recommender.vectors.item_vectors
        there = vectors.abs().sum(dim=1).numpy() > 0
        codes = self._by_popularity[there[self._by_popularity]]
        n_there = len(codes)
        if n_there > _MAP:
            half = _MAP // 2
            drawn = numpy_generator(0, "map").choice(codes[half:], _MAP - half, replace=False)
            codes = np.concatenate([codes[:half], np.sort(drawn)])
        rows = torch.nn.functional.normalize(vectors[torch.from_numpy(codes)], dim=1)
        place = _two(rows.double()).numpy()
        return {
            "n": n_there,
            "items": [self._items[c] for c in codes],
            "titles": [self._titles[c] for c in codes],
            "people": self._degrees[codes].tolist(),
            "x": np.round(place[:, 0], 4).tolist(),
            "y": np.round(place[:, 1], 4).tolist(),
            "columns": {name: _values(texts, codes) for name, texts in self.columns.items()},
        }

    def _list(self, recommender: Recommender, code: int, k: int) -> list[int]:
        log = self.recommender.log
        users = recommender.log.user_codes([log.user_ids[code]])
        seen = rows_of(recommender.seen, users)
        k = min(k, recommender.log.n_items)
        _, items = recommender.vectors.of(users).top_k(k, seen=seen)
        found: list[int] = items[0][items[0] >= 0].tolist()
        if recommender is not self.recommender:
            codes = log.item_codes(recommender.log.item_ids[found].tolist())
            found = codes[codes >= 0].tolist()
        return found

    def _item(self, code: int) -> dict[str, Any]:
        people = int(self._degrees[code])
        return {"item": self._items[code], "title": self._titles[code], "people": people}

    def _user(self, code: int) -> dict[str, Any]:
        return {"user": self._users[code], "n_own": int(self._had[code])}

    def _code(self, kind: str, id: str) -> int:
        log = self.recommender.log
        code = int((log.user_codes if kind == "user" else log.item_codes)([id])[0])
        if code < 0:
            raise DataError(f"{kind} {id!r} is not in the log")
        return code


def read_columns(path: Path, recommender: Recommender) -> dict[str, list[str]]:
    """Read the columns of an items file that a map can be coloured by: few values, often met.

    Of a cell with several values, as a|b, the first counts.

    Raises:
        DataError: The file is not usable, or has no such column.
    """
    log = recommender.log
    frame = read_table(path)
    if log.columns.item not in frame.columns:
        found = ", ".join(map(str, frame.columns))
        raise DataError(
            f"{path}: found the columns {found}, expected {log.columns.item!r}; rename one"
        )
    codes = log.item_codes(frame[log.columns.item].tolist())
    columns: dict[str, list[str]] = {}
    for name in frame.columns:
        if name == log.columns.item or len(columns) == _COLUMNS:
            continue
        cells = frame[name].astype(object).where(frame[name].notna(), "")
        texts = [str(value).split("|")[0].strip() for value in cells]
        if not 1 < len(set(texts)) <= max(_VALUES, len(texts) // 5):
            continue
        column = [""] * log.n_items
        for code, text in zip(codes.tolist(), texts, strict=True):
            if code >= 0:
                column[code] = text
        columns[str(name)] = column
    if not columns:
        raise DataError(
            f"{path}: found no column with values that several items share, expected one such as "
            "genre; leave --items out"
        )
    return columns


def open_explorer(folder: Path, items: Path | None, beside: Path | None, device: str) -> Explorer:
    """Load a saved recommender, and what is to be shown with it.

    Raises:
        CheckpointError: A folder is not a recommender.
        ConfigError: The one beside serves other users.
        DataError: The items file is not usable.
    """
    recommender = Recommender.load(folder, device)
    columns = None if items is None else read_columns(items, recommender)
    other = None if beside is None else Recommender.load(beside, device)
    if other is not None and (other.log.user_codes(recommender.log.user_ids) < 0).any():
        raise ConfigError(
            f"--beside {beside}: found a recommender without some of the users of {folder}, "
            "expected one of the same log; transfer to it with --retrain scratch"
        )
    named = None
    if other is not None and beside is not None:
        named = (f"{beside.resolve().name} ({other.config.retrain})", other)
    return Explorer(recommender, folder.resolve().name, named, columns)


def _folded(text: str) -> str:
    """Text without case and accents: u finds ü, and ss ß."""
    if text.isascii():
        return text.lower()
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in parts if not unicodedata.combining(sign))


def _rank(text: str, wanted: str) -> int:
    """0 for the id or the title itself, 1 for the beginning of either, 2 for anything else."""
    names = text.split("\n")
    return 0 if wanted in names else 1 if any(n.startswith(wanted) for n in names) else 2


def _two(rows: torch.Tensor) -> torch.Tensor:
    """Two principal components of (n, d) rows in [0, 1]; the last percent is put on the edge."""
    out = torch.full((len(rows), 2), 0.5, dtype=rows.dtype)
    if len(rows) < 3:
        return out
    centred = rows - rows.mean(dim=0)
    basis = principal_axes(centred)[:, -2:].flip(1)
    # The sign of a component is arbitrary: its largest entry points up.
    signs = basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()
    found = centred @ (basis * signs)
    out[:, : found.shape[1]] = found
    low, high = out.quantile(0.01, dim=0), out.quantile(0.99, dim=0)
    return ((out - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)


def _values(texts: list[str], codes: np.ndarray) -> dict[str, Any]:
    """The values met most often, and for each point which of them it has; -1 for another."""
    chosen = [texts[code] for code in codes]
    names, counts = np.unique([text for text in chosen if text], return_counts=True)
    first = [str(name) for name in names[np.argsort(-counts, kind="stable")][:_VALUES]]
    place = {name: number for number, name in enumerate(first)}
    return {"values": first, "index": [place.get(text, -1) for text in chosen]}
