"""A local page over a saved recommender: search, lists with reasons, a map. Works offline."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from gnnrec.explore.answers import Explorer, open_explorer
from gnnrec.explore.server import Server
from gnnrec.signals import StoppedError

__all__ = ["Explorer", "Server", "explore_command", "open_explorer"]


def explore_command(
    folder: Path,
    port: int,
    items: Path | None,
    beside: Path | None,
    device: str,
    *,
    open_page: bool,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until it is interrupted.

    Args:
        folder: A saved recommender.
        port: 0 for any free one.
        items: An items file whose columns can colour the map, or None.
        beside: Another recommender of the same log, or None.
        device: auto, cpu or cuda.
        open_page: Open it in the system's browser.
        ready: Called with the address once it answers.
    """
    explorer = open_explorer(folder, items, beside, device)
    with Server(explorer, port) as server:
        ready(server.url)
        # What explains is made meanwhile: on a large catalogue it takes a while.
        threading.Thread(target=lambda: explorer.explainer, daemon=True).start()
        if open_page:
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever()
        except (KeyboardInterrupt, StoppedError):  # the way it is meant to end
            return
