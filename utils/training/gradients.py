"""Gradients summed over processes, and clipped, each as its parameter's kind has it.

Losses are means over the GLOBAL batch and every process computes its share of their gradient, so
gradients are summed over processes, never averaged: equal for any batch size and process count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils import distributed
from utils.parameters import (
    DeclaredParameter,
    Gradient,
    OuterGradient,
    kind_of,
    of_gradient,
    sparse_rows,
)

# -------------------------------- over processes


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over processes.

    Dense ones travel in one flat message per dtype, row-sparse ones row by row; factors are
    gathered. Sharded parameters are owned by one process each and left alone.
    """
    if distributed.world_size() == 1:
        return
    shared = [p for p in parameters if p.requires_grad and not kind_of(p).sharded]
    for parameter in of_gradient(shared, Gradient.FACTORS):
        assert isinstance(parameter, DeclaredParameter), "only these have factors"
        if parameter.factors is not None:  # a step that gives none gives none on any process
            parameter.factors = _gather_factors(parameter.factors)
    dense = of_gradient(shared, Gradient.DENSE)
    tables = of_gradient(shared, Gradient.ROWS)
    if not dense and not tables:  # classifier rows on a frozen encoder: each process has its own
        return
    own = [_rows_and_values(p) for p in tables]
    agreed = _agree(dense, own)
    used = [p for p, is_used in zip(dense, agreed.used, strict=True) if is_used]
    for dtype in dict.fromkeys(p.dtype for p in used):
        _sum_dense([p for p in used if p.dtype == dtype])
    if agreed.same_rows:
        _sum_tables_together(tables, own, agreed.sizes[0])
        return
    for parameter, (rows, values), sizes in zip(tables, own, agreed.sizes, strict=True):
        parameter.grad = sparse_rows(*_sum_rows(rows, values, sizes), parameter.shape)


def _gather_factors(own: OuterGradient) -> OuterGradient:
    """The processes' factored gradients put together, in the order of the processes."""
    lengths = torch.zeros(distributed.world_size(), 2, dtype=torch.long)
    lengths[distributed.rank()] = torch.tensor([len(own.rows), len(own.vectors)])
    entries, vectors = distributed.sum_tensor(lengths.to(own.rows.device)).T.tolist()
    gathered = (
        distributed.gather_parts(own.rows, entries),
        distributed.gather_parts(own.points, entries),
        distributed.gather_parts(own.values, entries),
        distributed.gather_parts(own.vectors, vectors),
    )
    return OuterGradient.join([OuterGradient(*parts) for parts in zip(*gathered, strict=True)])


def _rows_and_values(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """A row-sparse gradient's distinct rows [u] and their values [u, ...]."""
    if parameter.grad is None:
        rows = torch.zeros(0, dtype=torch.long, device=parameter.device)
        return rows, parameter.new_zeros(0, *parameter.shape[1:])
    gradient = parameter.grad.coalesce()
    return gradient.indices()[0], gradient.values()


@dataclass(frozen=True)
class _Agreed:
    """What the processes' gradients look like."""

    used: list[bool]  # which dense gradients exist anywhere
    sizes: list[list[int]]  # rows of each table on each process
    same_rows: bool  # there are several tables, touched in the same rows on every process


def _agree(dense: list[nn.Parameter], own: list[tuple[Tensor, Tensor]]) -> _Agreed:
    """Agree in one message.

    A bag's table and token weights are touched in the same rows, and may then travel together.
    """
    processes = distributed.world_size()
    same = len({values.dtype for _, values in own}) == 1
    same = same and all(torch.equal(own[0][0], rows) for rows, _ in own[1:])
    flags = torch.tensor([p.grad is not None for p in dense] + [same]).long()
    counts = torch.zeros(len(own), processes, dtype=torch.long)
    counts[:, distributed.rank()] = torch.tensor([len(rows) for rows, _ in own], dtype=torch.long)
    device = own[0][0].device if own else dense[0].device
    message = torch.cat([flags, counts.reshape(-1)]).to(device)
    votes, sizes = distributed.sum_tensor(message).cpu().split([len(flags), counts.numel()])
    *used, same_rows = votes.tolist()
    return _Agreed(
        used=[count > 0 for count in used],
        sizes=sizes.view(len(own), processes).tolist(),
        same_rows=same_rows == processes and len(own) > 1,
    )


def _sum_dense(parameters: list[nn.Parameter]) -> None:
    """Dense gradients of one dtype, as one flat message."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = distributed.sum_tensor(torch.cat([g.reshape(-1) for g in gradients]))
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def _sum_tables_together(
    tables: list[nn.Parameter], own: list[tuple[Tensor, Tensor]], sizes: list[int]
) -> None:
    """Row-sparse gradients [V, D_i] that have the same rows, as one message."""
    side_by_side = torch.cat([values for _, values in own], 1)  # [u, sum D_i]
    rows, summed = _sum_rows(own[0][0], side_by_side, sizes)
    parts = summed.split([table.shape[1] for table in tables], 1)
    for table, values in zip(tables, parts, strict=True):
        table.grad = sparse_rows(rows, values, table.shape)


def _sum_rows(
    rows: Tensor,
    values: Tensor,
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """Distinct rows of all processes [U], sorted, and their summed values [U, ...]."""
    all_rows = distributed.gather_parts(rows, sizes)
    all_values = distributed.gather_parts(values, sizes)
    distinct, place = torch.cat(all_rows).unique(return_inverse=True)
    summed = values.new_zeros(len(distinct), *values.shape[1:])
    for part, where in zip(all_values, place.split(sizes), strict=True):
        summed.index_add_(0, where, part)
    return distinct, summed


# -------------------------------- clipping


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global norm of the dense gradients; a collective.

    There is no host sync. Tables are left out: their Adam step does not depend on the gradient's
    scale, and a batch that touches many rows is no reason to slow the other parameters down.
    Sharded parameters count with all their shards.
    """
    shared, sharded = _dense_gradients(parameters)
    if not shared and not sharded:
        return torch.zeros(())
    device = (*shared, *sharded)[0].device
    own = distributed.loss_exchange().sum(_square(sharded, device))
    return (_square(shared, device) + own).sqrt()


def gradient_norms(parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """What is told of a step's gradients, as far as it has them; a collective.

    Returns:
        gradient_norm: `gradient_norm`, by which they are clipped. gradient_norm_tables: that of the
        rows of all tables. There is none of factored gradients.
    """
    parameters = list(parameters)
    norms = {}
    shared, sharded = _dense_gradients(parameters)
    if shared or sharded:
        norms["gradient_norm"] = gradient_norm(parameters)
    tables = [p for p in of_gradient(parameters, Gradient.ROWS) if p.requires_grad]
    if tables:
        norms["gradient_norm_tables"] = _table_norm(tables)
    return norms


def _table_norm(tables: list[nn.Parameter]) -> Tensor:
    """Norm of the rows of all tables together, of shards by all processes; a collective."""
    device = tables[0].device
    rows: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether they are of a shard
    for table in tables:
        if table.grad is not None:
            rows[kind_of(table).sharded].append(table.grad.coalesce().values())
    square = _square(rows[False], device)
    if any(kind_of(table).sharded for table in tables):
        square = square + distributed.loss_exchange().sum(_square(rows[True], device))
    return square.sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale dense gradients so that `gradient_norm` is at most `max_norm`; return what it was."""
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    shared, sharded = _dense_gradients(parameters)
    if shared or sharded:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([*shared, *sharded], factor)
    return norm


def _dense_gradients(parameters: Iterable[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Those that all processes hold alike, and those of this process's shards."""
    dense = of_gradient(parameters, Gradient.DENSE)
    shared = [p.grad for p in dense if p.grad is not None and not kind_of(p).sharded]
    sharded = [p.grad for p in dense if p.grad is not None and kind_of(p).sharded]
    return shared, sharded


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    """|g|^2 of all gradients together.

    On a GPU by few kernels for all of them; a CPU, which has none, sums the squares one by one.
    """
    zero = torch.zeros((), device=device)
    if not gradients:
        return zero
    if device.type == "cuda":
        return _square_of_norms(gradients)
    return sum((gradient.float().square().sum() for gradient in gradients), zero)


def _square_of_norms(gradients: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()
