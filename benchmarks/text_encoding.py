"""Encoding texts: beside the plain library, in fewer bits, 100,000 real ones, and a million.

    python benchmarks/text_encoding.py                      # all four parts
    python benchmarks/text_encoding.py --part variants --part million

- peer: `TextEncoder` beside `SentenceTransformer.encode` as it comes, on the same texts, in turn.
- variants: the encoder in float32, in bfloat16 and with int8 linear maps (torch's dynamic
  quantisation), in turn; `cosine` is the least agreement of a text's vector with float32.
- real: 100,000 texts as people wrote them: titles and descriptions of the public sets, descriptions
  cut into sentences, long ones into clauses.
- million: 1,000,000 made-up texts through a stand-in transformer, which costs nothing, so that
  what is measured is the rest: hashing, cache, blocks, and the memory of the process.

The last two run in a process and with a cache of their own; `peak_mb` is that process's. Rows go to
results/text_encoding.csv when all parts are made.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from common import report, timed

from gnnrec.datasets import CACHE_VARIABLE
from gnnrec.sources import open_log
from gnnrec.text import HALF, TextEncoder

SETS = ("goodbooks-10k", "ml-1m", "ml-latest-small", "movietweetings-100k", "online-retail", "ifdb")
N_REAL, N_MADE, N_TIMED = 100_000, 1_000_000, 512
LONG = 80  # characters of a sentence whose clauses are texts too
PARTS = ("peer", "variants", "real", "million")


def real_texts(n: int) -> list[str]:
    """Distinct texts of the public sets, long ones cut into sentences, in a fixed random order."""
    found: dict[str, None] = {}
    for name in SETS:
        items = open_log(name).items
        assert items is not None
        for text in filter(None, items.texts):
            found[text] = None
            for sentence in re.split(r"(?<=[.!?])\s+", text):
                found[sentence] = None
                if len(sentence) > LONG:
                    found |= dict.fromkeys(re.split(r"(?<=[,;:])\s+", sentence))
    texts = list(found)
    if len(texts) < n:
        raise SystemExit(f"found {len(texts)} distinct texts, expected {n}")
    order = np.random.default_rng(0).permutation(len(texts))[:n]
    return [texts[i] for i in order]


def made_texts(n: int) -> Iterator[str]:
    """Texts of five random words, one at a time."""
    rng = np.random.default_rng(0)
    for _ in range(n // 1000):
        for row in rng.integers(0, 10**6, (1000, 5)):
            yield " ".join(f"word{number}" for number in row)


def once(texts: list[str] | Iterator[str]) -> dict[str, Any]:
    """Encode in this process; its highest memory counts from its start."""
    started = time.perf_counter()
    vectors = TextEncoder().encode(texts, progress=False)
    return {
        "n_texts": len(vectors),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "mapped": isinstance(vectors, np.memmap),
    }


def alone(part: str) -> dict[str, Any]:
    """Run a part in a new process with an empty cache of texts."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--inside", part],
            env=os.environ | {"BENCH_TEXT_CACHE": folder},
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def inside(part: str) -> None:
    """What the new process does: the data sets come from the usual cache, vectors go elsewhere."""
    texts: list[str] | Iterator[str] = real_texts(N_REAL) if part == "real" else made_texts(N_MADE)
    os.environ[CACHE_VARIABLE] = os.environ["BENCH_TEXT_CACHE"]
    if part == "million":
        TextEncoder._run = lambda self, texts: np.ones((len(texts), 384), np.float32)  # type: ignore[method-assign]
    print(json.dumps(once(texts)))


def in_turn(ways: dict[str, Callable[[], Any]], part: str, first: str) -> list[dict[str, Any]]:
    """Time ways in turn; ratios are against the first."""
    seconds = timed(ways, repeats=5)
    vectors = {name: way() for name, way in ways.items()}
    return [
        row_of(
            part,
            name,
            n_texts=N_TIMED,
            seconds=round(found["median"], 3),
            ratio=round(seconds[first]["median"] / found["median"], 2),
            cosine=round(float((vectors[name] * vectors[first]).sum(axis=1).min()), 4),
        )
        for name, found in seconds.items()
    ]


def row_of(part: str, way: str, **values: Any) -> dict[str, Any]:  # noqa: ANN401
    """A row; what a part does not measure is empty."""
    names = ("n_texts", "seconds", "ratio", "cosine", "peak_mb", "mapped")
    return {"part": part, "way": way} | {name: values.get(name, "") for name in names}


def rows_of(part: str) -> list[dict[str, Any]]:
    """Measure one part."""
    if part in ("real", "million"):
        return [row_of(part, "gnnrec" if part == "real" else "stand-in", **alone(part))]
    texts = real_texts(N_TIMED)
    encoder = TextEncoder()
    plain = encoder.base()
    if part == "peer":
        return in_turn(
            {
                "sentence-transformers": lambda: np.asarray(
                    plain.encode(texts, normalize_embeddings=True, show_progress_bar=False)
                ),
                "gnnrec": lambda: np.asarray(encoder._run(texts)),
            },
            part,
            "sentence-transformers",
        )
    ordered = sorted(texts, key=len)
    small = copy.deepcopy(plain)
    first: Any = small[0]
    first.model = torch.ao.quantization.quantize_dynamic(first.model, {torch.nn.Linear})

    def way(model: Any) -> Callable[[], Any]:  # noqa: ANN401
        def encode() -> Any:  # noqa: ANN401
            found = model.encode(
                ordered, batch_size=64, show_progress_bar=False, convert_to_tensor=True
            )
            return torch.nn.functional.normalize(found.float(), dim=1).numpy()

        return encode

    brief = TextEncoder(f"{encoder.model}{HALF}")
    brief._run(texts[:1])
    ways = {
        "float32": lambda: encoder._run(ordered),
        "bfloat16": lambda: brief._run(ordered),
        "int8": way(small),
    }
    return in_turn(ways, part, "float32")


def main() -> None:
    """Measure the asked parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--inside", choices=("real", "million"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments.inside)
        return
    rows = [row for part in arguments.part or PARTS for row in rows_of(part)]
    report(rows, "text_encoding", arguments.json, write=arguments.part is None)


if __name__ == "__main__":
    main()
