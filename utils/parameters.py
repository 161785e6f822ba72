"""The gradient of a table's rows kept as its factors: nothing of the size rows x D is ever held.

Where a score is an inner product of a query x_i and a row w_l, the gradient of row l is sum_i g_il
x_i. A step with B queries and K rows each knows B x K numbers g and B vectors x; the rows'
gradients would be up to B x K vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class OuterGradient:
    """Row l of the gradient is the sum of values[e] * vectors[points[e]] over the entries e with
    rows[e] = l.

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
        for part in parts:
            starts.append(starts[-1] + len(part.vectors))
        return cls(
            torch.cat([p.rows for p in parts]),
            torch.cat([p.points + start for p, start in zip(parts, starts, strict=False)]),
            torch.cat([p.values for p in parts]),
            torch.cat([p.vectors for p in parts]),
        )

    def scaled(self, factor: float) -> OuterGradient:
        return OuterGradient(self.rows, self.points, self.values * factor, self.vectors)

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(distinct rows [u], their gradients [u, D]) of at most `size` rows at a time, by
        ascending row."""
        order = torch.argsort(self.rows, stable=True)
        rows, counts = torch.unique_consecutive(self.rows[order], return_counts=True)
        points = self.points[order]
        values = self.values[order]
        ends = F.pad(counts.cumsum(0), (1, 0))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            offsets = ends[start : start + len(part) + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            yield (
                part,
                F.embedding_bag(
                    points[first:last],
                    self.vectors,
                    offsets - first,
                    mode="sum",
                    include_last_offset=True,
                    per_sample_weights=values[first:last],
                ),
            )

    def to_sparse(self, shape: torch.Size) -> Tensor:
        """As a row-sparse tensor of that shape; for small ones and tests."""
        rows, values = next(self.blocks(max(len(self.rows), 1)), (self.rows, self.vectors[:0]))
        return torch.sparse_coo_tensor(
            rows[None], values, shape, is_coalesced=True, check_invariants=False
        )
