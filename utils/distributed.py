"""Rank arithmetic and collectives, in one place. With one process every function is a plain identity.

Losses of this project are means over the GLOBAL batch and every process computes its share of their gradient, so
gradients are summed over processes, never averaged: equal for any batch size and process count.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from losses import Exchange


def start(mixed_precision: str | None = None) -> Accelerator:
    """The Accelerator of this process; without a GPU the processes of a launcher talk over gloo.

    accelerate would otherwise run each of them alone: it takes processes for CPU processes only if told so.
    """
    return Accelerator(mixed_precision=mixed_precision, cpu=not torch.accelerator.is_available())


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block first, the others after it: for files made on first use."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(total: int, part: int | None = None, parts: int | None = None) -> range:
    """The half-open range of `total` items that process `part` of `parts` owns; sizes differ by at most one."""
    part, parts = rank() if part is None else part, parts or world_size()
    return range(total * part // parts, total * (part + 1) // parts)


class ProcessExchange(Exchange):
    """Row statistics of losses whose labels are sharded: all-reduced over the processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        return _all_reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        return _all_reduce(tensor, dist.ReduceOp.MAX)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    tensor = tensor.contiguous()
    dist.all_reduce(tensor, operation)
    return tensor


def loss_exchange() -> Exchange:
    return ProcessExchange() if world_size() > 1 else Exchange()


class _GatherRows(torch.autograd.Function):
    """[b_r, D] of every process -> [B, D]; backward sums every process's gradient of the own rows."""

    @staticmethod
    def forward(ctx, own: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        parts = [own.new_empty(size, *own.shape[1:]) for size in sizes]
        _all_gather_uneven(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        total = _all_reduce(gradient.clone(), dist.ReduceOp.SUM)
        return total.split(ctx.sizes)[rank()], None


def _all_gather_uneven(parts: list[Tensor], own: Tensor) -> None:
    """all_gather wants equal shapes: pad to the longest."""
    longest = max(len(p) for p in parts)
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own
    received = [torch.empty_like(padded) for _ in parts]
    dist.all_gather(received, padded)
    for part, got in zip(parts, received, strict=True):
        part.copy_(got[: len(part)])


def gather_rows(own: Tensor, total: int) -> Tensor:
    """The processes' shares of a batch of `total` rows, put together on every process; differentiable."""
    if world_size() == 1:
        return own
    return _GatherRows.apply(own, [len(share(total, r)) for r in range(world_size())])


def gather_arrays(own: np.ndarray, total: int) -> np.ndarray | None:
    """Numpy rows owned by `share(total)` -> all rows on the main process, None on the others."""
    if world_size() == 1:
        return own
    parts: list | None = [None] * world_size() if is_main() else None
    dist.gather_object(own, parts)
    return np.concatenate(parts)[:total] if is_main() else None


def broadcast(value):
    """A small picklable value of the main process, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def agree(value: int) -> int:
    """The largest of the processes' numbers, on every process."""
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return int(_all_reduce(torch.tensor([value], dtype=torch.long, device=device), dist.ReduceOp.MAX).item())


def total(value: float) -> float:
    """The sum of the processes' numbers, on every process."""
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return float(_all_reduce(torch.tensor([value], dtype=torch.float64, device=device), dist.ReduceOp.SUM).item())


def separate_random_states(seed: int) -> None:
    """After all processes built the same model: let each but the first draw its own dropout masks."""
    if rank():
        torch.manual_seed(np.random.SeedSequence((seed, rank())).generate_state(1, np.uint64)[0].item() >> 1)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum gradients over processes: dense ones in one flat message per dtype, row-sparse ones row by row.

    Parameters with the attribute `sharded` are owned by one process each and left alone.
    """
    if world_size() == 1:
        return
    shared = [p for p in parameters if p.requires_grad and not getattr(p, "sharded", False)]
    dense = [p for p in shared if not getattr(p, "row_sparse", False)]
    present = torch.tensor([p.grad is not None for p in dense], dtype=torch.float32, device=_device(shared))
    used = _all_reduce(present, dist.ReduceOp.MAX).tolist()      # a parameter unused everywhere keeps no gradient
    dense = [p for p, u in zip(dense, used, strict=True) if u]
    for dtype in dict.fromkeys(p.dtype for p in dense):
        group = [p for p in dense if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group])
        _all_reduce(flat, dist.ReduceOp.SUM)
        for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
            p.grad = part.view_as(p)
    for p in shared:
        if getattr(p, "row_sparse", False):
            p.grad = _sum_rows(p)


def _device(parameters: list[torch.nn.Parameter]) -> torch.device:
    return parameters[0].device if parameters else torch.device("cpu")


def _sum_rows(p: torch.nn.Parameter) -> Tensor:
    if p.grad is None:
        rows, values = torch.zeros(0, dtype=torch.long, device=p.device), p.new_zeros(0, *p.shape[1:])
    else:
        grad = p.grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    counts = torch.zeros(world_size(), dtype=torch.long, device=p.device)
    counts[rank()] = len(rows)
    sizes = _all_reduce(counts, dist.ReduceOp.SUM).tolist()
    all_rows = [rows.new_empty(n) for n in sizes]
    all_values = [values.new_empty(n, *values.shape[1:]) for n in sizes]
    if max(sizes) > 0:
        _all_gather_uneven(all_rows, rows)
        _all_gather_uneven(all_values, values)
    return torch.sparse_coo_tensor(torch.cat(all_rows)[None], torch.cat(all_values), p.shape,
                                   check_invariants=False).coalesce()


def cpu_threads(wanted: int | None) -> int:
    """Threads for this process: `wanted`, or the usable cores divided among the processes of this host."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or max(1, usable // local)
