"""A batch's known positives inside a pool of labels; the exchange that joins shares of the pool."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Exchange:
    """Reduces per-row statistics over the processes that share the labels; here one has them all.

    A distributed subclass all-reduces: a tensor of any dtype in, one of that shape and dtype out.
    It may overwrite its input. The result must be bit-identical on every process: soft top-k
    iterates by it.
    """

    def sum(self, value: Tensor) -> Tensor:
        return value

    def max(self, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class HostCopy:
    """What shapes a loss's tensors, in the host's memory: where it is there no GPU is waited for.

    Attributes:
        cols, per_row: as Positives has them.
    """

    cols: memoryview
    per_row: memoryview


@dataclass(frozen=True)
class Positives:
    """Known positives of a batch of B queries, as P coordinates in a process's columns of the pool.

    rows [P], cols [P]: int64, sorted by cols, each (row, col) at most once.
    weights [P]: multiplies the positive's term of the loss (graded relevance, or 1).
    counted [P]: bool; False is a known positive that was not sampled: absent, neither positive nor
        negative.
    per_row [B]: |P_i|, the number of counted positives over the WHOLE pool (all processes).
    counted_at: where `counted` is true, or None: to be looked for.
    on_host: of positives that were made there.
    """

    rows: Tensor
    cols: Tensor
    weights: Tensor
    counted: Tensor
    per_row: Tensor
    counted_at: Tensor | None = None
    on_host: HostCopy | None = None

    def __post_init__(self) -> None:
        named = {"cols": self.cols, "weights": self.weights, "counted": self.counted}
        for name, values in named.items():
            if values.shape != self.rows.shape or self.rows.dim() != 1:
                got = f"{name} {tuple(values.shape)} beside rows {tuple(self.rows.shape)}"
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
        for name, ids in {"rows": self.rows, "cols": self.cols}.items():
            if ids.dtype != torch.int64:
                raise ValueError(
                    f"positives: expected {name} of dtype torch.int64, got {ids.dtype}"
                )

    @classmethod
    def build(
        cls,
        rows: Tensor,
        cols: Tensor,
        num_queries: int,
        weights: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Positives:
        """Sort coordinates [P] by column; |P_i| are those of a pool that lies here as a whole.

        Defaults: weights 1, all counted.
        """
        order = torch.argsort(cols, stable=True)
        if weights is None:
            weights = torch.ones(rows.shape, device=rows.device)
        if counted is None:
            counted = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
        per_row = torch.zeros(num_queries, device=rows.device)
        per_row.index_add_(0, rows, counted.float())
        return cls(rows[order], cols[order], weights[order], counted[order], per_row)

    def before(self, labels: Sequence[int]) -> list[int]:
        """How many positives have a column below each of some labels of the pool."""
        if self.on_host is not None:
            return [bisect_left(self.on_host.cols, label) for label in labels]
        edges = torch.tensor(labels, device=self.cols.device)
        return torch.searchsorted(self.cols, edges).tolist()

    def where_counted(self) -> Tensor:
        """Positions of the counted ones among all [C], ascending."""
        if self.counted_at is not None:
            return self.counted_at
        return self.counted.nonzero()[:, 0]

    def at_most(self, count: int) -> int:
        """How many counted ones there are if a row has `count` at most."""
        if self.on_host is not None:
            return sum(min(int(own), count) for own in self.on_host.per_row)
        return int(self.per_row.clamp(max=count).sum())
