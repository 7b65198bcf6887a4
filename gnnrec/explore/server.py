"""A local server of one page and its answers: GET alone, this machine alone, nothing from outside.

It listens on 127.0.0.1 and answers only requests that name this host, so that a page of another
site cannot read the log by pointing a name of its own at this machine (DNS rebinding).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.evaluate import plain
from gnnrec.explore.answers import Explorer

_HOST = "127.0.0.1"
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/map.js": ("map.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST = 4000  # characters of a value in a query


class Server(ThreadingHTTPServer):
    """Serves one explorer on 127.0.0.1.

    Args:
        explorer: What answers.
        port: 0 for any free one.

    Raises:
        ConfigError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, explorer: Explorer, port: int) -> None:
        self.explorer = explorer
        self.answers: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
            "/api/about": (explorer.about, ()),
            "/api/search": (explorer.search, ("kind", "q")),
            "/api/user": (explorer.user, ("id",)),
            "/api/item": (explorer.item, ("id",)),
            "/api/words": (explorer.words, ("id",)),
            "/api/why": (explorer.why, ("user", "item")),
            "/api/map": (explorer.map, ()),
            "/api/cold": (explorer.cold, ()),
        }
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot listen there ({str(error.strerror).lower()}); name "
                "another, or 0 for any free one"
            ) from error
        self.hosts = {f"{name}:{self.server_port}" for name in (_HOST, "localhost")}

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "gnnrec", ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer the page, one of its files, or a question."""
        if self.headers.get("Host") not in self.server.hosts:
            self._json(HTTPStatus.FORBIDDEN, {"error": "this page is for this machine alone"})
            return
        asked = urlsplit(self.path)
        if asked.path in _PAGE:
            name, kind = _PAGE[asked.path]
            body = files("gnnrec.explore").joinpath(name).read_bytes()
            self._send(HTTPStatus.OK, kind, body)
            return
        if asked.path not in self.server.answers:
            self._json(HTTPStatus.NOT_FOUND, {"error": "no such page"})
            return
        answer, wanted = self.server.answers[asked.path]
        given = dict(parse_qsl(asked.query, keep_blank_values=True))
        if set(given) != set(wanted) or any(len(value) > _LONGEST for value in given.values()):
            message = f"expected {' and '.join(wanted) or 'nothing'} in the query"
            self._json(HTTPStatus.BAD_REQUEST, {"error": message})
            return
        try:
            self._json(HTTPStatus.OK, answer(**given))
        except GnnrecError as error:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except Exception as error:
            message = f"unexpected {type(error).__name__}: {error}"
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})

    def _refuse(self) -> None:
        self._json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "this page only answers GET"})

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        body = json.dumps(plain(value), allow_nan=False).encode()
        self._send(status, "application/json; charset=utf-8", body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is for people."""
