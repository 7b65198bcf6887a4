"""Whole or not at all: failures leave nothing, and what was there stays."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.ledger import Ledger, write_rows
from gnnrec.storage import MANIFEST, append_json, verify, whole_file, whole_folder


def put(folder: Path, text: str) -> None:
    with whole_folder(folder) as work:
        (work / "a.txt").write_text(text)


def test_a_folder_is_sealed_and_replaced(tmp_path):
    for text in ("one", "two"):
        put(tmp_path / "deep" / "out", text)
        verify(tmp_path / "deep" / "out", ("a.txt",))
        assert (tmp_path / "deep" / "out" / "a.txt").read_text() == text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_folder_and_nothing_else(tmp_path, error):
    put(tmp_path / "out", "old")
    with pytest.raises(error), whole_folder(tmp_path / "out") as work:
        (work / "a.txt").write_text("new")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    put(tmp_path / "out", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name != "out" and Path(target) == tmp_path / "out":
            raise OSError("disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ConfigError, match="disk"):
        put(tmp_path / "out", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("keep")
    for target in ("mine", "mine/x", "mine/x/y"):
        with pytest.raises(ConfigError, match="--out"):
            put(tmp_path / target, "new")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "x"]
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty", "new")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "out.csv"
    with whole_file(target) as path:
        path.write_text("old")
    with pytest.raises(ValueError), whole_file(target) as path:
        path.write_text("half")
        raise ValueError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]
    for wrong in (tmp_path, tmp_path / "no" / "x.csv", target / "x.csv"):
        with pytest.raises(ConfigError), whole_file(wrong):
            pass


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no manifest.json"),
        ("[]", "expected a JSON object"),
        ("{", "not readable as JSON"),
        ('{"files": 3}', "expected an object"),
        ('{"files": {}}', "a.txt is missing"),
        ('{"files": {"a.txt": "0"}}', "sha256"),
        ('{"files": {"a.txt": "0", "../out/a.txt": "0"}}', "sha256|missing"),
    ],
)
def test_manifests_that_do_not_hold(tmp_path, manifest, message):
    put(tmp_path / "out", "x")
    (tmp_path / "out" / MANIFEST).unlink()
    if manifest is not None:
        (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path / "out", ("a.txt",))


# A disk that is full, or fails


def refuse_to_sync(monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


@contextmanager
def no_room():
    """Let the system refuse what would make any file longer than a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rows_of(path: Path) -> Ledger:
    return Ledger(path, ("name", "value"))


ROW = {"name": "a" * 30, "value": 1.0}
WRITERS = {
    "file": lambda folder, made: whole(folder / "x.csv", "a" * 30),
    "folder": lambda folder, made: put(folder / "out", "a" * 30),
    "checkpoint": lambda folder, made: made[0].save(folder / "out"),
    "recommender": lambda folder, made: made[1].save(folder / "out"),
    "rows": lambda folder, made: write_rows(folder / "rows.csv", ("name", "value"), [ROW] * 3),
    "append": lambda folder, made: rows_of(folder / "rows.csv").append([ROW] * 3),
    "keep": lambda folder, made: rows_of(folder / "rows.csv").keep(lambda row: row["value"] > "1"),
}


def whole(path: Path, text: str) -> None:
    with whole_file(path) as work:
        work.write_text(text)


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("how", ["sync", "write"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fails_leaves_what_was_there(
    tmp_path, monkeypatch, checkpoint, fitted, writer, how
):
    put(tmp_path / "out", "old")
    whole(tmp_path / "x.csv", "old")
    rows_of(tmp_path / "rows.csv").append([{"name": "b" * 9, "value": v} for v in (1.0, 2.0)])
    before, write = state_of(tmp_path), WRITERS[writer]
    with monkeypatch.context() as patch, pytest.raises(ConfigError) as found:
        if how == "sync":
            refuse_to_sync(patch)
            write(tmp_path, (checkpoint, fitted))
        with no_room():
            write(tmp_path, (checkpoint, fitted))
    assert state_of(tmp_path) == before
    assert found.value.exit_code == 2 and "\n" not in str(found.value)
    assert str(tmp_path) in str(found.value) and "make room on the disk" in str(found.value)
    write(tmp_path, (checkpoint, fitted))
    assert state_of(tmp_path) != before


def test_a_new_ledger_on_a_full_disk_is_not_there(tmp_path, monkeypatch):
    refuse_to_sync(monkeypatch)
    with pytest.raises(ConfigError, match="No space left"):
        rows_of(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match="cannot write there"):
        append_json(tmp_path / "no" / "log.jsonl", {})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path):
    for name in (".out.gnnrec-ab12cd34", ".x.csv.gnnrec-ab12cd34.csv"):
        (tmp_path / name).mkdir() if "out" in name else (tmp_path / name).touch()
    kept = [".out.settings", ".out2.gnnrec-ab12cd34", "out.gnnrec-ab12cd34"]
    for name in kept:
        (tmp_path / name).touch()
    living = tmp_path / ".out.gnnrec-living00"
    living.mkdir()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    put(tmp_path / "out", "new")
    whole(tmp_path / "x.csv", "new")
    os.close(descriptor)
    assert {p.name for p in tmp_path.iterdir()} == {*kept, living.name, "out", "x.csv"}


def test_an_output_that_was_moved_away_by_a_killed_writer_is_put_back(tmp_path):
    put(tmp_path / "out", "old")
    aside = tmp_path / ".out.gnnrec-ab12cd34.old"
    aside.mkdir()
    (tmp_path / "out").rename(aside / "out")
    with pytest.raises(ValueError), whole_folder(tmp_path / "out"):
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
