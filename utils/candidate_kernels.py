"""Compiled work on candidates of points: scores of given labels, and the best of each point.

Nothing but the result is ever held. Everything here releases the GIL.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**OPTIONS, fastmath={"contract", "reassoc", "nsz"})
def dot_given(queries, rows, labels, out):
    """Inner products of queries [n, D] with given rows [L, D].

    out[i, j] = queries[i] . rows[labels[i, j]], [n, c] float32; 0 where a label is -1.
    """
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
    """Sums of given rows [L, D], weighted by weights [n, c].

    out[i] = sum_j weights[i, j] rows[labels[i, j]], [n, D] float32; every label an id.
    """
    for i in range(len(labels)):
        total = out[i]
        total[:] = 0
        for j in range(labels.shape[1]):
            weight, row = weights[i, j], rows[labels[i, j]]
            for d in range(len(total)):
                total[d] += weight * row[d]


@njit(**OPTIONS)
def stored_given(indptr, indices, data, labels, missing, out):
    """Entries of a canonical CSR [n, L]: out[i, j] = that at (i, labels[i, j]), [n, c] float32.

    missing: [n], the value where none is stored.
    """
    for i in range(len(labels)):
        row = indices[indptr[i] : indptr[i + 1]]
        for j in range(labels.shape[1]):
            at = np.searchsorted(row, labels[i, j])
            out[i, j] = (
                data[indptr[i] + at] if at < len(row) and row[at] == labels[i, j] else missing[i]
            )


@njit(**OPTIONS, fastmath={"contract", "nsz"})
def best_of_rows(ptr, ids, values, k, out_ids, out_values):
    """The k best candidates of each row, best first; equal values by lower id.

    Row i is ptr[i]:ptr[i + 1] of ids and values. out_ids [n, k] is padded with -1, out_values
    [n, k] with -inf.
    """
    kept_ids = np.empty(k, ids.dtype)
    for i in range(len(ptr) - 1):
        row_ids, row_values = ids[ptr[i] : ptr[i + 1]], values[ptr[i] : ptr[i + 1]]
        size = min(k, len(row_ids))
        if size < len(row_ids):
            # The k-th best value.
            least = np.partition(row_values, len(row_ids) - k)[len(row_ids) - k]
            kept = np.empty(k, values.dtype)
            count, ties = 0, 0
            for at in range(len(row_ids)):
                if row_values[at] > least:
                    kept_ids[count], kept[count] = row_ids[at], row_values[at]
                    count += 1
                elif row_values[at] == least:
                    ties += 1
            tied = np.empty(ties, ids.dtype)
            ties = 0
            for at in range(len(row_ids)):
                if row_values[at] == least:
                    tied[ties] = row_ids[at]
                    ties += 1
            if ties > k - count:
                tied.sort()
            kept_ids[count:], kept[count:] = tied[: k - count], least
            row_ids, row_values = kept_ids, kept
        order = np.argsort(-row_values)
        for place in range(size):
            out_ids[i, place], out_values[i, place] = (
                row_ids[order[place]],
                row_values[order[place]],
            )
            at = place  # equal values: an insertion sort by id
            while (
                at > 0
                and out_values[i, at - 1] == out_values[i, at]
                and out_ids[i, at - 1] > out_ids[i, at]
            ):
                out_ids[i, at - 1], out_ids[i, at] = out_ids[i, at], out_ids[i, at - 1]
                at -= 1
        out_ids[i, size:], out_values[i, size:] = -1, -np.inf
