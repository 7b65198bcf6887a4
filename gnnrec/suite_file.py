"""A suite's TOML file -> its settings, or one line that says what does not fit."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gnnrec.architectures import architectures
from gnnrec.baselines import BASELINES
from gnnrec.config import TransferConfig, parse_retrain, validate
from gnnrec.datasets import list_datasets
from gnnrec.errors import ConfigError
from gnnrec.storage import file_sha256, read_json
from gnnrec.suite import SHUFFLED, DataFile, EncoderSettings, Suite, family
from gnnrec.zoo import describe, resolve


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
        name: _data_file(own, f"{where}: data.{name}", folder) for name, own in suite.data.items()
    }
    suite = suite.model_copy(update={"encoder": encoders, "data": files})
    try:
        _check(suite)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return suite


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
    if suite.control_fractions and (SHUFFLED not in suite.arms or "main" not in suite.scenarios):
        raise ValueError(
            f"control_fractions says where {SHUFFLED} runs in the scenario main; add both, or "
            "leave it out"
        )
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


def _data_file(own: DataFile, where: str, folder: Path) -> DataFile:
    """Make paths absolute, and note what is in the files; one that is not there is read later."""
    paths = [None if path is None else (folder / path).absolute() for path in (own.file, own.items)]
    log, items = (None if path is None else str(path) for path in paths)
    found = None
    if all(path is None or path.is_file() for path in paths):
        digests = [file_sha256(path) for path in paths if path is not None]
        found = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
        if own.sha256 not in (None, found):
            raise ConfigError(
                f"{where}: found the sha256 {found} of {log}, expected {own.sha256}; results of "
                "the two do not belong together"
            )
    return own.model_copy(update={"file": log, "items": items, "sha256": found})


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
