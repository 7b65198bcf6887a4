"""The page of `gnnrec explore` in a browser: search, open, compare, with a mouse and without.

GNNREC_SCREENSHOTS names a folder for pictures to look at; GNNREC_CHROMIUM a browser to use.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from conftest import SIZES, needs_chromium
from made_shop import EVIL, made_shop

pytest.importorskip("playwright", reason="playwright is not installed (pip install playwright)")

from playwright.sync_api import expect

from gnnrec.explore import Server, open_explorer

SHOWN = "#view[aria-busy=false]"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(checkpoint, frame, transfer_config, tmp_path_factory):
    folder, other, items = made_shop(
        checkpoint, frame, transfer_config, tmp_path_factory.mktemp("page")
    )
    with Server(open_explorer(folder, items, other, "cpu"), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(params=sorted(SIZES))
def page(request, browser, address):
    width, height = SIZES[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height})
    said = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    opened.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:")) else said.append(asked.url),
    )
    opened.said = said
    opened.goto(address)
    opened.locator(SHOWN).wait_for()  # wait_for_function would need eval, which the page forbids
    opened.locator("#legend li").nth(1).wait_for()
    yield opened
    folder = os.environ.get("GNNREC_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = request.node.name.replace("[", "-").rstrip("]")
        opened.screenshot(path=Path(folder) / f"explore-{name}.png", full_page=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.evaluate(overflow) == 0
    assert said == []
    opened.close()


def wait_for_heading(page, text):
    expect(page.locator("#heading")).to_have_text(text)


def test_it_opens_with_what_is_there(page):
    wait_for_heading(page, "Overview")
    tiles = page.locator(".tiles li").all_text_contents()
    assert "27items" in tiles
    expect(page.locator("#certainty")).to_have_text(re.compile(r"ndcg@20 [+-].* users: [a-z ]+\.$"))
    page.locator("summary", has_text="Cold items").click()
    page.locator("h3", has_text="Items that two people at most have").wait_for()
    assert page.locator("a", has_text="The science fiction of number 26").count() == 1


def test_search_open_a_user_and_compare(page):
    page.get_by_label("Id or title").fill("u3")
    page.locator("#results").wait_for()
    assert "found" in page.locator("#status").text_content()
    page.locator("#results a").first.click()
    wait_for_heading(page, "User u3")
    assert page.evaluate("document.activeElement.id") == "heading"
    titles = page.locator("#view h3").all_text_contents()
    assert titles == ["Recommended", "By popularity alone", "By other (zero-shot)", "Has"]
    rows = page.locator("#view ol").first.locator("> li")
    assert (
        rows.count() == 10 or rows.count() == page.locator("#view ol").nth(1).locator("li").count()
    )
    popular = set(page.locator("#view ol").nth(1).locator("a").all_text_contents())
    mine = rows.locator("> a").all_text_contents()
    assert len(mine) == 10
    fresh = sum(title not in popular for title in mine)
    assert f"{fresh} of the {len(mine)}" in page.locator("#changed").text_content()
    assert page.locator(".badge").count() == fresh
    expect(rows.last.locator(".words")).to_contain_text("have it")
    rows.first.locator("summary").click()
    table = rows.first.locator("table").first
    table.wait_for()
    values = [
        float(t.replace(",", "")) for t in table.locator("td:nth-child(2)").all_text_contents()
    ]
    assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.01)


def test_an_item_and_text_that_is_no_html(page):
    page.get_by_label("Items", exact=True).check()
    page.get_by_label("Id or title").fill("onerror")
    link = page.locator("#results a", has_text=EVIL)
    link.wait_for()
    link.click()
    wait_for_heading(page, EVIL)
    assert page.locator("img").count() == 0
    assert page.locator("#view ol li").count() == 10
    page.locator("#view .plain a").first.click()
    wait_for_heading(page, re.compile("^User "))
    page.go_back()
    wait_for_heading(page, EVIL)


def test_a_title_among_users_is_told_where_it_is(page):
    page.get_by_label("Id or title").fill("science")
    expect(page.locator("#status")).to_have_text(
        re.compile("0 found among users, [1-9].* among items")
    )
    assert not page.locator("#results").is_visible()


def test_the_map_by_keyboard_and_by_colour(page):
    page.get_by_label("Colour by").select_option("genre")
    assert "drama" in page.locator("#legend li").all_text_contents()
    drawn = "document.querySelector('#canvas').toDataURL().length"
    assert page.evaluate(drawn) > 2000
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#map-point").text_content()
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    assert "have it" in first or "has it" in first
    title = page.locator("#map-point").text_content().split(": ")[0]
    page.keyboard.press("Enter")
    wait_for_heading(page, title)


def test_without_a_mouse(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.get_by_label("Id or title").focus()
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    page.locator("#results").wait_for()
    page.locator("#results a").first.focus()
    page.keyboard.press("Enter")
    wait_for_heading(page, "User u1")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input,select,button,canvas,nav,[role=region]')].filter("
        "e => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()"
        " || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_what_is_not_there_is_said(page):
    page.evaluate("location.hash = '#/user/nobody'")
    wait_for_heading(page, "Not found")
    assert "nobody" in page.locator("[role=alert]").text_content()
    assert "404" in page.said.pop()  # which the browser says of every such answer
