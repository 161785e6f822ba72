"""A sparse matrix that grows row by row, and the hash of a finished one."""

from __future__ import annotations

import hashlib
import operator
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError
from utils.reading.matrix_limits import FLOAT32_MAX

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Rows:
    """A sparse matrix [N, columns] that grows row by row in flat arrays.

    Args:
        merge: what becomes of two values of one column in a row. They add up, as in a scipy matrix;
            a label that is named twice is no more relevant than its largest value, so formats of
            names give `max`.
    """

    def __init__(self, merge: Callable[[float, float], float] = operator.add) -> None:
        self.merge = merge
        self.starts = array("q", [0])
        self.columns = array("i")
        self.values = array("f")
        self.read = 0  # pairs before repeated ones are merged

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, columns: list[int], values: list[float]) -> None:
        """Add one more row; values of a column that comes twice are merged."""
        self.read += len(columns)
        if len(set(columns)) != len(columns):
            merged: dict[int, float] = {}
            for column, value in zip(columns, values, strict=True):
                merged[column] = self.merge(merged[column], value) if column in merged else value
                if abs(merged[column]) > FLOAT32_MAX:
                    raise InputError(
                        f"expected values of index {column} that add up to a number of float32, "
                        f"got {merged[column]!r}"
                    )
            columns = list(merged)
            values = list(merged.values())
        self.columns.extend(columns)
        self.values.extend(values)
        self.starts.append(len(self.columns))

    def csr(self, width: int) -> csr_matrix:
        """Return the rows as a canonical CSR [N, width] of float32, which shares this memory.

        It has no explicit zeros.
        """
        from scipy import sparse

        parts = (np.asarray(self.values), np.asarray(self.columns), np.asarray(self.starts))
        matrix = sparse.csr_matrix(parts, shape=(len(self), width))
        matrix.sort_indices()
        matrix.eliminate_zeros()
        return matrix


def matrix_hash(matrix: csr_matrix) -> str:
    """Return the sha256 of a canonical CSR.

    It is that of shape, indptr and indices as int64 and of data as float32, all little endian.
    """
    digest = hashlib.sha256(np.asarray(matrix.shape, "<i8").tobytes())
    for part, dtype in ((matrix.indptr, "<i8"), (matrix.indices, "<i8"), (matrix.data, "<f4")):
        # In blocks, as all of it in int64 would double memory.
        for start in range(0, len(part), 1 << 20):
            digest.update(part[start : start + (1 << 20)].astype(dtype).tobytes())
    return digest.hexdigest()
