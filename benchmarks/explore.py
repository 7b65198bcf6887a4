"""How long `gnnrec explore` takes to open and to answer over a catalogue of 100,000 items.

    python benchmarks/explore.py            # 100,000 items with titles, 20,000 users
    python benchmarks/explore.py --quick    # a tenth; writes no rows

Answers are asked for as the page asks for them, over HTTP from this process. Where there is a
Chromium (GNNREC_CHROMIUM, or Debian's), a page is timed too: until the overview is drawn, and from
typing a word of a title until what was found is there. `first` is the first time of anything,
which makes what later ones use again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import report
from latency import served

from gnnrec.explore import Server, open_explorer

WORDS = 5_000
GENRES = ("drama", "comedy", "crime", "science", "history")


def made_items(n_items: int) -> pd.DataFrame:
    """Titles of three made words, and a genre."""
    rng = np.random.default_rng(2)
    letters = rng.choice(list("abcdefghijklmnoprstuvwy"), (WORDS, 7))
    words = ["".join(row) for row in letters]
    titles = [" ".join(words[i] for i in row) for row in rng.integers(0, WORDS, (n_items, 3))]
    genres = rng.choice(GENRES, n_items)
    ids = [f"i{number}" for number in range(n_items)]
    return pd.DataFrame({"item_id": ids, "title": titles, "genre": genres})


def asks(url: str, explorer: Any, calls: int) -> dict[str, Callable[[int], object]]:  # noqa: ANN401
    """Name -> a request, given its number."""
    rng = np.random.default_rng(1)
    log, titles = explorer.recommender.log, explorer.recommender.catalogue.titles
    users = rng.choice(log.user_ids, calls)
    items = rng.choice(log.item_ids, calls)
    words = [titles[i].split()[1][:4] for i in rng.integers(0, log.n_items, calls)]

    def ask(path: str, **values: str) -> Any:  # noqa: ANN401
        query = urllib.parse.urlencode(values)
        with urllib.request.urlopen(f"{url}{path}?{query}") as answer:
            return json.load(answer)

    def why(number: int) -> None:
        user = str(users[number])
        first = ask("api/user", id=user)["list"][0]["item"]
        ask("api/why", user=user, item=first)

    return {
        "overview": lambda i: ask("api/about"),
        "search for an item": lambda i: ask("api/search", kind="item", q=words[i]),
        "search for a user": lambda i: ask("api/search", kind="user", q=str(users[i])[:4]),
        "a user's list": lambda i: ask("api/user", id=str(users[i])),
        "a list and why its first": why,
        "reasons of a list": lambda i: ask("api/words", id=str(users[i])),
        "an item and what is like it": lambda i: ask("api/item", id=str(items[i])),
        "map": lambda i: ask("api/map"),
    }


def row_of(what: str, seconds: list[float]) -> dict[str, Any]:
    """A row: the first time, and percentiles of the later ones."""
    later = 1e3 * np.array(seconds[1:] or seconds)
    return {
        "what": what,
        "calls": len(seconds),
        "first_ms": f"{1e3 * seconds[0]:.1f}",
        "p50_ms": f"{np.percentile(later, 50):.1f}",
        "p99_ms": f"{np.percentile(later, 99):.1f}",
    }


def timed_calls(call: Callable[[int], object], calls: int) -> list[float]:
    """Seconds of each."""
    seconds = []
    for number in range(calls):
        started = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - started)
    return seconds


def page_rows(url: str, words: list[str]) -> list[dict[str, Any]]:
    """Time the page in a browser; nothing where there is none."""
    browser = os.environ.get("GNNREC_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        print("no Chromium: the page itself is not timed", file=sys.stderr)
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as run:
        opened = run.chromium.launch(executable_path=browser, args=["--no-sandbox"])

        def show(_: int) -> None:
            page = opened.new_page()
            page.goto(url)
            page.locator("#view[aria-busy=false]").wait_for()
            page.close()

        rows = [row_of("page: overview drawn", timed_calls(show, 10))]
        page = opened.new_page()
        page.goto(url)
        page.locator("#view[aria-busy=false]").wait_for()

        page.get_by_role("radio", name="Items").check()

        def find(number: int) -> None:
            page.fill("#q", words[number])
            page.keyboard.press("Enter")
            page.locator("#results li", has_text=words[number]).first.wait_for()

        rows.append(row_of("page: search to results", timed_calls(find, len(words))))
        opened.close()
    return rows


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size; no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    part = 10 if arguments.quick else 1
    n_users, n_items, calls = 20_000 // part, 100_000 // part, 200 // part
    with tempfile.TemporaryDirectory() as folder:
        made, shop, items = made_items(n_items), Path(folder, "recommender"), Path(folder, "i.csv")
        made.to_csv(items, index=False)
        served(Path(folder), "graph-filter", n_users, n_items, made)
        opening = timed_calls(lambda _: open_explorer(shop, items, None, "cpu"), 3)
        rows = [row_of("open", opening)]
        explorer = open_explorer(shop, items, None, "cpu")
        with Server(explorer, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for what, call in asks(server.url, explorer, calls).items():
                print(what, file=sys.stderr)
                rows.append(row_of(what, timed_calls(call, calls)))
            titles = explorer.recommender.catalogue.titles
            rows += page_rows(server.url, [titles[i].split()[0] for i in range(1, 21)])
            server.shutdown()
    sizes = {"n_items": n_items, "n_users": n_users}
    rows = [sizes | row for row in rows]
    report(rows, "explore", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
