"""A fitted Recommender as a folder: the adapted model, the log, the item texts and the vectors."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch
from torch import Tensor

from gnnrec.blend import ChannelBlend
from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import (
    TEXT_FILE,
    WRONG_NUMBERS,
    Checkpoint,
    check_state,
    read_delta,
)
from gnnrec.config import ModelConfig, TransferConfig, validate
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.interactions import Columns, Interactions
from gnnrec.model import Transferable, build_model
from gnnrec.ncf import NeuMF
from gnnrec.scores import FullRank, ScoreVectors, Similarity
from gnnrec.storage import read_json, verify, whole_folder, write_json
from gnnrec.tensors import read_tensors, write_tensors
from gnnrec.tower import TowerScores

if TYPE_CHECKING:
    from gnnrec.recommender import Recommender

FORMAT = 1
_FILES = (
    "recommender.json",
    "model.safetensors",
    "vectors.safetensors",
    "log.parquet",
    "users.parquet",
    "items.parquet",
)


def save_recommender(recommender: Recommender, folder: str | Path) -> None:
    """Write a fitted recommender whole: beside the target, then renamed.

    Raises:
        ConfigError: The folder holds something else, or cannot be written.
    """
    catalogue, model = recommender.catalogue, recommender.model
    log = catalogue.log
    with whole_folder(Path(folder)) as work:
        write_tensors(
            work / "model.safetensors",
            {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()},
        )
        if recommender.text_delta:
            write_tensors(work / TEXT_FILE, recommender.text_delta)
        tensors = {"users": recommender.vectors.users, "items": recommender.vectors.items}
        if recommender.vectors.walk is not None:
            tensors["walk_out"] = recommender.vectors.walk.out
        if isinstance(recommender.vectors.part, (TowerScores, Similarity)):
            tensors |= recommender.vectors.part.tables()
        if catalogue.text is not None:
            tensors["text"] = torch.from_numpy(np.ascontiguousarray(catalogue.text))
        if catalogue.written is not None:
            tensors["written"] = torch.from_numpy(np.ascontiguousarray(catalogue.written))
        write_tensors(work / "vectors.safetensors", tensors)
        frame = pd.DataFrame({"user": log.users, "item": log.items})
        if log.weights is not None:
            frame["weight"] = log.weights
        if log.timestamps is not None:
            frame["timestamp"] = log.timestamps
        if log.texts is not None:
            frame["text"] = log.texts
        frame.to_parquet(work / "log.parquet", index=False)
        pd.DataFrame({"id": log.user_ids}).to_parquet(work / "users.parquet", index=False)
        pd.DataFrame({"id": log.item_ids, "title": catalogue.titles}).to_parquet(
            work / "items.parquet", index=False
        )
        write_json(
            work / "recommender.json",
            {
                "format": FORMAT,
                "source": recommender.checkpoint.name,
                "model": model.config.model_dump(),
                "n_residual_items": _n_residual(model),
                "config": recommender.config.model_dump(),
                "columns": vars(log.columns),
                "pretraining": recommender.checkpoint.training,
                "record": recommender.record,
            },
        )


def load_recommender(
    kind: type[Recommender], folder: str | Path, device: str = "auto"
) -> Recommender:
    """Read what `save_recommender` wrote.

    The vectors are mapped from their file, not copied: processes that load one folder share them.
    A folder is replaced by renaming (`whole_folder`), which leaves them whole; nothing may write
    into the file itself.

    Raises:
        CheckpointError: Missing, altered, of a newer format, or inconsistent in itself.
    """
    folder = Path(folder)
    if (folder / "golden.safetensors").is_file():
        raise CheckpointError(
            f"{folder}: found a checkpoint, expected a recommender; adapt it to your log first: "
            "gnnrec transfer"
        )
    verify(folder, _FILES)
    about = read_json(folder / "recommender.json")
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: format {about.get('format')!r}, this version reads {FORMAT}; update gnnrec"
        )
    tensors = read_tensors(folder / "vectors.safetensors")
    try:
        model_config = validate(ModelConfig, about["model"], f"{folder}/recommender.json")
        config = validate(TransferConfig, about["config"], f"{folder}/recommender.json")
        columns = Columns(**about["columns"])
        if not all(isinstance(name, str) for name in vars(columns).values()):
            raise ValueError("a column name is no text")
        # As many ids as there are vectors, and pairs of them: no table says how long it may be.
        rows = {name: len(tensors[name]) for name in ("users", "items")}
        users = _ids(_table(folder / "users.parquet", rows["users"])["id"])
        item_frame = _table(folder / "items.parquet", rows["items"])
        log_frame = _table(folder / "log.parquet", rows["users"] * rows["items"])
        log = Interactions(
            log_frame["user"].to_numpy(),
            log_frame["item"].to_numpy(),
            users,
            _ids(item_frame["id"]),
            log_frame["weight"].to_numpy() if "weight" in log_frame else None,
            log_frame["timestamp"].to_numpy() if "timestamp" in log_frame else None,
            _texts(log_frame),
            columns,
        )
        _check_codes(log)
        titles = [str(title) for title in item_frame["title"]]
        n_residual, record = about["n_residual_items"], about.get("record", {})
        if n_residual is not None and not 0 <= operator.index(n_residual) <= log.n_items:
            raise ValueError(f"n_residual_items is {n_residual!r}")
        pretraining = about.get("pretraining", {})
        for part in (record, pretraining):
            if not isinstance(part, dict):
                raise ValueError(f"record or pretraining is a {type(part).__name__}")
    except (ConfigError, KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{folder}: not consistent in itself ({error})") from error
    state = read_tensors(folder / "model.safetensors")
    check_state(model_config, n_residual, state, folder)
    model = build_model(model_config, n_residual)
    model.load_state_dict(state)
    width = tensors["items"].shape[1:] if "items" in tensors else None
    for name, count in (("users", log.n_users), ("items", log.n_items)):
        _check_table(tensors.get(name), name, count, width, folder)
    walk = None
    if isinstance(model, (GraphFilter, ChannelBlend)):
        out = tensors.get("walk_out", torch.empty(0))
        if out.shape != (log.n_items,) or out.dtype != torch.float32 or not out.isfinite().all():
            raise CheckpointError(f"{folder}: vectors.safetensors does not hold a walk's weights")
        graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
        try:
            walk = model.walk(graph, out, tensors["users"])
        except WRONG_NUMBERS as error:
            raise CheckpointError(f"{folder}: its weights make no walk ({error})") from error
    full_rank: FullRank | None = None
    if isinstance(model, ChannelBlend) and "near_starts" in tensors:
        try:
            near = Similarity.weights_from(tensors, log.n_items)
            full_rank = model.near(graph, near, tensors["users"])
        except WRONG_NUMBERS as error:
            raise CheckpointError(f"{folder}: vectors.safetensors: {error}") from error
    if isinstance(model, NeuMF) and model.tower is not None:
        for name, count, extra in (("users", log.n_users, 1), ("items", log.n_items, 0)):
            name, shape = f"tower_{name}", torch.Size([model.tower.item.out_features + extra])
            _check_table(tensors.get(name), name, count, shape, folder)
        # A tower of its own, which stays on the processor where the model goes to a GPU.
        full_rank = model.tower_scores(tensors["tower_users"], tensors["tower_items"]).cpu()
    text = written = None
    width = torch.Size([model_config.text_dim])
    if "text" in tensors:
        _check_table(tensors["text"], "texts", log.n_items, width, folder)
        text = tensors["text"].numpy()
    if "written" in tensors:
        _check_table(tensors["written"], "written", len(log.text_codes[1]), width, folder)
        written = tensors["written"].numpy()
    checkpoint = Checkpoint(
        str(about.get("source")),
        model_config,
        {k: v for k, v in state.items() if not k.startswith("residual.")},
        pretraining,
        read_delta(folder),
    )
    recommender = kind(checkpoint, config, device)
    recommender.record = record
    recommender.restore(
        Catalogue(log, titles, text, written),
        model.to(recommender.device),
        ScoreVectors(tensors["users"], tensors["items"], walk, full_rank),
    )
    return recommender


def _check_table(
    table: Tensor | None, name: str, count: int, width: torch.Size | None, folder: Path
) -> None:
    if table is None or table.ndim != 2 or (len(table), table.shape[1:]) != (count, width):
        raise CheckpointError(f"{folder}: vectors.safetensors does not hold {count} {name}")
    if table.dtype != torch.float32 or not torch.isfinite(table).all():
        raise CheckpointError(f"{folder}: vectors.safetensors: {name} are not finite float32")


def _table(path: Path, most: int) -> pd.DataFrame:
    """Read a Parquet file of at most so many rows, without what it says about pandas."""
    with pa_parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > most:
            raise ValueError(f"{path.name} has more rows than vectors.safetensors allows")
        frame: pd.DataFrame = file.read().replace_schema_metadata(None).to_pandas()
    return frame


def _n_residual(model: Transferable) -> int | None:
    return None if isinstance(model, (GraphFilter, ChannelBlend)) else model.n_residual


def _check_codes(log: Interactions) -> None:
    """Raise a ValueError unless codes are integers within vocabularies of distinct ids."""
    for codes, ids in ((log.users, log.user_ids), (log.items, log.item_ids)):
        if codes.dtype != np.int64 or (
            len(codes) and not 0 <= codes.min() <= codes.max() < len(ids)
        ):
            raise ValueError("log.parquet names codes beyond its vocabularies")
        if not pd.Index(ids).is_unique:
            raise ValueError("an id is in a vocabulary twice")


def _texts(frame: pd.DataFrame) -> np.ndarray | None:
    if "text" not in frame:
        return None
    if not all(isinstance(text, str) for text in frame["text"]):
        raise ValueError("log.parquet holds a text that is none")
    return frame["text"].to_numpy(dtype=object)


def _ids(column: pd.Series) -> np.ndarray:
    """Integer ids as int64, all others as an object array of str."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64)
    return np.array([str(value) for value in column], dtype=object)
