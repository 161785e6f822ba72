"""Row-sparse gradients of a step's many backwards, added up where their rows lie.

Autograd merges a row-sparse gradient into the sum so far by a copy of it, and on a GPU appends it:
m micro-batches cost m^2. A buffer with a place for every row costs each of them its own rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from utils.parameters import Gradient, of_gradient, sparse_rows


class RowSums:
    """Adds up the gradients of tables while a step is computed.

        sums = RowSums(parameters)      # once an epoch: the buffers are kept
        with sums:
            learner.backward(batch)
        # each table's `grad` is what autograd would have made of it, its rows distinct, ascending

    A table of which a step gives one gradient keeps that one, and has no buffer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        tables = of_gradient(parameters, Gradient.ROWS)
        self._tables = [_TableSum(table) for table in tables if table.requires_grad]

    def __enter__(self) -> None:
        for table in self._tables:
            table.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:  # perhaps out of memory: the step is lost
            for table in self._tables:
                table.forget()
            return
        summed = [table for table in self._tables if table.is_summed]
        # the host waits once, for all of them
        counts = torch.stack([table.touched.sum() for table in summed]).tolist() if summed else []
        for table, count in zip(summed, counts, strict=True):
            table.take_sum(count)
        for table in self._tables:
            table.end()


class _TableSum:
    """The sum of one table's gradients.

    Attributes:
        first: gradient of the step, while it is the only one.
        sums: of the rows' gradients [V, ...], 0 between steps; None before it is needed.
        touched: the rows of the step that have a gradient [V].
        is_summed: the step has had several gradients.
    """

    def __init__(self, table: nn.Parameter) -> None:
        self.table = table
        self.first: Tensor | None = None
        self.sums: Tensor | None = None
        self.touched = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        self.is_summed = False
        self._hook: RemovableHandle | None = None

    def begin(self) -> None:
        self._hook = self.table.register_post_accumulate_grad_hook(self._take)

    def forget(self) -> None:
        """Be as before the step, in no more memory."""
        self._unhook()
        self.first = None
        self.is_summed = False
        self.touched.zero_()
        if self.sums is not None:
            self.sums.zero_()

    def _unhook(self) -> None:
        assert self._hook is not None, "what ends has begun"
        self._hook.remove()

    def end(self) -> None:
        """Leave the step's gradient on the table."""
        self._unhook()
        if self.table.grad is None:  # a dense one stays, for the optimizer to refuse
            self.table.grad = self.first
        self.first = None
        self.is_summed = False

    @torch.no_grad()
    def _take(self, table: Tensor) -> None:
        """Take the gradient of one backward from the table."""
        gradient = table.grad
        assert gradient is not None, "it was just accumulated"
        if not gradient.is_sparse:
            return
        table.grad = None
        if self.first is None and not self.is_summed:
            self.first = gradient
            return
        if self.first is not None:
            self._add(self.first)
            self.first = None
        self._add(gradient)
        self.is_summed = True

    def _add(self, gradient: Tensor) -> None:
        if self.sums is None:
            self.sums = torch.zeros_like(self.table)
        rows = gradient._indices()[0]
        self.sums.index_add_(0, rows, gradient._values())
        self.touched.index_fill_(0, rows, True)

    @torch.no_grad()
    def take_sum(self, count: int) -> None:
        """Move the sum of `count` rows out of the buffer; it is the gradient now."""
        assert self.sums is not None, "it is there where gradients were added up"
        rows = _true_rows(self.touched, count)
        values = self.sums.index_select(0, rows)
        self.sums.index_fill_(0, rows, 0.0)
        self.touched.zero_()
        self.first = sparse_rows(rows, values, self.table.shape)


def _true_rows(mask: Tensor, count: int) -> Tensor:
    """Where a mask [V] is true [count], ascending; `nonzero` would make the host wait."""
    behind = mask.cumsum(0) - 1
    places = torch.where(mask, behind, count)  # of the others all behind the last
    rows = places.new_empty(count + 1)
    return rows.index_copy_(0, places, torch.arange(len(mask), device=mask.device))[:count]
