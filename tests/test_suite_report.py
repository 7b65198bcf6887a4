"""The report of a suite: its numbers are the rows', losses show, a partial folder is said."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_suite import made_suite

pytest.importorskip("matplotlib", reason="the [report] extra is not installed")

from gnnrec.errors import ConfigError, DataError
from gnnrec.suite_report import drawings, readme_block, report_command
from gnnrec.suite_report.arrival import Curve, arrivals, averaged, curves, to_twin
from gnnrec.suite_report.benefits import MISSED, OPEN, PARTLY, REACH, REACHED, verdicts
from gnnrec.suite_report.gains import cold_items, gains, harms, to_twins
from gnnrec.suite_report.reading import read_suite_rows
from gnnrec.suite_report.rows import Interval, Key

EVIL = '<script>alert("&")</script>|$x_{1}$\\'
ARMS = "popularity ease raw-text scratch shuffled-text zero-shot heads final:1 final:2".split()
FILES = ("runs", "curves", "buckets", "differences", "trials", "overlap")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Read only: copy it before changing anything."""
    return made_suite(tmp_path_factory.mktemp("suite"), arms=ARMS)


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory) -> tuple[dict, str, str]:
    out = tmp_path_factory.mktemp("written")
    found = report_command(folder, out, lambda *lines: None)
    return found, (out / "report.html").read_text(), (out / "report.md").read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """One target and few arms: what is drawn in a moment. Read only."""
    return made_suite(
        tmp_path_factory.mktemp("small"),
        targets=("ifdb",),
        fractions=(0.02, 1.0),
        arms=("popularity", "raw-text", "scratch", "zero-shot", "heads"),
    )


@pytest.fixture
def part(small, tmp_path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "part"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def quiet(folder: Path) -> tuple[dict, str, str]:
    found = report_command(folder, None, lambda *lines: None)
    return found, (folder / "report.html").read_text(), (folder / "report.md").read_text()


def rewrite(path: Path, change) -> None:
    rows = list(csv.DictReader(path.open()))
    rows = [new for row in rows if (new := change(row)) is not None]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def verdict(rows, measure: str):
    return next(v for v in verdicts(rows) if v.measure.startswith(measure))


def test_the_page_needs_nothing_from_outside(written):
    found, html, _ = written
    assert found["missing"] == []
    assert "<script" not in html and "src=" not in html and "http" not in html
    assert set(re.findall(r'href="([^"]+)"', html)) >= {"#content", "#part-10"}
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]+)"', html))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("<figure>") == html.count("<figcaption>") > 0
    assert html.count("<figure>") == html.count("The same as a table")


def test_markdown_has_the_same_tables(written):
    _, html, markdown = written
    captions = [unescape(c) for c in re.findall(r"<caption>(.*?)</caption>", html)]
    shown = re.findall(r"^\*\*(.*)\*\*$", markdown, flags=re.MULTILINE)
    assert [c.replace("\xa0", " ") for c in captions] == [s.replace("\\", "") for s in shown]
    n_rows = len(re.findall(r"<tr>", html))
    assert n_rows == len(re.findall(r"^\| (?!---)", markdown, flags=re.MULTILINE))


def test_the_same_rows_give_the_same_bytes_in_another_process(small, part, tmp_path):
    here = quiet(part)
    command = [sys.executable, "-m", "gnnrec", "report", str(small), "--out", str(tmp_path / "new")]
    done = subprocess.run(
        [*command, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"html", "markdown", "benefits", "missing"}
    assert found["benefits"] == here[0]["benefits"]
    for name, text in (("report.html", here[1]), ("report.md", here[2])):
        assert (tmp_path / "new" / name).read_text() == text


def test_gains_are_those_of_the_rows(folder):
    runs = pd.read_csv(folder / "runs.csv", keep_default_na=False)
    runs = runs[(runs.scenario == "main") & (runs.source.isin(["", "goodbooks-10k"]))]
    names = ["target", "fraction", "family", "arm", "encoder", "source"]
    means = runs.groupby(names)["ndcg@20"].mean().reset_index()
    expected = {}
    for (target, kept), part in means.groupby(["target", "fraction"]):
        transfer = part[part.family == "transfer"]["ndcg@20"].max()
        other = part[part.family.isin(["baseline", "scratch"])]["ndcg@20"].max()
        expected[target, kept] = transfer / other - 1
    rows = read_suite_rows(folder)
    found = {(g.cell.key.target, g.cell.key.fraction): g for g in gains(rows)}
    assert set(found) == set(expected) and len(found) == 6
    differences = pd.read_csv(folder / "differences.csv", keep_default_na=False)
    for place, gain in found.items():
        assert gain.relative == pytest.approx(expected[place], rel=1e-6)
        assert gain.interval is not None and gain.low < gain.relative < gain.high
        row = differences[
            (differences.scenario == "main")
            & (differences.target == place[0])
            & (differences.fraction == place[1])
            & (differences.arm == gain.cell.key.arm)
            & (differences.source == gain.cell.key.source)
            & (differences.against == gain.against.key.arm)
            & (differences.bucket == "all")
        ]
        assert gain.low == pytest.approx(row.relative_low.iloc[0])
    low = verdict(rows, "NDCG@20 at 2 and 5 %")
    mean = np.mean([v for (_, kept), v in expected.items() if kept in (0.02, 0.05)])
    assert low.measured == f"{100 * mean:+.1f} %; 2 of 4 measured" and low.outcome == PARTLY


def test_nothing_is_reached_before_all_of_it_is_measured(tmp_path):
    arms = ("popularity", "scratch", "heads")
    folder = made_suite(tmp_path / "whole", fractions=(0.02, 0.05, 1.0), arms=arms, seeds=(0,))
    rows = read_suite_rows(folder)
    mean = np.mean([g.relative for g in gains(rows, fractions=(0.02, 0.05))])
    low = verdict(rows, "NDCG@20 at 2 and 5 %")
    assert low.measured == f"{100 * mean:+.1f} %" and mean >= REACH.little[1]
    assert low.outcome == verdict(rows, "the same: smallest").outcome == REACHED
    full = verdict(rows, "NDCG@20 at 100 %")
    assert full.outcome == MISSED and full.measured.startswith("-")
    lost = ("ifdb", "0.05")
    for name in ("runs.csv", "differences.csv"):
        rewrite(folder / name, lambda r: None if (r["target"], r["fraction"]) == lost else r)
    rows = read_suite_rows(folder)
    low = verdict(rows, "NDCG@20 at 2 and 5 %")
    assert low.outcome == PARTLY and low.measured.endswith("; 3 of 4 measured")
    assert verdict(rows, "NDCG@20 at 10, 20 and 50 %").outcome == OPEN


def test_only_the_source_that_validated_best_counts(folder, copy):
    rows = read_suite_rows(folder)
    assert {g.cell.key.source for g in gains(rows)} == {"goodbooks-10k"}
    assert {g.cell.key.source for g in to_twins(rows)} == {"goodbooks-10k", "ml-1m"}
    rewrite(copy / "differences.csv", lambda row: {k: row[k] for k in row if k != "chosen"})
    sources = {g.cell.key.source for g in gains(read_suite_rows(copy), fractions=(0.02,))}
    assert sources <= {"goodbooks-10k", "ml-1m"} and "ml-1m" in sources


def test_every_difference_is_shown_worst_first(folder, written):
    differences = pd.read_csv(folder / "differences.csv", keep_default_na=False)
    everyone = differences[differences.bucket == "all"].relative.sort_values()
    _, html, markdown = written
    start = html.index("<caption>All pairs, worst first</caption>")
    body = html[start : html.index("</table>", start)]
    shown = [float(v) for v in re.findall(r'<td class="n[^"]*">([-+][\d.]+)&nbsp;%', body)]
    assert len(shown) == len(everyone) == body.count("<tr>") - 1
    assert shown == pytest.approx((100 * everyone).tolist(), abs=0.051)
    losses = ((differences.bucket == "all") & (differences.relative_high < 0)).sum()
    assert losses > 0 and body.count('class="n bad"') == losses
    assert f"Of all {len(everyone)} pairs {losses} have an interval below zero" in html


def test_a_pair_turned_round_and_back():
    interval = Interval(0.1, 0.05, 0.15, 0.5, 0.25, 1.0, 0.03)
    turned = interval.turned()
    assert turned.relative == pytest.approx(-1 / 3) and turned.relative_high == pytest.approx(-0.2)
    assert (turned.low, turned.high, turned.p_holm) == (-0.15, -0.05, 0.03)
    assert turned.relative_low == pytest.approx(-0.5)


@given(st.floats(-0.9, 5), st.floats(0, 1))
def test_turning_keeps_the_order_of_the_bounds(relative, width):
    interval = Interval(0, 0, 0, relative, relative - 0.05 * width, relative + width)
    turned, back = interval.turned(), interval.turned().turned()
    assert turned.relative_low <= turned.relative <= turned.relative_high
    assert back.relative_low == pytest.approx(interval.relative_low, abs=1e-9)


def test_time_to_the_twins_value(copy):
    def curve(row):
        if (
            row["target"] != "ifdb"
            or row["fraction"] != "0.1"
            or row["arm"]
            not in (
                "scratch",
                "heads",
            )
        ):
            return None
        # Losses: scratch ends at 1.0 after 8 seconds; heads is below it after 2, on seed 1 never.
        step = int(row["step"]) // 25
        value = 9.0 - step if row["arm"] == "scratch" else 3.0 - step
        if row["arm"] == "heads" and row["seed"] == "1":
            value = 3.0 if lost else 3.0 - step
        return row | {"seconds": str(float(step)), "value": str(value)}

    lost = False
    rewrite(copy / "curves.csv", curve)
    (found,) = arrivals(read_suite_rows(copy))
    assert (found.cell.key.arm, found.seconds, found.twin_seconds) == ("heads", 2.0, 8.0)
    assert found.share == 0.25 and (found.n_reached, found.n_seeds) == (2, 2)
    lost = True
    rewrite(copy / "curves.csv", curve)
    (found,) = arrivals(read_suite_rows(copy))
    assert math.isinf(found.share) and (found.n_reached, found.n_seeds) == (1, 2)
    assert verdict(read_suite_rows(copy), "seconds after features to").outcome == MISSED


def test_curves_keep_the_best_so_far_and_average_over_common_times():
    first = Curve(np.array([0.0, 2.0, 4.0]), np.array([1.0, 1.0, 5.0]))
    second = Curve(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    times, mean, low, high = averaged([first, second])
    assert times.tolist() == [1, 2, 3, 4]
    assert mean.tolist() == [1.5, 1.5, 2.5, 4.5]
    assert low.tolist() == [1, 1, 1, 4] and high.tolist() == [2, 2, 4, 5]
    assert first.first(1.0) == 0 and first.first(2.0) == 4 and math.isinf(first.first(6.0))


def test_curves_are_the_rows(folder):
    drawn = curves(read_suite_rows(folder))
    frame = pd.read_csv(folder / "curves.csv", keep_default_na=False)
    key = Key("main", "ifdb", "goodbooks-10k", "heads", "transfer", "lightgcn", 0.02)
    part = frame[
        (frame.target == "ifdb")
        & (frame.arm == "heads")
        & (frame.source == "goodbooks-10k")
        & (frame.fraction == 0.02)
        & (frame.seed == 1)
    ].sort_values("seconds")
    assert drawn[key][1].best == pytest.approx((-part.value).cummax().to_numpy())
    assert drawn[key][1].seconds == pytest.approx(part.seconds.to_numpy())
    twin = Key("main", "ifdb", "", "scratch", "scratch", "lightgcn", 0.02)
    shifted = to_twin(read_suite_rows(folder))
    assert [run.best[-1] for run in shifted[twin]] == [0.0, 0.0]
    expected = drawn[key][1].best - drawn[twin][1].best[-1]
    assert shifted[key][1].best == pytest.approx(expected)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_without_one_file_says_so(part, name):
    (part / f"{name}.csv").unlink()
    found, html, markdown = quiet(part)
    (sentence,) = found["missing"]
    assert sentence.startswith(f"{name}.csv is not in the folder")
    assert sentence in html and sentence in markdown.replace("\\", "")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_one_file_alone_is_a_page(part, name):
    for other in FILES:
        if other != name:
            (part / f"{other}.csv").unlink()
    found, html, _ = quiet(part)
    assert len(found["missing"]) == 5 and "There " in html
    if name != "runs":
        assert {row["outcome"] for row in found["benefits"]} == {OPEN}


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_only_a_head_or_without_columns_says_so(part, name, monkeypatch):
    for panel in ("line_panel", "forest_panel"):
        monkeypatch.setattr(drawings, panel, lambda *args, **named: "<svg></svg>")
    path = part / f"{name}.csv"
    head = path.read_text().splitlines()[0]
    path.write_text(head + "\n")
    assert quiet(part)[0]["missing"][0].startswith(f"{name}.csv has no rows")
    path.write_text("strange\n1\n")
    assert quiet(part)[0]["missing"][0].startswith(f"{name}.csv has no column ")


def test_numbers_that_are_none_are_dashes(part):
    rewrite(part / "runs.csv", lambda row: row | {"ndcg@20": "nan", "seconds_features": "x"})
    found, html, _ = quiet(part)
    assert verdict(read_suite_rows(part), "NDCG@20 at 2 and 5 %").outcome == OPEN
    assert ">nan<" not in html


def test_a_missing_interval_decides_nothing(copy):
    def known(row):
        return None if row["target"] == "ifdb" and row["fraction"] == "0.02" else row

    rewrite(copy / "differences.csv", known)
    found = verdict(read_suite_rows(copy), "the same: smallest")
    assert found.outcome == PARTLY and found.measured.endswith("; 1 of 4 measured")


def test_a_loss_beyond_the_threshold_is_missed(copy):
    def worse(row):
        lost = row["target"] == "ifdb" and row["fraction"] == "0.02" and row["bucket"] == "all"
        return row | {"relative_low": "-0.5"} if lost else row

    rewrite(copy / "differences.csv", worse)
    rows = read_suite_rows(copy)
    found = verdict(rows, "the same: smallest")
    assert found.outcome == MISSED and found.measured.startswith("-50.0 % (ifdb, 2 %)")
    harm = verdict(rows, "every transfer arm")
    assert harm.outcome == MISSED and harm.measured.startswith("-50.0 %")


def test_harm_is_judged_by_guarded_arms_where_there_are_any(folder, copy):
    assert {g.cell.key.arm for g in harms(read_suite_rows(folder))} == {"final:1", "final:2"}
    chose = verdict(read_suite_rows(folder), "how often the guard")
    assert re.fullmatch(r"\d+ of 48 runs", chose.measured) and chose.outcome == REACHED
    rewrite(copy / "runs.csv", lambda row: row | {"choice": ""})
    rows = read_suite_rows(copy)
    assert {g.cell.key.arm for g in harms(rows)} == {"zero-shot", "heads", "final:1", "final:2"}
    assert verdict(rows, "how often the guard").outcome == OPEN


def test_cold_items_are_a_multiple_of_raw_text(folder):
    rows = read_suite_rows(folder)
    ratios = [g.cell.mean("recall@20") / g.against.mean("recall@20") for g in cold_items(rows)]
    assert {g.against.key.arm for g in cold_items(rows)} == {"raw-text"} and len(ratios) == 2
    assert verdict(rows, "recall@20 on items").measured == f"{np.mean(ratios):.2f} times"


def test_cold_items_are_also_ranked_among_themselves(copy):
    measure = "recall@20 on items without interactions, ranked among themselves"
    assert verdict(read_suite_rows(copy), measure).outcome == OPEN  # not in these rows

    def known(row):
        reached = "0.3" if row["arm"] == "raw-text" else "0.6"
        return row | {"recall@20_cold": reached if row["scenario"] == "cold-items" else ""}

    rewrite(copy / "runs.csv", known)
    found = verdict(read_suite_rows(copy), measure)
    assert found.measured == "2.00 times" and found.outcome == REACHED


def test_a_run_made_again_counts_once(copy):
    rows = list(csv.DictReader((copy / "runs.csv").open()))
    again = rows[0] | {"ndcg@20": "0.75"}
    with (copy / "runs.csv").open("a", newline="") as file:
        csv.DictWriter(file, fieldnames=list(again)).writerow(again)
    cell = read_suite_rows(copy).cells[0]
    same = [
        c
        for c in read_suite_rows(copy).cells
        if c.key.arm == again["arm"]
        and c.key.target == again["target"]
        and c.key.scenario == "main"
        and c.key.fraction == float(again["fraction"])
    ]
    assert same[0].seeds == (0, 1) and 0.75 in same[0].values["ndcg@20"]
    assert cell.key.scenario == "main"


def test_fewer_seeds_are_listed(part):
    rewrite(
        part / "runs.csv",
        lambda row: None if (row["arm"], row["seed"]) == ("heads", "1") else row,
    )
    _, html, _ = quiet(part)
    assert "have fewer seeds than the others" in html and "1 of 2" in html


def test_hostile_names_are_text(tmp_path):
    folder = made_suite(
        tmp_path / "suite",
        targets=(EVIL, "\x00\u202ecba"),
        sources=(f"source {EVIL}", "b"),
        encoders=(f"encoder {EVIL}",),
        fractions=(0.02,),
        arms=("popularity", "scratch", "heads"),
    )
    for name in ("runs.csv", "buckets.csv"):
        rewrite(
            folder / name,
            lambda row: (
                row | {k: EVIL for k in ("suite", "hardware", "settings", "bucket") if k in row}
            ),
        )
    _, html, markdown = quiet(folder)
    assert "<script" not in html and "<script" not in markdown
    assert "&lt;script&gt;" in html and "\x00" not in html and "\u202e" not in html
    assert "</script>" not in html


def test_the_suites_settings_and_its_digests_are_there(part):
    (part / "suite.toml").write_text('name = "made"\nstrict = true\n[tuning]\nn_trials = 3\n')
    _, html, markdown = quiet(part)
    assert "tuning.n_trials" in html and "Strict: users, items and texts" in html
    assert markdown.count("sha256 of ") == 6
    digest = read_suite_rows(part).sha256["runs.csv"]
    assert digest in html and len(digest) == 64


def test_the_readme_block_is_the_reports_table(folder, written):
    block = readme_block(folder)
    assert block.strip() in written[2] and block.startswith("| benefit | measure | to reach |")
    assert block.count("\n") == len(verdicts(read_suite_rows(folder))) + 2


def test_the_title_and_the_order_of_the_sections(written):
    assert "<h1>Transfer, measured: made</h1>" in written[1]
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", written[1]) == [
        "What was measured",
        "Benefits",
        "Quality over the data kept",
        "Quality over time",
        "Sources and targets",
        "Every difference, losses first",
        "By user activity and item popularity",
        "Cost",
        "What sources and targets share",
        "Settings",
    ]


def test_what_is_no_results_folder_is_one_line(copy, tmp_path, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (tmp_path / "nowhere", empty):
        with pytest.raises(DataError, match="expected a results folder"):
            read_suite_rows(place)
        code, _, err = run("report", place)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
        assert not list(empty.iterdir())
    (copy / "runs.csv").write_text('a,b\n1,2,3,4\n"')
    with pytest.raises(DataError, match=r"runs\.csv: found no readable CSV"):
        read_suite_rows(copy)
    (copy / "runs.csv").unlink()
    with pytest.raises(ConfigError, match="cannot make that folder"):
        report_command(copy, copy / "curves.csv" / "out", lambda *lines: None)
