"""No figure in the README without a committed row."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


TABLES = (
    "pairs.markdown",
    "engine.markdown",
    "transfer.opening",
    "transfer.benefits",
    "transfer.summary",
    "transfer.markdown",
    "transfer.strict",
    "transfer.cold",
)


def table(name: str) -> str:
    script, made = name.split(".")
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, made)()


@pytest.mark.parametrize("name", TABLES)
def test_a_results_table_is_the_committed_rows(name):
    assert table(name) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_measured_figure_in_the_text_is_in_a_table():
    outside = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = ""
    for name in TABLES:
        outside = outside.replace(table(name), "")
        rows += table(name)
    figures = re.findall(r"0\.\d{4}|[+-]\d+\.\d %|\[[+-][\d.]+, [+-][\d.]+\]", outside)
    assert figures, "the first screen shows a real result"
    assert [figure for figure in figures if figure not in rows] == []


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
