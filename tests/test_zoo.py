"""A shipped checkpoint is found by its name, offline, and whatever is wrong with it is said."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zoo as recipe
from conftest import make_log

from gnnrec import zoo
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig
from gnnrec.errors import CheckpointError
from gnnrec.interactions import Interactions
from gnnrec.recommender import Recommender
from gnnrec.registry import get_spec
from gnnrec.sources import Log

NAMES = ["lightgcn.other", "lightgcn.tiny"]
SHIPPED = zoo.available()


@pytest.fixture
def made_zoo(checkpoint_folder: Path, tmp_path_factory, monkeypatch) -> Path:
    """Two checkpoints under names, and a folder that is none."""
    folder = tmp_path_factory.mktemp("zoo")
    for name in NAMES:
        shutil.copytree(checkpoint_folder, folder / name)
    (folder / "notes").mkdir()
    monkeypatch.setattr(zoo, "ZOO", folder)
    return folder


def test_names_resolve(made_zoo):
    assert zoo.available() == NAMES
    assert zoo.resolve("lightgcn.tiny") == made_zoo / "lightgcn.tiny"


def test_a_folder_that_exists_wins(made_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lightgcn.tiny").mkdir()
    assert zoo.resolve("lightgcn.tiny") == Path("lightgcn.tiny")
    assert zoo.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("lightgcn.tny", "did you mean 'lightgcn.tiny'"),
        ("LightGCN.Tiny", "did you mean 'lightgcn.tiny'"),
        ("runs/nothing", "see gnnrec models list"),
        ("notes", "see gnnrec models list"),
    ],
)
def test_an_unknown_name_gets_one_line_with_the_nearest(made_zoo, asked, hint):
    with pytest.raises(CheckpointError) as error:
        zoo.resolve(asked)
    message = str(error.value)
    assert message.startswith(f"{asked}: found no such folder") and hint in message
    assert all(name in message for name in NAMES) and "\n" not in message


def test_without_any_shipped_checkpoint_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "none")
    assert zoo.available() == []
    with pytest.raises(CheckpointError, match="here are none"):
        zoo.resolve("channels.text")


def test_a_revision_pins_the_bytes(made_zoo):
    folder = made_zoo / "lightgcn.tiny"
    found = zoo.revision(folder)
    assert zoo.resolve(f"lightgcn.tiny@{found}") == folder
    assert zoo.resolve(f"lightgcn.tiny@{found[:4].upper()}") == folder
    (folder / zoo.MANIFEST).write_text((folder / zoo.MANIFEST).read_text() + " ")
    for wanted in (found, ""):
        with pytest.raises(CheckpointError, match=f"found the revision {zoo.revision(folder)}"):
            zoo.resolve(f"lightgcn.tiny@{wanted}")


def test_from_pretrained_takes_a_name_without_network(made_zoo, frame, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    by_name = Recommender.from_pretrained("lightgcn.tiny", retrain="zero-shot", device="cpu")
    by_folder = Recommender.from_pretrained(
        made_zoo / "lightgcn.tiny", retrain="zero-shot", device="cpu"
    )
    found = by_name.fit(frame).recommend(k=3)
    assert by_name.checkpoint.name == "lightgcn.tiny" and len(found)
    assert found.equals(by_folder.fit(frame).recommend(k=3))


def test_transfer_takes_a_name(made_zoo, work, run):
    arguments = ("--target", "log.csv", "--out", "o", "--retrain", "zero-shot", "--json")
    code, out, _ = run("transfer", "lightgcn.other", *arguments)
    assert code == 0 and json.loads(out)["source"] == "lightgcn.other"
    code, out, err = run("transfer", "lightgcn.othr", *arguments)
    assert code == 2 and not out and "did you mean 'lightgcn.other'" in err


def test_list_and_info(made_zoo, run):
    code, out, err = run("models", "list", "--json")
    found = json.loads(out)["models"]
    assert code == 0 and [one["name"] for one in found] == NAMES
    assert all(name in err for name in NAMES)
    code, out, err = run("models", "info", "lightgcn.tiny", "--json")
    about = json.loads(out)
    assert code == 0 and about["encoder"] == "lightgcn" and about["reads_text"] is False
    assert about["card"] in err and about["licences"] == ["not stated"]
    assert about["bytes"] == sum(p.stat().st_size for p in (made_zoo / "lightgcn.tiny").iterdir())
    assert about["sources"][0]["name"] == "source"
    code, _, err = run("models", "info", made_zoo / "notes")
    assert code == 2 and "found no manifest.json" in err


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "training.json", "golden.safetensors", "README.md"]
)
def test_verify_finds_a_flipped_byte(made_zoo, run, file):
    code, out, _ = run("models", "verify", "lightgcn.tiny", "--json")
    assert code == 0 and json.loads(out)["verified"] is True
    path = made_zoo / "lightgcn.tiny" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for asked in ("lightgcn.tiny", made_zoo / "lightgcn.tiny"):
        code, out, err = run("models", "verify", asked, "--json")
        assert code == 2 and not out and file in err


# The recipe


@pytest.fixture
def tiny_recipe(monkeypatch) -> None:
    """Made-up logs under registered names, and a pretraining of a few steps."""
    few = TrainConfig(max_steps=4, evaluate_every=2)
    config = PretrainConfig(
        model=ModelConfig(encoder="channels", spectral_rank=8),
        min_users=40,
        max_users=80,
        n_lessons=2,
        weigh=few,
        bridge_items=0,
    )
    monkeypatch.setattr(recipe, "settings", lambda encoder, text, quick: config)
    log = Interactions.from_frame(make_log(400, 60, 9000))
    monkeypatch.setattr(recipe, "open_log", lambda name: Log(name, log, None, "CC BY"))


def test_the_recipe_puts_every_source_on_the_card(tiny_recipe, tmp_path):
    row = recipe.make("channels.graph", tmp_path, quick=False)
    made = Checkpoint.load(tmp_path / "channels.graph")
    card = (tmp_path / "channels.graph" / "README.md").read_text()
    for name in recipe.ALL:
        spec = get_spec(name)
        assert spec.citation in card and spec.homepage in card and spec.licence_note in card
    assert row["n_numbers"] < 1000 and row["revision"] == zoo.revision(tmp_path / "channels.graph")
    assert not made.config.bridges


def test_the_recipe_refuses_a_source_whose_licence_does_not_allow_it(
    tiny_recipe, tmp_path, monkeypatch
):
    for name in ("ml-100k", "ml-1m", "ml-latest-small", "gowalla", "yelp2018"):
        monkeypatch.setitem(recipe.RECIPES, "channels.no", (("ifdb", name), False))
        with pytest.raises(SystemExit, match=f"{name}: licence"):
            recipe.make("channels.no", tmp_path, quick=False)
    assert not list(tmp_path.iterdir())


# What is shipped


@pytest.mark.skipif(not SHIPPED, reason="no checkpoint is in gnnrec/checkpoints/ yet")
def test_all_of_the_recipe_is_shipped_and_nothing_else():
    assert sorted(SHIPPED) == sorted(recipe.RECIPES)


@pytest.mark.skipif(not SHIPPED, reason="no checkpoint is in gnnrec/checkpoints/ yet")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_small_whole_and_says_whose_data_it_learned_from(name):
    about, folder = zoo.describe(name), zoo.resolve(name)
    assert about["bytes"] < recipe.MAX_BYTES
    loaded = Checkpoint.load(folder)
    sources, text = recipe.RECIPES[name]
    assert loaded.config.encoder == name.split(".")[0]
    assert bool(loaded.config.text_dim) == text
    assert not loaded.config.bridges
    assert [source["name"] for source in about["sources"]] == list(sources)
    card = zoo.card(folder)
    for source in sources:
        spec = get_spec(source)
        assert spec.licence.startswith(recipe.ALLOWED)
        for part in (spec.licence, spec.citation, spec.homepage):
            assert part in card


@pytest.mark.skipif(not SHIPPED, reason="no checkpoint is in gnnrec/checkpoints/ yet")
@pytest.mark.parametrize("instructions", ["COMPATIBLE", "AVX2"])
def test_a_shipped_checkpoint_computes_the_same_on_another_processor(instructions):
    """MKL, where torch has it, multiplies as other processors would; rounding is another."""
    program = (
        "from gnnrec.checkpoint import Checkpoint; from gnnrec.zoo import available, resolve\n"
        "for name in available(): Checkpoint.load(resolve(name))"
    )
    environment = os.environ | {"MKL_CBWR": instructions}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
