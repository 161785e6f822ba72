"""A sparse matrix that grows row by row, and the hash of a finished one."""

from __future__ import annotations

import hashlib
import operator
from array import array
from collections.abc import Callable

import numpy as np

from utils.errors import InputError
from utils.reading.matrix_limits import FLOAT32_MAX


class Rows:
    """A sparse matrix [N, columns] that grows row by row in flat arrays.

    Args:
        merge: what becomes of two values of one column in a row. They add up, as in a scipy matrix;
            a label that is named twice is no more relevant than its largest value, so formats of
                names give `max`.
    """

    def __init__(self, merge: Callable[[float, float], float] = operator.add) -> None:
        self.merge = merge
        self.starts, self.columns, self.values = array("q", [0]), array("i"), array("f")
        self.read = 0  # pairs before repeated ones are merged

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, columns: list[int], values: list[float]) -> None:
        """One more row; values of a column that comes twice are merged."""
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
            columns, values = list(merged), list(merged.values())
        self.columns.extend(columns)
        self.values.extend(values)
        self.starts.append(len(self.columns))

    def csr(self, width: int):
        """The rows as a canonical scipy CSR [N, width], float32, no explicit zeros; shares this
        memory."""
        from scipy import sparse

        matrix = sparse.csr_matrix(
            tuple(map(np.asarray, (self.values, self.columns, self.starts))),
            shape=(len(self), width),
        )
        matrix.sort_indices()
        matrix.eliminate_zeros()
        return matrix


def matrix_hash(matrix) -> str:
    """sha256 of a canonical CSR: shape, indptr and indices as int64, data as float32, all little
    endian."""
    digest = hashlib.sha256(np.asarray(matrix.shape, "<i8").tobytes())
    for part, dtype in ((matrix.indptr, "<i8"), (matrix.indices, "<i8"), (matrix.data, "<f4")):
        # in blocks, as all of it in int64 would double memory
        for start in range(0, len(part), 1 << 20):
            digest.update(part[start : start + (1 << 20)].astype(dtype).tobytes())
    return digest.hexdigest()
