"""The shape of the package: light to import, short files, each importing only from above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gnnrec

ROOT = Path(gnnrec.__file__).parent

# From top to bottom, the way the data goes. A new file gets its place here.
ORDER = [
    "errors",
    "signals",
    "storage",
    "ledger",
    "architectures",
    "config",
    "device",
    # the interaction log
    "tables",
    "frames",
    "cells",
    "ids",
    "items",
    "columns",
    "encode_columns",
    "ingest",
    "interactions",
    "packed",
    "parsers",
    "registry",
    "download",
    "datasets",
    "split",
    "sources",
    "doubts",
    # the bipartite graph, measures
    "ranks",
    "graph",
    "metrics",
    "rank",
    "stats",
    "propagate",
    "spectrum",
    "scores",
    "mixture",
    "evaluate",
    "neighbours",
    "edge_texts",
    "features",
    "tower",
    "newcomers",
    "text_layers",
    "text",
    # encoders and heads
    "encoders.base",
    "encoders.lightgcn",
    "encoders.graphsage",
    "encoders",
    "retrain",
    "heads",
    "filters",
    "bridge",
    "alike",
    "channels",
    "context",
    "blend",
    "ncf",
    "two_tower",
    "model",
    "strength",
    # training, and the models that stand beside
    "losses",
    "sampling",
    "episodes",
    "variation",
    "lessons",
    "resume",
    "callbacks",
    "loop",
    "train",
    "text_tuning",
    "baselines.base",
    "baselines.neighbours",
    "baselines.ridge",
    "baselines.vectors",
    "baselines.lightgcn",
    "baselines",
    # pretrain -> checkpoint -> transfer
    "search",
    "calibrate",
    "pretrain",
    "tensors",
    "convert",
    "checkpoint",
    "hub",
    "zoo",
    "readiness",
    "machine",
    "target",
    "transfer",
    # recommend, evaluate, report
    "catalogue",
    "lists",
    "histories",
    "terms",
    "parts",
    "explain",
    "served",
    "recommender",
    "saved",
    "export.tables",
    "export.index",
    "export.program",
    "export.describe",
    "export",
    "console",
    "arms",
    "runs",
    "compare",
    "select",
    "space",
    "tune",
    # the benchmark suite
    "suite",
    "suite_file",
    "trials",
    "plan",
    "overlap",
    "scenarios",
    "materials",
    "contrast",
    "energy",
    "bench_rows",
    "bench",
    "figures",
    "report",
    "document",
    "shown",
    "suite_report.rows",
    "suite_report.reading",
    "suite_report.arrival",
    "suite_report.gains",
    "suite_report.benefits",
    "suite_report.facts",
    "suite_report.quality",
    "suite_report.drawings",
    "suite_report",
    "explore.answers",
    "explore.server",
    "explore",
    "doctor",
    # the command line
    "commands",
    "command_recommend",
    "options",
    "cli_bench",
    "cli_data",
    "cli_models",
    "cli_tune",
    "service",
    "service.schemas",
    "service.holder",
    "service.guard",
    "service.answers",
    "service.app",
    "service.server",
    "cli_serve",
    "cli_export",
    "cli",
    "__main__",
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_at_once(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run with the module: not in functions, not under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imported_at_once(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in ("body", "orelse", "finalbody"):
                yield from imported_at_once(getattr(node, part, None) or [])
            for handler in getattr(node, "handlers", []):
                yield from imported_at_once(handler.body)


def own_imports(path: Path) -> Iterator[str]:
    for node in imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}: a relative import"
            names = [str(node.module)]
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [n for n in deeper if n.removeprefix("gnnrec.") in FILES]
            if node.module == "gnnrec":
                names = found or names
        yield from (n.removeprefix("gnnrec.") for n in names if n.split(".")[0] == "gnnrec")


def test_every_file_has_its_place():
    assert len(set(ORDER)) == len(ORDER)
    assert set(FILES) - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    if name not in FILES:
        pytest.skip("listed and not there: test_every_file_has_its_place says so")
    place = ORDER.index(name)
    wrong = [n for n in own_imports(FILES[name]) if n not in ORDER[:place]]
    assert not wrong, f"{name} imports {wrong}, which are not above it"


def test_no_file_is_long():
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in FILES.items()}
    assert {n: k for n, k in lengths.items() if k > 400} == {}


def test_importing_and_help_load_nothing_heavy():
    script = (
        "import sys, gnnrec, gnnrec.cli\n"
        "sys.argv = ['gnnrec', '--help']\n"
        "try: gnnrec.cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'torch_geometric', 'pandas', 'networkx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there():
    for name in gnnrec.__all__:
        assert getattr(gnnrec, name).__name__ == name
    assert set(gnnrec.__all__) <= set(dir(gnnrec))
    with pytest.raises(AttributeError, match="nothing"):
        _ = gnnrec.nothing


FORBIDDEN = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def dangers(source: str) -> list[str]:
    """What in a module could run code that came with a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            found.append(called)
        if called.endswith(("read_pickle", "to_pickle", "yaml.load", "yaml.unsafe_load")):
            found.append(called)
        if called in ("torch.load", "torch.save", "torch.jit.load"):
            found.append(called)
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(ast.unparse(node))
        if given.get("trust_remote_code", "False") != "False":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("name", FILES)
def test_no_code_comes_with_a_file(name):
    assert dangers(FILES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "pd.read_pickle(path)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert dangers(line)
    assert not dangers("model.eval()\nnp.load(path, allow_pickle=False)\nre.compile('a')")


def test_the_table_of_where_a_change_belongs_has_every_module():
    table = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {name.strip("/") for name in re.findall(r"`([a-z_]+/?)`", table)}
    assert {name.split(".")[0] for name in ORDER} - named == {"__main__"}
