"""A real process: it listens, loads again on SIGHUP, and ends on SIGTERM, all answers given."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("fastapi")
if not hasattr(signal, "SIGHUP"):
    pytest.skip("needs Unix signals", allow_module_level=True)

# One request waits on a file, so that the signal surely comes while it runs.
SLOW = """
import sys, time
from pathlib import Path
from gnnrec import cli
from gnnrec.service import app
answer = app.for_users
def slow(served, body):
    if body.k == 7:
        Path("begun").touch()
        while not Path("release").exists():
            time.sleep(0.01)
    return answer(served, body)
app.for_users = slow
sys.argv = ["gnnrec", "serve", "rec", "--port", "0", "--seconds", "60"]
cli.main()
"""


class Process:
    def __init__(self, folder):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW], cwd=folder, env=environment,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._new = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._new:
                self.lines.append(line.strip())
                self._new.notify_all()
        with self._new:
            self.lines.append("")
            self._new.notify_all()

    def wait_for(self, pattern):
        def found():
            return next((m for line in self.lines if (m := re.search(pattern, line))), None)

        with self._new:
            assert self._new.wait_for(lambda: found() or "" in self.lines, timeout=120)
            assert found(), self.lines
            return found()


def test_reload_and_a_clean_end(work, saved_folder):
    (work / "rec").unlink()
    shutil.copytree(saved_folder, work / "rec")
    started = Process(work)
    try:
        address = started.wait_for(r"listening on (http://\S+)")[1]
        with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(1) as pool:
            body = {"users": ["u1"], "k": 7}
            slow = pool.submit(httpx.post, f"{address}/recommend", json=body, timeout=60)
            while not (work / "begun").exists():
                assert started.process.poll() is None, started.lines
            started.process.send_signal(signal.SIGHUP)
            started.wait_for("^reloaded: version 2")
            manifest = work / "rec" / "manifest.json"
            whole = manifest.read_text()
            manifest.write_text("{}")
            started.process.send_signal(signal.SIGHUP)
            started.wait_for("^not reloaded: .*manifest.json")
            manifest.write_text(whole)
            quick = client.post("/recommend", json=body | {"k": 3}).json()
            assert quick["version"] == 2 and len(quick["lists"][0]["items"]) == 3
            started.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):  # nobody listens any more
                while True:
                    httpx.get(f"{address}/health/live", timeout=60)
            assert not slow.done()
            (work / "release").touch()
            answer = slow.result()
        assert answer.status_code == 200
        assert answer.json()["version"] == 1  # it began before the reload
        assert answer.json()["lists"][0]["items"][:3] == quick["lists"][0]["items"]
        assert started.process.wait(60) == 0
        started.wait_for("^stopped")
    finally:
        started.process.kill()
        started.process.wait()
        started._reader.join()
        started.process.stderr.close()
