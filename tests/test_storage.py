"""Whole or not at all: failures leave nothing, and what was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.storage import MANIFEST, verify, whole_file, whole_folder


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
    with pytest.raises(OSError, match="disk"):
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
