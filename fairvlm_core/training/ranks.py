"""Several processes (ranks) that train one model, as torchrun starts them. Alone, every function is the identity.

Every rank draws the same batch from the same seed and takes its share of the rows, so nothing but rows of embeddings,
figures and gradients ever travels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that torchrun started: gloo on CPUs, nccl on GPUs, one GPU each."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def all_shares(count: int) -> list[slice]:
    """Each rank's part of `count` rows; they are consecutive and differ by one row at most."""
    return [slice(count * r // size(), count * (r + 1) // size()) for r in range(size())]


def share(count: int) -> slice:
    """This rank's part of `count` rows."""
    return all_shares(count)[rank()]


def shares(count: int, width: int) -> list[slice]:
    """This rank's rows in parts of about `width` at most, counted within its share; on every rank as many parts.

    Ranks that run a sharded model meet in every forward pass, so none may make one more than the others.
    """
    mine = share(count)
    rows = mine.stop - mine.start
    parts = max(1, math.ceil(math.ceil(count / size()) / width))
    return [slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]


def gather_rows(rows: Tensor, count: int) -> Tensor:
    """The rows [count, ...] of all ranks, in order, on every rank; each gives its `share(count)`. Without gradient."""
    if size() == 1:
        return rows.detach()
    lengths = [part.stop - part.start for part in all_shares(count)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def add(figures: dict[str, float]) -> dict[str, float]:
    """The sums of the figures over all ranks, which must have the same names."""
    if size() == 1:
        return figures
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    if dist.get_backend() == "nccl":
        values = values.cuda()
    dist.all_reduce(values)
    return dict(zip(figures, values.tolist(), strict=True))


def added(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of the tensors over all ranks, in one message."""
    if size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def wait() -> None:
    """Until all ranks are here."""
    if size() > 1:
        dist.barrier()
