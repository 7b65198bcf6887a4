"""The command line: one verb per step, tables on stderr, one JSON object on stdout with --json."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from gnnrec.cli_bench import bench, report
from gnnrec.cli_data import data_app
from gnnrec.cli_export import export
from gnnrec.cli_models import models_app
from gnnrec.cli_serve import explore, serve
from gnnrec.cli_tune import tune
from gnnrec.console import metric_rows, printable, text_table
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.options import (
    ConfigFile,
    Cutoffs,
    Device,
    ItemColumn,
    Json,
    MinWeight,
    Mirror,
    Out,
    OwnColumn,
    RecommenderFolder,
    Seed,
    Target,
    Tensorboard,
    TextColumn,
    TimeColumn,
    UserColumn,
    WeightColumn,
    columns_of,
    emit,
    open_named,
    say,
)
from gnnrec.signals import StoppedError, listening

if TYPE_CHECKING:
    from gnnrec.sources import Log

# click's ClickException, by way of typer, which carries a copy of click in some versions.
_CommandLineError: Any = typer.BadParameter.__mro__[2]

_NOTHING_HALF = "nothing is left half-written, and the same command again goes on or begins anew"

_TOGETHER = ("pretrain", "transfer", "recommend")

# Nothing heavier than typer is imported before a command runs: --help answers at once.

_ORDER = (
    *("data", "models", "select", "transfer", "recommend", "explore", "serve", "export"),
    *("evaluate", "pretrain", "tune", "bench", "report", "doctor"),
)


class _InOrder(typer.core.TyperGroup):
    """Commands in the order in which somebody with a log of their own needs them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 (click's, or typer's copy)
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Recommendation by transfer learning on graphs.",
)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
for command in (tune, serve, explore, export, bench, report):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        from gnnrec import __version__

        print(f"gnnrec {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback(help="Recommendation by transfer learning on graphs.")
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    Exit 0 when done, 2 when the input is wrong, 130 and 143 when stopped (Ctrl-C and SIGTERM), 3
    for anything else.
    """
    try:
        _check_launched()
        with listening():
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
    except StoppedError as stopped:
        code = _fail(f"stopped; {stopped.kept or _NOTHING_HALF}", stopped.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = _fail(f"stopped; {_NOTHING_HALF}", 130)
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


def _check_launched() -> None:
    """Where torchrun started several processes: whether the command shares its work among them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if os.environ["RANK"] != "0":
        os.environ["TQDM_DISABLE"] = "1"
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command not in _TOGETHER:
        raise ConfigError(
            f"torchrun: found the command {command!r}, expected one that several processes share: "
            f"{', '.join(_TOGETHER)}; start it without torchrun"
        )


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    message = message if rank == "0" else f"process {rank}: {message}"
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)  # noqa: T201
    return code


@app.command()
def pretrain(
    source: Annotated[list[str], typer.Option(help="NAME or FILE; may be repeated.")],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="lightgcn (default), graphsage, graph-filter, channels, gmf, mlp, neumf, "
            "two-tower, or one that an installed package brings."
        ),
    ] = None,
    items: Annotated[
        list[Path] | None, typer.Option(help="Items files of the FILE sources, in their order.")
    ] = None,
    text: Annotated[
        bool | None, typer.Option("--text/--no-text", help="Read item text (default: if all have).")
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option(
            help="Sentence encoder, name or folder; NAME@bfloat16 runs it in half the bits."
        ),
    ] = None,
    text_layers: Annotated[
        int | None, typer.Option(min=0, help="Last layers of the sentence encoder to retrain too.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    tensorboard: Tensorboard = None,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    text_column: TextColumn = "text",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Pretrain an encoder on one or several source graphs."""
    from gnnrec.callbacks import on_board
    from gnnrec.commands import pretrain_command

    columns = columns_of(user_column, item_column, timestamp_column, weight_column, text_column)
    paths = list(items or [])
    n_files = sum(Path(name).is_file() for name in source)
    if len(paths) > n_files:
        raise ConfigError(
            f"--items {paths[n_files]}: found {len(paths)} items files for {n_files} FILE sources, "
            "expected at most one for each; leave it out"
        )

    def open_sources() -> list[Log]:
        return [
            open_named(
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
        "model.text_layers": text_layers,
        "train.max_steps": max_steps,
        "seed": seed,
    }
    with on_board(tensorboard):
        emit(json_, pretrain_command(open_sources, out, text, config, overrides, device, say))


@app.command()
def transfer(
    checkpoint: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")],
    target: Target,
    out: Out,
    items: Annotated[
        Path | None, typer.Option(help="Items file: ids and any text columns.")
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(help="zero-shot, heads, final:K, text:K, full or scratch (default: final:1)."),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="FILE of held-out interactions, or none; default: a split.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="ratio (default) or time.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Share of training rows kept (default: 1).")
    ] = None,
    cutoffs: Cutoffs = [10, 20],  # noqa: B006 (typer copies it)
    tensorboard: Tensorboard = None,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    text_column: TextColumn = "text",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Adapt a checkpoint to a target log and save a recommender."""
    from gnnrec.callbacks import on_board
    from gnnrec.commands import transfer_command, transfer_lines

    columns = columns_of(user_column, item_column, timestamp_column, weight_column, text_column)
    overrides = {"retrain": retrain, "split": split, "fraction": fraction, "seed": seed}
    with on_board(tensorboard):
        report = transfer_command(
            checkpoint,
            lambda: open_named(target, items, columns, min_weight, mirror),
            out,
            test,
            config,
            overrides,
            device,
            tuple(cutoffs),
            min_weight,
            say,
        )
    arms = {"popularity": report.get("popularity_metrics"), report["arm"]: report["metrics"]}
    emit(json_, report, text_table(metric_rows(arms)), *transfer_lines(report))


@app.command()
def select(
    target: Target,
    items: Annotated[
        Path | None, typer.Option(help="Items file: ids and any text columns.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Name or folder of a candidate; may be repeated (default: all shipped)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often another fifth is hidden.")] = 3,
    seed: Seed = None,
    device: Device = "auto",
    mirror: Mirror = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimeColumn = "timestamp",
    weight_column: WeightColumn = "weight",
    text_column: TextColumn = "text",
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Rank checkpoints for a target without training."""
    from gnnrec.commands import select_command
    from gnnrec.select import selection_lines

    columns = columns_of(user_column, item_column, timestamp_column, weight_column, text_column)
    report = select_command(
        checkpoint,
        lambda: open_named(target, items, columns, min_weight, mirror),
        seeds,
        seed or 0,
        device,
        say,
    )
    emit(json_, report, *selection_lines(report))


@app.command()
def evaluate(
    folder: RecommenderFolder,
    test: Annotated[Path, typer.Option(help="FILE of held-out interactions.")],
    cutoffs: Cutoffs = [10, 20],  # noqa: B006
    device: Device = "auto",
    user_column: OwnColumn = None,
    item_column: OwnColumn = None,
    weight_column: OwnColumn = None,
    min_weight: MinWeight = None,
    json_: Json = False,
) -> None:
    """Measure a saved recommender on held-out interactions."""
    from gnnrec.commands import evaluate_command

    columns = (user_column, item_column, weight_column)
    report = evaluate_command(folder, test, tuple(cutoffs), device, columns, min_weight, say)
    emit(json_, report, text_table(metric_rows({report["arm"]: report["metrics"]})))


@app.command()
def recommend(
    folder: RecommenderFolder,
    user: Annotated[list[str] | None, typer.Option(help="User id; may be repeated.")] = None,
    users: Annotated[Path | None, typer.Option(help="FILE of user ids.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items per user.")] = 10,
    allow: Annotated[Path | None, typer.Option(help="FILE of the only items allowed.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="FILE of items left out.")] = None,
    include_seen: Annotated[bool, typer.Option(help="Also what a user already has.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, for every item.")] = False,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet or FILE.csv to write.")] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Recommend to the given users, or to all users of the log."""
    from gnnrec.command_recommend import recommend_command

    frame, summary, lines = recommend_command(
        folder, user, users, k, allow, exclude, include_seen, explain, out, device, say
    )
    if out is None:
        summary["recommendations"] = frame.to_dict("records") if json_ else []
    emit(json_, summary, *lines)


@app.command()
def doctor(json_: Json = False) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from gnnrec.doctor import examine

    found = examine()
    emit(json_, found, *(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
