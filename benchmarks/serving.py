"""How long a request to `gnnrec serve` takes, beside an endpoint that returns a constant.

    python benchmarks/serving.py                # 40,000 items; about four minutes
    python benchmarks/serving.py --quick        # a tenth of the size and the time; writes no rows

Two processes serve on loopback, one after the other in turns: the service over a made recommender
(that of `latency.py`), and a bare FastAPI application whose answer has as many bytes. This process
asks, over kept-alive connections. First at a fixed rate: a request's time counts from the moment
that it was due, so waiting behind a slow one counts too. Then as fast as four connections go. Both
are repeated to see what memory does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from latency import ENCODERS, served

from gnnrec.recommender import Recommender

K = 10
HISTORY = 20
CONNECTIONS = 4
BARE = """
import sys, uvicorn
from fastapi import FastAPI, Response
size = int(sys.argv[1])
app = FastAPI()
answer = b'{"x": "' + b"x" * (size - 9) + b'"}'
@app.post("/constant")
async def constant(body: dict) -> Response:
    return Response(answer, media_type="application/json")
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
Server(uvicorn.Config(app, port=0, log_level="error", access_log=False)).run()
"""


@contextmanager
def process(*arguments: str) -> Iterator[tuple[int, int]]:
    """Run a server; its process id and port."""
    with subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        try:
            for line in running.stderr:
                if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                    yield running.pid, int(found[1])
                    return
            raise SystemExit("the server did not start")
        finally:
            running.terminate()


class Client:
    """One kept-alive connection."""

    def __init__(self, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._path = path

    def ask(self, body: bytes) -> bytes:
        """Send one request and read its answer, which must be good."""
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}: {content[:200]!r}")
        return content


def at_rate(port: int, path: str, bodies: list[bytes], rate: float, seconds: float) -> np.ndarray:
    """Seconds from when each request was due until its answer was there."""
    n = int(rate * seconds)
    waits, turn, lock = np.empty(n), iter(range(n)), threading.Lock()
    begin = time.perf_counter() + 0.1

    def work() -> None:
        client = Client(port, path)
        while True:
            with lock:
                number = next(turn, None)
            if number is None:
                return
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            client.ask(bodies[number % len(bodies)])
            waits[number] = time.perf_counter() - due

    together(work)
    return waits


def as_fast(port: int, path: str, bodies: list[bytes], seconds: float) -> float:
    """Requests a second of all connections."""
    counts, end = [], time.perf_counter() + seconds

    def work() -> None:
        client, count = Client(port, path), 0
        while time.perf_counter() < end:
            client.ask(bodies[count % len(bodies)])
            count += 1
        counts.append(count)

    together(work)
    return sum(counts) / seconds


def wait_until_ready(port: int) -> None:
    """Wait until the service has prepared what it serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            return
        time.sleep(0.05)


def together(work: Any) -> None:  # noqa: ANN401
    """Run it in every connection's thread."""
    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def measure(name: str, pid: int, port: int, path: str, bodies: list[bytes], scale: float) -> dict:
    """One row; the first round is a warm-up."""
    rate, seconds = 50.0, 6.0 * scale
    at_rate(port, path, bodies, rate, seconds)
    as_fast(port, path, bodies, seconds)
    before = resident_mb(pid)
    waits = np.concatenate([at_rate(port, path, bodies, rate, seconds) for _ in range(2)])
    speed = as_fast(port, path, bodies, seconds)
    grown = resident_mb(pid) - before
    return {
        "what": name,
        "rate": rate,
        "requests": len(waits),
        **{f"p{p}_ms": f"{1e3 * np.percentile(waits, p):.2f}" for p in (50, 99)},
        "max_ms": f"{1e3 * waits.max():.2f}",
        "connections": CONNECTIONS,
        "requests_per_second": f"{speed:.0f}",
        "memory_mb": f"{before:.1f}",
        "memory_growth_percent": f"{100 * grown / before:.2f}",
    }


def cases(recommender: Recommender) -> dict[str, tuple[str, list[bytes]]]:
    """Name -> route and bodies."""
    rng = np.random.default_rng(2)
    log = recommender.log
    users = [{"users": [str(u)], "k": K} for u in rng.choice(log.user_ids, 500)]
    histories = [
        {"histories": [rng.choice(log.item_ids, HISTORY).tolist()], "k": K} for _ in range(500)
    ]
    return {
        "known user": ("/recommend", [json.dumps(body).encode() for body in users]),
        f"history of {HISTORY}": (
            "/recommend/histories",
            [json.dumps(body).encode() for body in histories],
        ),
    }


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", action="append", choices=ENCODERS, help="default: both")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size; no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    part = 10 if arguments.quick else 1
    n_users, n_items = 20_000 // part, 40_000 // part
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[dict[str, Any]] = []
    for encoder in arguments.encoder or ENCODERS:
        with tempfile.TemporaryDirectory() as temporary:
            recommender = served(Path(temporary), encoder, n_users, n_items)
            folder = str(Path(temporary) / "recommender")
            with process("-m", "gnnrec", "serve", folder, "--port", "0") as (pid, port):
                wait_until_ready(port)
                for name, (path, bodies) in cases(recommender).items():
                    print(f"{encoder}: {name}", file=sys.stderr)
                    size = len(Client(port, path).ask(bodies[0]))
                    about = {
                        "encoder": encoder, "n_users": n_users, "n_items": n_items, "k": K,
                        "answer_bytes": size,
                    }  # fmt: skip
                    rows.append(about | measure(name, pid, port, path, bodies, 1 / part))
                    with process("-c", BARE, str(size)) as (other, other_port):
                        bare = measure(
                            f"{name}: constant", other, other_port, "/constant", bodies, 1 / part
                        )
                    rows.append(about | bare)
    report(rows, "serving", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
