"""Micro-batches: the texts of a step in parts that an encoder takes one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.data.batches import TextBatch


@dataclass(frozen=True)
class MicroBatchSize:
    """How much is encoded at once.

    Attributes:
        texts: at most so many, in the order they come in; None = all. Counts without `tokens`.
        tokens: at most so many, shortest texts first; None = `texts` counts. A text of more is a
            micro-batch of its own.
        padded: the padding of texts to the longest of a micro-batch counts too.
    """

    texts: int | None
    tokens: int | None = None
    padded: bool = True

    def cut(self, lengths: np.ndarray) -> list[slice]:
        """Cut texts [n] into micro-batches, in order; one at least.

        Args:
            lengths: tokens of each; ascending where tokens count.
        """
        if self.tokens is None:
            size = self.texts or max(len(lengths), 1)
            starts = range(0, max(len(lengths), 1), size)
            return [slice(start, min(start + size, len(lengths))) for start in starts]
        slices: list[slice] = []
        start = 0
        while start < len(lengths) or not slices:
            stop = start + self._next(lengths[start : start + self.tokens])
            slices.append(slice(start, stop))
            start = max(stop, start + 1)
        return slices

    def _next(self, lengths: np.ndarray) -> int:
        """How many of the next texts are one micro-batch."""
        assert self.tokens is not None, "only tokens are counted"
        counted = np.maximum(lengths.astype(np.int64), 1)
        cost = np.cumsum(counted)
        if self.padded:
            cost = counted * np.arange(1, len(counted) + 1)
        fitting = int(np.searchsorted(cost, self.tokens, "right"))  # cost ascends
        return min(max(fitting, 1), len(lengths))


@dataclass(frozen=True)
class MicroBatches:
    """Texts in micro-batches.

    Attributes:
        parts: one at least.
        place: row of each text among those of all parts, one part behind the other [n] int64; None
            = they are in order.
    """

    parts: list[TextBatch]
    place: Tensor | None = None

    @classmethod
    def of(cls, texts: TextBatch, size: MicroBatchSize) -> MicroBatches:
        """Cut texts of any order."""
        lengths = texts.host_lengths
        if size.tokens is None:
            return cls(texts.split(size.texts or max(len(texts), 1)))
        order = np.argsort(lengths, kind="stable")
        slices = size.cut(lengths[order])
        if len(slices) == 1:
            return cls([texts])
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        parts = texts.reordered(order).cut(slices)
        return cls(parts, torch.from_numpy(place).to(texts.ids.device))
