"""Sparse score and label matrices [N points, L labels], in numpy and scipy alone.

A stored entry is a prediction whatever its value, so explicit zeros and negative scores are kept.
Ties break by the lower label id. No function changes its input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from utils.errors import InputError
from utils.reading.matrix_checks import RELEVANCE, RawMatrix, checked_csr

CELLS = 1 << 20  # entries of a padded block: bounds the working memory of `topk_rows`


def topk_rows(scores: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best entries of each row [N, L], by descending score, ties by lower label id.

    Ranked in the precision of `scores`; the returned values alone are float32.

    Returns:
        label ids [N, k] int64, padded with -1; values [N, k] float32, padded with -inf
    Raises:
        ValueError: a score is NaN.
    """
    if k < 1:
        raise ValueError(f"topk_rows: expected k >= 1, got {k}")
    scores = canonical(scores)
    refuse(np.isnan(scores.data), scores, "topk_rows", "scores other than NaN")
    indices = np.full((scores.shape[0], k), -1, dtype=np.int64)  # [N, k]
    values = np.full((scores.shape[0], k), -np.inf, dtype=np.float32)  # [N, k]
    lengths = np.diff(scores.indptr)
    # Longest first, no empty rows.
    rows = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    # Rows of like length share a block, so that one long row does not pad all the others.
    while start < len(rows):
        width = lengths[rows[start]]
        block = rows[start : start + max(1, CELLS // width)]
        best = min(width, k)
        indices[block, :best], values[block, :best] = _topk_block(scores, block, width, best)
        start += len(block)
    return indices, values


def _topk_block(
    scores: sparse.csr_matrix, rows: np.ndarray, width: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`topk_rows` for rows [n] of at most `width` entries each: ids and values [n, k]."""
    inside = np.arange(width) < np.diff(scores.indptr)[rows][:, None]  # [n, width]
    first = scores.indptr[rows].astype(np.int64)[:, None]
    position = np.where(inside, first + np.arange(width), 0)
    data = scores.data
    if not np.issubdtype(data.dtype, np.floating):
        data = data.astype(np.float64)
    # Ids ascend within a canonical row and padding comes last, so a stable sort breaks ties by the
    # lower id and keeps even a genuine -inf ahead of the padding.
    order = np.argsort(np.where(inside, -data[position], np.inf), axis=1, kind="stable")[:, :k]
    inside = np.take_along_axis(inside, order, axis=1)
    position = np.take_along_axis(position, order, axis=1)
    ids = np.where(inside, scores.indices[position], -1)
    values = np.where(inside, data[position], -np.inf)
    return ids, values


def topk_csr(
    values: npt.ArrayLike,
    ids: npt.ArrayLike,
    num_labels: int,
) -> sparse.csr_matrix:
    """Turn dense top-k lists, values and ids [N, k], into a canonical CSR [N, num_labels].

    Of the dtype of `values`. Entries of id -1 are dropped, explicit zeros kept.

    Raises:
        ValueError: ids outside [-1, L), or twice in a row.
    """
    values = np.asarray(values)
    ids = np.asarray(ids)
    if values.shape != ids.shape or ids.ndim != 2:
        raise ValueError(
            f"topk_csr: expected arrays of one shape [N, k], got {values.shape}, {ids.shape}"
        )
    if ids.size and (ids.min() < -1 or ids.max() >= num_labels):
        raise ValueError(
            f"topk_csr: expected ids in [-1, {num_labels}), got {ids.min()} to {ids.max()}"
        )
    ids = np.where(ids < 0, num_labels, ids)  # padding sorts last
    order = np.argsort(ids, axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    kept = ids < num_labels
    twice = (ids[:, 1:] == ids[:, :-1]) & kept[:, 1:]
    if twice.any():
        row, column = np.argwhere(twice)[0]
        label = ids[row, column]
        raise ValueError(
            f"topk_csr: expected distinct ids per row, got label {label} twice in row {row}"
        )
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return sparse.csr_matrix((values[kept], ids[kept], indptr), shape=(len(ids), num_labels))


def remove_pairs(
    matrix: sparse.spmatrix, rows: npt.ArrayLike, cols: npt.ArrayLike
) -> sparse.csr_matrix:
    """`matrix` [N, L] without the entries (rows[i], cols[i]).

    Other entries stay, explicit zeros included; pairs that are not stored are ignored.

    Raises:
        ValueError: pairs outside the shape.
    """
    matrix = canonical(matrix)
    rows = np.asarray(rows)
    cols = np.asarray(cols)
    if rows.shape != cols.shape or rows.ndim != 1:
        raise ValueError(
            f"remove_pairs: expected arrays of one shape [F], got {rows.shape}, {cols.shape}"
        )
    for name, ids, size in (("rows", rows, matrix.shape[0]), ("cols", cols, matrix.shape[1])):
        if ids.size and (ids.min() < 0 or ids.max() >= size):
            raise ValueError(
                f"remove_pairs: expected {name} in [0, {size}), got {ids.min()} to {ids.max()}"
            )
    position = _find(matrix, rows, cols)
    kept = np.ones(matrix.nnz, dtype=bool)
    kept[position[position >= 0]] = False
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def contains(
    matrix: sparse.spmatrix, rows: npt.ArrayLike, cols: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Whether `matrix` stores an entry at (rows, cols), which broadcast; False for the id -1."""
    return _find(canonical(matrix), rows, cols) >= 0


def lookup(
    matrix: sparse.spmatrix,
    rows: npt.ArrayLike,
    cols: npt.ArrayLike,
) -> np.ndarray:
    """The values of `matrix` at (rows, cols), which broadcast; 0 where nothing is stored."""
    matrix = canonical(matrix)
    position = _find(matrix, rows, cols)
    values = np.zeros(position.shape, dtype=matrix.dtype)
    stored = position >= 0
    values[stored] = matrix.data[position[stored]]
    return values


def _find(
    matrix: sparse.csr_matrix, rows: npt.ArrayLike, cols: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Positions in `matrix.data` of the pairs (rows, cols), which broadcast; -1 if absent.

    A binary search among sorted keys.
    """
    rows, cols = np.broadcast_arrays(
        np.asarray(rows, dtype=np.int64), np.asarray(cols, dtype=np.int64)
    )
    if matrix.nnz == 0:
        return np.full(rows.shape, -1, dtype=np.int64)
    labels = matrix.shape[1]
    keys = entry_rows(matrix) * labels + matrix.indices  # [nnz], ascending: it is canonical
    wanted = rows * labels + cols
    position = np.minimum(np.searchsorted(keys, wanted), matrix.nnz - 1)
    # A column outside the matrix would take a key of the next row: -1 that of the last label one
    # row up.
    return np.where((keys[position] == wanted) & (cols >= 0) & (cols < labels), position, -1)


def check_relevance(matrix: sparse.spmatrix, where: str) -> sparse.csr_matrix:
    """`matrix` [N, L] as a canonical CSR in float32 without explicit zeros.

    Entries that stand twice add up, in floating point: 100 + 100 is 200 in int8 too. The arrays are
    shared with `matrix` where nothing changes.

    Args:
        where: the file that the labels were read from.
    Raises:
        InputError: names `where` and the first (row, label) with NaN, infinite or negative
            relevance, or what keeps its arrays from being a matrix.
    """
    if not sparse.issparse(matrix):
        raise InputError(f"{where}: expected a scipy sparse matrix, got {type(matrix).__name__}")
    checked = canonical(checked_csr(RawMatrix.of(matrix), where, RELEVANCE))
    return without_zeros(checked.astype(np.float32, copy=False))


def without_zeros(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The CSR `matrix` without explicit zeros; a copy only if it has any."""
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    return matrix


def canonical(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """`matrix` as a CSR with sorted, distinct ids in each row; a copy only if it is not one yet.

    Entries that stand twice add up, in floating point where the numbers are whole: small ones would
    overflow.
    """
    if not sparse.issparse(matrix):
        raise ValueError(f"expected a scipy sparse matrix, got {type(matrix).__name__}")
    if matrix.format in ("coo", "bsr"):  # their conversion to CSR adds up
        matrix = _wide(matrix)
    if not isinstance(matrix, sparse.csr_matrix):
        matrix = sparse.csr_matrix(matrix)
    if not matrix.has_canonical_format:
        matrix = _wide(matrix).copy()
        matrix.sum_duplicates()
    return matrix


def _wide(matrix: sparse.spmatrix) -> sparse.spmatrix:
    """Whole numbers, truth values and half floats in a type in which they can add up."""
    if matrix.dtype.kind == "f" and matrix.dtype.itemsize > 2:
        return matrix
    return matrix.astype(np.float32 if matrix.dtype.itemsize <= 2 else np.float64)


def entry_rows(matrix: sparse.csr_matrix) -> npt.NDArray[np.int64]:
    """The row of each stored entry of a CSR: [nnz] int64."""
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))


def refuse(
    bad: npt.NDArray[np.bool_],
    matrix: sparse.csr_matrix,
    where: str,
    wanted: str,
) -> None:
    """Raise ValueError for the first stored entry of a CSR that the mask `bad` [nnz] marks."""
    if bad.any():
        first = int(np.argmax(bad))
        row = int(np.searchsorted(matrix.indptr, first, side="right")) - 1
        label = matrix.indices[first]
        raise InputError(
            f"{where}: expected {wanted}, got {matrix.data[first]} at row {row}, label {label}"
        )


def normalised(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows scaled to length 1; rows of zeros stay."""
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scaled = matrix.copy()
    scaled.data *= np.repeat(1 / np.maximum(norms, 1e-12), np.diff(matrix.indptr)).astype(
        np.float32
    )
    return scaled


def keep_topk(scores: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """Keep the k largest entries of each row; equal scores by lower label id."""
    ids, values = topk_rows(scores, k)
    return topk_csr(values, ids, scores.shape[1])
