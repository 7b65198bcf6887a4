"""Kill pretrain, transfer, bench and tune at random moments, start them again, compare the ends.

    python benchmarks/reliability/kill.py

Every command first runs undisturbed. Then it is started, killed (SIGKILL) after a random time and
started again until it ends by itself, over and over. After each kill: every output folder is whole
or not there, no finished row or trial is lost. After each end: no temporary file is left, and what
was made is what the undisturbed run made, timings apart. One warm process forks for each start, so
that a kill costs no import. The last rows fill a small tmpfs; they need the right to mount.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forks of a process with threads are not safe

import numpy as np
import pandas as pd
import torch

from gnnrec import cli, resume
from gnnrec.errors import CheckpointError
from gnnrec.ledger import read_rows, write_rows
from gnnrec.machine import machine
from gnnrec.storage import MANIFEST, verify

# Imported here, so that no child has to.
from gnnrec import bench, commands, tune  # noqa: F401  isort: skip

RESULTS = Path(__file__).parent / "results" / "kill.csv"
_TRAIN = "max_steps = 150\nevaluate_every = 15\nn_negatives = 20\nbatch_size = 64\npatience = 9\n"
_SUITE = """
name = "killed"
targets = ["shop"]
sources = ["books"]
fractions = [0.5, 1.0]
seeds = [0]
encoders = ["lightgcn"]
arms = ["popularity", "ease", "scratch", "zero-shot", "heads"]
text_model = ""

[tuning]
n_trials = 2

[data.shop]
file = "shop.csv"

[data.books]
file = "books.csv"

[transfer]
n_folds = 2
train = { max_steps = 10, evaluate_every = 5, n_negatives = 20 }
calibrate = { max_steps = 10, evaluate_every = 5, n_negatives = 20 }

[encoder.lightgcn]
text = false

[encoder.lightgcn.pretrain]
n_validation_episodes = 1
min_users = 20
train = { max_steps = 20, evaluate_every = 10, n_negatives = 20 }
"""


@dataclass
class Command:
    """What is killed.

    Attributes:
        arguments: Of `gnnrec`; OUT stands for the output folder.
        outcome: What an ended run made, without timings.
        finished: What must not be lost once it is there.
    """

    name: str
    arguments: list[str]
    outcome: Callable[[Path], object]
    finished: Callable[[Path], set[str]] = lambda out: set()


@dataclass
class Count:
    """One row of the results.

    Attributes:
        kills, starts, ends: Of processes; a start is killed or ends.
        resumed: Starts that went on within a training or search; bench and tune go on by rows.
        mismatches: Ends that made something else, or failed.
        corrupt, lost, left: Kills after which an output was damaged or a finished row was gone, and
            ends after which a temporary file was left.
        note: Why something was skipped, or what the full disk refused.
    """

    command: str
    kills: int = 0
    starts: int = 0
    ends: int = 0
    resumed: int = 0
    mismatches: int = 0
    corrupt: int = 0
    lost: int = 0
    left: int = 0
    seconds: float = 0.0
    note: str = ""

    def problem(self, kind: str, what: str) -> None:
        """Count what should not be."""
        setattr(self, kind, getattr(self, kind) + 1)
        print(f"  {self.command}: {kind}: {what}", file=sys.stderr)


def start(command: Command, out: Path, said: Path) -> int:
    """Fork a child that runs the command; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["gnnrec", *(str(out) if a == "OUT" else a for a in command.arguments)]
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        if command.name == "":  # the first one says what the others will import
            said.with_name("modules").write_text("\n".join(sys.modules))
        os._exit(code)


def ended(pid: int, limit: float | None = None) -> int | None:
    """Wait for a child, its exit code; None if it lives after the limit and is killed."""
    until = None if limit is None else time.monotonic() + limit
    while True:
        done, status = os.waitpid(pid, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def sha256(*paths: Path) -> str:
    """Digest of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def untimed(path: Path) -> list[dict[str, str]]:
    """Rows of a suite without what no two runs share."""
    skip = ("seconds", "peak_memory", "date", "energy", "hardware")
    return [{k: v for k, v in r.items() if not k.startswith(skip)} for r in read_rows(path)]


def suite_outcome(out: Path) -> object:
    """All rows of a suite's files."""
    files = ("runs", "buckets", "curves", "trials", "overlap", "differences")
    return [untimed(out / f"{name}.csv") for name in files]


def tune_outcome(out: Path) -> object:
    """What was chosen, and all trials in order."""
    frame = pd.read_csv(out / "trials.csv").drop(columns=["number", "duration"])
    return sha256(out / "tuned.toml"), frame.to_csv(index=False)


def journal(out: Path) -> set[str]:
    """The ended trials that a search has written down."""
    path = out / "journal.log"
    found = set()
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a killed process's last line
        if entry.get("state") in (1, 2):  # complete, pruned
            found.add(f"{entry['trial_id']} {entry.get('values')}")
    return found


def commands_in(home: Path) -> list[Command]:
    """Make the logs, settings and the checkpoint; return what is killed."""
    for name, n_users, n_items, n_rows, seed in (
        ("books", 90, 70, 1500, 1),
        ("shop", 40, 30, 350, 2),
    ):
        rng = np.random.default_rng(seed)
        items = (rng.random(n_rows) ** 2 * n_items).astype(int)
        frame = pd.DataFrame({"user_id": rng.integers(0, n_users, n_rows), "item_id": items})
        frame = frame.drop_duplicates(ignore_index=True)
        frame.assign(timestamp=np.arange(len(frame))).to_csv(home / f"{name}.csv", index=False)
    (home / "p.toml").write_text(
        "n_validation_episodes = 1\nmin_users = 20\n[model]\ndim = 8\nn_layers = 2\n"
        f"spectral_rank = 8\n[train]\n{_TRAIN}"
    )
    (home / "t.toml").write_text(f"[train]\n{_TRAIN}[calibrate]\n{_TRAIN}")
    (home / "s.toml").write_text(_SUITE.replace('text_model = ""\n', ""))
    few = _TRAIN.replace("150", "15")
    (home / "u.toml").write_text(f"[train]\n{few}[calibrate]\n{few}")
    books, shop = str(home / "books.csv"), str(home / "shop.csv")
    cpu = ["--device", "cpu", "--out", "OUT"]
    pre = ["pretrain", "--source", books, "--no-text", "--config", str(home / "p.toml"), *cpu]
    checkpoint = home / "checkpoint"
    assert ended(start(Command("", pre, sha256), checkpoint, home / "said")) == 0, said(home)
    for name in (home / "modules").read_text().split():
        with contextlib.suppress(Exception):  # some only exist within others
            importlib.import_module(name)
    onto = [str(checkpoint), "--target", shop, "--retrain", "full"]
    return [
        Command("pretrain", pre, lambda out: sha256(out / "model.safetensors")),
        Command(
            "transfer",
            ["transfer", *onto, "--config", str(home / "t.toml"), *cpu],
            lambda out: sha256(out / "model.safetensors", out / "vectors.safetensors"),
        ),
        Command(
            "bench",
            ["bench", str(home / "s.toml"), *cpu],
            suite_outcome,
            lambda out: {row["run"] for row in read_rows(out / "runs.csv")},
        ),
        Command(
            "tune",
            ["tune", *onto, "--trials", "5", "--config", str(home / "u.toml"), *cpu],
            tune_outcome,
            journal,
        ),
    ]


def said(home: Path) -> str:
    """The last lines that a child wrote."""
    return (home / "said").read_text()[-2000:]


def look(count: Count, command: Command, out: Path, before: set[str]) -> set[str]:
    """Check what a kill left; return what is finished by now."""
    for folder in [out, *(out / "checkpoints").glob("[!.]*")]:
        if (folder / MANIFEST).is_file():
            try:
                verify(folder)
            except CheckpointError as error:
                count.problem("corrupt", str(error))
    now = command.finished(out)
    if before - now:
        count.problem("lost", ", ".join(before - now))
    return now


def kill_often(command: Command, home: Path, kills: int, until: float, seed: int) -> Count:
    """Kill a command so many times over as many whole runs as that takes."""
    count, draw, began = Count(command.name), random.Random(seed), time.perf_counter()
    whole = home / f"{command.name}.whole"
    started = time.perf_counter()
    assert ended(start(command, whole, home / "said")) == 0, said(home)
    typical = time.perf_counter() - started
    expected = command.outcome(whole)
    while count.kills < kills and time.monotonic() < until:
        place = home / f"{command.name}.{count.ends}"
        place.mkdir()
        out, done, tries = place / "out", set[str](), 0
        while True:
            count.starts += 1
            pid = start(command, out, home / "said")
            last = time.monotonic() >= until
            limit = draw.uniform(0.02, 0.4) * typical * 1.03**tries  # to get somewhere in the end
            code = ended(pid, None if last else limit)
            count.resumed += "goes on at step" in (home / "said").read_text()
            done = look(count, command, out, done)
            if code is None:
                count.kills, tries = count.kills + 1, tries + 1
                continue
            break
        count.ends += 1
        if code != 0:
            count.problem("mismatches", f"exit code {code}: {said(home)}")
        elif command.outcome(out) != expected:
            count.problem("mismatches", str(out))
            continue  # it stays, to be looked at
        rest = [p.name for p in place.rglob("*") if ".gnnrec-" in p.name or p.suffix == ".resume"]
        if rest:
            count.problem("left", ", ".join(rest))
        shutil.rmtree(place)
    count.seconds = round(time.perf_counter() - began, 1)
    return count


def fill_often(command: Command, home: Path) -> Count:
    """Run a command again and again on a disk with ever less room, over its earlier output."""
    count, began = Count(f"{command.name}, full disk"), time.perf_counter()
    disk = home / f"{command.name}.disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        count.note = f"skipped: {error.strerror}"
        return count
    if done.returncode:
        count.note = "skipped: " + " ".join(done.stderr.split())
        return count
    try:
        out = disk / "out"
        assert ended(start(command, out, home / "said")) == 0, said(home)
        expected = command.outcome(out)
        refused = 0
        for room in (0, 1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256):
            (disk / "filler").unlink(missing_ok=True)
            free = shutil.disk_usage(disk).free
            (disk / "filler").write_bytes(b"\0" * max(0, free - 1024 * room))
            count.starts += 1
            code = ended(start(command, out, home / "said"))
            refused += code == 2
            lines = [line for line in said(home).splitlines() if line.startswith("error:")]
            if code not in (0, 2) or (code == 2) != (len(lines) == 1):
                count.problem("mismatches", f"{room} KiB free, exit code {code}: {said(home)}")
            try:
                verify(out)
                if command.outcome(out) != expected:
                    count.problem("mismatches", f"{room} KiB free: another output")
            except CheckpointError as error:
                count.problem("corrupt", str(error))
            if rest := [p.name for p in disk.rglob("*") if ".gnnrec-" in p.name]:
                count.problem("left", f"{room} KiB free: {', '.join(rest)}")
        count.ends = count.starts - refused
        count.note = f"{refused} of {count.starts} starts refused for want of room"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    count.seconds = round(time.perf_counter() - began, 1)
    return count


def main() -> None:
    """Run it all and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="of each command")
    parser.add_argument("--minutes", type=float, default=12.0, help="at most, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", help="some commands; no disk is filled, no row written"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resume.LEAST_SECONDS = 0.02  # short runs: states as often as a long run has them
    counts = []
    with tempfile.TemporaryDirectory(prefix="gnnrec-kill-") as folder:
        home = Path(folder)
        made = commands_in(home)
        made = [c for c in made if not arguments.only or c.name in arguments.only]
        began = time.monotonic()
        for number, command in enumerate(made):
            until = began + 54 * arguments.minutes * (number + 1) / len(made)
            counts.append(kill_often(command, home, arguments.kills, until, arguments.seed))
            print(counts[-1], file=sys.stderr)
        for command in made:
            if not arguments.only and command.name in ("pretrain", "transfer"):
                counts.append(fill_often(command, home))
                print(counts[-1], file=sys.stderr)
    rows = [{k: v for k, v in vars(c).items()} | machine("cpu") for c in counts]
    if not arguments.only:
        RESULTS.parent.mkdir(exist_ok=True)
        write_rows(RESULTS, list(rows[0]), rows)
    bad = sum(c.mismatches + c.corrupt + c.lost + c.left for c in counts)
    sys.exit(f"{bad} problems" if bad else 0)


if __name__ == "__main__":
    main()
