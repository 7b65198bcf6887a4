"""The page: everything of the user's is escaped, and the drawing is inside."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from gnnrec.console import text_table
from gnnrec.document import Figure, Section, Table, as_html, as_markdown, markdown_table
from gnnrec.report import arm_plot, arm_rows, difference_rows, figure, page, paragraph, table

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


class Tags(HTMLParser):
    """Start tags with their attributes; fails where an element is closed that is not open."""

    VOID = ("meta", "link", "br", "path", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def test_ids_and_texts_are_escaped():
    html = page(EVIL, [paragraph(EVIL), table(EVIL, [{EVIL: EVIL, "b": 0.5}])])
    assert "<script" not in html and html.count("&lt;script&gt;") == 7
    assert "0.5000" in html and html.startswith("<!doctype html>")
    assert table("none", []) == ""
    Tags(html)


def test_a_table_has_heads_a_caption_and_a_keyboard_stop():
    rows = [{"arm": "a", "value": "+1.5 % [+1.0, +2.0]", "note": "some words"}] * 2
    html = table("Caption at 5 %", rows, {(1, "value"): "bad", (0, "note"): "rgba(1,2,3,.5)"})
    tags = Tags(html)
    assert [a["scope"] for t, a in tags.found if t == "th"] == ["col"] * 3 + ["row"] * 2
    assert "<caption>Caption at 5&nbsp;%</caption>" in html
    region = tags.found[0][1]
    assert region["tabindex"] == "0" and region["aria-label"] == "Caption at 5 %"
    classes = [a.get("class") for t, a in tags.found if t == "td"]
    assert classes == ["n", "t", "n bad", "t"]  # numbers to the right, texts to the left
    assert html.count("background:rgba(1,2,3,.5)") == 1


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


def test_one_document_as_a_page_and_as_markdown():
    shown = Table("A caption", [{"arm": EVIL, "value": "a|b"}], folded=True)
    drawn = Figure("What is drawn", "How to read it", ["<svg></svg>"], shown)
    sections = [Section("First", ["A text.", shown]), Section(EVIL, [drawn])]
    html, markdown = as_html("Title", sections), as_markdown("Title", sections)
    links = [a["href"] for t, a in Tags(html).found if t == "a"]
    assert links == ["#content", "#part-1", "#part-2"] and 'id="part-2"' in html
    assert html.count("<details>") == 2 and "<script" not in html
    assert "<figcaption><strong>What is drawn</strong> How to read it</figcaption>" in html
    assert markdown.startswith("# Title\n\n## First\n\nA text.\n\n**A caption**\n\n| arm | value |")
    assert markdown.count("&lt;script&gt;") == 3 and "<" not in markdown and "a\\|b" in markdown
    assert markdown_table([]) == "" and "<details>" not in figure("c", "n", [])


def test_markdown_shows_any_text_as_it_is():
    text = "a*b*_c_`d`\\[x](y)|\nnew ~~line~~"
    line = markdown_table([{"text": text}]).splitlines()[-1]
    assert line == "| a\\*b\\*\\_c\\_\\`d\\`\\\\[x]\\(y)\\| new \\~\\~line\\~\\~ |"
