"""Searching the settings of a transfer on the target's own training interactions, with Optuna."""

from __future__ import annotations

import concurrent.futures
import fcntl
import importlib.util
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import norm

from gnnrec.arms import Prepared, prepare
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig, with_settings, write_toml
from gnnrec.device import derive_seed, resolve_device
from gnnrec.errors import ConfigError, DataError
from gnnrec.evaluate import evaluate_scores
from gnnrec.ledger import drop_part_line
from gnnrec.sources import Log
from gnnrec.space import Space, defaults_of, space_of
from gnnrec.split import carve_validation
from gnnrec.storage import clear_left, whole_file, write_json
from gnnrec.target import Target
from gnnrec.transfer import adapt

if TYPE_CHECKING:
    import optuna

MEASURE = "ndcg@20"
N_REPEATS = 3
_CHANCE = 0.1  # that one of the trials beats defaults as good as all, where they are kept
_PRUNED = 0.3  # with two cuts of three, both worse than the best trial's is 1 in 4
_STUDY = "gnnrec"
_JOURNAL = "journal.log"
_DEFAULTS = "defaults"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        config: For a transfer: the defaults where nothing was clearly better.
        settings: What differs from the defaults; empty where they are kept.
        report: The numbers behind it, as plain values.
    """

    config: TransferConfig
    settings: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True)
class Repeat:
    """One cut of the training interactions: what is adapted on, and what is measured on.

    The measured rows are neither trained on nor choose a step: those that do (`validation`) are
    carved from what is left. Each repeat has its own target, whose lessons serve all its trials.
    """

    target: Target
    train: np.ndarray
    validation: np.ndarray
    measured: np.ndarray


def tune(
    checkpoint: Checkpoint,
    log: Log,
    config: TransferConfig,
    out: Path,
    *,
    retrain: str | None = None,
    n_trials: int | None = None,
    minutes: float | None = None,
    workers: int = 1,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Tuned:
    """Search a family's settings (`gnnrec.space`) for a target; started again, it goes on.

    The part that a transfer with the same configuration tests on is held out first and never
    looked at. What is left is cut three times at random; a trial's value is the mean NDCG@20 of the
    three measured parts. A trial whose first cuts are worse than the best trial's (Wilcoxon's
    signed-rank test) is pruned. The defaults are the first trial, and stay unless the best one is
    better by more than chance would make the best of so many (one-sided, paired over users, the
    chance of a tenth shared by the trials): the best of many noisy numbers is seldom the best.

    Args:
        checkpoint: What is adapted.
        log: The target.
        config: Where the search starts; what is not in the space stays as it is.
        out: Folder of the study: journal.log (Optuna's journal storage), values/ (per user), and at
            the end tuned.toml, trials.csv and tuned.json.
        retrain: A mode that is kept; None searches the mode too.
        n_trials: In all, those of an earlier start counted; None sets no limit.
        minutes: Of this start; None sets no limit.
        workers: Processes that share the study.
        device: auto, cpu or cuda.
        say: Told about progress.

    Raises:
        ConfigError: Neither limit is given, the folder holds another study, or the `[tune]` extra
            is missing.
        DataError: The target has too few interactions to cut.
    """
    require_tune_extra()
    if n_trials is None and minutes is None:
        raise ConfigError("tune: found no limit; expected --trials, --minutes or both")
    started = time.perf_counter()
    if retrain is not None:
        config = config.model_copy(update={"retrain": retrain})
    space = space_of(checkpoint.model(), retrain)
    prepared = prepare(log, checkpoint.text_encoder(str(resolve_device(device))), config)
    repeats = repeats_of(prepared, config)  # refuses what is too small before anything is written
    out.mkdir(parents=True, exist_ok=True)
    (out / "values").mkdir(exist_ok=True)
    clear_left(out / "values")  # of a killed trial, whose number no other has
    about = {
        "source": checkpoint.name,
        "target": log.name,
        "config": config.model_dump(mode="json"),
        "split_sha256": prepared.split_sha256,
        "space": {name: repr(part) for name, part in space.items()},
    }
    study = _open(out, about)
    if not any(_is_defaults(t) and t.state.name in ("COMPLETE", "WAITING") for t in study.trials):
        study.enqueue_trial(defaults_of(space, config.model_dump()), {_DEFAULTS: True})
    deadline = math.inf if minutes is None else time.time() + 60.0 * minutes
    job = _Job(checkpoint, log, config, out, retrain, n_trials, deadline, device, about)
    if workers == 1:
        _work(job, 0, repeats)
    else:
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            parts = [pool.submit(_work, job, n, None, workers) for n in range(workers)]
            try:
                for part in parts:
                    part.result()
            except BaseException:  # leaving the pool would wait for the whole search
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    return _finish(study, space, config, out, about, time.perf_counter() - started, say)


@dataclass(frozen=True)
class _Job:
    checkpoint: Checkpoint
    log: Log
    config: TransferConfig
    out: Path
    retrain: str | None
    n_trials: int | None
    deadline: float
    device: str
    about: dict[str, Any]


def _work(job: _Job, number: int, repeats: list[Repeat] | None = None, workers: int = 1) -> None:
    """One process of a search; one of several cuts the target for itself."""
    import optuna

    where = resolve_device(job.device)
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if repeats is None:
        prepared = prepare(job.log, job.checkpoint.text_encoder(str(where)), job.config)
        repeats = repeats_of(prepared, job.config)
    space = space_of(job.checkpoint.model(), job.retrain)
    study = _open(job.out, job.about)

    def objective(trial: optuna.Trial) -> float:
        settings = {name: part.suggest(trial, name) for name, part in space.items()}
        config = job.config if _is_defaults(trial) else with_settings(job.config, settings)
        values = []
        for place, repeat in enumerate(repeats):
            values.append(measured(job.checkpoint, repeat, config, where))
            trial.report(float(values[-1].mean()), place)
            if place + 1 < len(repeats) and trial.should_prune():
                raise optuna.TrialPruned
        _write_values(job.out, trial.number, np.concatenate(values))
        return float(np.mean([value.mean() for value in values]))

    def enough() -> bool:
        n_ended = sum(t.state.is_finished() for t in study.trials)
        return job.n_trials is not None and n_ended >= job.n_trials

    while not enough() and time.time() < job.deadline:
        # What a trial draws depends on the ended ones alone: killed or not, a search is the same.
        n_ended = sum(t.state.is_finished() for t in study.trials)
        study.sampler = _sampler(derive_seed(job.config.seed, "trial", number, n_ended))
        study.optimize(objective, n_trials=1)


def repeats_of(prepared: Prepared, config: TransferConfig) -> list[Repeat]:
    """Cut the training interactions of a prepared target `N_REPEATS` times.

    Raises:
        DataError: There are too few to measure on.
    """
    repeats = []
    for number in range(N_REPEATS):
        seed = derive_seed(config.seed, "tune", str(number))
        rest, held_out = carve_validation(prepared.split.kept, config.validation, seed)
        if not len(held_out):
            raise DataError(
                f"{prepared.log.name}: found {len(prepared.split.kept)} interactions to train on, "
                "too few to hold some out; expected at least ten; transfer with the defaults"
            )
        train, validation = carve_validation(rest, config.validation, config.seed)
        repeats.append(Repeat(prepared.catalogue.target(), train, validation, held_out))
    return repeats


def measured(
    checkpoint: Checkpoint, repeat: Repeat, config: TransferConfig, device: torch.device
) -> np.ndarray:
    """Adapt on a repeat and return (n,) NDCG@20 of its measured users, users ascending."""
    target = repeat.target
    adapted = adapt(checkpoint, target, repeat.train, repeat.validation, config, device=device)
    rows = np.sort(np.concatenate([repeat.train, repeat.validation]))
    scores, x = adapted.scores(target, rows, device)
    users, items = target.users[repeat.measured], target.items[repeat.measured]
    return evaluate_scores(scores, x.graph.user_items, users, items, (20,)).per_user[MEASURE]


def require_tune_extra() -> None:
    """Raise a ConfigError unless Optuna is installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError('tune needs Optuna, which is not installed: pip install "gnnrec[tune]"')


def _open(out: Path, about: dict[str, Any]) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = _Lock(out / _JOURNAL)
    lock.acquire()
    try:
        drop_part_line(out / _JOURNAL)
    finally:
        lock.release()
    storage = JournalStorage(JournalFileBackend(str(out / _JOURNAL), lock))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=_PRUNED)
    study = optuna.create_study(
        study_name=_STUDY,
        storage=storage,
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", about)
    elif known != about:
        differs = next(key for key in about if about[key] != known.get(key))
        raise ConfigError(
            f"{out}: found a search with another {differs}, expected the same one to go on with; "
            "name another folder with --out"
        )
    return study


class _Lock:
    """Optuna's lock on a journal as one that ends with its process: its own outlives a kill."""

    def __init__(self, journal: Path) -> None:
        self.path, self.file = journal.with_suffix(".lock"), -1

    def acquire(self) -> bool:
        """Wait for it."""
        self.file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it up."""
        os.close(self.file)


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=8)


def _is_defaults(trial: optuna.Trial | optuna.trial.FrozenTrial) -> bool:
    return _DEFAULTS in trial.user_attrs


def _write_values(out: Path, number: int, values: np.ndarray) -> None:
    with whole_file(out / "values" / f"{number}.npy") as path, path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _values(out: Path, number: int) -> np.ndarray:
    values: np.ndarray = np.load(out / "values" / f"{number}.npy", allow_pickle=False)
    return values


def _finish(
    study: optuna.Study,
    space: Space,
    config: TransferConfig,
    out: Path,
    about: dict[str, Any],
    seconds: float,
    say: Say,
) -> Tuned:
    import optuna

    ended = [t for t in study.trials if t.state.is_finished()]  # not what was killed
    done = [t for t in ended if t.state == optuna.trial.TrialState.COMPLETE]
    if not any(map(_is_defaults, done)):
        raise ConfigError(
            "tune: found no finished trial of the defaults, expected one; give it more --minutes"
        )
    defaults = next(t for t in done if _is_defaults(t))
    best = max(done, key=lambda t: (t.value or 0.0, -t.number))
    gap = _values(out, best.number) - _values(out, defaults.number)
    error = float(gap.std(ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else math.inf
    bar = float(norm.isf(_CHANCE / max(len(ended) - 1, 1)))
    taken = best.number != defaults.number and float(gap.mean()) > bar * error
    settings = dict(best.params) if taken else {}
    importance: dict[str, float] = {}
    if len(done) >= 4:
        importance = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    tuned = with_settings(config, settings)
    report = {
        "source": about["source"],
        "target": about["target"],
        "split_sha256": about["split_sha256"],
        "n_trials": len(ended),
        "n_finished": len(done),
        "n_pruned": sum(t.state == optuna.trial.TrialState.PRUNED for t in study.trials),
        "measure": f"{MEASURE}, mean of {N_REPEATS} cuts of the training interactions",
        "defaults": {"value": defaults.value, "settings": defaults.params},
        "best": {
            "value": best.value,
            "settings": best.params,
            "gain": float(gap.mean()),
            "standard_error": error,
        },
        "kept": "best" if taken else "defaults",
        "settings": settings,
        "importance": {name: round(value, 4) for name, value in importance.items()},
        "seconds": round(seconds, 3),
    }
    with whole_file(out / "tuned.toml") as path:
        write_toml(tuned, path)
    with whole_file(out / "trials.csv") as path:
        frame = study.trials_dataframe(("number", "value", "params", "state", "duration"))
        frame[frame["number"].isin([t.number for t in ended])].to_csv(path, index=False)
    with whole_file(out / "tuned.json") as path:
        write_json(path, report)
    say(
        f"{len(done)} trials finished, {report['n_pruned']} pruned; defaults {defaults.value:.4f}, "
        f"best {best.value:.4f} (+{gap.mean():.4f}, standard error {error:.4f}): "
        + (f"taken {settings}" if taken else "not clearly better, the defaults are kept")
    )
    for name, value in sorted(importance.items(), key=lambda pair: -pair[1]):
        say(f"  importance {value:.2f}  {name}")
    return Tuned(tuned, settings, report)
