"""A server of the examples, `gnnrec serve` or `explore`, started here and stopped for certain."""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

_SECONDS = 60


def started(*words: str, ready: str = "/") -> tuple[str, Callable[[], None]]:
    """Start `gnnrec *words` on a free port of this machine and wait until it answers.

    Args:
        words: The command, without --port.
        ready: What is asked for until it is there.

    Returns:
        Its address, and a function that stops it; an interpreter that ends stops it too.

    Raises:
        RuntimeError: It ended, or did not answer within a minute.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gnnrec", *words, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    atexit.register(stop)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address + ready, timeout=5).close()
            return address, stop
        except OSError:
            time.sleep(0.2)
    stop()
    raise RuntimeError(f"{' '.join(command)} does not answer; exit code {process.poll()}")
