"""Encoders that another package brings: registered by hand, or by an installed entry point."""

import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import make_log
from torch import nn

from gnnrec import architectures
from gnnrec.architectures import BUILT_IN, sizes_of
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, validate
from gnnrec.encoders import Encoder, build_encoder, register
from gnnrec.encoders.base import Block
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.suite_file import make_suite

SOURCE = """
import torch
from torch import nn
from gnnrec.encoders import Encoder
from gnnrec.encoders.base import Block


class Smoothing(Encoder):
    sizes = {"dim": 5, "n_layers": 2}

    def __init__(self, config):
        super().__init__(config)
        self.input = nn.Linear(1, config.dim)
        self.mix = nn.ParameterList(nn.Parameter(torch.tensor(0.5)) for _ in range(self.n_layers))

    def forward(self, x, users=None):
        items = self.input(torch.log1p(x.item_degrees)[:, None])
        for share in self.mix:
            items = items + share * x.adjacency.T(x.adjacency(items))
        every = x.adjacency(items)
        mean = x.mean_user(every)
        return Block(every if users is None else every.index_select(0, users), items, mean)

    def newcomers(self, x):
        with torch.no_grad():
            items = self.forward(x).items
        return lambda new: new.sums(items, -0.5, -0.5)

    def layer_parameters(self, layer):
        return [f"mix.{layer - 1}"]
"""


class Constant(Encoder):
    sizes = {"dim": 3, "n_layers": 4}

    def __init__(self, config):
        super().__init__(config)
        self.vector = nn.Parameter(torch.ones(config.dim))

    def forward(self, x, users=None):
        n = x.graph.n_users if users is None else len(users)
        rows = self.vector.expand(n + x.graph.n_items, -1)
        return Block(rows[:n], rows[n:], self.vector)

    def newcomers(self, x):
        return lambda new: self.vector.expand(len(new.degrees), -1)

    def layer_parameters(self, layer):
        return ["vector"] if layer == self.n_layers else []


@pytest.fixture
def constant(monkeypatch):
    monkeypatch.setattr(architectures, "_sizes", dict(architectures._sizes))
    monkeypatch.setattr(architectures, "_classes", {})
    register("constant", Constant)


@pytest.mark.usefixtures("constant")
def test_a_registered_encoder_is_an_architecture():
    config = ModelConfig(encoder="constant")
    assert (config.dim, config.n_layers) == (3, 4)
    assert ModelConfig(encoder="constant", dim=7).dim == 7
    assert isinstance(build_encoder(config), Constant)
    suite = make_suite(
        {
            "name": "one",
            "targets": ["shop"],
            "sources": [],
            "fractions": [1.0],
            "seeds": [0],
            "encoders": ["constant"],
            "arms": ["scratch"],
            "data": {"shop": {"file": "shop.csv"}},
            "encoder": {"constant": {"text": False}},
        },
        "here",
    )
    assert suite.encoder["constant"].pretrain.model == config


@pytest.mark.parametrize("name", [*sorted(BUILT_IN), "", "Constant", "a b", "a" * 65, "é"])
def test_a_name_that_is_taken_or_none_is_refused(name):
    with pytest.raises(ConfigError, match="an encoder cannot be called"):
        register(name, Constant)


@pytest.mark.parametrize("kind", [nn.Linear, Constant(ModelConfig()), "constant", None])
def test_what_is_no_class_of_encoders_is_refused(kind):
    with pytest.raises(ConfigError, match="expected a class derived from Encoder"):
        register("constant", kind)


def test_an_unknown_architecture_names_the_known_ones():
    with pytest.raises(ConfigError, match="encoder is 'lightgnc'; expected one of lightgcn, graph"):
        validate(ModelConfig, {"encoder": "lightgnc"}, "options")
    with pytest.raises(ConfigError, match="encoder is 3; expected a valid string"):
        validate(PretrainConfig, {"model": {"encoder": 3}}, "options")


def test_a_package_that_cannot_be_imported_is_named(monkeypatch):
    entry = architectures.entry_points(group="console_scripts", name="gnnrec")["gnnrec"]
    broken = type(entry)("constant", "nowhere_at_all.constant:Constant", architectures.GROUP)
    monkeypatch.setattr(architectures, "entry_points", lambda **_: [broken])
    with pytest.raises(ConfigError, match=r"nowhere_at_all.*cannot be used \(No module named"):
        validate(ModelConfig, {"encoder": "constant"}, "options")
    with pytest.raises(ValueError, match="expected one of"):
        monkeypatch.setattr(architectures, "entry_points", lambda **_: [])
        sizes_of("constant")


def test_an_installed_package_brings_an_encoder_to_every_command(tmp_path):
    """From its entry point alone: pretrain, transfer, and recommend with reasons."""
    site = tmp_path / "site"
    about = site / "their_package-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "their_package.py").write_text(SOURCE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{architectures.GROUP}]\nsmoothing = their_package:Smoothing\n"
    )
    make_log(30, 20, 240, seed=0).to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "few.toml").write_text("train = {max_steps = 2}\ncalibrate = {max_steps = 2}\n")
    commands = [
        "pretrain --source log.csv --encoder smoothing --no-text --max-steps 2 --out made",
        "transfer made --target log.csv --retrain final:1 --config few.toml --out shop --json",
        "recommend shop --user u1 --explain --json",
    ]
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(site)!r})
        from gnnrec.cli import main
        for command in {commands!r}:
            sys.argv = ["gnnrec", *command.split()]
            try:
                main()
            except SystemExit as stop:
                if stop.code:
                    raise
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"name": "encoder"' in done.stdout and "encoder.mix.1" in done.stdout
    with pytest.raises(CheckpointError, match="encoder is 'smoothing'; expected one of"):
        Checkpoint.load(tmp_path / "made")  # here nobody brings it
