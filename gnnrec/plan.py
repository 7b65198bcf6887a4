"""The runs of a suite in their order, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gnnrec.errors import ConfigError
from gnnrec.ledger import Row, as_text
from gnnrec.suite import SHUFFLED, Scenario, Suite, family

KEYS = (
    "suite",
    "scenario",
    "target",
    "source",
    "arm",
    "family",
    "encoder",
    "fraction",
    "seed",
)
ONLY = ("scenario", "target", "source", "arm", "encoder", "fraction", "seed")


@dataclass(frozen=True)
class Task:
    """One run: an arm, with an encoder and sources where it has them, on a part of a target."""

    suite: str
    scenario: Scenario
    target: str
    sources: tuple[str, ...]
    arm: str
    encoder: str
    fraction: float
    seed: int

    @property
    def source(self) -> str:
        """The sources as one name; empty where there are none."""
        return "+".join(self.sources)

    def keys(self) -> Row:
        """The key columns of its rows."""
        values = {name: getattr(self, name) for name in KEYS if name != "family"}
        values["family"] = family(self.arm)
        return {name: as_text(values[name]) for name in KEYS}


@dataclass(frozen=True)
class Waiting:
    """Runs that need the best source of an encoder on a target, which is not known yet."""

    target: str
    encoder: str
    n_runs: int

    def keys(self) -> Row:
        """What is known of them."""
        return {"target": self.target, "encoder": self.encoder}


def part_sha256(suite: Suite, task: Task) -> str:
    """Digest of the settings that a run depends on, beside its key; 16 hexadecimal digits.

    More targets, sources, fractions, seeds or arms in the suite change none of them.
    """
    kind = family(task.arm)
    part: dict[str, Any] = {
        "protocol": suite.transfer.model_dump(
            include={"test", "split", "validation", "split_seed"}, mode="json"
        ),
        "data": {
            name: own.identity()
            for name, own in sorted(suite.data.items())
            if name in (task.target, *task.sources)
        },
        "text_model": suite.text_model,
    }
    if task.scenario != "main":
        part["cold_share"] = suite.cold_share
    if task.arm not in ("popularity", "zero-shot"):
        part["tuning"] = None if suite.tuning.n_trials == 1 else suite.tuning.model_dump()
    if kind != "baseline":
        settings = suite.encoder[task.encoder]
        part["encoder"] = settings.model_dump(include={"text", "pretrain"}, mode="json")
        part["transfer"] = suite.transfer.model_dump(mode="json")
    if kind in ("transfer", "control"):
        if suite.encoder[task.encoder].checkpoint is not None:
            part["checkpoint"] = suite.encoder[task.encoder].revision
        part["strict"] = [suite.number_ids, suite.near_text] if suite.strict else None
        if part.get("tuning"):
            part["tuned_with"] = suite.sources_of(task.encoder, task.target)[0]
    if task.arm == SHUFFLED:
        part["shuffled"] = suite.shuffled
    text = json.dumps(part, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_id(task: Task, part: str) -> str:
    """A file name for a run: readable, and unique through the digest at its end."""
    words = (
        task.target,
        task.source,
        task.arm,
        task.encoder,
        task.scenario,
        f"{task.fraction:g}",
        str(task.seed),
    )
    text = json.dumps([*words, part])
    readable = "_".join(re.sub(r"[^A-Za-z0-9.+-]", "-", word) for word in words if word)
    return f"{readable[:120]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plan(suite: Suite, rows: Sequence[Row]) -> Iterator[Task | Waiting]:
    """Yield the runs in their order, targets outermost, the matrix of sources first.

    The sequence is read as the rows grow: which source is the best is asked for when the runs that
    need it come up.
    """
    for target in suite.targets:
        for scenario in suite.scenarios:
            for fraction in suite.fractions_of(scenario):
                every = scenario == "main" and fraction in suite.matrix_fractions
                for seed in suite.seeds:
                    place = (scenario, target, fraction, seed)
                    yield from _runs(suite, rows, every, *place)


def _runs(
    suite: Suite,
    rows: Sequence[Row],
    every: bool,
    scenario: Scenario,
    target: str,
    fraction: float,
    seed: int,
) -> Iterator[Task | Waiting]:
    def task(arm: str, encoder: str = "", sources: tuple[str, ...] = ()) -> Task:
        return Task(suite.name, scenario, target, sources, arm, encoder, fraction, seed)

    kinds = {arm: family(arm) for arm in suite.arms}
    yield from (task(arm) for arm, kind in kinds.items() if kind == "baseline")
    for encoder in suite.encoders:
        mine = suite.arms_of(encoder)
        arms = [arm for arm in mine if kinds[arm] != "scratch"]
        if not suite.encoder[encoder].text or not suite.has_control(scenario, fraction):
            # Without text it would be the same run twice.
            arms = [arm for arm in arms if kinds[arm] != "control"]
        if "scratch" in mine:
            yield task("scratch", encoder)
        sources = suite.sources_of(encoder, target)
        if arms and not every:
            best = best_source(suite, rows, target, encoder)
            if best is None:
                yield Waiting(target, encoder, len(arms))
                continue
            sources = [best]
        for source in sources:
            yield from (task(arm, encoder, source) for arm in arms)


def best_source(
    suite: Suite, rows: Sequence[Row], target: str, encoder: str
) -> tuple[str, ...] | None:
    """Return the source whose trained arms validate best on a target, never by a test.

    The mean of best_value (lower is better, and the same measure for one encoder) over the arms,
    fractions and seeds of the matrix; of equals the first in the suite.

    Returns:
        None until all of the matrix of this target and encoder is done.

    Raises:
        ConfigError: No arm has a validation value.
    """
    sources = suite.sources_of(encoder, target)
    if len(sources) == 1:
        return sources[0]
    arms = [arm for arm in suite.arms_of(encoder) if family(arm) == "transfer"]
    values: dict[tuple[str, ...], list[float]] = {source: [] for source in sources}
    known = {row["run"]: row["best_value"] for row in rows}
    for fraction in suite.matrix_fractions:
        for seed in suite.seeds:
            for arm in arms:
                cells = []
                for source in sources:
                    task = Task(suite.name, "main", target, source, arm, encoder, fraction, seed)
                    run = run_id(task, part_sha256(suite, task))
                    if run not in known:
                        return None
                    cells.append(known[run])
                if all(cells):
                    for source, cell in zip(sources, cells, strict=True):
                        values[source].append(float(cell))
    if not values[sources[0]]:
        raise ConfigError(
            f"no arm of {encoder} on {target} has a validation value, by which the best source "
            "could be chosen; name one source, or run all of them at every fraction"
        )
    return min(sources, key=lambda source: sum(values[source]))


def parse_only(texts: Sequence[str], suite: Suite) -> dict[str, set[str]]:
    """Read filters such as "target=ml-100k,arm=scratch"; several values are joined by |.

    Raises:
        ConfigError: Not of that form, an unknown key, or a value that the suite does not have.
    """
    known: dict[str, set[str]] = {
        "scenario": set(suite.scenarios),
        "target": set(suite.targets),
        "source": {
            *("", *("+".join(source) for source in suite.sources)),
            *(settings.checkpoint or "" for settings in suite.encoder.values()),
        },
        "arm": set(suite.arms),
        "encoder": {"", *suite.encoders},
        "fraction": {as_text(f) for s in suite.scenarios for f in suite.fractions_of(s)},
        "seed": {as_text(seed) for seed in suite.seeds},
    }
    only: dict[str, set[str]] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        key, sign, value = pair.partition("=")
        key = key.strip()
        if not sign or key not in ONLY:
            raise ConfigError(f"--only {pair!r}: expected KEY=VALUE with KEY of {', '.join(ONLY)}")
        values = {text.strip() for text in value.split("|")}
        if key == "fraction":
            values = {as_text(_number(pair, text)) for text in values}
        strange = values - known[key]
        if strange:
            listed = ", ".join(sorted(known[key] - {""}))
            raise ConfigError(
                f"--only {pair!r}: {sorted(strange)[0]!r} is not in the suite; it has {listed}"
            )
        only[key] = only.get(key, set()) | values
    return only


def chosen(task: Task | Waiting, only: dict[str, set[str]]) -> bool:
    """Whether a run passes the filters of `parse_only`, as far as its keys are known."""
    keys = task.keys()
    return all(keys[name] in values for name, values in only.items() if name in keys)


def _number(pair: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--only {pair!r}: expected a number, found {text!r}") from error
