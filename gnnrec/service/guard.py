"""What stands before every request: its size, how many run at once, how long, and the counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gnnrec.service.schemas import Limits

Result = TypeVar("Result")
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_METHODS = {"GET", "POST", "HEAD"}


class BusyError(Exception):
    """The service cannot take, or did not finish, a request: 503, with this message."""


def _one_thread() -> None:
    """Torch counts threads for each thread: requests that run beside each other need no more."""
    torch.set_num_threads(1)


class Workers:
    """Runs the computing part of requests in a few threads, with a bounded queue before them.

    A thread cannot be stopped: a request that ran out of time keeps its place until it ends, so
    what runs stays bounded.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool: ThreadPoolExecutor | None = None
        self._taken = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run one request's work.

        Raises:
            BusyError: The queue is full, or the work took too long.
        """
        limits = self._limits
        if self._taken >= limits.threads + limits.queue:
            raise BusyError(
                f"busy: {self._taken} requests are being answered or wait, the limit is "
                f"{limits.threads + limits.queue}; ask again"
            )
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(limits.threads, "gnnrec", _one_thread)
        future: Future[Result] = self._pool.submit(work)
        self._taken += 1

        def leave() -> None:
            self._taken -= 1

        # Called in a worker's thread, or at once for one that never began.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limits.seconds)
        except TimeoutError:
            raise BusyError(
                f"the answer took longer than {limits.seconds:g} s; ask for less, or again"
            ) from None

    def close(self) -> None:
        """Wait for what runs."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


class Metrics:
    """Counts for Prometheus, in a registry of this application's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "gnnrec_requests", "Requests answered.", ["method", "route", "status"], **kept
        )
        self.seconds = Histogram(
            "gnnrec_request_seconds", "Time to answer.", ["route"], buckets=_BUCKETS, **kept
        )
        self.in_flight = Gauge("gnnrec_requests_in_flight", "Requests being answered.", **kept)
        self.reloads = Counter("gnnrec_reloads", "Reloads of the folder.", ["result"], **kept)
        self.version = Gauge("gnnrec_version", "Number of the recommender served.", **kept)


class Guard:
    """ASGI middleware: refuses large bodies before they are read whole, and counts.

    A body is read here, with a limit of size and time, and handed on.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self._answer(scope, receive, noting)
            finally:
                # Labels come from a short list, or anybody could fill the memory with paths.
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self.metrics.requests.labels(method, route, str(status)).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: tuple[int, str] | None = None
        first: list[Message] = []
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self.limits.seconds)
            if body is None:
                refused = (413, f"body: expected at most {self.limits.max_body_bytes} bytes")
            else:
                first = [{"type": "http.request", "body": body, "more_body": False}]
        except TimeoutError:
            refused = (408, f"body: it did not arrive within {self.limits.seconds:g} s")
        if refused is not None:
            answer = JSONResponse({"error": refused[1]}, refused[0], {"connection": "close"})
            await answer(scope, receive, send)
            return

        async def handed_on() -> Message:
            return first.pop() if first else await receive()

        await self.app(scope, handed_on, send)

    async def _body(self, scope: Scope, receive: Callable[[], Awaitable[Message]]) -> bytes | None:
        """The whole body, or None as soon as it is too large."""
        limit = self.limits.max_body_bytes
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > limit:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)
