"""The page in a browser: nothing on the console, every figure drawn, nothing wider than the window.

GNNREC_SCREENSHOTS names a folder for pictures to look at; GNNREC_CHROMIUM a browser to use.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import SIZES, needs_chromium
from made_suite import made_suite

pytest.importorskip("playwright", reason="playwright is not installed (pip install playwright)")
pytest.importorskip("matplotlib", reason="the [report] extra is not installed")

from gnnrec.suite_report import report_command

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = made_suite(tmp_path_factory.mktemp("page"), encoders=("lightgcn", "graphsage"))
    return Path(report_command(folder, None, lambda *lines: None)["html"])


@pytest.fixture(scope="module", params=sorted(SIZES))
def page(request, browser, page_file):
    """Opened once a size, for drawing it takes seconds: a test leaves it as it was."""
    width, height = SIZES[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda asked: opened.said.append(asked.url) if outside(asked) else None)
    opened.goto(page_file.resolve().as_uri())
    yield opened
    folder = os.environ.get("GNNREC_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = Path(folder) / f"report-{request.param}"
        opened.screenshot(path=f"{name}.png", full_page=True)
        for place, figure in enumerate(opened.query_selector_all("figure")):
            figure.screenshot(path=f"{name}-{place:02d}.png")
    opened.close()


def outside(request) -> bool:
    return not request.url.startswith(("file:", "data:"))


def test_every_figure_is_drawn_and_nothing_is_said(page):
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('.panels>svg')]"
        ".map(s => { const b = s.getBoundingClientRect(); return [b.width, b.height] }))"
    )
    assert len(boxes) == 10 and all(boxes)
    assert all(width > 250 and height > 60 for figure in boxes for width, height in figure)
    assert page.said == []


def test_nothing_is_wider_than_the_window(page):
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.evaluate(
        "folded = [...document.querySelectorAll('details:not([open])')];"
        " folded.forEach(d => d.open = true)"
    )
    assert page.evaluate(overflow) == 0
    cut = page.evaluate(
        "[...document.querySelectorAll('th,td,caption,figcaption,p,li')].filter(e =>"
        " e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.textContent.slice(0, 60))"
    )
    assert cut == []
    page.evaluate("folded.forEach(d => d.open = false)")


def test_no_text_of_a_drawing_covers_another(page):
    covered = page.evaluate(
        """[...document.querySelectorAll('.panels>svg')].flatMap(svg => {
            const texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()])
            const whole = svg.getBoundingClientRect()
            return texts.flatMap(([one, a], n) => texts.slice(n + 1).filter(([, b]) =>
                Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
                .map(([other]) => one.textContent + ' / ' + other.textContent)
                .concat(a.left < whole.left - 1 || a.right > whole.right + 1
                    ? ['outside: ' + one.textContent] : []))
        })"""
    )
    assert covered == []


def test_the_keyboard_reaches_the_parts_and_the_tables(page):
    """The last one: it moves the focus, and goes on from the page's beginning."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**#part-1", timeout=5000)
    folded = page.locator("figure details").first
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert folded.locator("table").is_visible()
    page.keyboard.press("Enter")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('[role=img],[role=region],nav')].filter(e =>"
        " !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2')].map(e => e.tagName)")
    assert levels == ["H1"] + ["H2"] * 10
