"""A checkpoint comes back bit for bit, and each way of being wrong is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gnnrec.checkpoint import Checkpoint
from gnnrec.errors import CheckpointError
from gnnrec.storage import seal
from gnnrec.tensors import read_tensors

FILES = ["README.md", "config.json", "golden.safetensors", "model.safetensors", "training.json"]


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))


def edit_json(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    seal(folder)


def edit_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    save_file(tensors, path)
    seal(folder)


def test_round_trip(checkpoint, folder):
    loaded = Checkpoint.load(folder)
    assert loaded.config == checkpoint.config and loaded.name == "tiny"
    assert loaded.state.keys() == checkpoint.state.keys()
    for name, tensor in checkpoint.state.items():
        assert torch.equal(loaded.state[name], tensor)
    assert loaded.training == json.loads(json.dumps(checkpoint.training))
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "manifest.json"])


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_or_changed_file(folder, name):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Checkpoint.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Checkpoint.load(folder)


def test_newer_format(folder):
    edit_json(folder, format=99)
    with pytest.raises(CheckpointError, match="99.*update gnnrec"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("model", ["x", {"dim": -1}, {"unknown": 1}])
def test_configuration_that_is_none(folder, model):
    edit_json(folder, model=model)
    with pytest.raises(CheckpointError, match="config.json"):
        Checkpoint.load(folder)


def test_shape_other_than_configured(folder, checkpoint):
    edit_json(folder, model=checkpoint.config.model_dump() | {"n_layers": 5})
    with pytest.raises(CheckpointError, match="its configuration implies"):
        Checkpoint.load(folder)


def test_weights_that_are_not_numbers(folder):
    edit_weights(folder, lambda t: next(iter(t.values())).fill_(float("nan")))
    with pytest.raises(CheckpointError, match="NaN"):
        Checkpoint.load(folder)


def test_no_pickle_is_read(folder):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (folder.parent / "run",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    seal(folder)
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        Checkpoint.load(folder)
    assert not (folder.parent / "run").exists()


def test_golden_output_notices_other_weights_under_a_fresh_seal(folder):
    edit_weights(folder, lambda t: [v.add_(0.5) for v in t.values()])
    with pytest.raises(CheckpointError, match="golden output differs"):
        Checkpoint.load(folder)


def test_a_recommender_is_no_checkpoint(saved_folder):
    with pytest.raises(CheckpointError, match="found a recommender, expected a checkpoint"):
        Checkpoint.load(saved_folder)
