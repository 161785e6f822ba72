"""Compiled look-ups of the scores of given labels, point by point: nothing but the result is ever
held.

Everything here releases the GIL.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**OPTIONS, fastmath={"contract", "reassoc", "nsz"})
def dot_given(queries, rows, labels, out):
    """Inner products of queries [n, D] with given rows [L, D]: out[i, j] = queries[i] .
    rows[labels[i, j]], [n, c] float32; 0 where a label is -1."""
    for i in range(len(labels)):
        query = queries[i]
        for j in range(labels.shape[1]):
            total = np.float32(0)
            if labels[i, j] >= 0:
                row = rows[labels[i, j]]
                for d in range(len(query)):
                    total += query[d] * row[d]
            out[i, j] = total


@njit(**OPTIONS, fastmath={"contract", "nsz"})
def combine_given(weights, rows, labels, out):
    """Sums of given rows [L, D], weighted by weights [n, c]: out[i] = sum_j weights[i, j]
    rows[labels[i, j]], [n, D] float32; every label an id."""
    for i in range(len(labels)):
        total = out[i]
        total[:] = 0
        for j in range(labels.shape[1]):
            weight, row = weights[i, j], rows[labels[i, j]]
            for d in range(len(total)):
                total[d] += weight * row[d]


@njit(**OPTIONS)
def stored_given(indptr, indices, data, labels, missing, out):
    """out[i, j] = the entry (i, labels[i, j]) of a canonical CSR [n, L]: [n, c] float32; missing[i]
    [n] where none is stored."""
    for i in range(len(labels)):
        row = indices[indptr[i] : indptr[i + 1]]
        for j in range(labels.shape[1]):
            at = np.searchsorted(row, labels[i, j])
            out[i, j] = (
                data[indptr[i] + at] if at < len(row) and row[at] == labels[i, j] else missing[i]
            )
