"""The command line: one verb per step, tables on stderr, one JSON object on stdout with --json."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gnnrec.console import metric_rows, text_table
from gnnrec.errors import ConfigError, GnnrecError

if TYPE_CHECKING:
    from gnnrec.interactions import Columns
    from gnnrec.sources import Log

# click's ClickException, by way of typer, which carries a copy of click in some versions.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

# Nothing heavier than typer is imported before a command runs: --help answers at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Recommendation by transfer learning on graphs.",
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at, check and fetch interaction logs."
)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder with copies of the data sets.")]
UserColumn = Annotated[str, typer.Option(help="Column of user ids.")]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids, in the items file too.")]
TimeColumn = Annotated[str, typer.Option("--timestamp-column", help="Column of times.")]
WeightColumn = Annotated[str, typer.Option(help="Column of weights or ratings.")]
MinWeight = Annotated[float | None, typer.Option(help="Leave out rows below this weight.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Cutoffs = Annotated[list[int], typer.Option("-k", min=1, help="Cut-off; may be repeated.")]
LogName = Annotated[str, typer.Argument(metavar="NAME-or-FILE")]


def main() -> None:
    """Run the command line; exit 0 when done, 2 when the input is wrong, 3 for anything else."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except GnnrecError as error:
        code = _fail(str(error), error.exit_code)
    except _CommandLineError as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
            print(context.get_help(), file=sys.stderr)  # noqa: T201
            code = 2
        else:
            where = context.command_path if context is not None else "gnnrec"
            code = _fail(f"{error.format_message()} See {where} --help.", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = _fail("stopped; nothing was left half-written", 3)
    except (BrokenPipeError, SystemExit):  # the reader of the output, head or a pager, has gone
        code = 3
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
    except Exception as error:
        if os.environ.get("GNNREC_DEBUG"):
            traceback.print_exc()
        name = type(error).__name__
        code = _fail(f"unexpected {name}: {error} (GNNREC_DEBUG=1 shows where)", 3)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return code


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201


def _emit(as_json: bool, value: dict[str, Any]) -> None:
    if as_json:
        from gnnrec.evaluate import plain

        print(json.dumps(plain(value), allow_nan=False))  # noqa: T201


def _columns(user: str, item: str, timestamp: str, weight: str) -> Columns:
    from gnnrec.interactions import Columns

    return Columns(user=user, item=item, timestamp=timestamp, weight=weight)


@data_app.command("list")
def data_list(json_: Json = False) -> None:
    """List the registered data sets."""
    from gnnrec.datasets import list_datasets

    rows = [
        {
            "name": spec.name,
            "text": "yes" if spec.has_text else "no",
            "time": "yes" if spec.has_time else "no",
            "licence": spec.licence,
        }
        for spec in list_datasets()
    ]
    _say(text_table(rows))
    _emit(json_, {"datasets": rows})


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument()], mirror: Mirror = None, json_: Json = False
) -> None:
    """Fetch a data set into the cache and check it."""
    from gnnrec.datasets import load

    dataset = load(name, mirror)
    log, spec = dataset.interactions, dataset.spec
    counts = {"n_users": log.n_users, "n_items": log.n_items, "n_interactions": log.n_interactions}
    _say(f"{name}: {counts}", f"licence: {spec.licence}", f"cite: {spec.citation}")
    _emit(
        json_,
        {"name": name, **counts, "sha256": dataset.sha256, "licence": spec.licence},
    )


@data_app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    items: Annotated[Path | None, typer.Option(help="Items file.")] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Check a log, and an items file if there is one, and say what will be used."""
    from gnnrec.sources import open_file

    columns = _columns(user_column, item_column, timestamp_column, weight_column)
    log = open_file(file, items, columns=columns, min_weight=min_weight)
    data = log.interactions
    found: dict[str, Any] = {
        "file": str(file),
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "n_repeated_rows": data.n_dropped_duplicates,
        "n_below_min_weight": data.n_below_min_weight,
        "interactions_per_user": round(data.n_interactions / data.n_users, 2),
        "has_timestamps": data.timestamps is not None,
        "has_weights": data.weights is not None,
    }
    if log.items is not None:
        texts, _ = log.items.align(data.item_ids)
        found["n_items_in_table"] = len(log.items.item_ids)
        found["n_items_with_text"] = sum(1 for text in texts if text)
    _say(*(f"{name}: {value}" for name, value in found.items()), "usable")
    _emit(json_, found)


@data_app.command("stats")
def data_stats(
    source: LogName,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Describe the bipartite graph of a log: sizes, degrees, components, concentration."""
    from gnnrec.graph import BipartiteGraph

    log = _open(
        source,
        None,
        _columns(user_column, item_column, timestamp_column, weight_column),
        min_weight,
        mirror,
    ).interactions
    graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
    statistics = graph.statistics()
    _say(*(f"{name}: {value}" for name, value in statistics.items()))
    _emit(json_, {"source": source, **statistics})


def _open(
    source: str,
    items: Path | None,
    columns: Columns,
    min_weight: float | None,
    mirror: Path | None,
) -> Log:
    from gnnrec.sources import open_log

    log = open_log(source, items, columns=columns, min_weight=min_weight, mirror=mirror)
    data = log.interactions
    _say(
        f"{log.name}: {data.n_users} users, {data.n_items} items, {data.n_interactions} "
        f"interactions ({data.n_dropped_duplicates} repeated rows collapsed)"
    )
    return log


@app.command()
def pretrain(
    source: Annotated[list[str], typer.Option(help="NAME or FILE; may be repeated.")],
    out: Out,
    encoder: Annotated[
        str | None, typer.Option(help="lightgcn, graphsage or graph-filter.")
    ] = None,
    items: Annotated[
        list[Path] | None, typer.Option(help="Items files of the FILE sources, in their order.")
    ] = None,
    text: Annotated[
        bool | None, typer.Option("--text/--no-text", help="Read item text (default: if all have).")
    ] = None,
    text_model: Annotated[
        str | None, typer.Option(help="Sentence encoder, name or folder.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Pretrain an encoder on one or several source graphs."""
    from gnnrec.commands import pretrain_command

    columns = _columns(user_column, item_column, timestamp_column, weight_column)
    paths = list(items or [])
    n_files = sum(Path(name).is_file() for name in source)
    if len(paths) > n_files:
        raise ConfigError(
            f"--items {paths[n_files]}: found {len(paths)} items files for {n_files} FILE sources, "
            "expected at most one for each; leave it out"
        )

    def open_sources() -> list[Log]:
        return [
            _open(
                name,
                paths.pop(0) if paths and Path(name).is_file() else None,
                columns,
                min_weight,
                mirror,
            )
            for name in source
        ]

    overrides = {
        "model.encoder": encoder,
        "model.text_model": text_model,
        "train.max_steps": max_steps,
        "seed": seed,
    }
    _emit(json_, pretrain_command(open_sources, out, text, config, overrides, device, _say))


@app.command()
def transfer(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    target: Annotated[str, typer.Option(help="NAME or FILE.")],
    out: Out,
    items: Annotated[Path | None, typer.Option(help="Items file: item_id and text.")] = None,
    retrain: Annotated[
        str | None, typer.Option(help="zero-shot, heads, final:K, full or scratch.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="FILE of held-out interactions, or none; default: a split.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="ratio or time.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of training rows kept.")] = None,
    cutoffs: Cutoffs = [10, 20],  # noqa: B006 (typer copies it)
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Adapt a checkpoint to a target log and save a recommender."""
    from gnnrec.commands import transfer_command

    columns = _columns(user_column, item_column, timestamp_column, weight_column)
    overrides = {"retrain": retrain, "split": split, "fraction": fraction, "seed": seed}
    report = transfer_command(
        checkpoint,
        lambda: _open(target, items, columns, min_weight, mirror),
        out,
        test,
        config,
        overrides,
        device,
        tuple(cutoffs),
        min_weight,
        _say,
    )
    _say(
        text_table(
            metric_rows(
                {"popularity": report.get("popularity_metrics"), report["arm"]: report["metrics"]}
            )
        )
    )
    _emit(json_, report)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a recommender.")],
    test: Annotated[Path, typer.Option(help="FILE of held-out interactions.")],
    cutoffs: Cutoffs = [10, 20],  # noqa: B006
    device: Device = "auto",
    user_column: Annotated[str | None, typer.Option(help="Default: the log's.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Default: the log's.")] = None,
    weight_column: Annotated[str | None, typer.Option(help="Default: the log's.")] = None,
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Measure a saved recommender on held-out interactions, full ranking."""
    from gnnrec.commands import evaluate_command

    columns = (user_column, item_column, weight_column)
    report = evaluate_command(folder, test, tuple(cutoffs), device, columns, min_weight, _say)
    _say(text_table(metric_rows({report["arm"]: report["metrics"]})))
    _emit(json_, report)


@app.command()
def recommend(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a recommender.")],
    user: Annotated[list[str] | None, typer.Option(help="User id; may be repeated.")] = None,
    users: Annotated[Path | None, typer.Option(help="FILE of user ids.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items per user.")] = 10,
    allow: Annotated[Path | None, typer.Option(help="FILE of the only items allowed.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="FILE of items left out.")] = None,
    include_seen: Annotated[bool, typer.Option(help="Also what a user already has.")] = False,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet or FILE.csv to write.")] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Recommend to the given users, or to all users of the log."""
    from gnnrec.commands import recommend_command

    frame, summary = recommend_command(
        folder, user, users, k, allow, exclude, include_seen, out, device, _say
    )
    if out is None:
        shown = frame.head(200)
        rows = [{str(n): v for n, v in row.items()} for row in shown.to_dict("records")]
        _say(text_table(rows))
        if len(frame) > len(shown):
            _say(f"... {len(frame) - len(shown)} more rows; write them with --out")
        summary["recommendations"] = frame.to_dict("records") if json_ else []
    _emit(json_, summary)


@app.command()
def doctor(json_: Json = False) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from gnnrec.doctor import examine

    found = examine()
    _say(*(f"{name}: {value}" for name, value in found.items()))
    _emit(json_, found)


if __name__ == "__main__":
    main()
