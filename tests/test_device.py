import hashlib

import numpy as np
import pytest
import torch

from gnnrec.device import (
    derive_seed,
    numpy_generator,
    peak_memory_bytes,
    resolve_device,
    torch_generator,
)
from gnnrec.errors import ConfigError


def test_auto_takes_a_gpu_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_a_named_device_is_returned_or_refused_in_one_line():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="toaster.*auto") as caught:
        resolve_device("toaster")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="cuda"):
        resolve_device("cuda")


def test_seeds_are_stable_and_independent():
    digest = hashlib.sha256(b"(7, 'model', 3)").digest()
    assert derive_seed(7, "model", 3) == int.from_bytes(digest[:8], "big") // 2
    seeds = [derive_seed(s, n, k) for s in range(5) for n in ("a", "b") for k in range(50)]
    assert len(set(seeds)) == len(seeds) == 500
    assert derive_seed(0, "a", "b") != derive_seed(0, "a/b")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_for_a_purpose_and_differ_between_purposes():
    for make, draw in (
        (numpy_generator, lambda g: g.random(4)),
        (torch_generator, lambda g: torch.rand(4, generator=g).numpy()),
    ):
        np.testing.assert_array_equal(draw(make(0, "x", 1)), draw(make(0, "x", 1)))
        assert not np.array_equal(draw(make(0, "x", 1)), draw(make(0, "x", 2)))
        assert not np.array_equal(draw(make(0, "x", 1)), draw(make(1, "x", 1)))


def test_generators_leave_the_global_ones_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch_generator(5, "x")
    assert torch.equal(torch.rand(3), expected)


def test_peak_memory_counts_bytes_and_grows():
    before = peak_memory_bytes()
    assert before > 10 * 2**20
    tables: list[np.ndarray] = []
    while peak_memory_bytes() < before + 2**25:  # what was freed since the peak is taken first
        assert sum(table.nbytes for table in tables) <= before, "touched, and not counted"
        tables.append(np.ones(2**22))
