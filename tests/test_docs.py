"""Pages of the documentation: all are found, links lead somewhere, commands and code are real."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gnnrec.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [str(page.relative_to(DOCS)) for page in PAGES]


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"```\{toctree\}(.*?)```", text_of(DOCS / "index.md"), flags=re.DOTALL)
    listed = [
        f"{line}.md"
        for tree in trees
        for line in tree.split()
        if not line.startswith(":") and (DOCS / f"{line}.md").is_file()
    ]
    assert sorted([*listed, "index.md"]) == NAMES


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(page)):
        assert (page.parent / link).resolve().is_file(), link


def commands(text):
    """The gnnrec command lines of a page: in consoles and in cells of shell commands."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"%%bash\n(.*?)```", text, flags=re.DOTALL)
    for block in blocks:
        for line in block.splitlines():
            found = re.search(r"(?:^\s*|-m )gnnrec (.*)", line)
            if found:
                yield re.split(r"\s+[|>]|\s+\|\||\s*;", found.group(1))[0].split()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_exist(page):
    root = typer.main.get_command(app)
    for words in commands(text_of(page)):
        command = root
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = [word for word in words if re.match(r"--?[a-z]", word)]
        assert set(given) <= known, (words, sorted(set(given) - known))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_pages_compiles(page):
    for block in re.findall(r"```\{code-cell\} python3\n(.*?)```", text_of(page), flags=re.DOTALL):
        code = re.sub(r"\A(:[a-z-]+:.*\n)+", "", block)
        if not code.lstrip().startswith("%%"):
            compile(code, str(page), "exec")


def test_the_table_of_needs_is_the_committed_rows():
    path = ROOT / "benchmarks" / "scaling.py"
    printed = subprocess.run(
        [sys.executable, str(path), "--table"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() in text_of(DOCS / "scaling.md")


def test_pages_are_built_by_make_docs():
    """The build itself runs every cell: it is `make docs`, which CI runs, and takes minutes."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^docs:.*\n\t\$\(BIN\)/python -m sphinx -W ", makefile, flags=re.MULTILINE)
    assert "make docs" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    conf = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert conf is not None
    assert "nb_execution_raise_on_error = True" in text_of(DOCS / "conf.py")
