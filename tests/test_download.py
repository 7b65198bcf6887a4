"""A file over HTTP comes whole, after whatever happened on the way, or what was there stays."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gnnrec import datasets, download
from gnnrec.download import TRIES
from gnnrec.errors import DownloadError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(handler: BaseHTTPRequestHandler) -> None:
    send(handler, CONTENT)


def send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    status: int = 200,
    length: int | None = None,
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


def broken(handler: BaseHTTPRequestHandler) -> None:
    """A body that ends before its length."""
    send(handler, CONTENT[:3000], length=len(CONTENT))


def the_rest(handler: BaseHTTPRequestHandler) -> None:
    """What a server does that knows ranges."""
    start = int(handler.headers["Range"].removeprefix("bytes=").rstrip("-"))
    place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    send(handler, CONTENT[start:], 206, Content_Range=place)


def another_part(handler: BaseHTTPRequestHandler) -> None:
    send(handler, CONTENT[:100], 206, Content_Range=f"bytes 0-99/{len(CONTENT)}")


def wrong(handler: BaseHTTPRequestHandler) -> None:
    send(handler, CONTENT[:-1] + b"!")


def refuse(status: int) -> Answer:
    return lambda handler: send(handler, b"no", status)


@dataclass
class Server:
    """Gives the answers in their order, the last one for ever; keeps the ranges asked for."""

    address: str = ""
    answers: list[Answer] = field(default_factory=lambda: [whole])
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.ranges.append(self.headers.get("Range"))
            place = min(len(state.ranges), len(state.answers)) - 1
            state.answers[place](self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    state.address = f"http://127.0.0.1:{http.server_port}/file.bin"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fetch(server: Server, target: Path, sha256: str | None = SHA256) -> None:
    download.download(server.address, target, sha256, progress=False)


FROM_3000 = "bytes=3000-"


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([whole], [None]),
        ([refuse(500), whole], [None, None]),
        ([refuse(503), refuse(429), whole], [None, None, None]),
        ([wrong, whole], [None, None]),
        ([broken, the_rest], [None, FROM_3000]),
        ([broken, whole], [None, FROM_3000]),  # the server knows no ranges: from the start
        ([broken, refuse(416), whole], [None, FROM_3000, None]),
        ([broken, another_part, whole], [None, FROM_3000, None]),
        ([broken, refuse(500), whole], [None, FROM_3000, None]),
    ],
)
def test_it_comes_whole(server, tmp_path, answers, ranges):
    server.answers = answers
    target = tmp_path / "file.bin"
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == ranges
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    ("answer", "words", "tries"),
    [
        (broken, "no connection .3000 of 10240 bytes.", TRIES),
        (wrong, f"another sha256, expected {SHA256}", TRIES),
        (refuse(500), "no connection", TRIES),
        (refuse(404), "the answer 404", 1),
        (lambda handler: send(handler, b""), "another sha256", TRIES),
    ],
)
def test_what_was_there_stays(server, tmp_path, answer, words, tries):
    server.answers = [answer]
    target = tmp_path / "file.bin"
    target.write_bytes(b"an earlier version")
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(server, target)
    assert "\n" not in str(caught.value) and server.address in str(caught.value)
    assert target.read_bytes() == b"an earlier version"
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert len(server.ranges) == tries


def test_a_truncated_body_is_noticed_without_a_hash(server, tmp_path):
    server.answers = [broken]
    with pytest.raises(DownloadError, match="no connection"):
        fetch(server, tmp_path / "file.bin", sha256=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("declared", [True, False])
def test_more_than_the_bound_is_given_up(server, tmp_path, monkeypatch, declared):
    monkeypatch.setattr(download, "MAX_BYTES", 5_000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            for _ in range(10_000):
                handler.wfile.write(b"0" * (1 << 16))
        except OSError:  # the other side has gone
            pass

    server.answers = [endless]
    with pytest.raises(DownloadError, match="more than 5000 bytes"):
        fetch(server, tmp_path / "file.bin", sha256=None)
    assert not list(tmp_path.iterdir()) and len(server.ranges) == 1


def test_a_folder_that_cannot_be_written_is_said(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "file" / "file.bin")


def test_a_set_in_the_cache_is_not_replaced_by_a_bad_one(server, tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv(datasets.MIRROR_VARIABLE, raising=False)
    spec = datasets.get_spec("goodbooks-10k")
    files = dict.fromkeys(spec.files, SHA256)
    monkeypatch.setattr(
        datasets,
        "get_spec",
        lambda name: type(spec)(
            **{**vars(spec), "files": files, "urls": dict.fromkeys(files, server.address)}
        ),
    )
    server.answers = [broken, the_rest, whole]
    folder = datasets.fetch("goodbooks-10k", progress=False)
    assert all((folder / name).read_bytes() == CONTENT for name in files)
    asked = len(server.ranges)
    datasets.fetch("goodbooks-10k", progress=False)
    assert len(server.ranges) == asked  # what is good is not fetched again
    first = folder / next(iter(files))
    first.write_bytes(b"damaged")
    server.answers = [wrong]
    with pytest.raises(DownloadError):
        datasets.fetch("goodbooks-10k", progress=False)
    assert first.read_bytes() == b"damaged"
    server.answers = [whole]
    datasets.fetch("goodbooks-10k", progress=False)
    assert first.read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
