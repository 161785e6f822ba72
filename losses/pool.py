"""A batch's known positives inside a pool of labels, and the exchange that joins shards of the
pool."""

from dataclasses import dataclass

import torch
from torch import Tensor


class Exchange:
    """Reduces per-row statistics over the processes that share the label axis. Identity: one
    process has all.

    A distributed subclass all-reduces: a tensor of any dtype in, one of that shape and dtype out.
    It may overwrite its input. The result must be bit-identical on every process: soft top-k
    iterates by it.
    """

    def sum(self, value: Tensor) -> Tensor:
        return value

    def max(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Positives:
    """Known positives of a batch of B queries, as P coordinates in this process's columns of the
    pool.

    rows [P], cols [P]: int64, sorted by cols, each (row, col) at most once.
    weights [P]: multiplies the positive's term of the loss (graded relevance, or 1).
    counted [P]: bool; False is a known positive that was not sampled: absent, neither positive nor
    negative. per_row [B]: |P_i|, the number of counted positives over the WHOLE pool (all
    processes).
    """

    rows: Tensor
    cols: Tensor
    weights: Tensor
    counted: Tensor
    per_row: Tensor

    def __post_init__(self):
        for name in ("cols", "weights", "counted"):
            if getattr(self, name).shape != self.rows.shape or self.rows.dim() != 1:
                got = (
                    f"{name} {tuple(getattr(self, name).shape)} beside rows "
                    f"{tuple(self.rows.shape)}"
                )
                raise ValueError(
                    f"positives: expected rows, cols, weights, counted of one shape [P], got {got}"
                )
        if self.per_row.dim() != 1:
            raise ValueError(
                f"positives: expected per_row of shape [B], got {tuple(self.per_row.shape)}"
            )
        if self.counted.dtype != torch.bool:
            raise ValueError(
                f"positives: expected counted of dtype torch.bool, got {self.counted.dtype}"
            )
        for name in ("rows", "cols"):
            if (dtype := getattr(self, name).dtype) != torch.int64:
                raise ValueError(f"positives: expected {name} of dtype torch.int64, got {dtype}")

    @classmethod
    def build(
        cls, rows, cols, num_queries, weights=None, counted=None, per_row=None
    ) -> "Positives":
        """Sort by column; defaults: weights 1, all counted, |P_i| from the coordinates given
        here."""
        order = torch.argsort(cols, stable=True)
        weights = torch.ones(rows.shape, device=rows.device) if weights is None else weights
        counted = (
            torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
            if counted is None
            else counted
        )
        if per_row is None:
            per_row = torch.zeros(num_queries, device=rows.device).index_add_(
                0, rows, counted.float()
            )
        return cls(rows[order], cols[order], weights[order], counted[order], per_row)

    def columns(self, start: int, stop: int) -> "Positives":
        """The positives of labels [start, stop), columns counted from start; |P_i| stays the whole
        pool's."""
        edges = torch.tensor([start, stop], device=self.cols.device)
        first, last = torch.searchsorted(self.cols, edges).tolist()
        rows, cols, weights, counted = (
            x[first:last] for x in (self.rows, self.cols, self.weights, self.counted)
        )
        return Positives(rows, cols - start, weights, counted, self.per_row)
