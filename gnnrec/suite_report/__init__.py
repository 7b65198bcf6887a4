"""`gnnrec report`: the rows of a suite as one self-contained HTML page and as Markdown.

The same rows give the same bytes: nothing of today's date or of this machine is in the output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnnrec.document import Block, Figure, Section, Table, as_html, as_markdown, markdown_table
from gnnrec.errors import ConfigError
from gnnrec.shown import fraction
from gnnrec.storage import whole_file
from gnnrec.suite_report.arrival import arrivals
from gnnrec.suite_report.benefits import MISSED, REACHED, verdicts
from gnnrec.suite_report.drawings import (
    bucket_figure,
    encoders,
    forest_figure,
    learning_figure,
    time_figure,
)
from gnnrec.suite_report.facts import (
    cost_details,
    cost_rows,
    holes,
    measured,
    overlap_rows,
    setting_rows,
    target_sizes,
)
from gnnrec.suite_report.gains import chosen_arrivals, cold_items, cold_users, gains, to_twins
from gnnrec.suite_report.quality import (
    cold_arms,
    difference_table,
    gain_rows,
    harm_rows,
    matrix,
    mean_rows,
    time_rows,
    twin_rows,
)
from gnnrec.suite_report.reading import read_suite_rows
from gnnrec.suite_report.rows import MAIN, NDCG, RECALL, TRANSFER, SuiteRows

HTML_NAME, MARKDOWN_NAME = "report.html", "report.md"

_PROTOCOL = (
    "The test part is fixed: in the main scenario a random fifth of every user's interactions, the "
    "same for all seeds and fractions. Of the rest a fraction is kept, and validation comes out of "
    "what is kept, so that a fraction counts all labels used. The whole catalogue is ranked for "
    "every test user, those without a kept interaction too; recall divides by all of a user's test "
    "items. Cold items: a share of the items has no training interaction. Cold users: served from "
    "one to five interactions, never trained on. No target is in its own source.",
    "Metrics are averaged over seeds for each user, then users are resampled in pairs (bootstrap) "
    "for the 95 % intervals; p is Holm's, over the named family of tests. A transfer arm and "
    "its from-scratch twin have the same loss, steps and validation; how many settings each arm "
    "was tuned over is under Settings. Zero-shot makes no training step on the target; it still "
    "reads the target's kept interactions.",
)
_STRICT = "Strict: users, items and texts of the target that a source has were taken out of it."
_SHARED = "Sources keep the users, items and texts that they share with a target; see the overlap."
_JUDGED = (
    "The thresholds were set before the suite was run. Of several sources the one that validated "
    "best counts. The arms of a gain are picked on the test part: the best transfer arm, and as "
    "its opponent the best of all arms without a source. The first favours transfer, the second "
    "its opponent; the mean with one and the same arm for all targets stands below it. A missed "
    "threshold is shown as missed."
)


def report_command(folder: Path, out: Path | None, say: Callable[..., None]) -> dict[str, Any]:
    """Write the HTML page and the Markdown of a results folder, and say what they hold.

    Args:
        folder: Of `gnnrec bench`; may be partial.
        out: Folder to write; the results folder itself by default.
        say: Told one line of text at a time.

    Returns:
        `html` and `markdown` (paths), `benefits` (the table's rows), `missing` (sentences).

    Raises:
        DataError: No results there, or a file that is no CSV.
        ConfigError: Cannot be written, or matplotlib is not installed.
    """
    rows = read_suite_rows(folder)
    title, sections = document(rows)
    place = folder if out is None else out
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{place}: cannot make that folder ({error.strerror}); name another --out"
        ) from error
    texts = {HTML_NAME: as_html(title, sections), MARKDOWN_NAME: as_markdown(title, sections)}
    for name, text in texts.items():
        with whole_file(place / name) as path:
            path.write_text(text, encoding="utf-8", newline="\n")
    found = verdicts(rows)
    for verdict in found:
        say(f"{verdict.outcome:<15}  {verdict.benefit}: {verdict.measure}: {verdict.measured}")
    for sentence in rows.missing:
        say(f"note: {sentence}")
    say(f"written: {place / HTML_NAME}, {place / MARKDOWN_NAME}")
    return {
        "html": str(place / HTML_NAME),
        "markdown": str(place / MARKDOWN_NAME),
        "benefits": [verdict.row() for verdict in found],
        "missing": list(rows.missing),
    }


def readme_block(folder: Path) -> str:
    """Return the table of benefits as Markdown, for the README: every figure is from the rows.

    Raises:
        DataError: See `read_suite_rows`.
    """
    rows = read_suite_rows(folder)
    return markdown_table([verdict.row() for verdict in verdicts(rows)]) + "\n"


def document(rows: SuiteRows) -> tuple[str, list[Section]]:
    """Return the title and the sections of a suite's report."""
    suites = sorted(set(rows.runs["suite"]) - {""})
    title = f"Transfer, measured: {', '.join(suites)}" if suites else "Transfer, measured"
    return title, [
        Section("What was measured", _what(rows)),
        Section("Benefits", _benefits(rows)),
        Section("Quality over the data kept", _learning(rows)),
        Section("Quality over time", _time(rows)),
        Section("Sources and targets", _matrix(rows)),
        Section("Every difference, losses first", _differences(rows)),
        Section("By user activity and item popularity", _buckets(rows)),
        Section("Cost", _cost(rows)),
        Section("What sources and targets share", _overlap(rows)),
        Section("Settings", _settings(rows)),
    ]


def _what(rows: SuiteRows) -> list[Block]:
    gaps = holes(rows)
    out: list[Block] = [*_PROTOCOL]
    strict = rows.settings.get("strict")
    if strict is not None:
        out.append(_STRICT if strict == "True" else _SHARED)
    if rows.missing:
        out.append("Not in this folder: " + " ".join(rows.missing))
    out.append(Table("The suite", measured(rows)))
    out.append(Table("The targets", target_sizes(rows)))
    if gaps:
        out.append(f"{len(gaps)} of {len(rows.cells)} arms have fewer seeds than the others.")
        out.append(Table("Arms with fewer seeds", gaps, folded=True))
    return out


def _benefits(rows: SuiteRows) -> list[Block]:
    found = verdicts(rows)
    shades = {
        (place, "outcome"): "good" if verdict.outcome == REACHED else "bad"
        for place, verdict in enumerate(found)
        if verdict.outcome in (REACHED, MISSED)
    }
    cold = (gain_rows(cold_items(rows)), gain_rows(cold_users(rows)))
    return [
        _JUDGED,
        Table("Benefits", [verdict.row() for verdict in found], shades),
        _table_or(
            Table(
                "The best transfer arm and the best arm without a source", gain_rows(gains(rows))
            ),
            "There is no target with both a transfer arm and an arm without a source.",
        ),
        Table("Means over targets, with the source that validated best", mean_rows(rows)),
        _table_or(
            Table("Items without interactions, recall@20, to raw text", cold[0]),
            "There are no rows of cold items with a transfer arm and raw text.",
        ),
        _table_or(
            Table("Users served from a few interactions, NDCG@20, to the best other arm", cold[1]),
            "There are no rows of cold users with a transfer arm and another.",
        ),
        Table("Every arm on cold items and cold users", cold_arms(rows), folded=True),
        _table_or(
            Table("No harm: each transfer arm to its twin from scratch", harm_rows(rows)),
            "There is no transfer arm with its twin from scratch.",
        ),
    ]


def _learning(rows: SuiteRows) -> list[Block]:
    return _drawn([learning_figure(rows, name) for name in encoders(rows)])


def _time(rows: SuiteRows) -> list[Block]:
    found = arrivals(rows)
    if not found:
        return ["There are no curves of a transfer arm and its twin from scratch."]
    out: list[Block] = []
    chosen = {id(arrival.cell) for arrival in chosen_arrivals(rows)}
    best = [arrival for arrival in found if id(arrival.cell) in chosen]
    out.append(
        "How long until a transfer arm has the validation value that its twin from scratch ends "
        "with. Pretraining is done once for all targets and is listed apart; never: not on every "
        "seed."
    )
    for name in encoders(rows):
        own = [arrival for arrival in found if arrival.cell.key.encoder == name]
        figure = time_figure(rows, name, time_rows(rows, own))
        out += [figure] if figure is not None else []
    out.append(Table("The best transfer arm of each target and fraction", time_rows(rows, best)))
    return out


def _matrix(rows: SuiteRows) -> list[Block]:
    out: list[Block] = []
    for name in encoders(rows):
        cells = [c for c in rows.of(MAIN) if c.key.family == TRANSFER and c.key.encoder == name]
        for kept in sorted({cell.key.fraction for cell in cells}):
            sources = {cell.key.source for cell in cells if cell.key.fraction == kept}
            if len(sources) > 1:
                lines, shades = matrix(rows, name, kept)
                caption = (
                    f"{name}, {fraction(kept)} kept: the best arm of each source, NDCG@20 to the "
                    "twin from scratch, 95 % interval"
                )
                out.append(Table(caption, lines, shades))
    return out or ["No fraction has more than one source: there is no matrix to show."]


def _differences(rows: SuiteRows) -> list[Block]:
    found = to_twins(rows)
    out: list[Block] = []
    for name in encoders(rows):
        figure = forest_figure(found, name)
        out += [figure] if figure is not None else []
    if not out:
        out.append("There is no interval of a transfer arm to its twin from scratch.")
        out.append(Table("To the twin from scratch, without intervals", twin_rows(found)))
    lines, shades = difference_table(rows)
    inside, marks = difference_table(rows, buckets=True)
    if lines:
        n_bad = sum(shade == "bad" for shade in shades.values())
        n_good = len(shades) - n_bad
        out.append(
            f"Of all {len(lines)} pairs {n_bad} have an interval below zero, {n_good} one above, "
            f"{len(lines) - len(shades)} one across."
        )
    out.append(Table("All pairs, worst first", lines, shades, folded=True))
    out.append(Table("The pairs within buckets of users, worst first", inside, marks, folded=True))
    return out


def _buckets(rows: SuiteRows) -> list[Block]:
    figures = [
        bucket_figure(rows, name, by, metric)
        for name in encoders(rows)
        for by, metric in (("user-activity", NDCG), ("item-popularity", RECALL))
    ]
    return _drawn(figures)


def _cost(rows: SuiteRows) -> list[Block]:
    note = (
        "Seconds and counts are medians over targets and fractions of the mean over seeds, memory "
        "is the largest. Parameters are without id tables and biases, which are listed apart."
    )
    return [
        note,
        _table_or(
            Table("Cost of an arm", cost_rows(rows)), "There are no runs to take costs from."
        ),
        Table("Cost by target and fraction", cost_details(rows), folded=True),
    ]


def _overlap(rows: SuiteRows) -> list[Block]:
    table = Table(
        "Shared ids and texts; near: a source text at cosine above .9", overlap_rows(rows)
    )
    return [_table_or(table, "There are no rows of overlap.")]


def _settings(rows: SuiteRows) -> list[Block]:
    found = setting_rows(rows)
    table = Table("Settings that the runs used, and the trials they come from", found, folded=True)
    out: list[Block] = [table if found else "There are no tuned settings in these rows."]
    lines = [{"setting": name, "value": value} for name, value in rows.settings.items()]
    return [*out, Table("The settings of the suite", lines, folded=True)]


def _drawn(figures: list[Figure | None]) -> list[Block]:
    drawn: list[Block] = [figure for figure in figures if figure is not None]
    return drawn or ["There are no rows to draw this from."]


def _table_or(table: Table, otherwise: str) -> Block:
    return table if table.rows else otherwise
