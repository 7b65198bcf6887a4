"""What the commands that need torch do, apart from how their options are spelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import PretrainConfig, TransferConfig, load_config, parse_retrain, write_toml
from gnnrec.device import resolve_device
from gnnrec.errors import ConfigError, DataError
from gnnrec.interactions import Columns, Interactions
from gnnrec.ranks import together
from gnnrec.recommender import Recommender
from gnnrec.resume import resumable
from gnnrec.runs import evaluate_run, pretrain_run, transfer_run
from gnnrec.select import rank_checkpoints
from gnnrec.shown import bounds, percent
from gnnrec.sources import Log, fingerprint, held_out_sha256
from gnnrec.storage import MANIFEST, cannot_write, check_replaceable, file_sha256, whole_file
from gnnrec.tables import read_table
from gnnrec.text import DEFAULT_TEXT_MODEL, TextEncoder, require_text_extra, text_available
from gnnrec.zoo import available, resolve

Say = Callable[..., None]


def pretrain_command(
    open_sources: Callable[[], list[Log]],
    out: Path,
    text: bool | None,
    config_file: Path | None,
    overrides: dict[str, Any],
    device: str,
    say: Say,
) -> dict[str, Any]:
    """Pretrain, save the checkpoint, and return its training record."""
    _check_out(out, config_file)
    first = load_config(PretrainConfig, config_file, overrides)  # before the sources are read
    if first.model.encoder == "channels":  # its loop has settings of its own
        overrides = {key.replace("train.", "weigh.", 1): value for key, value in overrides.items()}
    if first.model.encoder == "graph-filter" and text is None:
        text = False  # it reads interactions alone
    resolve_device(device)
    logs = open_sources()
    have_text = all(log.has_text for log in logs)
    if text is None:
        text = have_text and text_available()
        if have_text and not text:
            say("the sources have text; to use it: pip install 'gnnrec[text]'")
    if text:
        require_text_extra()
        model = overrides.get("model.text_model") or first.model.text_model or DEFAULT_TEXT_MODEL
        overrides |= {"model.text_model": model, "model.text_dim": TextEncoder(model).dim}
    else:  # whatever the file says
        overrides |= {"model.text_dim": 0}
    config = load_config(PretrainConfig, config_file, overrides)
    about = _about("pretrain", config, device, logs)
    with together(str(resolve_device(device))) as ranks, resumable(out, about, say):
        log_file = _training_log(out) if ranks.rank == 0 else None
        checkpoint = pretrain_run(logs, config, name=out.name, device=device, log_file=log_file)
        if ranks.rank == 0:
            checkpoint.save(out)
            _write_settings(config, out)
        ranks.wait()
    record = checkpoint.training
    measure = f"validation loss {record['best_value']:.4f}"
    if config.model.encoder in ("graph-filter", "channels"):
        measure = f"validation NDCG@20 {-record['best_value']:.4f}"
    say(
        f"{config.model.encoder}, {'text' if text else 'text-free'}: {record['steps']} steps, "
        f"{measure}, {record['seconds']['total']:.0f} s -> {out}"
    )
    return {"checkpoint": str(out), **record}


def transfer_command(
    checkpoint: str,
    open_target: Callable[[], Log],
    out: Path,
    test: str | None,
    config_file: Path | None,
    overrides: dict[str, Any],
    device: str,
    cutoffs: tuple[int, ...],
    min_weight: float | None,
    say: Say,
) -> dict[str, Any]:
    """Adapt, save the recommender, and return the report."""
    _check_out(out, config_file)
    config = load_config(TransferConfig, config_file, overrides)
    parse_retrain(config.retrain)
    resolve_device(device)
    if test is not None and test != "none" and not Path(test).is_file():
        raise DataError(
            f"--test {test}: found no such file, expected a file of interactions or none"
        )
    folder = resolve(checkpoint)
    if folder.resolve() == out.resolve():
        raise ConfigError(f"--out {out}: found the checkpoint itself; name another folder")
    source = Checkpoint.load(folder)
    source.check_retrain(config.retrain)
    log = open_target()
    if source.config.text_dim and log.items is None and not log.has_text:
        say(
            f"note: {source.name} reads text and the target has none; its text part stays "
            "silent (give --items)"
        )
    held_out: str | Interactions | None = test
    if test is not None and test != "none":
        held_out = _read_test(
            Path(test), log.interactions, min_weight=min_weight, weight_may_lack=True
        )
    about = _about("transfer", config, device, [log])
    about["checkpoint"] = file_sha256(folder / MANIFEST)
    about["test"] = test if not isinstance(held_out, Interactions) else held_out_sha256(held_out)
    with together(str(resolve_device(device))) as ranks, resumable(out, about, say):
        recommender, report = transfer_run(
            source,
            log,
            config,
            test=held_out,
            device=device,
            ks=cutoffs,
            log_file=_training_log(out) if ranks.rank == 0 else None,
        )
        if ranks.rank == 0:
            recommender.save(out)
            _write_settings(config, out)
        ranks.wait()
    if test != "none" and not report["metrics"]:
        say("note: the log is too small to hold anything out; there are no metrics")
    counts = report["parameters"]
    say(
        f"{config.retrain}: trained {counts['trained']} of {counts['total']} parameters (and "
        f"{counts['id_tables']} in id tables, {counts['biases']} in biases), best steps "
        f"{report['best_steps']} of {report['steps']}, {report['seconds']['total']:.1f} s -> {out}"
    )
    return report


def transfer_lines(report: dict[str, Any]) -> list[str]:
    """Say whether the model is better than popularity, and what a guard kept."""
    lines, found = [], report.get("to_popularity")
    if found is not None and None not in found.values():  # popularity may find nothing at all
        low, high = found["low"], found["high"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        lines.append(
            f"{report['arm']} to popularity: {found['metric']} {percent(found['relative'])} "
            f"{bounds(found['relative_low'], found['relative_high'])}, 95 % interval over "
            f"{found['n_users']} users: {verdict}"
        )
    if report["choice"] == "scratch" and report["arm"] != "scratch":
        lines.append(
            "the guard kept a model from scratch: it ranked interactions hidden from both clearly "
            "better than the transferred one"
        )
    if report["strength"] != 1.0:
        lines.append(
            f"what is personal in the scores counts {report['strength']:g} times as much as the "
            "checkpoint says: so they ranked interactions hidden from them best"
        )
    return lines


def select_command(
    checkpoints: list[str] | None,
    open_target: Callable[[], Log],
    n_seeds: int,
    seed: int,
    device: str,
    say: Say,
) -> dict[str, Any]:
    """Rank the named checkpoints, or all shipped ones, for a target; return the report."""
    resolve_device(device)
    names = available() if checkpoints is None else checkpoints
    if not names:
        raise ConfigError(
            "select: found no shipped checkpoint in this installation, expected candidates; name "
            "some with --checkpoint"
        )
    loaded = [Checkpoint.load(resolve(name)) for name in names]
    log = open_target()
    report = rank_checkpoints(log, loaded, n_seeds=n_seeds, seed=seed, device=device)
    if not report["target_has_text"] and any(c.config.text_dim for c in loaded):
        cure = "pip install 'gnnrec[text]'" if log.has_text else "give --items"
        say(f"note: the text part of the candidates that read item text stays silent ({cure})")
    return report


def evaluate_command(
    folder: Path,
    test: Path,
    cutoffs: tuple[int, ...],
    device: str,
    columns: tuple[str | None, str | None, str | None],
    min_weight: float | None,
    say: Say,
) -> dict[str, Any]:
    """Measure a saved recommender; columns (user, item, weight) default to its log's."""
    recommender = Recommender.load(folder, device)
    held_out = _read_test(test, recommender.log, *columns, min_weight=min_weight)
    report = evaluate_run(recommender, held_out, cutoffs)
    if report["n_test_already_in_log"]:
        say(f"note: {report['n_test_already_in_log']} test pairs are in the log; left out")
    if report["n_unknown_users"]:
        say(f"note: {report['n_unknown_users']} test users are unknown and get popularity")
    if report["n_unknown_items"]:
        say(f"note: {report['n_unknown_items']} test items are not in the catalogue: misses")
    return report


def _read_test(
    path: Path,
    log: Interactions,
    user_column: str | None = None,
    item_column: str | None = None,
    weight_column: str | None = None,
    *,
    min_weight: float | None = None,
    weight_may_lack: bool = False,
) -> Interactions:
    """Read held-out interactions; of a log's columns only the ids, and the weight, matter."""
    columns = Columns(
        user=user_column or log.columns.user,
        item=item_column or log.columns.item,
        weight=weight_column or log.columns.weight,
    )
    frame = read_table(path)
    if weight_may_lack and columns.weight not in frame.columns:
        min_weight = None  # a test part that was narrowed before has no weights to narrow by
    wanted = [columns.user, columns.item, *([] if min_weight is None else [columns.weight])]
    if set(wanted) <= set(frame.columns):
        attributes = dict(frame.attrs)
        frame = frame[wanted]
        frame.attrs.update(attributes)
    return Interactions.from_frame(frame, columns, min_weight, str(path))


def _check_out(out: Path, config_file: Path | None) -> None:
    """Refuse an output that would take the place of something else, before long work."""
    check_replaceable(out)
    if config_file is not None and config_file.resolve() == _beside(out).resolve():
        raise ConfigError(
            f"--out {out}: its settings would overwrite --config {config_file}; name another folder"
        )


def _about(
    command: str, config: PretrainConfig | TransferConfig, device: str, logs: list[Log]
) -> dict[str, Any]:
    """Return what decides the outcome of a training; see `gnnrec.resume.resumable`."""
    return {
        "command": command,
        "config": config.model_dump(mode="json"),
        "device": str(resolve_device(device)),
        "data": [[log.name, fingerprint(log)] for log in logs],
    }


def _write_settings(config: PretrainConfig | TransferConfig, out: Path) -> None:
    with whole_file(_beside(out)) as path:
        write_toml(config, path)


def _training_log(out: Path) -> Path:
    """Return an empty place for the evaluations' JSON lines, beside an output folder."""
    log = _beside(out).with_suffix(".log.jsonl")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(log, error) from error
    return log


def _beside(out: Path) -> Path:
    """Path of the resolved settings, beside an output folder."""
    return out.parent / f"{out.resolve().name}.toml"
