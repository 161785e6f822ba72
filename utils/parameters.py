"""The kinds of parameters: in which form a gradient comes, and whether processes share the rows.

A model declares a kind where it makes the parameter; all others ask `kind_of`. What follows:

    gradient  made by                  optimizer       over processes
    DENSE     autograd                 AdamW           summed whole; clipping counts these alone
    ROWS      autograd, row-sparse     RowSparseAdamW  summed row by row
    FACTORS   the model: `factors`     FactoredAdamW   factors gathered

    sharded   each process owns other rows: nothing is exchanged, a checkpoint has a file for each
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -------------------------------- declaring


class Gradient(Enum):
    """The form in which a parameter's gradient comes."""

    DENSE = "dense"
    ROWS = "row-sparse"
    FACTORS = "factored"


@dataclass(frozen=True)
class Kind:
    """What a parameter is; the default is that of every plain nn.Parameter."""

    gradient: Gradient = Gradient.DENSE
    sharded: bool = False

    @property
    def is_table(self) -> bool:
        """Whether a step moves those rows alone that have a gradient."""
        return self.gradient is not Gradient.DENSE


class DeclaredParameter(nn.Parameter):
    """A parameter of another kind than the plain ones; the kind survives copies and devices.

    Attributes:
        kind: as declared.
        factors: the gradient of one with Gradient.FACTORS, which has no `grad`; None = no gradient.
    """

    kind: Kind
    factors: OuterGradient | None

    def __new__(cls, data: Tensor, kind: Kind) -> DeclaredParameter:
        made = super().__new__(cls, data.detach())
        made.kind = kind
        made.factors = None
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> DeclaredParameter:
        if id(self) not in memo:
            copy = DeclaredParameter(self.detach().clone(), self.kind)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]


def kind_of(parameter: Tensor) -> Kind:
    return parameter.kind if isinstance(parameter, DeclaredParameter) else Kind()


def of_gradient(parameters: Iterable[nn.Parameter], gradient: Gradient) -> list[nn.Parameter]:
    return [p for p in parameters if kind_of(p).gradient is gradient]


# -------------------------------- row-sparse gradients


def sparse_rows(
    rows: Tensor,
    values: Tensor,
    shape: torch.Size,
) -> Tensor:
    """Make a row-sparse tensor of distinct ascending rows [u] and their values [u, ...].

    Nothing is checked: that would wait for the device.
    """
    return torch.sparse_coo_tensor(
        rows[None], values, shape, is_coalesced=True, check_invariants=False
    )


def row_gradient(
    rows: Tensor,
    values: Tensor,
    shape: torch.Size,
) -> Tensor:
    """Make a row-sparse tensor of any rows [u], some of them perhaps twice: their values add up."""
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parameter: Tensor,
        rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = parameter.shape
        return parameter[rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return row_gradient(rows, gradient, ctx.shape), None


def take_rows(parameter: nn.Parameter, rows: Tensor) -> Tensor:
    """parameter[rows], [k, ...], with a gradient that holds those rows only: of Gradient.ROWS."""
    return _TakeRows.apply(parameter, rows)


# -------------------------------- factored gradients


def run_numbers(ordered: Tensor) -> Tensor:
    """The number of each entry's run of equal values in an ordered tensor [n]; no host sync."""
    begins = F.pad(ordered[1:] != ordered[:-1], (1, 0), value=False)
    return begins[: len(ordered)].cumsum(0)


def padded_runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values of an ordered tensor [n], and how often each stands there; no host sync.

    Both [n], padded with the last value and counts of 0.
    """
    if not len(ordered):
        return ordered, torch.zeros_like(ordered, dtype=torch.long)
    place = run_numbers(ordered)
    values = ordered[-1].expand(len(ordered)).clone().index_copy_(0, place, ordered)
    counts = torch.zeros_like(place).index_add_(0, place, torch.ones_like(place))
    return values, counts


@dataclass(frozen=True)
class _ByRow:
    """Entries sorted by row.

    Attributes:
        order: of the entries [E].
        distinct: rows, ascending; behind the last one repeated [E].
        ends: where each row's entries end, a 0 before the first [E + 1].
    """

    order: Tensor
    distinct: Tensor
    ends: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> _ByRow:
        order = torch.argsort(rows, stable=True)
        distinct, counts = padded_runs(rows[order])
        return cls(order, distinct, F.pad(counts.cumsum(0), (1, 0)))

    def cuts(self, size: int) -> Iterator[tuple[slice, tuple[int, int]]]:
        """Blocks of at most `size` rows: which, and between which entries. One host sync.

        Row -1 is left out.
        """
        if not len(self.order):
            return
        count = (self.ends[1:] > self.ends[:-1]).sum()
        is_none = (self.distinct[0] < 0).long()
        edges = self.ends.index_select(0, self._starts(size, is_none))
        skipped, rows, *known = torch.cat([torch.stack([is_none, count]), edges]).tolist()
        starts = range(skipped, rows, size)
        lasts = [*known[1 : len(starts)], len(self.order)]
        for start, first, last in zip(starts, known, lasts, strict=False):
            yield slice(start, min(start + size, rows)), (first, last)

    def _starts(self, size: int, skipped: Tensor) -> Tensor:
        """The first row of each block that there may be, of E rows at most."""
        every = torch.arange(0, len(self.order), size, device=self.ends.device)
        return (every + skipped).clamp_(max=len(self.order))


@dataclass(frozen=True)
class OuterGradient:
    """The gradient of a table's rows kept as its factors: nothing of the size rows x D is held.

    Where a score is an inner product of a query x_i and a row w_l, the gradient of row l is
    sum_i g_il x_i. A step with B queries and K rows each knows B x K numbers g and B vectors x; the
    rows' gradients would be up to B x K vectors. Here row l is the sum of
    values[e] * vectors[points[e]] over the entries e with rows[e] = l.

    rows, points [E] int64, values [E], vectors [B, D]. Entries of row -1 count for nothing.

    Attributes:
        by_row: the entries sorted by row, made when it is asked for; gradients that differ in
            values and vectors alone share it.
    """

    rows: Tensor
    points: Tensor
    values: Tensor
    vectors: Tensor
    by_row: list[_ByRow] = field(default_factory=list, repr=False)

    @classmethod
    def join(cls, parts: Sequence[OuterGradient]) -> OuterGradient:
        """The sum of several gradients: their entries and vectors one after the other."""
        starts = [0]
        for part in parts[:-1]:
            starts.append(starts[-1] + len(part.vectors))
        shifted = [part.points + start for part, start in zip(parts, starts, strict=True)]
        return cls(
            torch.cat([part.rows for part in parts]),
            torch.cat(shifted),
            torch.cat([part.values for part in parts]),
            torch.cat([part.vectors for part in parts]),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {
            "rows": self.rows,
            "points": self.points,
            "values": self.values,
            "vectors": self.vectors,
        }

    def scaled(self, factor: float) -> OuterGradient:
        return replace(self, values=self.values * factor)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield distinct rows [u], ascending and at most `size`, and their gradients [u, D]."""
        if not self.by_row:
            self.by_row.append(_ByRow.of(self.rows))
        entries = self.by_row[0]
        points = self.points[entries.order]
        values = self.values[entries.order]
        for part, (first, last) in entries.cuts(size):
            gradients = F.embedding_bag(
                points[first:last],
                self.vectors,
                entries.ends[part.start : part.stop + 1] - first,
                mode="sum",
                include_last_offset=True,
                per_sample_weights=values[first:last],
            )
            yield entries.distinct[part], gradients

    def to_sparse(self, shape: torch.Size) -> Tensor:
        """As a row-sparse tensor of that shape; for small ones and tests."""
        rows, values = next(self.blocks(max(len(self.rows), 1)), (self.rows[:0], self.vectors[:0]))
        return sparse_rows(rows, values, shape)
