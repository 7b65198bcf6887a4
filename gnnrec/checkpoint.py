"""A pretrained model as a folder: weights, configuration, training record, card, golden output."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnrec.config import ModelConfig, graph_mode, parse_retrain, validate
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Transferable, build_model
from gnnrec.storage import read_json, verify, whole_folder, write_json
from gnnrec.tensors import read_tensors, write_tensors
from gnnrec.text import TextEncoder
from gnnrec.text_layers import Delta, check_delta

FORMAT = 1
_FILES = ("model.safetensors", "config.json", "training.json", "golden.safetensors", "README.md")
TEXT_FILE = "text.safetensors"
_GOLDEN_TOLERANCE = 1e-5
# What sizes and numbers that no training made can raise where they are computed with.
WRONG_NUMBERS = (ArithmeticError, RuntimeError, ValueError, IndexError, TypeError)
_GOLDEN_USERS, _GOLDEN_ITEMS = 12, 17


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model: what is needed to run it on another graph.

    Attributes:
        name: Shown in reports; the folder's name by default.
        config: The architecture.
        state: Parameter name -> tensor, without anything tied to a source's users or items.
        training: Data names and sha256, counts, steps, seconds, seed, versions.
        text: Low-rank differences of the sentence encoder's last layers, float16; none where it is
            as its makers left it.
    """

    name: str
    config: ModelConfig
    state: dict[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    text: Delta = field(default_factory=dict)

    def model(self, n_target_items: int | None = None, *, pretrained: bool = True) -> Transferable:
        """Build the model; fresh parameters come from torch's global generator."""
        config = self.config
        if not pretrained:  # a source's item table is not of the architecture
            config = config.model_copy(update={"bridges": ()})
        model = build_model(config, n_target_items)
        if pretrained:
            model.load_pretrained(self.state)
        return model

    def text_encoder(self, device: str = "cpu") -> TextEncoder | None:
        """Return what encodes texts for this model; None where it reads none.

        Raises:
            ConfigError: The `[text]` extra is missing, or the text model cannot be loaded.
        """
        if not self.config.text_dim or self.config.text_model is None:
            return None
        return TextEncoder(self.config.text_model, device, self.text)

    def check_retrain(self, retrain: str) -> None:
        """Check that a mode can be had of this model.

        Raises:
            ConfigError: It has no such layers, or reads no text.
        """
        self.model().trained_parameters(*graph_mode(retrain))
        if parse_retrain(retrain)[0] == "text" and not self.config.text_dim:
            raise ConfigError(
                f"--retrain {retrain}: found the checkpoint {self.name} that reads no text; "
                "expected another mode, or a checkpoint that does"
            )

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint's folder whole, beside, then renamed.

        Raises:
            ConfigError: The folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        with whole_folder(folder) as work:
            write_tensors(
                work / "model.safetensors",
                {k: v.detach().cpu().contiguous() for k, v in self.state.items()},
            )
            if self.text:
                write_tensors(work / TEXT_FILE, self.text)
            write_json(work / "config.json", {"format": FORMAT, "model": self.config.model_dump()})
            write_json(work / "training.json", self.training)
            write_tensors(work / "golden.safetensors", {"scores": self._golden_scores()})
            (work / "README.md").write_text(self.card(), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint:
        """Read a checkpoint; verify its hashes, its shapes and its golden output.

        Raises:
            CheckpointError: Missing, altered, of a newer format, or it computes something else
                here than where it was made (beyond 1e-5).
        """
        folder = Path(folder)
        if (folder / "recommender.json").is_file():
            raise CheckpointError(
                f"{folder}: found a recommender, expected a checkpoint; name what gnnrec pretrain "
                "wrote"
            )
        verify(folder, _FILES)
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}: checkpoint format {config.get('format')!r}, this version reads "
                f"{FORMAT}; update gnnrec"
            )
        try:
            model_config = validate(ModelConfig, config.get("model", {}), f"{folder}/config.json")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        checkpoint = cls(
            folder.resolve().name,
            model_config,
            read_tensors(folder / "model.safetensors"),
            read_json(folder / "training.json"),
            read_delta(folder),
        )
        if bool(checkpoint.text) != bool(model_config.text_layers):
            raise CheckpointError(
                f"{folder}: found {'a' if checkpoint.text else 'no'} {TEXT_FILE}, and in its "
                f"configuration {model_config.text_layers} retrained text layers"
            )
        check_state(model_config, None, checkpoint.state, folder)
        golden = read_tensors(folder / "golden.safetensors").get("scores")
        try:
            found = checkpoint._golden_scores()
        except WRONG_NUMBERS as error:
            raise CheckpointError(f"{folder}: its weights give no scores ({error})") from error
        if golden is None or (golden.shape, golden.dtype) != (found.shape, found.dtype):
            raise CheckpointError(f"{folder}: golden.safetensors does not hold the golden scores")
        worst = float((golden - found).abs().max())
        if not worst <= _GOLDEN_TOLERANCE * max(1.0, float(golden.abs().max())):
            raise CheckpointError(
                f"{folder}: its golden output differs by {worst:.2g} here; the torch or "
                "gnnrec installed computes something else than those that wrote it; pretrain again"
            )
        return checkpoint

    def _golden_scores(self) -> Tensor:
        """Scores of the whole model on a small made-up graph, (12, 17) float32.

        Scores and not vectors: the sign of a singular vector is free.
        """
        model = build_model(self.config)
        model.load_state_dict(self.state)
        rng = np.random.default_rng(20_170_607)
        users = rng.integers(0, _GOLDEN_USERS, 60)
        items = (rng.random(60) ** 2 * _GOLDEN_ITEMS).astype(np.int64)
        graph = BipartiteGraph(users, items, _GOLDEN_USERS, _GOLDEN_ITEMS)
        text = None
        if self.config.text_dim:
            text = torch.from_numpy(
                rng.standard_normal((_GOLDEN_ITEMS, self.config.text_dim)).astype(np.float32)
            )
        x = GraphInput(graph, text, spectral_rank=self.config.spectral_rank)
        with torch.no_grad():
            scores: Tensor = model(x).rows(0, _GOLDEN_USERS)
        return scores.contiguous()

    def card(self) -> str:
        """Return the README: what it is, what it was trained on, how to use it."""
        t = self.training
        lines = [
            f"# {self.name}",
            "",
            f"A {self.config.encoder} encoder of gnnrec, "
            + (
                f"reading item text through {self.config.text_model}"
                + (
                    f", whose last {self.config.text_layers} layers are changed by "
                    f"{sum(part.numel() for part in self.text.values())} numbers."
                    if self.text
                    else "."
                )
                if self.config.text_dim
                else "text-free: it needs nothing but interactions."
            ),
            "",
            "| source | users | items | interactions | licence |",
            "|---|---|---|---|---|",
            *(
                f"| {s['name']} | {s['n_users']} | {s['n_items']} | {s['n_interactions']} | "
                f"{s.get('licence', 'the user own data')} |"
                for s in t.get("sources", [])
            ),
            "",
            *_attribution(t.get("sources", [])),
            f"Steps {t.get('steps')}, seconds {t.get('seconds')}, seed {t.get('seed')}; versions "
            f"{t.get('versions')}.",
            "",
            "    gnnrec transfer FOLDER --target LOG --retrain final:1 --out DIR",
            "",
        ]
        return "\n".join(lines)


def _attribution(sources: list[dict[str, Any]]) -> list[str]:
    """Lines that say whose data the sources are, where the record knows."""
    lines = [
        f"- {s.get('name')}: {s['citation']} Licence: {s.get('licence')}. "
        f"{s.get('licence_note', '')} <{s.get('homepage', '')}>"
        for s in sources
        if "citation" in s
    ]
    if not lines:
        return []
    return ["Learned from these data, whose publishers do not endorse it:", "", *lines, ""]


def check_state(
    config: ModelConfig, n_target_items: int | None, state: dict[str, Tensor], where: Path
) -> None:
    """Compare tensor names, shapes and types with what the configuration implies.

    Raises:
        CheckpointError: The first difference.
    """
    try:
        with torch.device("meta"):  # shapes only: a lying size must not allocate
            expected = build_model(config, n_target_items).state_dict()
    except WRONG_NUMBERS as error:
        raise CheckpointError(f"{where}: its configuration makes no model ({error})") from error
    for name in sorted(set(expected) | set(state)):
        found, wanted = _kind(state.get(name)), _kind(expected.get(name))
        if found != wanted:
            raise CheckpointError(
                f"{where}: tensor {name}: found {found}, its configuration implies {wanted}"
            )
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: tensor {name} holds NaN or infinity")


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def read_delta(folder: Path) -> Delta:
    """Return a folder's differences of a sentence encoder; empty where it has none.

    Raises:
        CheckpointError: The file is not what `gnnrec.text_layers` makes.
    """
    if not (folder / TEXT_FILE).is_file():
        return {}
    delta = read_tensors(folder / TEXT_FILE)
    try:
        check_delta(delta)
    except ConfigError as error:
        raise CheckpointError(f"{folder / TEXT_FILE}: {error}") from error
    return delta


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("gnnrec", "torch", "numpy", "scipy", "sentence-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
