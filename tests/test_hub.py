"""A checkpoint goes to a hub and comes back the same, and nothing else is taken for one."""

import importlib.util

import pytest
import torch
from made_hub import Hub

from gnnrec.checkpoint import Checkpoint
from gnnrec.errors import CheckpointError, ConfigError, DownloadError
from gnnrec.hub import FILES, fetch, parse_hub_name, push
from gnnrec.zoo import resolve

NAME = "hf-hub:somebody/books"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the [hub] extra is not installed"
)


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")


def test_a_checkpoint_comes_back_the_same(hub, checkpoint, checkpoint_folder, tmp_path):
    address = push(checkpoint_folder, NAME, endpoint=hub.address)
    sha, files = hub.commits["somebody/books"][-1]
    assert address == f"{hub.address}/somebody/books/commit/{sha}"
    assert set(files) == set(FILES)
    folder = fetch(NAME, endpoint=hub.address, cache=tmp_path)
    back = Checkpoint.load(folder)
    assert back.config == checkpoint.config
    assert back.training == Checkpoint.load(checkpoint_folder).training
    assert all(torch.equal(back.state[name], value) for name, value in checkpoint.state.items())
    before = len([r for r in hub.requests if r.startswith("GET /somebody")])
    assert fetch(f"{NAME}@{sha}", endpoint=hub.address, cache=tmp_path) == folder
    assert len([r for r in hub.requests if r.startswith("GET /somebody")]) == before  # cached


def test_retrained_text_layers_go_along(hub, tmp_path):
    folder = resolve("two-tower.text")
    push(folder, NAME, endpoint=hub.address)
    back = Checkpoint.load(fetch(NAME, endpoint=hub.address, cache=tmp_path))
    assert back.text and all(
        torch.equal(back.text[name], value) for name, value in Checkpoint.load(folder).text.items()
    )


def test_a_revision_is_that_of_its_commit(hub, checkpoint_folder, tmp_path):
    push(checkpoint_folder, NAME, endpoint=hub.address)
    first, files = hub.commits["somebody/books"][-1]
    hub.commits["somebody/books"].append(("f" * 40, files | {"README.md": b"another"}))
    with pytest.raises(CheckpointError, match="not a checkpoint of gnnrec.*sha256"):
        fetch(NAME, endpoint=hub.address, cache=tmp_path)
    assert Checkpoint.load(fetch(f"{NAME}@{first}", endpoint=hub.address, cache=tmp_path))


def test_what_is_no_checkpoint_is_refused(hub, tmp_path):
    hub.commits["somebody/books"] = [
        ("a" * 40, {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    ]
    with pytest.raises(CheckpointError, match=f"{NAME}: not a checkpoint of gnnrec"):
        fetch(NAME, endpoint=hub.address, cache=tmp_path)
    assert not any("pytorch_model.bin" in r for r in hub.requests if "resolve" in r)
    with pytest.raises(CheckpointError):
        push(tmp_path, NAME, endpoint=hub.address)


def test_a_repository_that_is_not_there_is_said_in_one_line(hub, tmp_path):
    with pytest.raises(DownloadError, match="hf-hub:some/thing: found no answer") as caught:
        fetch("hf-hub:some/thing", endpoint=hub.address, cache=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:one", "hf-hub:a/b/c", "hf-hub:../x@", "a/b"])
def test_names_written_in_another_way_are_refused(name):
    with pytest.raises(ConfigError, match="expected hf-hub:OWNER/NAME"):
        parse_hub_name(name)
    assert parse_hub_name("hf-hub:a/b@main") == ("a/b", "main")


def test_a_name_of_the_hub_stands_wherever_a_checkpoint_does(
    hub, checkpoint_folder, monkeypatch, tmp_path, run
):
    push(checkpoint_folder, NAME, endpoint=hub.address)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (resolve(NAME) / "model.safetensors").is_file()
    code, _, error = run("models", "verify", NAME)
    assert code == 0, error
    code, _, error = run("models", "push", checkpoint_folder, "hf-hub:somebody/other")
    assert code == 0 and "/somebody/other/commit/" in error
    code, _, error = run("models", "info", "hf-hub:nobody/nothing")
    assert code == 3 and error.startswith("error: hf-hub:nobody/nothing")


def test_without_huggingface_hub_there_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "gnnrec\[hub\]"'):
        fetch(NAME)
