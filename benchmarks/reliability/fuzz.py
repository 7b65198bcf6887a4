"""Hostile input by the hundred thousand: every reader either reads it or says what is wrong.

    python benchmarks/reliability/fuzz.py --seconds 900     # all targets
    python benchmarks/reliability/fuzz.py --target suite --seconds 60    # one; its row is replaced

Anything but a result or the error that the target allows is a crash; so are 20 s for one input and
more memory than the bound. Each target runs in a process of its own, from valid seeds, and stops
at its first crash, whose input it names. With atheris (`pip install atheris`; it has no wheel for
every Python) libFuzzer chooses the inputs by the lines of gnnrec that they reach. Without it seeds
are mutated blindly. Rows say which.

Checkpoints and recommenders are valid folders with edits: bytes changed, files cut or missing,
scalars of a JSON file or of a safetensors header replaced. Nine edits of ten are sealed again, so
that what lies behind the sums of the manifest is reached.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import importlib
import io
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import pandas as pd

    from gnnrec.config import ModelConfig

try:
    import atheris
except ImportError:
    atheris = None

HANG_SECONDS = 20
MEMORY_MB = 3000  # of the process, torch and all
ADDRESS_SPACE = 16 << 30
LONGEST = 4096
# Shares of the time. Settings and suites are the fastest; folders and tables have the most code.
SHARES = {
    "table": 0.2,
    "items": 0.1,
    "config": 0.15,
    "suite": 0.1,
    "checkpoint": 0.15,
    "recommender": 0.1,
    "archive": 0.1,
    "convert": 0.1,
}
MODULES = ("gnnrec.convert", "gnnrec.recommender", "gnnrec.suite")
RESULTS = Path(__file__).parent / "results" / "fuzz.csv"
TOKENS = [
    *(b"-1", b"0", b"1e999", b"99999999999999999999", b"NaN", b"1.5", b"true", b"null"),
    *(b'"x"', b'"\\ud800"', b"{}", b"[]", b"[1]", b'{"a":1}', b'"F64"', b'"I64"', b'"BF16"'),
]
SCALAR = re.compile(rb'-?\d+(?:\.\d+)?(?:e-?\d+)?|"[^"\\]*"|true|false|null')
Try = Callable[[bytes], object]


def parquet(frame: pd.DataFrame) -> bytes:
    """A DataFrame as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def file_target(
    folder: Path, names: list[str], read: Callable[[Path], object], allowed: type[Exception]
) -> Try:
    """The first byte chooses the file's name, the rest is its content."""

    def attempt(data: bytes) -> object:
        path = folder / names[data[0] % len(names) if data else 0]
        path.write_bytes(data[1:])
        try:
            return read(path)
        except allowed as error:
            return error

    return attempt


def edited(files: dict[str, bytes], data: bytes) -> dict[str, bytes | None]:
    """Read the input as a list of edits, seven bytes each; return the files that they change."""
    names, changed = sorted(files), dict[str, bytes | None]()
    for start in range(1, len(data) - 6, 7):
        which, kind, first, second, third, value, other = data[start : start + 7]
        name = names[which % len(names)]
        content = changed.get(name, files[name])
        if content is None:
            continue
        place = int.from_bytes((first, second, third)) % max(len(content), 1)
        if kind % 8 == 0:
            changed[name] = None
        elif kind % 8 == 1:
            changed[name] = content[:place]
        elif kind % 8 == 2:
            changed[name] = content[:place] + bytes([value, other]) + content[place + 2 :]
        elif kind % 8 == 3:
            changed[name] = content[:place] + bytes([value] * other) + content[place:]
        else:
            changed[name] = with_scalar(name, content, place, TOKENS[value % len(TOKENS)])
    return changed


def with_scalar(name: str, content: bytes, place: int, token: bytes) -> bytes:
    """Replace a scalar of a JSON file, or of a safetensors file's header, near a place."""
    begin, end = 0, len(content)
    if name.endswith(".safetensors"):
        begin, end = 8, 8 + int.from_bytes(content[:8], "little")
    found = list(SCALAR.finditer(content, begin, min(end, len(content))))
    if not found or name.endswith((".parquet", ".md")):
        return content
    chosen = found[place % len(found)]
    made = content[begin : chosen.start()] + token + content[chosen.end() : end]
    return (len(made).to_bytes(8, "little") if begin else b"") + made + content[end:]


def folder_target(
    folder: Path, load: Callable[[Path], object], seal: Callable[[Path], None]
) -> Try:
    """Edits of a valid folder; the first byte says whether it is sealed again."""
    from gnnrec.errors import CheckpointError

    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def attempt(data: bytes) -> object:
        changed = edited(files, data)
        try:
            for name, content in changed.items():
                (folder / name).unlink() if content is None else (folder / name).write_bytes(
                    content
                )
            if data[:1] > b"\x19" and "manifest.json" not in changed:
                seal(folder)
            return load(folder)
        except CheckpointError as error:
            return error
        finally:
            for name in {*changed, "manifest.json"}:
                (folder / name).write_bytes(files[name])

    return attempt


def some_edits(n: int = 40) -> list[bytes]:
    """Seeds of a folder target: a few edits each."""
    rng = random.Random(0)
    return [b"\xff" + rng.randbytes(7 * (1 + number % 3)) for number in range(n)]


def made(name: str, folder: Path) -> tuple[Try, list[bytes]]:
    """Return a target and its seeds; the package is imported here, and instrumented."""
    if atheris is not None:
        with atheris.instrument_imports(include=["gnnrec", "tomllib"]):
            for module in MODULES:
                importlib.import_module(module)
    import pandas as pd

    from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig, load_config
    from gnnrec.convert import LAYOUTS, read_layout
    from gnnrec.errors import ConfigError, DataError, DownloadError
    from gnnrec.interactions import read_interactions, read_items
    from gnnrec.parsers import movielens_from_archive, movielens_from_wheel
    from gnnrec.storage import seal
    from gnnrec.suite_file import load_suite

    log = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [10, 20]})
    texts = [
        b"user_id,item_id,weight,timestamp\na,x,1,1600000000\nb,y,2.5,1600000000000\n",
        b'user_id\titem_id\ttimestamp\n"a\tb"\tx\t2020-01-01\nb\ty\t2020-01-02T03:04:05Z\n',
        b"1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n",
        b'{"user_id":1,"item_id":"a","weight":1.5}\n{"user_id":2,"item_id":"b","timestamp":5}\n',
        b"item_id,title,genres\nx,One,A|B\ny,Two,http://a\n",
    ]
    suffixes = [".csv", ".tsv", ".txt", ".jsonl", ".csv.gz", ".parquet"]
    names = [f"t{suffix}" for suffix in suffixes]
    tables = [bytes([number]) + text for text in texts for number in range(4)]
    tables += [b"\x04" + gzip.compress(texts[0]), b"\x05" + parquet(log)]
    if name == "table":
        return file_target(folder, names, read_interactions, DataError), tables
    if name == "items":
        return file_target(folder, names, read_items, DataError), tables
    if name == "config":
        kinds = {"t.toml": TransferConfig, "p.toml": PretrainConfig}

        def read(path: Path) -> object:
            return load_config(kinds[path.name], path, {"train.max_steps": 3})

        seeds = [b"\x00retrain = 'final:1'\nfraction = 0.5\n[train]\nloss = 'bpr'\n"]
        seeds += [b"\x01seed = 1\n[model]\nencoder = 'channels'\nbridges = [3]\ntext_dim = 4\n"]
        return file_target(folder, list(kinds), read, ConfigError), seeds
    if name == "suite":
        suites = Path(__file__).parents[1] / "suites"
        seeds = [b"\x00" + path.read_bytes() for path in sorted(suites.glob("*.toml"))]
        seeds += [
            b'\x00name = "a"\ntargets = ["own"]\narms = ["popularity"]\n[data.own]\nfile="x"\n'
        ]
        return file_target(folder, ["s.toml"], load_suite, ConfigError), seeds
    if name == "archive":

        def parse(path: Path) -> object:
            way = movielens_from_wheel if path.name.startswith("w") else movielens_from_archive
            return way(path, path.name[1:])

        def zipped(members: dict[str, bytes]) -> bytes:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
            return buffer.getvalue()

        films = {
            "ml-1m/ratings.dat": texts[2],
            "ml-1m/movies.dat": b"10::A (1990)::X|Y\n20::B::Z\n",
        }
        raw = file_target(folder, ["aml-1m", "aml-100k", "wml-1m"], parse, DownloadError)

        def archive_or_members(data: bytes) -> object:
            if data[:1] < b"\x80":
                return raw(data)
            ratings, _, movies = data[1:].partition(b"\xff")
            both = {"ml-1m/ratings.dat": ratings, "ml-1m/movies.dat": movies}
            return raw(b"\x00" + zipped(both))

        members = b"\xff".join(films.values())
        return archive_or_members, [b"\x00" + zipped(films), b"\x80" + members]
    if name == "convert":
        import scipy.sparse as sp

        buffer = io.BytesIO()
        sp.save_npz(buffer, sp.csr_array([[1, 0], [0, 2]]))
        files = [f"{number}.npz" for number in range(len(LAYOUTS))]

        def convert(path: Path) -> object:
            return read_layout(path, LAYOUTS[int(path.stem)])

        seeds = [b"\x05" + buffer.getvalue(), b"\x01user_id:token\titem_id:token\n1\t2\n"]
        seeds += [b"\x02" + texts[2], b"\x04" + texts[2], b"\x03user,item,rating\n1,2,3\n"]
        return file_target(folder, files, convert, DataError), seeds
    attempts = [
        folder_target(
            *_folder(name, folder / encoder, ModelConfig(encoder=encoder, dim=4, spectral_rank=4)),
            seal,
        )
        for encoder in ("lightgcn", "channels", "graph-filter", "neumf")
    ]
    return lambda data: attempts[sum(data[:1]) % len(attempts)](data), some_edits()


def _folder(name: str, folder: Path, config: ModelConfig) -> tuple[Path, Callable[[Path], object]]:
    """Write a valid checkpoint or recommender; return it with what reads it."""
    import pandas as pd

    from gnnrec.checkpoint import Checkpoint
    from gnnrec.config import TrainConfig, TransferConfig
    from gnnrec.model import build_model
    from gnnrec.recommender import Recommender

    checkpoint = Checkpoint("tiny", config, dict(build_model(config).state_dict()))
    if name == "checkpoint":
        return checkpoint.save(folder), Checkpoint.load
    few = TrainConfig(max_steps=2, evaluate_every=1, n_negatives=4, batch_size=4)
    settings = TransferConfig(retrain="zero-shot", calibrate=few, train=few, weigh=few)
    rows = [(number // 3, number % 7) for number in range(30)]
    log = pd.DataFrame(rows, columns=["user_id", "item_id"])
    Recommender(checkpoint, settings, "cpu").fit(log).save(folder)

    def load(path: Path) -> object:
        return Recommender.load(path, "cpu").recommend([0, "unknown"], k=3)

    return folder, load


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """A seed with a few bytes changed, left out, doubled, or another seed's part in it."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 6)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(5)
        if kind == 0:
            data[place : place + 1] = rng.randbytes(1)
        elif kind == 1:
            del data[place : place + rng.randrange(1, 20)]
        elif kind == 2:
            data[place:place] = rng.choice(TOKENS)
        elif kind == 3:
            data[place:place] = data[place : place + rng.randrange(1, 50)]
        else:
            other = rng.choice(seeds)
            data[place:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:LONGEST])


def child(name: str, seconds: float, seed: int) -> None:
    """Run one target; the last line on stderr counts the inputs as libFuzzer does."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        folder, corpus = Path(scratch) / "files", Path(scratch) / "corpus"
        for place in (folder, corpus):
            place.mkdir()
        attempt, seeds = made(name, folder)
        if atheris is not None:
            for number, data in enumerate(seeds):
                (corpus / str(number)).write_bytes(data)
            options = [f"-max_total_time={seconds:.0f}", f"-max_len={LONGEST}", f"-seed={seed + 1}"]
            options += [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MB}"]
            options += [f"-artifact_prefix={tempfile.gettempdir()}/fuzz-{name}-"]
            atheris.Setup([sys.argv[0], *options, str(corpus)], attempt)
            atheris.Fuzz()  # leaves the process
        rng, runs, end = random.Random(seed), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            data = mutated(seeds, rng)
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            try:
                attempt(data)
            except BaseException:
                print(f"input: {data!r}", file=sys.stderr)
                raise
            runs += 1
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY_MB << 10:
                raise MemoryError(f"input: {data!r}")
        faulthandler.cancel_dump_traceback_later()
        print(f"Done {runs} runs in {seconds:.0f} second(s)", file=sys.stderr)


def run_target(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Run a target in a process of its own and read its count; print what it said at a crash."""
    command = [sys.executable, __file__, "--target", name, "--child"]
    command += ["--seconds", f"{seconds:.0f}", "--seed", str(seed)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    elapsed = time.perf_counter() - started
    counts = [
        int(n) for n in re.findall(r"^#(\d+)\t|Done (\d+) runs", done.stderr, re.M) for n in n if n
    ]
    if crashed := done.returncode != 0:
        print(done.stdout[-4000:], done.stderr[-1000:], file=sys.stderr)
    peak = [int(mb) for mb in re.findall(r"rss: (\d+)Mb", done.stderr)]
    return {
        "target": name,
        "engine": "mutation" if atheris is None else "atheris",
        "inputs": max(counts, default=0),
        "seconds": round(elapsed),
        "crashes": int(crashed),
        "peak_mb": max(peak, default=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10),
        "seed": seed,
    }


def main() -> None:
    """Run the targets, show a table, and write the rows where all of them ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900.0, help="for all targets together")
    parser.add_argument("--target", choices=SHARES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.target, options.seconds, options.seed)
        return
    from common import machine

    from gnnrec.console import text_table
    from gnnrec.ledger import read_rows, write_rows

    rows = []
    for name in [options.target] if options.target else SHARES:
        share = 1.0 if options.target else SHARES[name]
        rows.append(run_target(name, share * options.seconds, options.seed) | machine())
        print(text_table([{k: rows[-1][k] for k in list(rows[-1])[:6]}]), file=sys.stderr)
    RESULTS.parent.mkdir(exist_ok=True)
    kept = [row for row in read_rows(RESULTS) if row["target"] not in {r["target"] for r in rows}]
    write_rows(RESULTS, list(rows[0]), sorted([*kept, *rows], key=lambda r: str(r["target"])))
    total = sum(row["inputs"] for row in rows)
    if options.json:
        print(json.dumps({"inputs": total, "rows": rows}))
    print(f"{total} inputs, {sum(row['crashes'] for row in rows)} crashes", file=sys.stderr)
    sys.exit(int(any(row["crashes"] for row in rows)))


if __name__ == "__main__":
    main()
