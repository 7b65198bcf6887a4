"""A small log and a checkpoint of a few steps, made once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gnnrec import cli
from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig, TransferConfig

# Of tests that open a page: GNNREC_CHROMIUM names a browser to use.
CHROMIUM = os.environ.get("GNNREC_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
SIZES = {"wide": (1280, 800), "narrow": (390, 844)}
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
)
TRAIN = TrainConfig(max_steps=6, evaluate_every=3, n_negatives=20, batch_size=32)


def make_log(
    n_users: int, n_items: int, n_rows: int, seed: int = 0, *, text: bool = True
) -> pd.DataFrame:
    """A log with popular and rare items, and a timestamp in every row."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, n_users, n_rows), rng.random(n_rows) ** 2 * n_items
    frame = pd.DataFrame({"user_id": users, "item_id": items.astype(np.int64)})
    frame = frame.drop_duplicates(ignore_index=True)
    if text:
        frame = pd.DataFrame(
            {"user_id": "u" + frame.user_id.astype(str), "item_id": "i" + frame.item_id.astype(str)}
        )
    return frame.assign(timestamp=np.arange(len(frame)) + 1_000_000)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as run:
        opened = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    return make_log(30, 25, 200)


@pytest.fixture(scope="session")
def transfer_config() -> TransferConfig:
    return TransferConfig(calibrate=TRAIN, train=TRAIN)


@pytest.fixture(scope="session")
def checkpoint():
    from gnnrec.interactions import Interactions
    from gnnrec.runs import pretrain_run
    from gnnrec.sources import Log

    source = Interactions.from_frame(make_log(80, 60, 1500, seed=1))
    config = PretrainConfig(
        model=ModelConfig(dim=8, n_layers=2, spectral_rank=8),
        train=TRAIN,
        n_validation_episodes=2,
        min_users=20,
    )
    return pretrain_run([Log("source", source, None)], config, name="tiny", device="cpu")


@pytest.fixture(scope="session")
def checkpoint_folder(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: copy it before changing anything."""
    return checkpoint.save(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def fitted(checkpoint, frame, transfer_config):
    from gnnrec.recommender import Recommender

    return Recommender(checkpoint, transfer_config, "cpu").fit(frame)


Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["gnnrec", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


FEW = "max_steps = 6\nevaluate_every = 3\nn_negatives = 20\nbatch_size = 32\n"
TOML = f"[train]\n{FEW}"


@pytest.fixture(scope="session")
def saved_folder(checkpoint, frame, transfer_config, tmp_path_factory) -> Path:
    """A recommender on disk, with its report. Read only."""
    from gnnrec.interactions import Interactions
    from gnnrec.runs import transfer_run
    from gnnrec.sources import Log

    log = Log("shop", Interactions.from_frame(frame), None)
    recommender, _ = transfer_run(checkpoint, log, transfer_config, device="cpu")
    folder = tmp_path_factory.mktemp("saved") / "shop"
    recommender.save(folder)
    return folder


@pytest.fixture
def work(
    tmp_path: Path, frame: pd.DataFrame, checkpoint_folder: Path, saved_folder: Path, monkeypatch
) -> Path:
    """A working folder with a log, settings, and links to the two folders."""
    frame.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "few.toml").write_text(f"{TOML}[calibrate]\n{FEW}")
    (tmp_path / "ck").symlink_to(checkpoint_folder)
    (tmp_path / "rec").symlink_to(saved_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path
