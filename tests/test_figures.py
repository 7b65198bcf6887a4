"""Plots: inline SVG that is whole, named, the same every time, and safe with any text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the [report] extra is not installed")

from gnnrec.figures import (
    Bar,
    Line,
    arm_style,
    bar_panel,
    clip,
    forest_panel,
    legend,
    line_panel,
)

EVIL = "<script>alert('&')</script> $\\frac{ \"x\" _y"
STYLE = arm_style("transfer", 1)


def panel(title: str = "target", label: str = "arm") -> str:
    line = Line(label, STYLE, [0.02, 0.1, 1.0], [0.1, 0.2, 0.3], [0.09, 0.2, 0.2], [0.2, 0.3, 0.4])
    return line_panel(
        title, [line], x_label="kept", y_label="NDCG@20", ticks=[(0.02, "2 %")], log_x=True
    )


def forest(title: str, *, labelled: bool = True) -> str:
    bars = [Bar("worst", -5, -8, -2), Bar("level", 1, -1, 3), Bar(EVIL, 9, 4, 12)]
    return forest_panel(title, bars, "relative, %", labelled=labelled)


@pytest.mark.parametrize(
    "drawing",
    [
        panel(EVIL, EVIL),
        forest(EVIL),
        forest(EVIL, labelled=False),
        bar_panel([(EVIL, 0.5, [0.4, 0.6])], EVIL, EVIL),
    ],
)
def test_any_text_is_text(drawing):
    root = ElementTree.fromstring(drawing)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label")
    assert not {"script", "style", "metadata", "image"} & {e.tag for e in root.iter()}
    assert "<script" not in drawing and "src=" not in drawing and "http" not in drawing


def test_the_same_rows_give_the_same_bytes_and_others_other_ids():
    assert panel() == panel()
    ids = [set(re.findall(r'\bid="([^"]+)"', panel(title))) for title in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', panel("one")))
    assert {name for pair in used for name in pair if name} == ids[0]


def test_a_users_settings_of_matplotlib_change_nothing():
    import matplotlib as mpl

    before = panel()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.parse_math": True}):
        assert panel() == before
        assert mpl.rcParams["font.size"] == 30


def test_a_forest_says_how_many_lie_below_zero_and_shows_every_row():
    labelled, bare = forest("t"), forest("t", labelled=False)
    for drawing in (labelled, bare):
        assert "3 differences, 1 below zero, 1 above zero" in drawing
        for colour in ("#d55e00", "#6b6b6b", "#0072b2"):
            assert f"stroke: {colour}" in drawing
    assert ">worst<" in labelled and ">worst<" not in bare


def test_a_single_point_and_none_are_drawn():
    lines = [Line("one", STYLE, [1.0], [0.2]), Line("none", STYLE, [], [])]
    for steps in (True, False):
        assert "<svg" in line_panel("t", lines, x_label="x", y_label="y", steps=steps)
    assert "0 lines" in line_panel("t", [], x_label="x", y_label="y")


def test_a_narrow_logarithmic_axis_has_plain_numbers():
    line = Line("arm", STYLE, [0.3, 0.7, 1.4], [1, 2, 3])
    drawing = line_panel("t", [line], x_label="s", y_label="v", log_x=True, steps=True)
    assert "math" not in drawing and ">0.5<" in drawing and ">1<" in drawing


def test_families_differ_by_colour_and_their_arms_by_dash_and_marker():
    colours = {arm_style(f, 0).colour for f in ("baseline", "scratch", "transfer", "control")}
    assert len(colours) == 4
    looks = {(s.dash, s.marker) for s in (arm_style("baseline", n) for n in range(12))}
    assert len(looks) == 12
    assert arm_style("something new", 0).colour not in colours
    html = legend([(EVIL, STYLE), ("b", arm_style("scratch", 0))])
    assert html.count("<li>") == 2 and "<script" not in html and STYLE.colour in html


def test_long_names_are_cut():
    assert clip("a" * 50, 10) == "a" * 9 + "\N{HORIZONTAL ELLIPSIS}" and clip("abc", 3) == "abc"
    assert "a" * 60 not in re.sub(r'aria-label="[^"]*"', "", panel("a" * 60))


def test_values_that_are_no_numbers_do_not_stop_a_panel():
    line = Line("arm", STYLE, [1, 2, 3], [0.1, math.nan, 0.3])
    assert "<svg" in line_panel("t", [line], x_label="x", y_label="y")
