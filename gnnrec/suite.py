"""The settings of a benchmark suite: which targets, sources, arms and seeds, and how they run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gnnrec.baselines import BASELINES
from gnnrec.columns import Columns
from gnnrec.config import PretrainConfig, Settings, TransferConfig
from gnnrec.text import DEFAULT_TEXT_MODEL

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
    sha256: str | None = Field(None, description="of the files; filled in")

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
        """What decides what is read; settings that a file leaves at their defaults add nothing.

        Files count by what is in them, wherever they lie.
        """
        paths = {"file", "items"} if self.sha256 else set()
        return self.model_dump(mode="json", exclude_defaults=True, exclude=paths)


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


def family(arm: str) -> Family:
    """What kind of arm a name is."""
    if arm in BASELINES:
        return "baseline"
    if arm == SHUFFLED:
        return "control"
    return "scratch" if arm == "scratch" else "transfer"
