"""Take a recommender along: tables, a faiss index and a program, for where gnnrec is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnnrec.checkpoint import versions
from gnnrec.errors import ConfigError
from gnnrec.export.describe import page, uses
from gnnrec.export.index import build_index, check_index, no_product, recall_of, write_index
from gnnrec.export.program import write_program
from gnnrec.export.tables import write_tables
from gnnrec.lists import check_k
from gnnrec.recommender import Recommender
from gnnrec.storage import check_replaceable, file_sha256, whole_folder, write_json

__all__ = ["export_command", "export_recommender"]

FORMAT = 1


def export_recommender(
    recommender: Recommender,
    out: str | Path,
    *,
    index: str | None = None,
    lists: int | None = None,
    program: bool = True,
) -> dict[str, Any]:
    """Write a folder that serves without gnnrec, whole or not at all.

    - users.parquet, items.parquet, seen.parquet, lists.parquet: see `gnnrec.export.tables`;
    - items.faiss: an index of the items' vectors and biases;
    - program.pt2: `gnnrec.export.program.Lists` as a `torch.export` program;
    - export.json: counts, versions, sha256 of each part, how to use it, recall of the index;
    - README.md: the same for people, with lines of Python that recommend.

    Args:
        recommender: A fitted one.
        out: Folder to write; an earlier gnnrec output is replaced.
        index: flat, hnsw or ivf; None for none.
        lists: Length of the lists of all users; None for none.
        program: Write the program.

    Returns:
        What export.json says. Cost: O(users items d) for the lists, that of
        `gnnrec.export.index.build_index` and 1,000 users' exact ranking for the index.

    Raises:
        ConfigError: The scores are not an inner product and an index is asked for, faiss is
            missing, or the folder holds something else.
        DataError: `lists` is below one.
    """
    out = Path(out)
    vectors, log = recommender.vectors, recommender.log
    check_replaceable(out)
    check_index(index, vectors)
    if lists is not None:
        check_k(lists)
    with whole_folder(out) as work:
        rows = write_tables(recommender, work, lists)
        about: dict[str, Any] = {
            "format": FORMAT,
            "source": recommender.checkpoint.name,
            "encoder": recommender.model.config.encoder,
            "versions": versions(),
            "n_users": log.n_users,
            "n_items": log.n_items,
            "n_interactions": log.n_interactions,
            "dim": vectors.items.shape[1] - 1,
            "scores": no_product(vectors) or "an inner product and the item's bias",
        }
        if index is not None:
            made, settings = build_index(vectors.items.numpy(), index)
            write_index(made, work / "items.faiss")
            about["index"] = {
                "kind": index,
                **settings,
                **recall_of(made, vectors, recommender.seen),
            }
        if program:
            write_program(vectors, work / "program.pt2")
        about["parts"] = {
            path.name: {
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
                **({"rows": rows[path.name]} if path.name in rows else {}),
                "use": uses(path.name, vectors),
            }
            for path in sorted(work.iterdir())
        }
        write_json(work / "export.json", about)
        (work / "README.md").write_text(page(about, vectors), encoding="utf-8")
    return about


def export_command(
    folder: Path,
    out: Path,
    index: str | None,
    lists: int | None,
    program: bool,
    say: Callable[..., None],
) -> dict[str, Any]:
    """Export a saved recommender, and say what was written."""
    target = out.resolve()
    if target in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"--out {out}: found the recommender itself; name another folder")
    check_replaceable(out)
    recommender = Recommender.load(folder, "cpu")
    about = export_recommender(recommender, out, index=index, lists=lists, program=program)
    for name, part in about["parts"].items():
        rows = f", {part['rows']} rows" if "rows" in part else ""
        say(f"{out / name}: {part['bytes']} bytes{rows}")
    if index is not None:
        found = about["index"]
        say(f"{index}: recall@20 {found['recall@20']:.4f} on {found['n_users']} users")
    return {"out": str(out), **about}
