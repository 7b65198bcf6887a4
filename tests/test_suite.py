"""The settings of a suite, the order of its runs, and the files they are written to."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec.baselines import BASELINES
from gnnrec.columns import Columns
from gnnrec.config import with_settings
from gnnrec.errors import ConfigError
from gnnrec.ledger import Ledger, alone, as_text, read_rows, write_rows
from gnnrec.model import build_model
from gnnrec.plan import (
    KEYS,
    Task,
    Waiting,
    best_source,
    chosen,
    parse_only,
    part_sha256,
    plan,
    run_id,
)
from gnnrec.space import space_of
from gnnrec.suite import Suite
from gnnrec.suite_file import load_suite, make_suite
from gnnrec.trials import nearer, settings_to_try

SUITES = Path(__file__).parent.parent / "benchmarks" / "suites"
DATA = {
    "name": "s",
    "targets": ["ml-100k", "online-retail"],
    "sources": ["goodbooks-10k", "online-retail", ["goodbooks-10k", "ml-1m"]],
    "fractions": [0.02, 0.1, 1.0],
    "matrix": [0.1],
    "seeds": [0, 1],
    "encoders": ["lightgcn", "graph-filter"],
    "arms": ["popularity", "ease", "scratch", "zero-shot", "final:1", "shuffled-text"],
}


def suite_of(**changes: object) -> Suite:
    return make_suite(DATA | changes, "s.toml")


def tasks_of(suite: Suite, rows: list[dict[str, str]] | None = None) -> list[Task]:
    return [task for task in plan(suite, rows or []) if isinstance(task, Task)]


def row_of(suite: Suite, task: Task, value: float | str = "") -> dict[str, str]:
    run = run_id(task, part_sha256(suite, task))
    return task.keys() | {"run": run, "best_value": str(value)}


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_suites_of_the_repository_can_be_read(path):
    suite = load_suite(path)
    assert suite.name == path.stem and tasks_of(suite)


def test_names_and_lists_of_sources_may_be_mixed_and_never_hold_the_target():
    suite = suite_of()
    assert suite.sources[0] == ("goodbooks-10k",) and suite.sources[2][1] == "ml-1m"
    assert ("online-retail",) in suite.sources_of("lightgcn", "ml-100k")
    assert ("online-retail",) not in suite.sources_of("lightgcn", "online-retail")
    assert suite.own_sources() == [("online-retail", "online-retail")]
    assert all(task.target not in task.sources for task in tasks_of(suite))


def test_an_encoder_is_the_architecture_of_its_name_unless_its_table_says():
    suite = suite_of(
        encoders=["lightgcn", "plain", "graph-filter"],
        encoder={"plain": {"text": False, "pretrain": {"model": {"encoder": "graphsage"}}}},
    )
    assert [e.pretrain.model.encoder for e in suite.encoder.values()] == [
        "lightgcn",
        "graphsage",
        "graph-filter",
    ]
    assert [e.text for e in suite.encoder.values()] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sourcs": []}, "'sourcs' is not a known setting of a suite; did you mean 'sources'"),
        ({"targets": []}, "targets"),
        ({"fractions": [0.0]}, "fractions.0 is 0"),
        ({"matrix": [0.2]}, "matrix holds 0.2; expected some of fractions"),
        ({"control_fractions": [0.2]}, "control_fractions holds 0.2; expected some of fractions"),
        ({"control_fractions": [0.1], "arms": ["scratch"]}, "add both, or leave it out"),
        ({"encoder": {"lightgcn": {"pretrain": {"trian": {}}}}}, "'pretrain.trian'.*'train'"),
        ({"encoder": {"lightgnc": {}}}, "did you mean 'lightgcn'"),
        ({"encoder": 3}, r"expected tables \[encoder.NAME\]"),
        ({"encoders": []}, "the arm scratch needs an encoder"),
        ({"sources": [], "arms": ["zero-shot"]}, "needs a source"),
        ({"arms": ["eaes"]}, "did you mean 'ease'"),
        ({"arms": ["popularity", "popularity"]}, "twice"),
        ({"shuffled": "ease"}, "expected a retraining mode"),
        ({"sources": ["gowalla"]}, "gowalla has no item text.*text = false"),
        ({"sources": ["online-retail"]}, "online-retail has no source left for lightgcn"),
        ({"text_model": None}, "expected a text_model"),
        ({"transfer": {"retrain": "heads"}}, "transfer.retrain is set by the suite"),
        ({"arms": ["zero-shot"]}, "chosen by validation"),
        ({"scenarios": ["cold-items"]}, "chosen by validation"),
        ({"encoder": {"lightgcn": {"sources": ["goodbooks"]}}}, "did you mean 'goodbooks-10k'"),
        ({"encoder": {"lightgcn": {"arms": ["scratsh"]}}}, "did you mean 'scratch'"),
        ({"encoder": {"lightgcn": {"arms": ["ease"]}}}, "not a known arm"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        suite_of(**changes)
    assert str(error.value).startswith("s.toml:") and "\n" not in str(error.value)


def test_a_source_without_text_is_for_encoders_that_read_none():
    suite = suite_of(
        sources=["goodbooks-10k", "gowalla"],
        encoder={"lightgcn": {"sources": ["goodbooks-10k"]}},
    )
    used = {(task.encoder, task.source) for task in tasks_of(suite) if task.sources}
    assert used == {
        ("lightgcn", "goodbooks-10k"),
        ("graph-filter", "goodbooks-10k"),
        ("graph-filter", "gowalla"),
    }


def test_the_matrix_runs_every_source_and_the_rest_waits_for_the_best():
    suite = suite_of(scenarios=["main", "cold-items"])
    tasks = tasks_of(suite)
    assert len(set(tasks)) == len(tasks) and tasks == tasks_of(suite)
    with_sources = [task for task in tasks if task.sources and task.target == "ml-100k"]
    assert {task.fraction for task in with_sources} == {0.1}
    assert len([t for t in with_sources if t.encoder == "lightgcn"]) == 2 * 3 * 3
    waiting = [entry for entry in plan(suite, []) if isinstance(entry, Waiting)]
    # Two other fractions of main and three of cold-items, two seeds; three arms or two.
    assert sum(e.n_runs for e in waiting if e.target == "ml-100k") == (2 + 3) * 2 * (3 + 2)
    rows = [row_of(suite, task, 1.0) for task in with_sources if task.arm == "final:1"]
    assert best_source(suite, rows, "ml-100k", "lightgcn") is None  # zero-shot is missing
    rows += [row_of(suite, task) for task in with_sources if task.arm != "final:1"]
    assert best_source(suite, rows, "ml-100k", "lightgcn") == ("goodbooks-10k",)  # first of equals
    for row in rows:
        if row["source"] == "online-retail" and row["best_value"] and row["seed"] == "1":
            row["best_value"] = "0.5"
    assert best_source(suite, rows, "ml-100k", "lightgcn") == ("online-retail",)
    later = [t for t in tasks_of(suite, rows) if t.target == "ml-100k" and t.fraction == 1.0]
    assert {t.source for t in later if t.encoder == "lightgcn"} == {"", "online-retail"}
    for row in rows:
        row["best_value"] = ""
    with pytest.raises(ConfigError, match="no arm of lightgcn on ml-100k has a validation value"):
        best_source(suite, rows, "ml-100k", "lightgcn")


def test_the_control_runs_where_it_is_asked_for():
    changes = {"sources": ["goodbooks-10k"], "scenarios": ["main", "cold-items"]}
    everywhere = {task for task in tasks_of(suite_of(**changes)) if task.arm == "shuffled-text"}
    assert {(t.scenario, t.fraction) for t in everywhere} == {
        (scenario, fraction) for scenario in changes["scenarios"] for fraction in DATA["fractions"]
    }
    some = tasks_of(suite_of(**changes, control_fractions=[0.02]))
    assert {t for t in some if t.arm == "shuffled-text"} == {
        task for task in everywhere if (task.scenario, task.fraction) == ("main", 0.02)
    }
    assert set(some) | everywhere == set(tasks_of(suite_of(**changes)))


def test_an_encoder_may_run_some_arms_alone():
    all_of_them = tasks_of(suite_of(sources=["goodbooks-10k"]))
    suite = suite_of(sources=["goodbooks-10k"], encoder={"lightgcn": {"arms": ["scratch"]}})
    tasks = tasks_of(suite)
    assert {task.arm for task in tasks if task.encoder == "lightgcn"} == {"scratch"}
    for encoder in ("", "graph-filter"):
        assert [t for t in tasks if t.encoder == encoder] == [
            task for task in all_of_them if task.encoder == encoder
        ]
    # Where it needs no source it neither waits for the best one nor minds one without texts.
    suite = suite_of(
        sources=["goodbooks-10k", "gowalla"], encoder={"lightgcn": {"arms": ["scratch"]}}
    )
    waiting = [entry for entry in plan(suite, []) if isinstance(entry, Waiting)]
    assert {entry.encoder for entry in waiting} == {"graph-filter"}
    assert {t.fraction for t in tasks_of(suite) if t.encoder == "lightgcn"} == {0.02, 0.1, 1.0}


def test_a_larger_suite_has_the_same_runs():
    small = suite_of()
    large = suite_of(
        seeds=[0, 1, 2],
        fractions=[0.02, 0.1, 0.5, 1.0],
        targets=["ml-100k", "online-retail", "ifdb"],
        arms=[*DATA["arms"], "heads"],
        limit_minutes=3,
    )
    runs = [{run_id(t, part_sha256(s, t)) for t in tasks_of(s)} for s in (small, large)]
    assert runs[0] < runs[1]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"tuning": {"n_trials": 3}}, {"ease", "scratch", "final:1", "shuffled-text"}),
        ({"strict": True}, {"zero-shot", "final:1", "shuffled-text"}),
        ({"shuffled": "heads"}, {"shuffled-text"}),
        (
            {"transfer": {"n_folds": 3}},
            {"scratch", "zero-shot", "final:1", "shuffled-text"},
        ),
        ({"transfer": {"test": 0.3}}, set(DATA["arms"])),
    ],
)
def test_a_setting_changes_the_runs_that_depend_on_it(changes, changed):
    before, after = suite_of(), suite_of(**changes)
    tasks = [t for t in tasks_of(before) if t.encoder != "graph-filter"]
    found = {t.arm for t in tasks if part_sha256(before, t) != part_sha256(after, t)}
    assert found == changed


def test_run_ids_are_file_names_of_their_own():
    tasks = tasks_of(suite_of())
    ids = [run_id(task, "x") for task in tasks]
    assert len(set(ids)) == len(ids)
    assert all(Path(name).name == name and ":" not in name and len(name) < 140 for name in ids)
    assert run_id(tasks[0], "x") != run_id(tasks[0], "y")
    assert tuple(tasks[0].keys()) == KEYS


def test_filters():
    suite = suite_of()
    only = parse_only(["target=ml-100k,arm=ease|final:1", "fraction=0.10"], suite)
    found = [task for task in tasks_of(suite) if chosen(task, only)]
    assert {(t.target, t.arm, t.fraction) for t in found} == {
        ("ml-100k", "ease", 0.1),
        ("ml-100k", "final:1", 0.1),
    }
    assert chosen(Waiting("ml-100k", "lightgcn", 3), only)
    assert not chosen(Waiting("online-retail", "lightgcn", 3), only)
    assert all(not task.sources for task in tasks_of(suite) if chosen(task, {"source": {""}}))
    for text, words in (
        ("arm", "KEY=VALUE"),
        ("rm=x", "KEY of"),
        ("arm=eaes", "'eaes' is not in the suite"),
        ("fraction=half", "expected a number"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_only([text], suite)


def test_every_arm_tries_as_many_settings_the_defaults_first():
    suite = suite_of(tuning={"n_trials": 6}, arms=[*BASELINES, "scratch", "zero-shot", "heads"])
    for arm in suite.arms:
        encoder = "" if arm in BASELINES else "lightgcn"
        tries = settings_to_try(suite, arm, encoder)
        assert tries == settings_to_try(suite, arm, encoder) and tries[0] == {}
        assert len(tries) == (1 if arm in ("popularity", "zero-shot") else 6), arm
        # The same space as gnnrec tune searches.
        model = build_model(suite.encoder["lightgcn"].pretrain.model)
        space = BASELINES[arm].space if arm in BASELINES else space_of(model, arm)
        for settings in tries[1:]:
            assert set(settings) == set(space)
            if arm not in BASELINES:
                with_settings(suite.transfer, settings)
    assert settings_to_try(suite, "heads", "graph-filter") == [{}]
    assert [len(settings_to_try(suite_of(), arm, "lightgcn")) for arm in ("ease", "heads")] == [
        1,
        1,
    ]


def test_settings_are_laid_over_the_configuration():
    suite = suite_of()
    config = with_settings(
        suite.transfer, {"train.learning_rate": 0.5, "n_folds": 3}, retrain="heads", seed=4
    )
    assert (config.train.learning_rate, config.n_folds) == (0.5, 3)
    assert (config.retrain, config.seed) == ("heads", 4)
    assert config.calibrate == suite.transfer.calibrate


def test_the_nearer_fraction_is_nearer_by_ratio():
    assert [nearer(f, (0.05, 0.5)) for f in (0.02, 0.1, 0.2, 1.0)] == [0.05, 0.05, 0.5, 0.5]
    assert nearer(0.2, (0.1, 0.4)) == 0.1


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@given(rows=st.lists(st.tuples(cells, cells), max_size=5), cut=st.integers(1, 60))
def test_whatever_a_kill_leaves_the_whole_lines_are_the_rows(rows, cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "rows.csv"
    ledger = Ledger(path, ("a", "b"))
    for row in rows:
        ledger.append([dict(zip("ab", row, strict=True))])
    assert Ledger(path, ("a", "b")).rows == ledger.rows == read_rows(path)
    data = path.read_bytes()
    path.write_bytes(data[:-cut] if cut < len(data) else b"")
    found = Ledger(path, ("a", "b"))
    assert found.rows == ledger.rows[: len(found.rows)]
    whole = data[: len(data) - cut].count(b"\n") - 1 if cut < len(data) else 0
    assert len(found.rows) == max(whole, 0)
    found.append([{"a": "x", "b": None}])
    assert read_rows(path) == found.rows and path.read_bytes().endswith(b"x,\n")


def test_a_ledger_keeps_only_its_own_columns(tmp_path):
    path = tmp_path / "rows.csv"
    ledger = Ledger(path, ("a", "b"))
    ledger.append([{"a": 1, "b": 0.25}, {"a": 2, "b": "x\ny"}])
    assert ledger.rows == [{"a": "1", "b": "0.25"}, {"a": "2", "b": "x y"}]
    with pytest.raises(KeyError):
        ledger.append([{"a": 1}])
    ledger.keep(lambda row: row["a"] == "2")
    assert read_rows(path) == ledger.rows == [{"a": "2", "b": "x y"}]
    with pytest.raises(ConfigError, match="not those of this version"):
        Ledger(path, ("a", "c"))
    write_rows(path, ("a",), [{"a": 1.0}])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["a"], ["1"]]
    assert as_text(np.float64(0.1234567)) == "0.123457" and as_text(None) == ""


def test_a_folder_has_one_process(tmp_path):
    with alone(tmp_path / "out"), pytest.raises(ConfigError, match="another run writes there"):
        with alone(tmp_path / "out"):
            pass
    with alone(tmp_path / "out"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there"), alone(tmp_path / "file"):
        pass


def test_an_own_log_is_known_by_what_is_in_it(tmp_path, monkeypatch):
    def parts(folder: Path) -> set[str]:
        suite = make_suite(DATA | {"targets": ["shop"], "data": data}, "s.toml", folder)
        return {part_sha256(suite, task) for task in tasks_of(suite)}

    data = {"shop": {"file": "log.csv"}}
    (tmp_path / "other").mkdir()
    for name in ("log.csv", "other/log.csv"):
        (tmp_path / name).write_text("user_id,item_id\n1,2\n")
    first = parts(tmp_path)
    assert parts(tmp_path / "other") == first
    monkeypatch.chdir(tmp_path)
    assert parts(Path()) == first
    suite = make_suite(DATA | {"targets": ["shop"], "data": data}, "s.toml")
    assert Path(suite.data["shop"].file).is_absolute()
    data["shop"]["sha256"] = suite.data["shop"].sha256
    assert parts(tmp_path) == first
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,3\n")
    with pytest.raises(ConfigError, match="data.shop: found the sha256 .* do not belong together"):
        parts(tmp_path)
    del data["shop"]["sha256"]
    assert not parts(tmp_path) & first


def test_a_checkpoint_is_a_source_to_filter_by():
    suite = make_suite(
        {
            "name": "s",
            "targets": ["ml-100k"],
            "encoders": ["shipped"],
            "arms": ["scratch", "zero-shot"],
            "encoder": {"shipped": {"checkpoint": "channels.text"}},
        },
        "s.toml",
    )
    only = parse_only(["source=channels.text"], suite)
    assert {task.arm for task in tasks_of(suite) if chosen(task, only)} == {"zero-shot"}


def test_columns_of_an_own_log_are_named_and_add_nothing_where_they_are_not():
    plain = suite_of(targets=["shop"], data={"shop": {"file": "log.csv"}})
    named = {"file": "log.csv", "user_column": "Kunde", "min_weight": 2}
    other = suite_of(targets=["shop"], data={"shop": named})
    # Neither file is there: then it is known by its path, and reading it says so.
    assert plain.data["shop"].identity() == {"file": str(Path("log.csv").absolute())}
    assert other.data["shop"].columns == Columns(user="Kunde")
    tasks = tasks_of(plain)
    assert all(part_sha256(plain, task) != part_sha256(other, task) for task in tasks)
    with pytest.raises(ConfigError, match="user_columns"):
        suite_of(targets=["shop"], data={"shop": {"file": "log.csv", "user_columns": "Kunde"}})
