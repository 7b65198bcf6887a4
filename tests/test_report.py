"""The page: everything of the user's is escaped, and the drawing is inside."""

from __future__ import annotations

import pytest

from gnnrec.console import text_table
from gnnrec.report import arm_plot, arm_rows, difference_rows, page, paragraph, table

EVIL = "<script>alert('&')</script>"


def row(arm: str, value: float) -> dict:
    metrics = {name: value for name in ("ndcg@20", "recall@20", "hit@20", "coverage@20")}
    return {
        "arm": arm,
        "metrics": metrics,
        "seed_sd": 0.01,
        "per_seed": [value - 0.01, value + 0.01],
        "seconds": {"train": 1.25},
        "parameters": {"trained": 1000, "total": 20000},
    }


def test_ids_and_texts_are_escaped():
    html = page(EVIL, [paragraph(EVIL), table(EVIL, [{EVIL: EVIL, "b": 0.5}])])
    assert "<script" not in html and html.count("&lt;script&gt;") == 6
    assert "0.5000" in html and html.startswith("<!doctype html>")
    assert table("none", []) == ""


def test_the_drawing_is_inside_and_escaped():
    pytest.importorskip("matplotlib", reason="the [report] extra is not installed")
    html = arm_plot([row("popularity", 0.1), row(EVIL, 0.2)])
    assert "<svg" in html and "</svg>" in html
    assert "<script" not in html
    assert "0.1000" in html
    assert "src=" not in html  # self-contained


def test_rows_as_text():
    rows = arm_rows([row("heads", 0.25), row("popularity", 0.1) | {"parameters": None}])
    assert rows[0]["trained parameters"] == "1,000 of 20,000"
    assert rows[1]["trained parameters"] == "0"
    lines = text_table(rows).splitlines()
    assert len(lines) == 3 and lines[1].startswith("heads") and "0.2500" in lines[1]
    assert text_table([]) == ""
    difference = dict.fromkeys(
        ("mean_difference", "low", "high", "relative", "relative_low", "relative_high"), 0.125
    )
    shown = difference_rows([difference | {"arm": "a", "against": "b"}])[0]
    assert shown["arm"] == "a - b" and shown["ndcg@20"] == "+0.1250"
    assert shown["relative"] == "+12.5 %"
