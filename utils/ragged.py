"""Rows of token ids of any lengths, end to end in one array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of token ids, usually memory-mapped: row i = ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Cut flat ids into rows of these lengths."""
        return cls(ids, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row [n]."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gather rows: their flat ids int32, and their lengths int64 [len(rows)]."""
        starts = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - starts
        ends = np.cumsum(lengths)
        shifts = np.repeat(starts - (ends - lengths), lengths)
        return self.ids[shifts + np.arange(len(shifts))].astype(np.int32), lengths

    def rows(self, rows: np.ndarray) -> Ragged:
        """Return these rows alone, in memory."""
        ids, lengths = self.take(rows)
        return Ragged.of(ids.astype(self.ids.dtype), lengths)

    def replaced(self, rows: np.ndarray, others: Ragged) -> Ragged:
        """Return all rows, in memory, with `others` in the place of these, in rising order."""
        if not len(rows):
            return self
        pieces = []
        start = 0
        for place, row in enumerate(rows.tolist()):
            pieces.append(self.ids[self.offsets[start] : self.offsets[row]])
            pieces.append(others.ids[others.offsets[place] : others.offsets[place + 1]])
            start = row + 1
        pieces.append(self.ids[self.offsets[start] :])
        lengths = self.lengths
        lengths[rows] = others.lengths
        return Ragged.of(np.concatenate(pieces), lengths)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
