"""Compiled look-ups of the scores of given labels, point by point: nothing but the result is ever held.

Everything here releases the GIL.
"""
from __future__ import annotations

import numpy as np
from numba import njit

OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**OPTIONS, fastmath={"contract", "reassoc", "nsz"})
def dot_given(queries, rows, labels, out):
    """out[i, j] = queries[i] . rows[labels[i, j]], float32; 0 where a label is -1."""
    for i in range(len(labels)):
        query = queries[i]
        for j in range(labels.shape[1]):
            total = np.float32(0)
            if labels[i, j] >= 0:
                row = rows[labels[i, j]]
                for d in range(len(query)):
                    total += query[d] * row[d]
            out[i, j] = total


@njit(**OPTIONS)
def stored_given(indptr, indices, data, labels, out):
    """out[i, j] = the entry (i, labels[i, j]) of a canonical CSR, 0 where none is stored."""
    for i in range(len(labels)):
        row = indices[indptr[i]:indptr[i + 1]]
        for j in range(labels.shape[1]):
            at = np.searchsorted(row, labels[i, j])
            out[i, j] = data[indptr[i] + at] if at < len(row) and row[at] == labels[i, j] else 0
