"""What models that are trained by gradient share: which parameters a mode retrains, and counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from gnnrec.config import ModelConfig, Retrain
from gnnrec.errors import ConfigError


class Retrainable(nn.Module, ABC):
    """A model whose parameters are told apart by the beginnings of their names.

    Attributes:
        new_on_target: Of parameters that a target makes anew; a checkpoint's are not carried over.
        head_names: Of the heads, which heads and final train.
        final_names: Of what final trains beside the heads and the last layers.
        calibrating_names: Of the handful of numbers that act on every score.
        id_names: Of tables with a row per target item.
    """

    config: ModelConfig
    new_on_target: ClassVar[tuple[str, ...]]
    head_names: ClassVar[tuple[str, ...]]
    final_names: ClassVar[tuple[str, ...]]
    calibrating_names: ClassVar[tuple[str, ...]]
    id_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def n_retrained_layers(self) -> int:
        """How many layers there are for final:K."""

    @abstractmethod
    def layer_parameters(self, layer: int) -> list[str]:
        """Full names of the parameters of layer 1..n_retrained_layers()."""

    def trained_parameters(self, retrain: Retrain, n_layers: int = 0) -> list[str]:
        """Names of the parameters that a retraining mode trains, in a stable order.

        heads: the heads, the item bias, the calibration, residual ids. final: those, the last
        n_layers layers, and what the class names beside them. full and scratch: everything.

        Raises:
            ConfigError: More final layers than the model has.
        """
        names = [name for name, _ in self.named_parameters()]
        if retrain == "zero-shot":
            return []
        if retrain in ("full", "scratch"):
            return names
        chosen = {name for name in names if name.startswith(self.head_names)}
        if retrain == "final":
            total = self.n_retrained_layers()
            if n_layers > total:
                raise ConfigError(
                    f"--retrain final:{n_layers}: the encoder has {total} layers; expected "
                    f"final:1 to final:{total}"
                )
            chosen |= {name for name in names if name.startswith(self.final_names)}
            for layer in range(total - n_layers + 1, total + 1):
                chosen |= set(self.layer_parameters(layer))
        return [name for name in names if name in chosen]

    def depths(self, names: list[str]) -> dict[str, int]:
        """Return how many layers below the last one each named parameter is.

        Heads and what acts on scores are as near as the last layer; what no layer holds, as a
        projection of the texts, is below the first.
        """
        total = self.n_retrained_layers()
        of_layers = {
            name: total - layer
            for layer in range(1, total + 1)
            for name in self.layer_parameters(layer)
        }
        near = self.head_names + self.final_names
        return {name: of_layers.get(name, 0 if name.startswith(near) else total) for name in names}

    @classmethod
    def calibrating(cls, names: list[str]) -> list[str]:
        """Return those of the named parameters that are a handful of numbers on every score."""
        return [name for name in names if name.startswith(cls.calibrating_names)]

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take a source model's parameters except those that are new on every target."""
        carried = {k: v for k, v in state.items() if not k.startswith(self.new_on_target)}
        missing, unexpected = self.load_state_dict(carried, strict=False)
        assert not unexpected and all(k.startswith(self.new_on_target) for k in missing)

    def count_parameters(self, trained: list[str] | None = None) -> dict[str, int]:
        """Count parameters: total and trained without id tables and biases, which stand apart."""
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        ids = {name for name in sizes if name.startswith(self.id_names)}
        biases = {name for name in sizes if name.startswith("bias.")}
        chosen = (set(sizes) if trained is None else set(trained)) - ids - biases
        return {
            "total": sum(n for name, n in sizes.items() if name not in ids | biases),
            "trained": sum(sizes[name] for name in chosen),
            "id_tables": sum(sizes[name] for name in ids),
            "biases": sum(sizes[name] for name in biases),
        }
