"""Several processes against one: loss curves, metrics, killed workers, two hosts.

    python benchmarks/reliability/ranks.py              # needs the text extra and MovieLens
    python benchmarks/reliability/ranks.py --kills 20

curve    pretraining on MovieLens 100K by one process, two and four: the largest relative difference
         of a value or a loss of the curve (0 for the same bits)
metrics  transfer of that checkpoint to a fifth of MovieLens latest small, `final:1`: the difference
         in NDCG@20 and recall@20 on the test part
threads  the same transfer by one process of one thread and of two
killed   pretraining by two processes of which one is killed (SIGKILL) at a random moment, and
         torchrun's agent starts both again until they end: how often, and whether the weights are
         the bits of an undisturbed run
hosts    two agents in network namespaces of their own, joined by a virtual cable (needs the right
         to make them): the curve, and whether the bits are those of two processes on one host
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import report

ENCODERS = ("lightgcn", "graphsage", "neumf")
STEPS = 120
RUN = [sys.executable, "-m", "torch.distributed.run"]
ROW = dict.fromkeys(
    ("check", "encoder", "processes", "threads", "hosts", "evaluations", "largest_difference",
     "ndcg@20", "recall@20", "ndcg@20_difference", "recall@20_difference", "kills", "restarts",
     "same_bits"),
    "",
)  # fmt: skip


def environment(threads: int = 1) -> dict[str, str]:
    """One thread a process unless said otherwise; workers find the package beside this script."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    return os.environ | settings | {"PYTHONWARNINGS": "ignore"}


def call(n: int, *arguments: str, threads: int = 1) -> str:
    """Run the command line in n processes; returns what it printed on stdout."""
    start = [sys.executable] if n == 1 else [*RUN, "--standalone", "--nproc-per-node", str(n)]
    command = [*start, "-m", "gnnrec", *arguments]
    done = subprocess.run(
        command, env=environment(threads), text=True, check=False, capture_output=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def pretraining(encoder: str, out: Path) -> list[str]:
    """The command whose curve is compared."""
    command = ["pretrain", "--source", "ml-100k", "--encoder", encoder]
    return [
        *command,
        "--max-steps",
        str(STEPS),
        "--seed",
        "3",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]


def curve(out: Path) -> list[tuple[float, float]]:
    """(value, loss) of each evaluation."""
    lines = out.with_suffix(".log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["value"], record["loss"]) for record in map(json.loads, lines)]


def difference(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> float:
    """The largest relative difference; infinite where one has fewer evaluations."""
    if len(one) != len(other):
        return float("inf")
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


def weights(out: Path) -> bytes:
    """The bytes of a checkpoint's tensors."""
    return (out / "model.safetensors").read_bytes()


def curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of `curve` and `metrics`."""
    rows = []
    for encoder in ENCODERS:
        one, measured = folder / f"{encoder}1", {}
        for n in (1, 2, 4):
            out = folder / f"{encoder}{n}"
            call(n, *pretraining(encoder, out))
            own = curve(out)
            rows.append(ROW | {"check": "curve", "encoder": encoder, "processes": n, "hosts": 1,
                               "threads": 1, "evaluations": len(own),
                               "largest_difference": difference(curve(one), own)})  # fmt: skip
        for n, threads in ((1, 1), (2, 1), (4, 1), (1, 2)):
            command = ["transfer", str(one), "--target", "ml-latest-small", "--fraction", "0.2"]
            command += ["--device", "cpu"]
            out = folder / f"{encoder}.{n}.{threads}"
            printed = call(n, *command, "--json", "--out", str(out), threads=threads)
            metrics = json.loads(printed)["metrics"]
            first = measured.setdefault("first", metrics)
            row = {"check": "metrics" if threads == 1 else "threads", "encoder": encoder,
                   "processes": n, "threads": threads, "hosts": 1}  # fmt: skip
            for name in ("ndcg@20", "recall@20"):
                row |= {name: metrics[name], f"{name}_difference": metrics[name] - first[name]}
            rows.append(ROW | row)
    return rows


def killed(folder: Path, n_kills: int, seed: int) -> dict[str, Any]:
    """The row of `killed`: workers of as many runs as it takes are killed at random moments."""
    rng = random.Random(seed)
    kills = restarts = 0
    same = True
    undisturbed = folder / "graphsage2"
    while kills < n_kills:
        out = folder / f"killed{kills}"
        command = [*RUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "50"]
        running = subprocess.Popen(
            [*command, "-m", "gnnrec", *pretraining("graphsage", out)],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said: list[str] = []
        assert running.stderr is not None
        reader = threading.Thread(target=lambda s=said, r=running.stderr: s.extend(r), daemon=True)
        reader.start()
        while running.poll() is None and kills < n_kills:
            time.sleep(rng.uniform(4.0, 14.0))
            workers = children(running.pid)
            if workers and running.poll() is None:
                os.kill(rng.choice(workers), 9)
                kills += 1
        running.wait()
        reader.join()
        restarts += sum("goes on at step" in line for line in said)
        same &= running.returncode == 0 and weights(out) == weights(undisturbed)
    return ROW | {"check": "killed", "encoder": "graphsage", "processes": 2, "threads": 1,
                  "hosts": 1, "kills": kills, "restarts": restarts,
                  "same_bits": int(same)}  # fmt: skip


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.is_file() else []


def hosts(folder: Path) -> dict[str, Any]:
    """The row of `hosts`."""
    names = [f"gnnrec{os.getpid()}{side}" for side in "ab"]
    ip = ["ip", "-netns"]
    out = folder / "hosts"

    def run(*words: str) -> None:
        subprocess.run(words, check=True)

    try:
        for name in names:
            run("ip", "netns", "add", name)
            run(*ip, name, "link", "set", "lo", "up")
        run(*ip, names[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
        run(*ip, names[0], "link", "set", "cable1", "netns", names[1])
        agents = []
        for number, name in enumerate(names):
            cable = f"cable{number}"
            run(*ip, name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", cable)
            run(*ip, name, "link", "set", cable, "up")
        for number, name in enumerate(names):
            command = [*RUN, "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
            command += ["--master-addr", "10.77.0.1", "--master-port", "29555"]
            command += ["-m", "gnnrec", *pretraining("graphsage", out)]
            settings = environment() | {"GLOO_SOCKET_IFNAME": f"cable{number}"}
            wrapped = ["ip", "netns", "exec", name, *command]
            agents.append(subprocess.Popen(wrapped, env=settings, stderr=subprocess.DEVNULL))
        codes = [agent.wait() for agent in agents]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
    assert codes == [0, 0], codes
    return ROW | {"check": "hosts", "encoder": "graphsage", "processes": 2, "threads": 1,
                  "hosts": 2, "evaluations": len(curve(out)),
                  "largest_difference": difference(curve(folder / "graphsage1"), curve(out)),
                  "same_bits": int(weights(out) == weights(folder / "graphsage2"))}  # fmt: skip


def main() -> None:
    """Run all checks and write results/ranks.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = curves(folder)
        rows.append(hosts(folder))
        rows.append(killed(folder, options.kills, options.seed))
    report(rows, "ranks", options.json)


if __name__ == "__main__":
    main()
