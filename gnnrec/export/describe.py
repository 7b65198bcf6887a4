"""What an export says of itself: how each part is used, and lines that recommend with numpy."""

from __future__ import annotations

from typing import Any

from gnnrec.scores import Differentiable, ScoreVectors

_TABLES = """\
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

place, k = 0, 10  # a row of users.parquet, and how many items
users, items, seen = (pq.read_table(f"{name}.parquet") for name in ("users", "items", "seen"))


def vectors(table):
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


scores = vectors(items) @ vectors(users)[place] + items["bias"].to_numpy()
row = pc.index_in(seen["user_id"], users["user_id"].combine_chunks()).to_numpy()
column = pc.index_in(seen["item_id"], items["item_id"].combine_chunks()).to_numpy()
mine = row == place
"""
_WALK = """\
# The walk: from the user's items to their users and back to items.
start, step = seen["start"].to_numpy(), seen["step"].to_numpy()
at = np.bincount(column[mine], start[mine], len(items))
at = np.bincount(row, step * at[column], len(users))
at = np.bincount(column, step * at[row], len(items))
scores = scores + items["arrive"].to_numpy() * at
"""
_NEAR = """\
# From the user's items to those of near texts.
near, own = pq.read_table("near.parquet"), np.zeros(len(items))
own[column[mine]] = seen["near"].to_numpy()[mine]
names = items["item_id"].combine_chunks()
said_by, said_of = (
    pc.index_in(near[name], names).to_numpy() for name in ("item_id", "near_item_id")
)
scores = scores + np.bincount(said_of, own[said_by] * near["weight"].to_numpy(), len(items))
"""
_BEST = """\
scores[column[mine]] = -np.inf  # what the user has
for best in np.argsort(-scores, kind="stable")[:k]:
    if scores[best] > -np.inf:
        print(items["item_id"][int(best)].as_py(), float(scores[best]), sep="\\t")
"""
_LISTS = """\
import pyarrow.compute as pc
import pyarrow.parquet as pq

place, k = 0, 10  # a row of users.parquet, and how many items
user = pq.read_table("users.parquet", columns=["user_id"])["user_id"][place]
lists = pq.read_table("lists.parquet")
mine = lists.filter(pc.and_(pc.equal(lists["user_id"], user), pc.less_equal(lists["rank"], k)))
for item, score in zip(mine["item_id"].to_pylist(), mine["score"].to_pylist()):
    print(item, score, sep="\\t")
"""
_PROGRAM = """\
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

place, k = 0, 10  # a row of users.parquet, and how many items
users, items, seen = (pq.read_table(f"{name}.parquet") for name in ("users", "items", "seen"))
own = seen.filter(pc.equal(seen["user_id"], users["user_id"][place]))["item_id"]
codes = pc.index_in(own, items["item_id"].combine_chunks()).to_numpy()
program = torch.export.load("program.pt2").module()
scores, best = program(torch.tensor([place]), torch.tensor(codes)[None].long(), min(k, len(items)))
for score, code in zip(scores[0].tolist(), best[0].tolist()):
    if code >= 0:
        print(items["item_id"][code].as_py(), score, sep="\\t")
"""
_USES = {
    "users.parquet": [
        "Read it with any Parquet reader; the number of a row is the user's code.",
        "user_id is the id of your log, vector the user's side of the score.",
        "Somebody who is not in it gets the items of the largest bias.",
    ],
    "items.parquet": [
        "Read it with any Parquet reader; the number of a row is the item's code.",
        "item_id is the id of your log, vector the item's side of the score.",
        "bias is added to it: what all users get alike.",
    ],
    "seen.parquet": [
        "A row per pair of the log, by user: user_id and item_id.",
        "Leave these out of what you recommend.",
        "The program takes them as codes, a row per user, filled up with -1.",
    ],
    "near.parquet": [
        "What each item says for those whose texts are near: item_id, near_item_id, weight.",
        "Times `near` of the pairs that a user has in seen.parquet, summed: a part of the score.",
        "README.md has it in Python.",
    ],
    "lists.parquet": [
        "The best items of every user, best first: user_id, item_id, score, rank.",
        "What a user has is left out.",
        "Load it into a table of your database and look users up.",
    ],
    "items.faiss": [
        "index = faiss.read_index('items.faiss'); an item's number is its row in items.parquet.",
        "scores, items = index.search(queries, n): users' vectors with a 1 and a 0 at the end.",
        "Ask for as many more as the user has, and leave these out.",
    ],
    "program.pt2": [
        "program = torch.export.load('program.pt2').module(); it is code: load only your own.",
        "scores, items = program(users, seen, k); codes as int64: users (n,), seen (n, m) with -1.",
        "A user of -1 is unknown and gets popular items; an item of -1 means that none is left.",
    ],
}


def uses(name: str, vectors: ScoreVectors) -> list[str]:
    """Return three lines that say how a part is used, and one for what else it has."""
    lines = list(_USES[name])
    if vectors.walk is not None and name in ("items.parquet", "seen.parquet"):
        lines.append("The other columns are weights of the walk; README.md has it in Python.")
    if isinstance(vectors.part, Differentiable) and name in ("users.parquet", "items.parquet"):
        lines.append("tower is what the tower's layers start from; the scores need program.pt2.")
    return lines


def snippet(names: list[str], vectors: ScoreVectors) -> str:
    """Return lines of Python that print a user's list from the parts that are there."""
    if not isinstance(vectors.part, Differentiable):
        walk = _WALK if vectors.walk is not None else ""
        return _TABLES + walk + (_NEAR if vectors.part is not None else "") + _BEST
    return _LISTS if "lists.parquet" in names else _PROGRAM


def page(about: dict[str, Any], vectors: ScoreVectors) -> str:
    """Return README.md of an export."""
    names = list(about["parts"])
    lines = [
        f"# Recommendations for {about['n_users']} users and {about['n_items']} items",
        "",
        f"Exported by gnnrec {about['versions']['gnnrec']} from a model pretrained as "
        f"`{about['source']}` ({about['encoder']}). A score is {about['scores']}.",
        "",
    ]
    for name, part in about["parts"].items():
        lines += [f"**{name}**", "", *part["use"], ""]
    if "index" in about:
        found = about["index"]
        lines += [
            f"The index ({found['kind']}) found {found['recall@20']:.4f} of the exact top 20, mean "
            f"over {found['n_users']} users.",
            "",
        ]
    by_program = isinstance(vectors.part, Differentiable)
    if not by_program or "lists.parquet" in names or "program.pt2" in names:
        lines += ["A user's list:", "", "```python", snippet(names, vectors).rstrip(), "```", ""]
    return "\n".join(lines)
