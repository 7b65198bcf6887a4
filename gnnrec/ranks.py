"""The processes that train one model together, and what they tell each other.

`torchrun` starts them; torch.distributed carries the messages, gloo between processors and nccl
between GPUs. Each rank has the edges of some consecutive users. What has a row per user lives
where the user is; what has a row per item, and every parameter, is the same on all ranks, but for
tables of item ids, of which each rank keeps some rows. A rank computes the loss of its own users
alone: gradients of what all ranks have are parts, which add up to the whole.

Outside of torchrun there is one rank, `ALONE`, for whom all of this is nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gnnrec.errors import ConfigError, GnnrecError

_PATIENCE = timedelta(hours=2)  # for a rank that encodes texts while the others wait


@dataclass(frozen=True)
class Ranks:
    """Who takes part: this process is `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    def sum(self, part: Tensor) -> Tensor:
        """Add up the parts of all ranks, the same on each; differentiable.

        What arrives backwards are again parts of one gradient, so they are added up too.
        """
        return part if self.alone else _Sum.apply(part)  # type: ignore[no-untyped-call]

    def gathered(self, rows: Tensor, n: int) -> Tensor:
        """Put the rows of all ranks together to (n, dim): all-gather, backwards reduce-scatter.

        Args:
            rows: This rank's `block(n)` of the table.
            n: How many rows the table has.
        """
        if self.alone:
            return rows
        return _Gather.apply(rows, n, self)  # type: ignore[no-untyped-call,no-any-return]

    def block(self, n: int) -> slice:
        """Return which rows of a table of n are kept here."""
        size = -(-n // self.size)
        return slice(min(self.rank * size, n), min((self.rank + 1) * size, n))

    def same(self, tensor: Tensor) -> Tensor:
        """Return what the first rank has: decompositions may differ in sign between machines."""
        if self.alone:
            return tensor
        tensor = tensor.detach().contiguous().clone()
        dist.broadcast(tensor, 0)
        return tensor

    def total(self, *numbers: float) -> list[float]:
        """Add up numbers over the ranks."""
        if self.alone:
            return list(numbers)
        table = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(table)
        return [float(value) for value in table.cpu()]

    def counts(self, count: int) -> list[int]:
        """Return the count of every rank."""
        if self.alone:
            return [count]
        mine = np.zeros(self.size)
        mine[self.rank] = count
        return [round(value) for value in self.total(*mine.tolist())]

    def sum_array(self, array: np.ndarray) -> np.ndarray:
        """Add up an array over the ranks, of its own dtype."""
        if self.alone:
            return array
        table = torch.from_numpy(array.copy()).to(_device())
        dist.all_reduce(table)
        summed: np.ndarray = table.cpu().numpy()
        return summed

    def stacked(self, table: Tensor) -> Tensor:
        """Return (size, *shape), the equally shaped tables of all ranks."""
        if self.alone:
            return table[None]
        parts = [torch.empty_like(table) for _ in range(self.size)]
        dist.all_gather(parts, table.contiguous())
        return torch.stack(parts)

    def add_up(self, gradients: list[Tensor]) -> None:
        """Add up gradients in place, all of them in one message."""
        if self.alone or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.total(0.0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block on the first rank of each machine, then on its others.

        They find then what the first has left on the disk, as the vectors of texts.
        """
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        if not first:
            self.wait()
        try:
            yield
        finally:
            if first:
                self.wait()
        self.wait()


ALONE = Ranks()


def started() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched() -> Ranks:
    """Return which of the processes that torchrun started this is, without joining the others."""
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if started() else ALONE


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Join the other ranks, within the block; `ALONE` where torchrun started nothing.

    Args:
        device: cpu or cuda, where tables live: it decides the backend. With cuda, a rank takes the
            GPU of its number on the machine.

    Raises:
        ConfigError: A machine has fewer GPUs than ranks.
        GnnrecError: Another rank has gone.
    """
    if not started():
        yield ALONE
        return
    local = int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun: found {torch.cuda.device_count()} GPUs for rank {local} of this "
                "machine; lower --nproc-per-node, or take --device cpu"
            )
        torch.cuda.set_device(local)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    _join(backend)
    try:
        yield current()
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise GnnrecError(
                f"torchrun: another process of this training has ended or cannot be reached "
                f"({str(error)[:200]}); with --max-restarts all start again, and go on together"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Meet the others under the address that torchrun gives.

    Its agent keeps what an earlier start left there, and a rank may find the address of one that
    was killed: on one machine each start has a place of its own. On several, whose agents count
    their own restarts, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each start a new address.
    """
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=rank, world_size=size)


def current() -> Ranks:
    """Return the ranks within `together`, elsewhere `ALONE`."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:  # noqa: ANN401
        total = part.detach().contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        return _Sum.apply(grads[0])  # type: ignore[no-untyped-call,no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int, ranks: Ranks) -> Tensor:  # noqa: ANN401
        ctx.ranks = ranks
        return ranks.stacked(_padded(rows, -(-n // ranks.size))).flatten(0, 1)[:n]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        ranks, whole = ctx.ranks, grads[0]
        size = -(-len(whole) // ranks.size)
        parts = [part.contiguous() for part in torch.split(_padded(whole, size * ranks.size), size)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        block = ranks.block(len(whole))
        return mine[: block.stop - block.start], None, None


def _padded(table: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(table.detach(), (0, 0, 0, n - len(table))).contiguous()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
