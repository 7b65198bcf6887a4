"""The process around the application: signals, and an end that drops nothing."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.options import say
from gnnrec.service.app import create_app
from gnnrec.service.holder import Holder
from gnnrec.service.schemas import Limits

_STOPS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """A server that loads the folder again on SIGHUP."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets=sockets)
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        for listening in self.servers:
            for one in listening.sockets:
                say("listening on http://{}:{}".format(*one.getsockname()[:2]))

    def _reload(self) -> None:
        async def run() -> None:
            try:
                served = await self.config.app.state.reload()  # type: ignore[union-attr]
                say(f"reloaded: version {served.version}")
            except GnnrecError as error:
                say(f"not reloaded: {error}")

        self._reloading = asyncio.get_running_loop().create_task(run())


def serve(
    folder: Path,
    host: str,
    port: int,
    limits: Limits,
    admin_token: str | None = None,
    device: str = "cpu",
) -> None:
    """Serve a saved recommender until SIGTERM or SIGINT; requests that have begun then end.

    Raises:
        CheckpointError: The folder is not a whole, unaltered recommender.
        ConfigError: The address cannot be had.
    """
    # A request changes threads four times, and each time waits for whoever holds the interpreter:
    # at Python's five milliseconds that is longer than the work.
    sys.setswitchinterval(0.0005)
    holder = Holder(folder, device)
    app = create_app(holder, limits, admin_token)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
        server_header=False,
    )
    try:
        listening = socket.create_server((host, port), reuse_port=False, backlog=config.backlog)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({error}); name another"
        ) from error
    # Connections inherit it; without, the last part of an answer waits 40 ms for a confirmation.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # uvicorn raises the signal again when it has ended; the end was a clean one.
    kept = {stop: signal.signal(stop, lambda *_: None) for stop in _STOPS}
    try:
        _Server(config).run(sockets=[listening])
    finally:
        for stop, handler in kept.items():
            signal.signal(stop, handler)
    say("stopped; every request that had begun was answered")
