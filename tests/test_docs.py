"""Pages of the documentation: all are found, links lead somewhere, commands and code are real."""

import importlib
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
    """The gnnrec command lines of a page: in consoles, in cells of shell commands, in text."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"%%bash\n(.*?)```", text, flags=re.DOTALL)
    for block in blocks:
        for line in block.splitlines():
            found = re.search(r"(?:^\s*|-m )gnnrec (.*)", line)
            if found:
                yield re.split(r"\s+(?:[|>&#]|2>)|\s*;", found.group(1))[0].split()
    for words in re.findall(r"(?<!`)`gnnrec ([^`]+)`", text):
        yield words.split()


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


def test_the_table_of_needs_is_the_committed_rows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--table"])
    importlib.import_module("scaling").main()
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") > 5 and printed in text_of(DOCS / "scaling.md")


@pytest.fixture
def helper(monkeypatch):
    """A helper of the pages by its name, as their cells import it."""
    monkeypatch.setenv("GNNREC_ROOT", str(ROOT))
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module


def test_tables_of_the_pages_say_what_the_readme_says(helper):
    rows = helper("rows")
    readme = text_of(ROOT / "README.md")
    for target in ("ml-latest-small", "ml-100k", "online-retail", "ifdb"):
        best = rows.differences("transfer", "final:1", "the best without a source")
        twin = rows.differences("transfer", "final:1", "scratch")
        to_best, to_twin = (
            f[f["target"] == target].set_index("kept")["difference"] for f in (best, twin)
        )
        for kept, row in rows.best_without_source(target).iterrows():
            line = [target, kept, *row[["best without a source", "scratch", "final:1"]]]
            assert f"| {' | '.join([*line, to_best[kept], to_twin[kept]])} |" in readme


def test_what_a_guard_kept_is_counted_over_its_own_runs_alone(helper):
    rows = helper("rows")
    runs = rows.read("transfer/runs.csv")
    runs = runs[(runs["scenario"] == "main") & runs["arm"].isin(["heads", "final:1", "full"])]
    assert rows.guard().to_numpy().sum() == len(runs)
    assert runs["source"].notna().all()


def test_a_mean_that_lacks_a_seed_is_left_out(helper):
    rows = helper("rows")
    runs = rows.pd.DataFrame(
        {"arm": ["a", "a", "b", "b"], "seed": [0, 1, 0, 0], "ndcg@20": [0.1, 0.3, 0.5, 0.5]}
    )
    assert rows.whole_means(runs.groupby("arm"), 2).to_dict() == {"a": 0.2}


def test_counts_of_gains_and_losses(helper):
    rows = helper("rows")
    frame = rows.differences("transfer", "final:1", "scratch").iloc[:3].copy()
    frame["verdict"], frame["p_holm"] = ["ahead", "behind", "open"], [0.01, 0.2, 1.0]
    assert rows.counted(frame) == (
        "of 3 cells ahead in 1 (1 after Holm's correction over the family), behind in 1 (0), "
        "and in 1 the interval holds zero"
    )


def test_what_select_puts_first_is_one_of_its_candidates(helper):
    rows = helper("rows")
    found, table = rows.read("choosing.csv"), rows.choosing()
    assert list(table.index[:-1]) == sorted(set(found["target"]))
    for target, row in table.iloc[:-1].iterrows():
        some = found[found["target"] == target]
        told, measured = (
            {name: each[column].mean() for name, each in some.groupby("candidate")}
            for column in ("select_ndcg@20", "measured_ndcg@20")
        )
        assert row["candidates"] == str(len(told))
        assert row["the best"] == f"{max(measured.values()):.4f}"
        first = max(told, key=told.get)
        assert row["the one that select puts first"] == f"{measured[first]:.4f}"
    mean = found.drop_duplicates("target")["kendall_tau"].mean()
    assert table.loc["mean over targets", "Kendall's tau"] == f"{mean:.2f}"


def test_a_server_that_ends_at_once_fails_its_page(helper, tmp_path):
    with pytest.raises(RuntimeError, match="exit code 2"):
        helper("running").started("serve", str(tmp_path / "nowhere"))


def test_ci_builds_the_pages():
    assert re.search(r"^make docs$", text_of(ROOT / ".ci" / "run"), flags=re.MULTILINE)


def test_pages_build_without_a_warning(tmp_path):
    """Without running their cells: that is `make docs`, which takes minutes."""
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason="needs pip install 'gnnrec[docs]'; make docs builds it")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "dummy"]
    command += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    command += [str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
