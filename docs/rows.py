"""The committed rows of the benchmarks as tables for the pages: nothing here is typed by hand."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from IPython.display import HTML
    from pandas.core.groupby import DataFrameGroupBy

RESULTS = Path(os.environ["GNNREC_ROOT"]) / "benchmarks" / "results"
MEASURE = "ndcg@20"
LEVEL = 0.05  # of p-values after Holm's correction


def read(name: str) -> pd.DataFrame:
    """The rows of one file, fractions as percent where `kept` does not mean something else."""
    frame = pd.read_csv(RESULTS / name)
    if "fraction" in frame and "kept" not in frame:
        frame["kept"] = [f"{100 * fraction:g} %" for fraction in frame["fraction"]]
    return frame


def of_suite(suite: str, name: str) -> pd.DataFrame:
    """The rows of a suite, and of those named after it (families, families-shop)."""
    found = sorted(RESULTS.glob(f"{suite}*/{name}"))
    return pd.concat([read(str(path.relative_to(RESULTS))) for path in found], ignore_index=True)


def percent(frame: pd.DataFrame) -> pd.Series:
    """Relative differences with their intervals, as text."""
    low, high = frame["relative_low"] * 100, frame["relative_high"] * 100
    parts = zip(frame["relative"] * 100, low, high, strict=True)
    return pd.Series([f"{a:+.1f} % [{b:+.1f}, {c:+.1f}]" for a, b, c in parts], frame.index)


def differences(
    suite: str, arm: str, against: str, bucket: str = "all", scenario: str = "main"
) -> pd.DataFrame:
    """A suite's differences of an arm to another in NDCG@20, with the chosen source, by target.

    Adds `difference`, text, and `verdict`: ahead or behind where the whole interval is, else open.
    `against` says of another encoder's model from scratch which.

    Args:
        suite: transfer or families.
        arm: The arm.
        against: popularity, scratch, or `the best without a source`.
        bucket: Users by their number of kept interactions.
        scenario: main, cold-items or cold-users.
    """
    frame = of_suite(suite, "differences.csv")
    wanted = {"arm": arm, "metric": MEASURE, "bucket": bucket, "scenario": scenario}
    for name, value in ({"chosen": "yes"} | wanted).items():
        frame = frame[frame[name] == value]
    frame = frame[frame["family"].str.contains(f": against {against},", regex=False)]
    frame = frame[frame["target"] != "all"].sort_values(["target", "fraction"])
    verdict = pd.Series("open", frame.index)
    verdict[frame["relative_low"] > 0] = "ahead"
    verdict[frame["relative_high"] < 0] = "behind"
    other = (frame["against"] == "scratch") & (frame["against_encoder"] != frame["encoder"])
    named = frame["against"].mask(other, frame["against_encoder"] + " scratch")
    return frame.assign(difference=percent(frame), verdict=verdict, against=named)


def beside(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """A column of differences as a table: a row per share kept, a column per target."""
    table = frame.pivot(index=["fraction", "kept"], columns="target", values=value)
    return table.droplevel("fraction").fillna("")


def counted(frame: pd.DataFrame) -> str:
    """How often ahead, behind and neither, also after Holm's correction, as words."""
    certain = frame[frame["p_holm"] < LEVEL]["verdict"]
    ahead, behind = ((frame["verdict"] == verdict).sum() for verdict in ("ahead", "behind"))
    return (
        f"of {len(frame)} cells ahead in {ahead} ({(certain == 'ahead').sum()} after Holm's "
        f"correction over the family), behind in {behind} ({(certain == 'behind').sum()}), "
        f"and in {len(frame) - ahead - behind} the interval holds zero"
    )


def whole_means(groups: DataFrameGroupBy, n_seeds: int) -> pd.Series:
    """The mean of each group that has all seeds; others are left out."""
    return groups[MEASURE].mean()[groups["seed"].nunique() == n_seeds]


def families() -> pd.DataFrame:
    """Each family's arms beside each other, and what transfer adds to the model from scratch."""
    runs = of_suite("families", "runs.csv").fillna({"encoder": "without"})
    keys = ["target", "fraction", "encoder"]
    values = whole_means(runs.groupby([*keys, "arm"]), runs["seed"].nunique()).unstack("arm")
    order = ("popularity", "raw-text", "scratch", "zero-shot", "heads", "final:1", "text:1", "full")
    table = values[[arm for arm in order if arm in values]]
    table = table.map(lambda value: "" if pd.isna(value) else f"{value:.4f}")
    for arm in ("final:1", "text:1"):
        found = differences("families", arm, "scratch").set_index(keys)["difference"]
        table[f"{arm} to scratch"] = found.reindex(table.index).fillna("")
    return table.rename(index=lambda fraction: f"{100 * fraction:g} %", level="fraction")


def best_without_source(target: str) -> pd.DataFrame:
    """Of each share kept: the best arm that saw no source and its NDCG@20, beside transfer.

    Means over the suite's seeds. The source is the one that the suite chose on validation rows;
    the best arm is the best on the test part, which favours it.
    """
    runs = read("transfer/runs.csv")
    n_seeds = runs["seed"].nunique()
    runs = runs[(runs["scenario"] == "main") & (runs["target"] == target)]
    cells = differences("transfer", "final:1", "scratch")
    rows = []
    for cell in cells[cells["target"] == target].itertuples():
        here = runs[runs["fraction"] == cell.fraction]
        here = here[here["source"].isna() | (here["source"] == cell.source)]
        other = (here["arm"] == "scratch") & (here["encoder"] != cell.encoder)
        here = here.assign(arm=here["arm"].mask(other, here["encoder"] + " scratch"))
        values = whole_means(here.groupby("arm"), n_seeds)
        plain = values[values.index.isin(here[here["source"].isna()]["arm"])]
        rows.append(
            {
                "kept": cell.kept,
                "best without a source": f"{plain.idxmax()} {plain.max():.4f}",
                **{arm: f"{values[arm]:.4f}" for arm in ("scratch", "zero-shot", "final:1")},
            }
        )
    return pd.DataFrame(rows).set_index("kept")


def pairs() -> pd.DataFrame:
    """Pairs of one source and one target: `final:1` to the same model from scratch."""
    found = pd.concat(read(path.name) for path in sorted(RESULTS.glob("pair.*.csv")))
    found = found[found["arm"] == "final:1"].rename(columns=lambda c: c.removesuffix("_to_scratch"))
    found["final:1 to scratch"] = percent(found)
    return found.set_index(["source", "target", "encoder"])[["kept", "final:1 to scratch"]]


def shown(frame: pd.DataFrame) -> HTML:
    """A table for a page: the index as columns, differences in one line."""
    from IPython.display import HTML  # of the docs extra, which the tests of tables do without

    plain = frame.rename_axis(columns=None).reset_index()
    text = plain.map(lambda value: re.sub(r" (?=[%[+-])", "\u00a0", str(value)))
    return HTML(text.to_html(index=False, border=0))


def guard() -> pd.DataFrame:
    """What the guard kept, run by run: the transferred model or the one from scratch."""
    runs = read("transfer/runs.csv")
    runs = runs[runs["arm"].isin(["heads", "final:1", "full"]) & (runs["scenario"] == "main")]
    counts = runs.groupby(["target", "arm"])["choice"].value_counts().unstack(fill_value=0)
    return counts.rename(columns=lambda choice: f"kept {choice}")


def shipped() -> pd.DataFrame:
    """Shipped checkpoints on logs that they have not seen, beside the same model from scratch."""
    runs = read("shipped.csv")
    keys = ["checkpoint", "target", "fraction"]
    cells = runs.set_index([*keys, "arm"])["ndcg@20"].unstack("arm")
    order = ("popularity", "scratch", "zero-shot", "final:1", "text:1")
    table = cells[[arm for arm in order if arm in cells]]
    table = table.map(lambda value: "" if pd.isna(value) else f"{value:.4f}")
    ends = {f"relative{end}_to_scratch": f"relative{end}" for end in ("", "_low", "_high")}
    for arm in ("final:1", "text:1"):
        found = runs[runs["arm"] == arm].set_index(keys).rename(columns=ends)
        table[f"{arm} to scratch"] = percent(found).reindex(table.index).fillna("")
    return table.rename(index=lambda fraction: f"{100 * fraction:g} %", level="fraction")


def choosing() -> pd.DataFrame:
    """How far the ranking of `gnnrec select` agrees with measured gains, target by target."""
    rows = read("choosing.csv")
    means = rows.groupby(["target", "candidate"], as_index=False).mean(numeric_only=True)
    targets, measured = means.groupby("target"), means["measured_ndcg@20"]
    table = pd.DataFrame(
        {
            "candidates": targets.size().astype(float),
            "Kendall's tau": targets["kendall_tau"].first(),
            "popularity": targets["popularity_ndcg@20"].first(),
            "the one that select puts first": targets["select_ndcg@20"].idxmax().map(measured),
            "all of them, mean": targets["measured_ndcg@20"].mean(),
            "the best": targets["measured_ndcg@20"].max(),
        }
    )
    table.loc["mean over targets"] = table.mean()
    digits = {"candidates": 0, "Kendall's tau": 2}
    for name, column in table.items():
        table[name] = [f"{value:.{digits.get(str(name), 4)}f}" for value in column]
    return table.rename_axis("target")


def strength() -> pd.DataFrame:
    """Zero-shot as pretrained and with the strength that it finds: means, and the worst candidate.

    The worst is the smallest ratio to popularity of a candidate's mean over seeds.
    """
    rows = read("strength.csv")
    keys = ["target", "fraction", "kept"]
    means = rows.groupby([*keys, "candidate"]).mean(numeric_only=True)
    groups = means.groupby(level=keys)
    table = pd.DataFrame({"popularity": groups["popularity_ndcg@20"].mean()})
    for name, column in (("as it is", "as_it_is_ndcg@20"), ("strength found", "found_ndcg@20")):
        table[name] = groups[column].mean()
        worst = (means[column] / means["popularity_ndcg@20"] - 1).groupby(level=keys).min()
        table[f"{name}: worst to popularity"] = [f"{100 * value:+.0f} %" for value in worst]
    digits = table.select_dtypes("number").columns
    table[digits] = table[digits].map(lambda value: f"{value:.4f}")
    return table.droplevel("fraction")
