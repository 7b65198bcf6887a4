"""The command line, of whose second process the first start is killed after some kept steps."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from gnnrec.cli import main

if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    kept = Path(sys.argv[-1] + ".resume") / "001.0001.state"

    def kill() -> None:
        seen: set[int] = set()
        while len(seen) < 2:  # the first is of step 0
            seen |= {kept.stat().st_ino} if kept.is_file() else set()
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
main()
