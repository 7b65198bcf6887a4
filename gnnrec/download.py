"""One file over HTTP: retried, taken up where it broke off, bounded, and whole or not there."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from gnnrec.errors import DownloadError

MAX_BYTES = 1 << 30  # more than any registered file
TRIES = 4
_TIMEOUT = (5, 60)  # seconds to connect and between two packets
_BLOCK = 1 << 16
_AGAIN = (408, 425, 429)  # of the 4xx answers, those that may be another one later


def download(
    url: str, target: Path, sha256: str | None = None, progress: bool = True, mirror: str = ""
) -> None:
    """Fetch a file; what is at `target` is replaced by a whole file of that content or not at all.

    A connection that breaks, a server's error and other content than expected are tried again, up
    to `TRIES` times in all; pooch waits in between. After a break the file goes on where it was,
    where the server allows that.

    Args:
        url: http or https.
        target: Where it goes; its folder must exist.
        sha256: Of the content, or None where the caller checks it.
        progress: Show a bar on stderr.
        mirror: How to name a folder of copies instead; for the message.

    Raises:
        DownloadError: It cannot be had, is too large, or is other content.
    """
    pooch.get_logger().setLevel("WARNING")  # it announces every unknown hash otherwise
    part = target.with_name(f".{target.name}.part")
    source = pooch.create(
        path=target.parent,
        base_url="",
        registry={target.name: None if sha256 is None else f"sha256:{sha256}"},
        urls={target.name: url},
        retry_if_failed=TRIES - 1,
    )
    try:
        source.fetch(target.name, downloader=_Resuming(part, progress))
    except requests.RequestException as error:
        reason = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"{url}: found no connection ({reason}), expected the published file; try again, or "
            f"name a folder of copies{mirror}"
        ) from None
    except ValueError:  # pooch's word for another hash
        raise DownloadError(
            f"{url}: found another sha256, expected {sha256}; the file is damaged or another "
            "version, get it again"
        ) from None
    except OSError as error:
        raise DownloadError(f"{target}: cannot write there ({error.strerror})") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class _Resuming:
    """What pooch calls at each try: what an earlier one got stays in `part`."""

    def __init__(self, part: Path, progress: bool) -> None:
        self._part = part
        self._progress = progress

    def __call__(self, url: str, output_file: str | os.PathLike[str], _: Any) -> None:  # noqa: ANN401
        have = self._part.stat().st_size if self._part.is_file() else 0
        headers = {"Accept-Encoding": "identity"}  # sizes then are those of the file
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            status = answer.status_code
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if status != 206 or not goes_on:
                self._part.unlink(missing_ok=True)  # from the start, now or at the next try
                have = 0
            if 400 <= status < 500 and status not in (*_AGAIN, 416):
                raise DownloadError(
                    f"{url}: found the answer {status} {answer.reason}, expected the published "
                    "file; it may have moved: report it"
                )
            answer.raise_for_status()
            if status == 206 and not goes_on:
                raise requests.ConnectionError("another part of the file than was asked for")
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() else None
            # Or what came before a break would be lost; the size is compared below.
            answer.raw.enforce_content_length = False
            self._take(answer, url, have, total)
        if total is not None and self._part.stat().st_size != total:
            raise requests.ConnectionError(f"{self._part.stat().st_size} of {total} bytes")
        shutil.move(self._part, output_file)

    def _take(self, answer: requests.Response, url: str, have: int, total: int | None) -> None:
        with (
            self._part.open("ab") as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                delay=1,
                disable=not self._progress,
            ) as bar,
        ):
            for block in answer.iter_content(_BLOCK):
                have += len(block)
                if have > MAX_BYTES or (total or 0) > MAX_BYTES:
                    raise DownloadError(
                        f"{url}: found more than {MAX_BYTES} bytes, expected the published file; "
                        "report it"
                    )
                file.write(block)
                bar.update(len(block))
