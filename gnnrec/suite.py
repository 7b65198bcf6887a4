"""The settings of a benchmark suite: which targets, sources, arms and seeds, and how they run."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gnnrec.architectures import architectures
from gnnrec.baselines import BASELINES
from gnnrec.columns import Columns
from gnnrec.config import (
    PretrainConfig,
    Settings,
    TransferConfig,
    parse_retrain,
    validate,
)
from gnnrec.datasets import list_datasets
from gnnrec.errors import ConfigError
from gnnrec.storage import read_json
from gnnrec.text import DEFAULT_TEXT_MODEL
from gnnrec.zoo import describe, resolve

Scenario = Literal["main", "cold-items", "cold-users"]
Family = Literal["baseline", "scratch", "transfer", "control"]
Fraction = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

SHUFFLED = "shuffled-text"


class Tuning(Settings):
    """How the settings of an arm are chosen, on validation interactions of the target."""

    n_trials: int = Field(1, ge=1, description="settings tried per arm and fraction; 1 tunes none")
    models: bool = Field(
        True, description="false: arms that train keep their defaults, and only baselines are tuned"
    )
    fractions: tuple[Fraction, ...] = Field(
        (0.1, 1.0), min_length=1, description="where; other fractions take those of the nearer one"
    )


class DataFile(Settings):
    """A log of the user's own under a name of its own; paths are relative to the suite's file."""

    file: str
    items: str | None = None
    user_column: str = Columns.user
    item_column: str = Field(Columns.item, description="in the items file too")
    timestamp_column: str = Columns.timestamp
    weight_column: str = Columns.weight
    text_column: str = Columns.text
    min_weight: float | None = Field(None, description="rows below this weight are left out")

    @property
    def columns(self) -> Columns:
        """The names of the log's columns."""
        return Columns(
            self.user_column,
            self.item_column,
            self.timestamp_column,
            self.weight_column,
            self.text_column,
        )

    def identity(self) -> dict[str, Any]:
        """What decides what is read; settings that a file leaves at their defaults add nothing."""
        return {"items": None} | self.model_dump(mode="json", exclude_defaults=True)


class EncoderSettings(Settings):
    """One encoder of a suite: its pretraining and its sources, or a checkpoint that is there."""

    text: bool = True
    sources: tuple[str, ...] | None = Field(
        None, description="those of the suite it runs with, joined by +; all by default"
    )
    arms: tuple[str, ...] | None = Field(None, description="those of the suite; all by default")
    pretrain: PretrainConfig = PretrainConfig()
    checkpoint: str | None = Field(
        None, description="a shipped name or a folder; it is measured as it is, nothing pretrained"
    )
    revision: str | None = Field(None, description="of the checkpoint; filled in")
    learned_from: tuple[str, ...] | None = Field(None, description="its sources; filled in")


class Suite(Settings):
    """What `gnnrec bench` runs; see benchmarks/suites."""

    name: Name
    targets: tuple[Name, ...] = Field(min_length=1)
    sources: tuple[tuple[Name, ...], ...] = ()
    fractions: tuple[Fraction, ...] = (0.1, 1.0)
    matrix: tuple[Fraction, ...] | None = Field(
        None, description="fractions at which every source runs; elsewhere the best one does"
    )
    cold_fractions: tuple[Fraction, ...] | None = Field(
        None, description="fractions of the cold scenarios; those of `fractions` by default"
    )
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    encoders: tuple[Name, ...] = ()
    arms: tuple[str, ...] = Field(min_length=1)
    scenarios: tuple[Scenario, ...] = Field(("main",), min_length=1)
    shuffled: str = Field("final:1", description="the retraining mode of the arm shuffled-text")
    control_fractions: tuple[Fraction, ...] | None = Field(
        None, description="where shuffled-text runs, in main alone; everywhere by default"
    )
    text_model: str | None = DEFAULT_TEXT_MODEL
    strict: bool = Field(
        False, description="drop from a source what the target has: items, texts, users"
    )
    number_ids: Literal["counters", "names"] = Field(
        "counters",
        description="strict: whether equal ids of digits alone are one user or item; most are "
        "row counters, which any two sets share",
    )
    near_text: float = Field(0.9, gt=0, le=1, description="cosine above which texts are the same")
    cold_share: float = Field(0.2, gt=0, lt=1, description="of the items, of the users")
    limit_minutes: float | None = Field(None, ge=0, description="stop before a run after that time")
    tuning: Tuning = Tuning()
    transfer: TransferConfig = Field(
        TransferConfig(), description="of all arms that train; what is tuned starts from it"
    )
    encoder: dict[str, EncoderSettings] = {}
    data: dict[str, DataFile] = {}

    def fractions_of(self, scenario: Scenario) -> tuple[float, ...]:
        """The fractions at which a scenario runs, those of the matrix first."""
        if scenario != "main":
            return self.cold_fractions or self.fractions
        matrix = self.matrix_fractions
        return (*matrix, *(f for f in self.fractions if f not in matrix))

    @property
    def matrix_fractions(self) -> tuple[float, ...]:
        """The fractions at which every source runs."""
        return self.matrix or self.fractions

    def has_control(self, scenario: Scenario, fraction: float) -> bool:
        """Whether shuffled-text runs here."""
        wanted = self.control_fractions
        return wanted is None or (scenario == "main" and fraction in wanted)

    def arms_of(self, encoder: str) -> list[str]:
        """The arms that run with an encoder, in the suite's order."""
        wanted = self.encoder[encoder].arms
        arms = [arm for arm in self.arms if family(arm) != "baseline"]
        return [arm for arm in arms if wanted is None or arm in wanted]

    def sources_of(self, encoder: str, target: str) -> list[tuple[str, ...]]:
        """The sources an encoder runs with on a target: never one that holds the target."""
        settings = self.encoder[encoder]
        if settings.checkpoint is not None:
            return [] if target in (settings.learned_from or ()) else [(settings.checkpoint,)]
        wanted = settings.sources
        return [
            source
            for source in self.sources
            if target not in source and (wanted is None or "+".join(source) in wanted)
        ]

    def own_sources(self) -> list[tuple[str, str]]:
        """(target, source) pairs left out because the source holds the target."""
        return [(t, "+".join(s)) for t in self.targets for s in self.sources if t in s]


def load_suite(path: Path) -> Suite:
    """Read a suite's TOML file; see `make_suite`.

    Raises:
        ConfigError: Not readable, or as `make_suite`.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable TOML file ({error})") from error
    return make_suite(data, str(path), path.parent)


def make_suite(data: dict[str, Any], where: str, folder: Path = Path()) -> Suite:
    """Validate a suite.

    An encoder without a table of its own, or whose table does not say, is the architecture of its
    name, reads text unless it is a graph-filter, and has the default pretraining.

    Args:
        data: The keys of the TOML file.
        where: For messages.
        folder: What the paths of `data` files are relative to.

    Raises:
        ConfigError: An unknown key (the nearest known one is named), a value out of range, parts
            that do not fit together, a target that is left without any source.
    """
    data = dict(data)
    try:
        for name in data:
            _one_of(name, Suite.model_fields, "setting of a suite")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    tables = data.pop("encoder", {})
    sources = data.get("sources", [])
    if isinstance(sources, list):
        data["sources"] = [[s] if isinstance(s, str) else s for s in sources]
    # Each part on its own first: a message then names the keys of the table that is wrong.
    suite = validate(Suite, data, where)
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ConfigError(f"{where}: encoder is {tables!r}; expected tables [encoder.NAME]")
    encoders = {
        name: _encoder(name, tables.get(name, {}), where, folder)
        for name in dict.fromkeys((*suite.encoders, *tables))
    }
    files = {
        name: own.model_copy(
            update={
                "file": str(folder / own.file),
                "items": None if own.items is None else str(folder / own.items),
            }
        )
        for name, own in suite.data.items()
    }
    suite = suite.model_copy(update={"encoder": encoders, "data": files})
    try:
        _check(suite)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return suite


def family(arm: str) -> Family:
    """What kind of arm a name is."""
    if arm in BASELINES:
        return "baseline"
    if arm == SHUFFLED:
        return "control"
    return "scratch" if arm == "scratch" else "transfer"


def _check(suite: Suite) -> None:
    for name in ("targets", "sources", "fractions", "seeds", "encoders", "arms", "scenarios"):
        values = getattr(suite, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} holds one of them twice; expected each once")
    known = [*suite.data, *(spec.name for spec in list_datasets())]
    for name in (*suite.targets, *(n for source in suite.sources for n in source)):
        _one_of(name, known, "data set")
    for arm in (*suite.arms, suite.shuffled):
        _check_arm(arm)
    if family(suite.shuffled) != "transfer":
        raise ValueError(f"shuffled is {suite.shuffled!r}; expected a retraining mode")
    for key in ("matrix", "control_fractions"):
        for value in getattr(suite, key) or ():
            if value not in suite.fractions:
                raise ValueError(
                    f"{key} holds {value}; expected some of fractions {suite.fractions}"
                )
    for arm in suite.arms:
        if family(arm) != "baseline" and not suite.encoders:
            raise ValueError(f"the arm {arm} needs an encoder; name some in encoders")
        pretrains = any(suite.encoder[name].checkpoint is None for name in suite.encoders)
        if family(arm) in ("transfer", "control") and pretrains and not suite.sources:
            raise ValueError(f"the arm {arm} needs a source; name some in sources")
    for name, settings in suite.encoder.items():
        _one_of(name, suite.encoders, "encoder")
        for source in settings.sources or ():
            _one_of(source, ["+".join(s) for s in suite.sources], "source")
        for arm in settings.arms or ():
            _one_of(arm, [arm for arm in suite.arms if family(arm) != "baseline"], "arm")
        if settings.text and suite.text_model is None:
            raise ValueError(f"the encoder {name} reads text; expected a text_model")
        if settings.checkpoint is not None:
            _check_checkpoint(suite, name, settings)
    for key in ("retrain", "fraction", "seed"):
        if getattr(suite.transfer, key) != TransferConfig.model_fields[key].default:
            raise ValueError(f"transfer.{key} is set by the suite; leave it out")
    for target in suite.targets:
        for encoder in suite.encoders:
            _check_sources(suite, encoder, target)


def _check_sources(suite: Suite, encoder: str, target: str) -> None:
    arms = [arm for arm in suite.arms_of(encoder) if family(arm) != "scratch"]
    sources = suite.sources_of(encoder, target)
    if arms and not sources:
        raise ValueError(
            f"the target {target} has no source left for {encoder}: no target may be in its own "
            "source; name another source"
        )
    if not arms or suite.encoder[encoder].checkpoint is not None:
        return
    for name in (name for source in sources for name in source):
        textless = [s.name for s in list_datasets() if not s.has_text and s.name not in suite.data]
        if suite.encoder[encoder].text and name in textless:
            raise ValueError(
                f"the source {name} has no item text and the encoder {encoder} reads text; give "
                f"[encoder.{encoder}] sources without it, or text = false"
            )
    # The best of several sources is chosen by validation, which an untrained arm does not have.
    trained = [a for a in arms if family(a) == "transfer" and a != "zero-shot"]
    chooses = suite.scenarios != ("main",) or suite.fractions_of("main") != suite.matrix_fractions
    if len(sources) > 1 and chooses and ("main" not in suite.scenarios or not trained):
        raise ValueError(
            "the best of several sources is chosen by validation, in the scenario main and with "
            "an arm that trains; add main and heads or final:1, or name one source"
        )


def _check_arm(arm: str) -> None:
    try:
        parse_retrain(arm)
    except ConfigError:
        _one_of(
            arm, [*BASELINES, SHUFFLED, "scratch", "zero-shot", "heads", "final:1", "full"], "arm"
        )


def _check_checkpoint(suite: Suite, name: str, settings: EncoderSettings) -> None:
    reads = settings.pretrain.model.text_model
    if settings.text and reads != suite.text_model:
        raise ValueError(
            f"the checkpoint {settings.checkpoint} reads texts through {reads}, and text_model is "
            f"{suite.text_model}; expected the same"
        )
    if suite.strict:
        raise ValueError(
            f"strict drops what sources and targets share before pretraining, and {name} has a "
            "checkpoint that is there; leave one of them out"
        )


def _ready_made(table: dict[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """Fill in what a checkpoint says of itself: shipped, or in a folder beside the suite."""
    asked = str(table["checkpoint"])
    beside = folder / asked
    path = str(beside) if beside.exists() else asked
    about = describe(path)
    if table.get("revision", about["revision"]) != about["revision"]:
        raise ConfigError(
            f"{where}: found the revision {about['revision']} of {asked}, expected "
            f"{table['revision']!r}; results of the two do not belong together"
        )
    model = read_json(resolve(path) / "config.json")["model"]
    return table | {
        "checkpoint": path,
        "revision": about["revision"],
        "learned_from": [str(source.get("name")) for source in about["sources"]],
        "text": about["reads_text"],
        "pretrain": {"model": model | {"bridges": []}},  # those are of its own sources
    }


def _encoder(name: str, table: dict[str, Any], where: str, folder: Path) -> EncoderSettings:
    table = dict(table)
    if "checkpoint" in table:
        table = _ready_made(table, f"{where}: encoder.{name}", folder)
    pretrain = table.get("pretrain", {})
    model = pretrain.get("model", {}) if isinstance(pretrain, dict) else None
    if isinstance(model, dict):
        known = architectures()
        if "encoder" not in model and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name another"
            raise ConfigError(
                f"{where}: the encoder {name!r} is not an architecture ({', '.join(known)})"
                f"; {hint} or say which in [encoder.{name}.pretrain.model]"
            )
        table["pretrain"] = pretrain | {"model": {"encoder": name} | model}
        table.setdefault("text", table["pretrain"]["model"]["encoder"] != "graph-filter")
    return validate(EncoderSettings, table, f"{where}: encoder.{name}")


def _one_of(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    raise ValueError(f"{name!r} is not a known {what}; {hint}")
