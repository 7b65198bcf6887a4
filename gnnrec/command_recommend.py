"""The command that recommends: who is asked for, the lists, and the file they go to.

Processes that torchrun started write a file each, for their share of the users, and need not talk
to each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.console import printable, text_table
from gnnrec.errors import ConfigError, DataError
from gnnrec.ids import normalise_ids
from gnnrec.interactions import Interactions
from gnnrec.ranks import launched, started
from gnnrec.recommender import Recommender
from gnnrec.storage import whole_file
from gnnrec.tables import read_table, shown

Say = Callable[..., None]
_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")  # what int64 gives back as it came
_SHOWN = 200  # rows; more are for a file
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".gz")


def recommend_command(
    folder: Path,
    user: list[str] | None,
    users: Path | None,
    k: int,
    allow: Path | None,
    exclude: Path | None,
    include_seen: bool,
    explain: bool,
    out: Path | None,
    device: str,
    say: Say,
) -> tuple[pd.DataFrame, dict[str, Any], list[str]]:
    """Recommend, write the lists if asked; return them, a summary, and lines that show them."""
    if out is not None and out.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--out {out}: found suffix {out.suffix!r}, expected .parquet or .csv")
    if started() and out is None:
        raise ConfigError("torchrun: each process writes the lists of its users; give --out")
    recommender = Recommender.load(folder, device)
    log = recommender.log
    wanted = [raw.strip() for raw in user] if user else None
    if wanted is not None and "" in wanted:
        raise ConfigError(
            "--user: found an empty id, expected the id of a user; leave it out for all"
        )
    if users is not None:
        wanted = (wanted or []) + read_ids(users, log.columns.user)
    lists: dict[str, list[str] | None] = {"allow": None, "exclude": None}
    for name, file in (("allow", allow), ("exclude", exclude)):
        if file is not None:
            lists[name] = ids = read_ids(file, log.columns.item)
            unknown = int((log.item_codes(ids) < 0).sum())
            if name == "allow" and unknown == len(ids):
                raise DataError(
                    f"{file}: found no item of the catalogue ({ids[0]!r}), expected ids such as "
                    f"{str(log.item_ids[0])!r}; check its ids"
                )
            if unknown:
                say(f"note: {unknown} of {len(ids)} ids in {file} are not in the catalogue")
    if wanted is not None:
        wanted = list(dict.fromkeys(wanted))
    if started() and out is not None:
        ranks = launched()
        everyone = [str(raw) for raw in log.user_ids] if wanted is None else wanted
        wanted = everyone[ranks.block(len(everyone))]
        out = out.with_name(f"{out.stem}.{ranks.rank:03d}-of-{ranks.size:03d}{out.suffix}")
    frame = recommender.recommend(
        _typed(wanted, log),
        k,
        include_seen=include_seen,
        allow=lists["allow"],
        exclude=lists["exclude"],
    )
    asked = log.n_users if wanted is None else len(wanted)
    strangers = [] if wanted is None else np.flatnonzero(log.user_codes(wanted) < 0).tolist()
    if wanted is not None and strangers:
        say(
            f"note: {len(strangers)} of {asked} users are unknown and get popular items, the first "
            f"is {shown(wanted[strangers[0]])}; ids look like {shown(log.user_ids[0])}"
        )
    served = int(frame[log.columns.user].nunique())
    if served < asked:
        say(f"note: {asked - served} users have no item left to recommend")
    frame, told = frame.drop(columns="known"), []
    if explain:
        told = recommender.explainer.lists(frame)
        frame["why"] = [" ".join(one.words) for one in told]
    if out is not None:
        with whole_file(out) as path:
            if out.suffix.lower() == ".csv":
                frame.to_csv(path, index=False)
            else:
                frame.to_parquet(path, index=False)
        say(f"{len(frame)} rows for {served} users -> {out}")
    summary = {
        "n_users": asked,
        "n_unknown_users": len(strangers),
        "n_rows": len(frame),
        "k": k,
        "out": None if out is None else str(out),
        "columns": [str(name) for name in frame.columns],
        **({"explanations": [one.plain() for one in told]} if explain and out is None else {}),
    }
    return frame, summary, [] if out is not None else _lines(frame, recommender, say)


def _lines(frame: pd.DataFrame, recommender: Recommender, say: Say) -> list[str]:
    """The first lists as a table, with titles where there are any, and reasons below it."""
    user, item = recommender.log.columns.user, recommender.log.columns.item
    first = frame.head(_SHOWN)
    rows = [{str(n): v for n, v in row.items()} for row in first.to_dict("records")]
    reasons = [row.pop("why", "") for row in rows]
    titles = recommender.titles(first[item])
    if any(titles) and "title" not in (user, item):
        rows = [row | {"title": title} for row, title in zip(rows, titles, strict=True)]
    lines = [text_table(rows)]
    for row, title, why in zip(rows, titles, reasons, strict=True):
        if why:
            lines.append(printable(f"{title or row[item]} for {row[user]}: {why}"))
    if len(frame) > len(first):
        say(f"... {len(frame) - len(first)} more rows; write them with --out")
    return lines


def read_ids(path: Path, column: str) -> list[str]:
    """Read ids: the named column of a table, or one id a line.

    Raises:
        DataError: The file is missing, empty, or a table without that column.
    """
    if path.suffix.lower() in _TABLE_SUFFIXES:
        frame = read_table(path)
        if column in frame.columns:
            ids = _cells(frame[column])
        elif len(frame.columns) == 1:
            ids = [str(frame.columns[0]), *_cells(frame.iloc[:, 0])]
        else:
            raise DataError(
                f"{path}: found the columns {', '.join(map(str, frame.columns))}, expected "
                f"{column!r}; rename one, or give a text file with one id a line"
            )
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise DataError(
                f"{path}: found {str(error.strerror).lower()}, expected a file of ids; check it"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: found the byte 0x{error.object[error.start]:02x}, expected UTF-8 text; "
                "save the file as UTF-8"
            ) from error
        ids = [line.strip() for line in lines if line.strip()]
        if ids and ids[0] == column:
            ids = ids[1:]
    if not ids:
        raise DataError(f"{path}: found no id, expected one a line; leave the option out for all")
    return ids


def _cells(column: pd.Series) -> list[str]:
    """Return the ids of a column as text, without missing ones; 1.0 is the id 1."""
    ids, _ = normalise_ids(column.dropna())
    return [text for value in ids if (text := str(value).strip())]


def _typed(users: list[str] | None, log: Interactions) -> list[Any] | None:
    """Give known users the log's own id; the output has one type, text where integers cannot be."""
    if users is None:
        return None
    ids = [
        log.user_ids[code] if code >= 0 else raw
        for raw, code in zip(users, log.user_codes(users).tolist(), strict=True)
    ]
    if log.user_ids.dtype == object or all(_INTEGER.fullmatch(str(value)) for value in ids):
        return [type(log.user_ids[0])(value) for value in ids]
    return [str(value) for value in ids]
