"""Running a suite: one run at a time, each a row; a killed suite goes on where it was."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gnnrec.arms import Prepared, baseline_arm, run_arm
from gnnrec.baselines import BASELINES
from gnnrec.bench_rows import (
    BUCKET_COLUMNS,
    CURVE_COLUMNS,
    OVERLAP_COLUMNS,
    PRIMARY,
    RUN_COLUMNS,
    TRIAL_COLUMNS,
    Outcome,
    bucket_rows,
    curve_rows,
    run_row,
)
from gnnrec.config import TransferConfig, with_settings, write_toml
from gnnrec.console import text_table
from gnnrec.contrast import write_differences
from gnnrec.device import resolve_device
from gnnrec.energy import energy
from gnnrec.errors import GnnrecError
from gnnrec.evaluate import evaluate_scores
from gnnrec.ledger import Ledger, Row, alone
from gnnrec.machine import machine, reset_peak_memory
from gnnrec.materials import Materials, Say
from gnnrec.plan import Task, Waiting, chosen, parse_only, part_sha256, plan, run_id
from gnnrec.scenarios import prepare_scenario, shuffled_text, with_text
from gnnrec.storage import clear_left, whole_file
from gnnrec.suite import SHUFFLED, Scenario, Suite, family
from gnnrec.transfer import adapt
from gnnrec.trials import Settings, as_json, nearer, settings_to_try


class _OutOfTimeError(Exception):
    """The time of a shard is over; what is finished is written."""


def run_bench(
    suite: Suite,
    out: Path,
    *,
    device: str = "auto",
    mirror: Path | None = None,
    only: Sequence[str] = (),
    limit_minutes: float | None = None,
    say: Say = lambda line: None,
    after_run: Callable[[Task], None] | None = None,
) -> dict[str, Any]:
    """Run what a suite asks for and the folder does not have yet.

    Runs come one at a time in a fixed order (`gnnrec.plan.plan`). A row is appended when its run
    is finished and is never made twice, unless a setting that it depends on is another one.

    Args:
        suite: What to run.
        out: The results folder. runs.csv has a row per run; buckets.csv its means by user activity
            and item popularity; curves.csv its evaluations during training; trials.csv the tuning;
            overlap.csv what sources and targets share; differences.csv, written when all that was
            asked for is there, the comparisons (`gnnrec.contrast`); per_user the values behind
            them; checkpoints what was pretrained; suite.toml the settings.
        device: auto, cpu or cuda.
        mirror: Folder with copies of the data sets.
        only: Filters as "target=ml-100k,arm=scratch".
        limit_minutes: Stop before a run, or a trial, that would begin after so many minutes; by
            default the suite's own limit.
        say: Told about progress.
        after_run: Called after each run, when its row is written.

    Returns:
        Counts of runs done before, made now, left, and waiting for the best source; the mean of
        NDCG@20 per arm; the files.

    Raises:
        ConfigError: The suite cannot be run as it is, or another process runs it there.
        GnnrecError: A run failed; the runs before it are in the folder.
    """
    filters = parse_only(only, suite)
    where = str(resolve_device(device))
    with alone(out):
        bench = _Bench(suite, out, where, mirror, say)
        return bench.run(filters, limit_minutes, after_run)


class _Bench:
    def __init__(self, suite: Suite, out: Path, device: str, mirror: Path | None, say: Say) -> None:
        self.suite, self.out, self.device, self.say = suite, out, device, say
        self.materials = Materials(suite, out / "checkpoints", device, mirror, say)
        self.materials.check()
        (out / "per_user").mkdir(exist_ok=True)
        for folder in (out / "per_user", out / "checkpoints"):
            clear_left(folder)
        self.runs = Ledger(out / "runs.csv", RUN_COLUMNS)
        self.buckets = Ledger(out / "buckets.csv", BUCKET_COLUMNS)
        self.curves = Ledger(out / "curves.csv", CURVE_COLUMNS)
        self.trials = Ledger(out / "trials.csv", TRIAL_COLUMNS)
        self.overlaps = Ledger(out / "overlap.csv", OVERLAP_COLUMNS)
        self.done = {row["run"] for row in self.runs.rows}
        # A run's row is written last: what a killed process left of a run is made again.
        for part in (self.buckets, self.curves):
            part.keep(lambda row: row["run"] in self.done)
        with whole_file(out / "suite.toml") as path:
            write_toml(suite, path)
        self.deadline = math.inf
        self.textless: set[tuple[str, str]] = set()  # (target, arm) that cannot run
        self.prepared = functools.lru_cache(maxsize=1)(self._prepared)
        # Kept as well: what the arms of a comparison share hangs on their target.
        self.without_text = functools.lru_cache(maxsize=1)(
            lambda *place: with_text(self.prepared(*place), None)
        )
        self.split_sha256 = functools.lru_cache(maxsize=1)(
            lambda *place: self.prepared(*place).split_sha256
        )

    def run(
        self,
        filters: dict[str, set[str]],
        limit_minutes: float | None,
        after_run: Callable[[Task], None] | None,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        limit = self.suite.limit_minutes if limit_minutes is None else limit_minutes
        if limit is not None:
            self.deadline = started + 60.0 * limit
        n_before, n_made, stopped = len(self.done), 0, False
        left_out = {f"{t}: its source {s} holds it" for t, s in self.suite.own_sources()}
        try:
            for task in plan(self.suite, self.runs.rows):
                if isinstance(task, Waiting) or not chosen(task, filters):
                    continue
                part = part_sha256(self.suite, task)
                if run_id(task, part) in self.done:
                    continue
                self._check_time()
                if self._lacks_text(task):
                    self.textless.add((task.target, task.arm))
                    continue
                self._make(task, part)
                n_made += 1
                if after_run is not None:
                    after_run(task)
        except _OutOfTimeError:
            stopped = True
        left_out |= {f"{target}: no item text for {arm}" for target, arm in self.textless}
        for line in sorted(left_out):
            self.say(f"left out: {line}")
        n_left, n_waiting = self._remaining(filters)
        rows = self._rows()
        if not stopped and rows:
            write_differences(self.suite, self.out, rows)
        means = _means(rows)
        self.say(text_table(means))
        self.say(
            f"{n_made} runs made, {n_before} there before, {n_left} left"
            + (f" and {n_waiting} that wait for the best source" if n_waiting else "")
            + (" (stopped at the limit)" if stopped else "")
            + f" -> {self.out}"
        )
        return {
            "suite": self.suite.name,
            "out": str(self.out),
            "n_made": n_made,
            "n_before": n_before,
            "n_left": n_left,
            "n_waiting": n_waiting,
            "stopped": stopped,
            "left_out": sorted(left_out),
            "seconds": round(time.perf_counter() - started, 3),
            "means": means,
            "files": sorted(p.name for p in self.out.glob("*.csv")),
        }

    def _make(self, task: Task, part: str) -> None:
        """Make one run and write it, its row last."""
        started = time.perf_counter()
        run = run_id(task, part)
        try:
            settings = self._tuned(task)
            reset_peak_memory()
            with energy() as used:
                outcome = self._outcome(task, settings)
            outcome = replace(outcome, energy=used)
        except GnnrecError as error:
            raise type(error)(f"run {run}: {error}") from error
        arm, keys = outcome.arm, task.keys() | {"run": run}
        target = outcome.prepared.at_test or outcome.prepared.target
        seen = target.users[outcome.prepared.visible_rows]
        users = arm.results.users.astype(np.int64)
        activity = np.bincount(seen, minlength=target.n_users)[users].astype(np.int64)
        with whole_file(self.out / "per_user" / f"{run}.npz") as path, path.open("wb") as file:
            values = {name: v.astype(np.float32) for name, v in arm.results.per_user.items()}
            np.savez(file, users=users, activity=activity, **values)  # type: ignore[arg-type]
        self.buckets.append([keys | row for row in bucket_rows(arm)])
        self.curves.append([keys | row for row in curve_rows(arm)])
        row = run_row(outcome, self.split_sha256(*_place(task)), activity)
        row |= {"device": self.device, "part_sha256": part} | machine(self.device)
        self.runs.append([keys | row])
        self.done.add(run)
        self.say(
            f"{task.target} {task.scenario} {task.fraction:g} seed {task.seed}  "
            f"{' '.join(filter(None, (task.arm, task.encoder, task.source)))}  "
            f"{PRIMARY} {arm.results.metrics[PRIMARY]:.4f}  {time.perf_counter() - started:.1f} s"
        )

    def _outcome(self, task: Task, settings: Settings) -> Outcome:
        prepared = self.prepared(*_place(task))
        if family(task.arm) == "baseline":
            fit = functools.partial(BASELINES[task.arm], **settings)
            arm = baseline_arm(prepared, task.arm, fit, device=self.device)
            return Outcome(task, prepared, arm, settings, 0.0)
        prepared = self._text_for(task, prepared)
        checkpoint, seconds = self.materials.scratch(task.encoder), 0.0
        if task.sources:
            self._note_overlap(task)
            checkpoint = self.materials.checkpoint(task.encoder, task.sources, task.target)
            seconds = float(checkpoint.training["seconds"]["total"])
        config = self._config(task, settings)
        arm = run_arm(prepared, checkpoint, config, device=self.device)
        return Outcome(task, prepared, arm, settings, seconds)

    def _prepared(self, target: str, scenario: Scenario, fraction: float, seed: int) -> Prepared:
        data = self.materials.data_set(target)
        config = self.suite.transfer.model_copy(update={"fraction": fraction, "seed": seed})
        share = self.suite.cold_share
        return prepare_scenario(data.log, data.catalogue, scenario, config, data.seconds, share)

    def _text_for(self, task: Task, prepared: Prepared) -> Prepared:
        if not self.suite.encoder[task.encoder].text:
            return self.without_text(*_place(task))
        return shuffled_text(prepared, task.seed) if task.arm == SHUFFLED else prepared

    def _config(self, task: Task, settings: Settings) -> TransferConfig:
        retrain = self.suite.shuffled if task.arm == SHUFFLED else task.arm
        return with_settings(
            self.suite.transfer,
            settings,
            retrain=retrain,
            fraction=task.fraction,
            seed=task.seed,
        )

    def _tuned(self, task: Task) -> Settings:
        """The settings that validated best at the nearer of the tuning fractions; ties: earlier.

        Chosen on the validation rows of seed 0 in the scenario main, and for arms with sources
        with the first of these: every arm has the same number of trials on a target, however many
        sources it is then run with. The control has the settings of the arm that it controls.
        """
        arm = self.suite.shuffled if task.arm == SHUFFLED else task.arm
        tries = settings_to_try(self.suite, arm, task.encoder)
        if len(tries) == 1:
            return tries[0]
        sources = task.sources and self.suite.sources_of(task.encoder, task.target)[0]
        fraction = nearer(task.fraction, self.suite.tuning.fractions)
        trial_task = replace(
            task, scenario="main", arm=arm, sources=sources, fraction=fraction, seed=0
        )
        part = part_sha256(self.suite, trial_task)
        keys = {name: value for name, value in trial_task.keys().items() if name in TRIAL_COLUMNS}
        keys["part_sha256"] = part
        known = {
            row["trial"]: float(row["value"])
            for row in self.trials.rows
            if all(row[name] == value for name, value in keys.items())
        }
        values = []
        for number, settings in enumerate(tries):
            if str(number) not in known:
                self._check_time()
                started = time.perf_counter()
                value = self._validate(trial_task, settings)
                row: dict[str, Any] = keys | {"trial": number, "settings": as_json(settings)}
                row |= {"value": value, "seconds": round(time.perf_counter() - started, 3)}
                self.trials.append([row])
                known[str(number)] = float(self.trials.rows[-1]["value"])
            values.append(known[str(number)])
        return tries[int(np.argmax(np.nan_to_num(values, nan=-1.0)))]

    def _validate(self, task: Task, settings: Settings) -> float:
        """NDCG@20 of the validation rows, full ranking, with only the training rows visible."""
        prepared = self.prepared(*_place(task))
        split, target = prepared.split, prepared.target
        if not len(split.validation):
            return 0.0
        try:
            if family(task.arm) == "baseline":
                x = target.graph_input(split.train, device=self.device)
                scores = BASELINES[task.arm](x, **settings)
            else:
                checkpoint = self.materials.scratch(task.encoder)
                if task.sources:
                    args = (task.encoder, task.sources, task.target)
                    checkpoint = self.materials.checkpoint(*args)
                target = self._text_for(task, prepared).target
                parts = (split.train, split.validation, self._config(task, settings))
                adapted = adapt(checkpoint, target, *parts, device=self.device)
                scores, x = adapted.scores(target, split.train, self.device)
        except GnnrecError as error:
            if error.exit_code == 2:  # a setting that cannot be, and not one that diverged
                raise
            return math.nan
        held = (target.users[split.validation], target.items[split.validation])
        return evaluate_scores(scores, x.graph.user_items, *held, (20,)).metrics[PRIMARY]

    def _note_overlap(self, task: Task) -> None:
        if self.suite.encoder[task.encoder].checkpoint is not None:
            return  # its sources need not be here
        known = {(row["source"], row["target"]) for row in self.overlaps.rows}
        for source in task.sources:
            if (source, task.target) not in known:
                found = self.materials.overlap(source, task.target)
                log = self.materials.data_set(task.target).catalogue.log
                row = {"source": source, "target": task.target, **found.counts()}
                row |= {"n_target_items": log.n_items, "n_target_users": log.n_users}
                self.overlaps.append([row])

    def _lacks_text(self, task: Task) -> bool:
        reads = task.arm == SHUFFLED or (task.arm in BASELINES and BASELINES[task.arm].needs_text)
        return reads and not self.materials.data_set(task.target).has_text

    def _check_time(self) -> None:
        if time.perf_counter() >= self.deadline:
            raise _OutOfTimeError

    def _remaining(self, filters: dict[str, set[str]]) -> tuple[int, int]:
        n_left = n_waiting = 0
        for task in plan(self.suite, self.runs.rows):
            if not chosen(task, filters):
                continue
            if isinstance(task, Waiting):
                n_waiting += task.n_runs
            elif (task.target, task.arm) not in self.textless:
                n_left += run_id(task, part_sha256(self.suite, task)) not in self.done
        return n_left, n_waiting

    def _rows(self) -> list[Row]:
        """The rows that belong to the suite as it is now."""
        tasks = (task for task in plan(self.suite, self.runs.rows) if isinstance(task, Task))
        wanted = {run_id(task, part_sha256(self.suite, task)) for task in tasks}
        return [row for row in self.runs.rows if row["run"] in wanted]


def _means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """NDCG@20 per arm, mean over the seeds that are there."""
    names = ("target", "scenario", "fraction", "arm", "encoder", "source")
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(float(row[PRIMARY]))
    return [
        dict(zip(names, key, strict=True))
        | {PRIMARY: round(float(np.mean(values)), 6), "seeds": len(values)}
        for key, values in groups.items()
    ]


def _place(task: Task) -> tuple[str, Scenario, float, int]:
    """What a split depends on, beside the suite."""
    return task.target, task.scenario, task.fraction, task.seed
