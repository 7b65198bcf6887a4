"""Tables in a file: aligned, mapped, and read by anything that reads safetensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gnnrec.errors import CheckpointError
from gnnrec.tensors import read_tensors, write_tensors

KINDS = (torch.float32, torch.float16, torch.int64)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(
            lambda name: not name.startswith("~") and name != "__metadata__"
        ),
        st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(1, 9)),
        max_size=6,
    )
)
def test_tables_come_back_and_start_at_cache_lines(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    tables = {
        name: torch.arange(n * d).reshape(n, d).to(kind) for name, (kind, n, d) in shapes.items()
    }
    write_tensors(path, tables)
    found = read_tensors(path)
    assert set(found) == set(tables)
    whole = load_file(path)
    for name, table in tables.items():
        assert found[name].dtype == table.dtype and torch.equal(found[name], table)
        assert whole[name].data_ptr() % 64 == 0 or not table.numel()


def test_what_is_not_aligned_is_copied_and_what_is_damaged_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(5)}, path)
    assert all(table.data_ptr() % 64 == 0 for table in read_tensors(path).values())
    path.write_bytes(np.arange(40, dtype=np.uint8).tobytes())
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        read_tensors(path)
