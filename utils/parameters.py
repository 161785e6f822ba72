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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class OuterGradient:
    """The gradient of a table's rows kept as its factors: nothing of the size rows x D is held.

    Where a score is an inner product of a query x_i and a row w_l, the gradient of row l is
    sum_i g_il x_i. A step with B queries and K rows each knows B x K numbers g and B vectors x; the
    rows' gradients would be up to B x K vectors. Here row l is the sum of
    values[e] * vectors[points[e]] over the entries e with rows[e] = l.

    rows, points [E] int64, values [E], vectors [B, D].
    """

    rows: Tensor
    points: Tensor
    values: Tensor
    vectors: Tensor

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
        return OuterGradient(self.rows, self.points, self.values * factor, self.vectors)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield distinct rows [u], ascending and at most `size`, and their gradients [u, D]."""
        order = torch.argsort(self.rows, stable=True)
        rows, counts = torch.unique_consecutive(self.rows[order], return_counts=True)
        points = self.points[order]
        values = self.values[order]
        ends = F.pad(counts.cumsum(0), (1, 0))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            offsets = ends[start : start + len(part) + 1]
            first = int(offsets[0])
            last = int(offsets[-1])
            gradients = F.embedding_bag(
                points[first:last],
                self.vectors,
                offsets - first,
                mode="sum",
                include_last_offset=True,
                per_sample_weights=values[first:last],
            )
            yield part, gradients

    def to_sparse(self, shape: torch.Size) -> Tensor:
        """As a row-sparse tensor of that shape; for small ones and tests."""
        rows, values = next(self.blocks(max(len(self.rows), 1)), (self.rows, self.vectors[:0]))
        return sparse_rows(rows, values, shape)
