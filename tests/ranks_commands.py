"""Command lines of a file, one after the other; during the first, once, the second process dies."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from gnnrec.cli import main


def kill_when_kept(out: str) -> None:
    """Kill this process when its second state is on the disk; the first is of step 0."""
    kept, seen = Path(f"{out}.resume", "001.0001.state"), set[int]()
    while len(seen) < 2:
        seen |= {kept.stat().st_ino} if kept.is_file() else set()
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


commands = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
start = os.environ["TORCHELASTIC_RESTART_COUNT"]
if os.environ["RANK"] == "1" and start == "0":
    threading.Thread(target=kill_when_kept, args=(commands[0][-1],), daemon=True).start()
for number, command in enumerate(commands):
    # To the processes each command is a start, with a meeting place of its own.
    os.environ["TORCHELASTIC_RESTART_COUNT"] = f"{start}.{number}"
    sys.argv = ["gnnrec", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
