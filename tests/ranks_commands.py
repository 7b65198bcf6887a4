"""Run as a script: what processes that train together do, launched as torchrun launches them.

They are forks of this process, which has loaded torch: torchrun's own would each load it again.
The agent, what it tells them and how it starts them again are the same.

    python tests/ranks_commands.py COMMANDS.json
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import ranks_parts
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

# Imported here, so that no fork has to.
from gnnrec import checkpoint, command_recommend, commands, resume, runs  # noqa: F401
from gnnrec.cli import main

resume.LEAST_SECONDS = 0.02  # a fast machine would be done before it keeps a second state


def launch(n, entry, *arguments, restarts=0):
    """Run a function in n processes."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=f"{os.getpid()}-{n}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, entry)(*arguments)


def kill_when_kept(out):
    """Kill this process when its second state is on the disk; the first is of step 0."""
    kept, seen = Path(f"{out}.resume", "001.0001.state"), set()
    while len(seen) < 2:
        seen |= {kept.stat().st_ino} if kept.is_file() else set()
        time.sleep(0.005)
    Path(f"{out}.was").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def run_all(lines):
    """Run command lines, one after the other; during the first, once, the second process dies."""
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ["RANK"] == "1" and start == "0":
        threading.Thread(target=kill_when_kept, args=(lines[0][-1],), daemon=True).start()
    for number, line in enumerate(lines):
        # To the processes each command is a start, with a meeting place of its own.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = f"{start}.{number}"
        sys.argv = ["gnnrec", *line]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    sys.stdout.flush()


if __name__ == "__main__":
    launch(2, run_all, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), restarts=1)
    with contextlib.suppress(ChildFailedError):  # then some do not say that all parts add up
        launch(3, ranks_parts.check)
