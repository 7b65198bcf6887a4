"""A log packed part by part is the log that is read whole, and maps from the disk."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_log
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import CheckpointError, DataError
from gnnrec.interactions import Columns, read_interactions
from gnnrec.packed import open_packed, pack
from gnnrec.sources import open_log

ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 9), st.integers(1, 5), st.integers(0, 10**9)),
    min_size=1,
    max_size=60,
)


def pairs(log):
    """Raw (user, item, time) of a log, sorted."""
    times = log.timestamps if log.timestamps is not None else np.zeros(log.n_interactions)
    return sorted(
        zip(
            log.user_ids[log.users].tolist(),
            log.item_ids[log.items].tolist(),
            np.asarray(times).tolist(),
            strict=True,
        )
    )


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.booleans(), st.sampled_from([None, 3.0]))
def test_packed_is_what_is_read_whole(
    tmp_path_factory, rows, part_users, n_files, timed, min_weight
):
    folder = tmp_path_factory.mktemp("packed")
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "timestamp"])
    frame = frame if timed else frame.drop(columns="timestamp")
    frame.to_csv(folder / "whole.csv", index=False)
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(frame)), n_files)):
        if len(part):
            files.append(folder / f"{number}.csv")
            frame.iloc[part].to_csv(files[-1], index=False)
    try:
        whole = read_interactions(folder / "whole.csv", Columns(), min_weight)
    except DataError:  # no row has the weight
        with pytest.raises(DataError, match="found no row to keep"):
            pack(files, folder / "out", Columns(), min_weight, part_users=part_users)
        assert not (folder / "out").exists()
        return
    about = pack(files, folder / "out", Columns(), min_weight, part_users=part_users)
    log = open_packed(folder / "out")
    assert pairs(log) == pairs(whole)
    assert about["n_pairs"] == log.n_interactions == whole.n_interactions
    assert about["n_dropped_duplicates"] == whole.n_dropped_duplicates
    assert about["n_below_min_weight"] == whole.n_below_min_weight
    assert isinstance(log.users, np.memmap) and log.users.dtype == np.int64
    order = np.lexsort((log.items, log.users))
    assert np.array_equal(order, np.arange(len(order)))


def test_commands_take_it_in_a_files_place(work, run, tmp_path):
    frame = make_log(30, 25, 200)
    frame.iloc[:90].to_parquet(tmp_path / "a.parquet")
    frame.iloc[90:].to_parquet(tmp_path / "b.parquet")
    out = tmp_path / "packed"
    files = tmp_path / "a.parquet", tmp_path / "b.parquet"
    code, _, err = run("data", "pack", *files, "--out", out)
    assert code == 0, err
    assert "n_pairs: 200" in err.replace(str(len(frame)), "200")
    code, _, err = run("transfer", "ck", "--target", out, "--out", "o", "--config", "few.toml")
    assert code == 0, err
    code, _, err = run("data", "check", out, "--min-weight", "2")
    assert code == 2 and "give it to gnnrec data pack" in err


def test_what_cannot_be_packed_leaves_nothing(tmp_path):
    good, bad, other = (tmp_path / f"{name}.csv" for name in ("good", "bad", "other"))
    good.write_text("user_id,item_id,timestamp\nu1,i1,5\nu2,i2,6\n")
    bad.write_text("user_id,item_id,timestamp\nu1,i1,5\n,i2,6\n")
    other.write_text("user_id,item_id\nu1,i1\n")
    for files, found in (
        ([good, bad], r"bad\.csv: found a file that cannot be read batch by batch"),
        ([good, other], r"other\.csv: found no column 'timestamp', unlike the files before"),
        ([tmp_path / "none.csv"], "cannot be read batch by batch"),
    ):
        with pytest.raises(DataError, match=found):
            pack(files, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", ["users.i64", "packed.json", "item_ids.parquet"])
def test_a_changed_byte_is_noticed(tmp_path, name):
    make_log(20, 15, 80).to_csv(tmp_path / "log.csv", index=False)
    pack([tmp_path / "log.csv"], tmp_path / "out")
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        open_packed(tmp_path / "out")
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        open_packed(tmp_path / "out")
    if name == "packed.json":
        with pytest.raises(DataError):
            open_log(tmp_path / "out")
