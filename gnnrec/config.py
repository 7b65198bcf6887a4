"""Every setting, as frozen models that refuse unknown keys; TOML in, resolved TOML out."""

from __future__ import annotations

import difflib
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gnnrec.architectures import sizes_of
from gnnrec.errors import ConfigError

Retrain = Literal["zero-shot", "heads", "final", "text", "full", "scratch"]


class Settings(BaseModel):
    """A group of settings: never changed, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Settings):
    """The architecture: what a checkpoint's config.json holds."""

    encoder: str = Field(
        "lightgcn", max_length=64, description="an architecture; see gnnrec.architectures"
    )
    dim: int = Field(128, ge=1, le=1024, description="width of the encoder's block")
    n_layers: int = Field(3, ge=1, le=8, description="message-passing layers")
    text_dim: int = Field(0, ge=0, le=65536, description="length of the text vectors, 0: text-free")
    text_model: str | None = Field(None, description="sentence encoder the text vectors come from")
    text_layers: int = Field(
        0, ge=0, le=64, description="last layers of the sentence encoder that pretraining retrains"
    )
    spectral_rank: int = Field(64, ge=1, le=1024)
    bridges: tuple[Annotated[int, Field(ge=1, le=2**31)], ...] = Field(
        (),
        max_length=64,
        description="channels: items of each source's table; filled in by pretraining",
    )

    @field_validator("encoder")
    @classmethod
    def _known(cls, name: str) -> str:
        sizes_of(name)
        return name

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, data: Any) -> Any:  # noqa: ANN401 (whatever was given)
        """Start from the architecture's own sizes; an unknown one is refused where it is read."""
        if isinstance(data, dict) and isinstance(name := data.get("encoder"), str):
            with suppress(ValueError):
                return sizes_of(name) | data
        return data

    @model_validator(mode="after")
    def _filter_reads_no_text(self) -> ModelConfig:
        if self.encoder == "graph-filter" and self.text_dim:
            raise ValueError("a graph-filter reads no text; expected text_dim 0")
        if self.bridges and (self.encoder != "channels" or not self.text_dim):
            raise ValueError("bridges are for the channels encoder with text; expected none")
        return self


class TrainConfig(Settings):
    """One run of the training loop. The same defaults serve every arm of a comparison."""

    loss: Literal["softmax", "bpr", "binary"] = "softmax"
    n_negatives: int = Field(1000, ge=1, description="uniform, shared by the batch")
    batch_size: int = Field(512, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    pull_to_start: float = Field(
        1e-2, ge=0, description="L2 weight on the distance from the starting parameters"
    )
    max_steps: int = Field(300, ge=1)
    evaluate_every: int = Field(10, ge=1)
    patience: int = Field(6, ge=1, description="evaluations without a better one before stopping")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each layer down from the last, times this"
    )
    unfreeze_every: int = Field(
        0, ge=0, description="steps before the next layer down is trained too; 0: all at once"
    )
    user_balance: float = Field(
        0.5, ge=0, le=1, description="an edge is drawn with weight 1 / user degree to this power"
    )
    fan_out: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="graphsage: neighbours drawn per node, the layer nearest to the batch first; "
        "none propagates over the whole graph at every step",
    )


# A batch of texts goes through layers of a transformer and back: few steps, small batches.
_TEXT = TrainConfig(
    learning_rate=4e-4,
    pull_to_start=1e-3,
    batch_size=128,
    n_negatives=128,
    max_steps=60,
    evaluate_every=15,
    patience=2,
)


class PretrainConfig(Settings):
    """Pretraining on sub-sampled source graphs with the supervised edges hidden."""

    model: ModelConfig = ModelConfig()
    text: TrainConfig = _TEXT.model_copy(update={"max_steps": 150, "evaluate_every": 50})
    # The pull keeps the text projection near the texts' own geometry: without it an encoder
    # pretrained on one source ranked worse on others than raw text does.
    train: TrainConfig = TrainConfig(
        learning_rate=2e-3, pull_to_start=0.003, max_steps=600, evaluate_every=100, patience=6
    )
    steps_per_episode: int = Field(8, ge=1, description="steps before a new sub-graph is drawn")
    n_validation_episodes: int = Field(10, ge=1)
    min_users: int = Field(500, ge=1)
    max_users: int = Field(6_000, ge=1)
    max_edges: int = Field(100_000, ge=10)
    keep_low: float = Field(0.05, gt=0, lt=1, description="smallest share of edges kept visible")
    keep_high: float = Field(0.8, gt=0, lt=1)
    thinned_share: float = Field(
        0.8, ge=0, le=1, description="share of episodes whose item popularity is re-drawn"
    )
    search_evaluations: int = Field(
        40, ge=0, description="graph-filter: settings tried on held-out interactions"
    )
    weigh: TrainConfig = Field(
        TrainConfig(
            learning_rate=4e-3,
            pull_to_start=3e-4,
            max_steps=1000,
            evaluate_every=200,
        ),
        description="channels: its one loop; train is not read",
    )
    n_lessons: int = Field(160, ge=1, description="channels: sub-graphs drawn from each source")
    variants: float = Field(
        0.5, ge=0, le=1, description="channels: share of sub-graphs whose items come in variants"
    )
    varied_texts: float = Field(
        0.6, ge=0, le=1, description="channels: share of sub-graphs whose texts are made up anew"
    )
    draw_back: float = Field(
        0.5, ge=0, le=1, description="channels: share of the way back to fresh weights"
    )
    bridge_items: int = Field(
        10_000, ge=0, description="channels: most popular items of each source that are carried"
    )
    seed: int = 0


class TransferConfig(Settings):
    """Adapting a checkpoint to a target."""

    retrain: str = "final:1"
    # First the few numbers that act on every score, then everything that the mode retrains:
    # together, the matrices over-fit before the calibration has settled.
    calibrate: TrainConfig = TrainConfig(learning_rate=1e-2, max_steps=200)
    train: TrainConfig = TrainConfig()
    text: TrainConfig = _TEXT
    # Slopes and networks at the weights' own rate: one fit in ten ran away on a large log.
    weigh: TrainConfig = Field(
        TrainConfig(
            learning_rate=3e-2,
            layer_decay=0.5,
            pull_to_start=2e-3,
            max_steps=300,
            evaluate_every=25,
        ),
        description="channels: its one loop, all steps of it; calibrate and train are not read",
    )
    n_weigh_folds: int = Field(
        10, ge=2, description="channels: parts of the training edges, hidden in turn"
    )
    guard: bool = Field(
        True,
        description="channels: keep a from-scratch model where it is clearly better; zero-shot: "
        "let hidden interactions say how far to leave popularity",
    )
    n_folds: int = Field(5, ge=2, description="parts of the training edges, hidden in turn")
    test: float = Field(0.2, gt=0, lt=1)
    split: Literal["ratio", "time"] = "ratio"
    fraction: float = Field(1.0, gt=0, le=1, description="share of training interactions kept")
    validation: float = Field(0.1, gt=0, lt=1)
    search_evaluations: int = Field(
        40, ge=0, description="graph-filter: settings tried on validation interactions"
    )
    split_seed: int = 0
    seed: int = 0


_Config = TypeVar("_Config", bound=Settings)


def load_config(kind: type[_Config], path: Path | None, overrides: dict[str, Any]) -> _Config:
    """Read a TOML file, lay the given options over it, and validate.

    Args:
        kind: The settings class.
        path: A TOML file, or None.
        overrides: Dotted key -> value; values of None are left out.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, a value is out of range.
    """
    data: dict[str, Any] = {}
    where = str(path) if path else "options"
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not a readable TOML file ({error})") from error
    for dotted, value in overrides.items():
        if value is not None:
            *parents, leaf = dotted.split(".")
            node = data
            for name in parents:
                node = node.setdefault(name, {})
                if not isinstance(node, dict):
                    raise ConfigError(
                        f"{where}: {name} is {_shown(node)}; expected a table of settings"
                    )
            node[leaf] = value
    try:
        return validate(kind, data, where)
    except ConfigError as error:
        # Blame the option, not the file, where the option is what was laid over it.
        given = [key for key, value in overrides.items() if value is not None]
        blamed = [key for key in given if f" {key} is " in str(error)]
        if path is None or not blamed:
            raise
        raise ConfigError(str(error).replace(where, "options", 1)) from error


def validate(kind: type[_Config], data: dict[str, Any], where: str) -> _Config:
    """Build a settings object, turning pydantic's report into one line.

    Raises:
        ConfigError: With the key, what was found, what was expected and the nearest known key.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _keys(kind), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_keys(kind))}"
            raise ConfigError(f"{where}: unknown setting {key!r}{hint}") from error
        message = first["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
        given = _shown(first["input"])
        found = f"{key} is {given}" if key else f"found {given}"
        raise ConfigError(f"{where}: {found}; {message}") from error


def with_settings(config: TransferConfig, settings: dict[str, Any], **more: Any) -> TransferConfig:  # noqa: ANN401
    """Return the configuration with dotted settings and top-level ones laid over it."""
    data = config.model_dump()
    for dotted, value in settings.items():
        *parents, leaf = dotted.split(".")
        node = data
        for name in parents:
            node = node[name]
        node[leaf] = value
    return validate(TransferConfig, data | more, "tuned settings")


def write_toml(config: Settings, path: Path) -> None:
    """Write the resolved settings beside an output, so that the run can be repeated from it."""
    import tomli_w

    path.write_text(tomli_w.dumps(config.model_dump(exclude_none=True)), encoding="utf-8")


def check_fan_out(model: ModelConfig, train: TrainConfig) -> None:
    """Check that the architecture can be trained with `train.fan_out`.

    Raises:
        ConfigError: It is not one number a layer, or the encoder samples nothing.
    """
    if train.fan_out is None:
        return
    if model.encoder != "graphsage":
        raise ConfigError(
            f"train.fan_out is {list(train.fan_out)} and the encoder is {model.encoder}, which "
            "samples no neighbours; expected no fan_out, or the graphsage encoder"
        )
    if len(train.fan_out) != model.n_layers:
        raise ConfigError(
            f"train.fan_out is {list(train.fan_out)}; expected {model.n_layers} numbers, one for "
            "each layer of the model"
        )


def parse_retrain(text: str) -> tuple[Retrain, int]:
    """Split `zero-shot|heads|final:K|text:K|full|scratch` into (kind, K).

    K is 0 where it has no meaning.

    Raises:
        ConfigError: Anything else.
    """
    kind, _, count = text.partition(":")
    if kind in ("final", "text") and count.isascii() and count.isdigit() and int(count) > 0:
        return kind, int(count)  # type: ignore[return-value]
    if text == kind and kind in ("zero-shot", "heads", "full", "scratch"):
        return kind, 0  # type: ignore[return-value]
    raise ConfigError(
        f"--retrain {text!r} is not known; expected zero-shot, heads, final:K or text:K (K >= 1), "
        "full or scratch"
    )


def graph_mode(retrain: str) -> tuple[Retrain, int]:
    """Return what a mode retrains of the model behind the texts: text:K as final:1.

    Raises:
        ConfigError: No such mode.
    """
    kind, n_layers = parse_retrain(retrain)
    return ("final", 1) if kind == "text" else (kind, n_layers)


def _shown(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _keys(kind: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in kind.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(_keys(field.annotation))
    return names
