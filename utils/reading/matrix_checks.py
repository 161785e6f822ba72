"""A sparse matrix from outside, looked at before scipy gets it.

scipy's C++ trusts every pointer, and ends the process where one is wrong.

    raw = RawMatrix("csc", {"data": ..., "indices": ..., "indptr": ...}, (3, 5))
    matrix = checked_csr(raw, "Y.npz", RELEVANCE)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.reading.matrix_limits import FEATURE_MAX, FLOAT32_MAX, LARGEST

REAL = "bfiu"  # kinds of dtype: truth values and real numbers
WHOLE = "iu"
MANY_COLUMNS = 10_000_000  # more than published sets have; fewer are believed
COLUMNS_AN_ENTRY = 100
MEMBERS = {  # of each format: names of its arrays, beside `data`
    "csr": ("indices", "indptr"),
    "csc": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}


@dataclass(frozen=True)
class Values:
    """Which values a matrix may hold."""

    wanted: str
    low: float
    high: float
    column: str = "column"


NUMBERS = Values("a finite number", -FLOAT32_MAX, FLOAT32_MAX)
RELEVANCE = Values("finite relevance >= 0", 0.0, FLOAT32_MAX, "label")
FEATURES = Values("a feature from -1e15 to 1e15", -FEATURE_MAX, FEATURE_MAX)
SCORES = Values("a score other than NaN", -np.inf, np.inf, "label")


@dataclass(frozen=True)
class RawMatrix:
    """A sparse matrix as it came: arrays `data` and those that `MEMBERS` names, and its shape."""

    kind: str
    arrays: Mapping[str, np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: sp.spmatrix | sp.sparray) -> RawMatrix:
        """Take the arrays of a scipy matrix of any format, unchanged."""
        if matrix.format not in MEMBERS:  # lists and dictionaries are Python's own, and sound
            matrix = matrix.tocoo()
        arrays = {name: getattr(matrix, name) for name in ("data", *MEMBERS[matrix.format])}
        return cls(matrix.format, arrays, tuple(matrix.shape))


def checked_csr(
    raw: RawMatrix,
    where: str,
    values: Values = NUMBERS,
) -> sp.csr_matrix:
    """Return `raw` [N, L] as a CSR of float32 or float64; explicit zeros stay.

    Numbers become float32, those of float64 stay, before anything adds up: a small integer would
    overflow. A CSR keeps the order of its entries and entries that stand twice, and shares its
    arrays where their types fit.

    Args:
        where: what the messages begin with, the file.
        values: which values may stand in it.
    Raises:
        InputError: arrays that do not make up a matrix of this shape; the first value that may not
            stand in it.
    """

    def fail(got: str) -> NoReturn:
        raise InputError(
            f"{where}: expected a valid {raw.kind.upper()} of shape {raw.shape}, got {got}"
        )

    if raw.kind not in MEMBERS:
        raise InputError(f"{where}: expected a format of {', '.join(MEMBERS)}, got {raw.kind!r}")
    if len(raw.shape) != 2 or not all(0 <= size <= LARGEST for size in raw.shape):
        fail(f"sizes that are not two numbers from 0 to {LARGEST}")
    if raw.arrays["data"].dtype.kind not in REAL:
        fail(f"values of type {raw.arrays['data'].dtype}")
    parts = CHECKS[raw.kind](raw.arrays, raw.shape, fail)
    data = _as_float(raw.arrays["data"])
    matrix = getattr(sp, f"{raw.kind}_matrix")((data, *parts), shape=raw.shape)
    if raw.kind == "dia":  # what lies outside the matrix may be anything
        matrix = matrix.tocoo()
    _check_values(matrix, where, values)
    return sp.csr_matrix(matrix)


def check_size_is_meant(
    columns: int,
    entries: int,
    where: str,
) -> None:
    """Raise InputError for a number of columns that the entries make a slip or a lie.

    A header alone tells it, and whatever is later made for each column would fill the memory, or
    the day.
    """
    if columns > MANY_COLUMNS and columns > COLUMNS_AN_ENTRY * entries:
        raise InputError(
            f"{where}: expected a number of columns that its {entries:,} entries make likely, at "
            f"most {max(MANY_COLUMNS, COLUMNS_AN_ENTRY * entries):,}, got {columns:,}"
        )


def _as_float(data: np.ndarray) -> np.ndarray:
    """Numbers of any type in float32; those of float64 and longer in float64."""
    is_long = data.dtype.kind == "f" and data.dtype.itemsize >= 8
    # Too large a number of a longer type becomes infinite, which is looked at next.
    with np.errstate(over="ignore"):
        return data.astype(np.float64 if is_long else np.float32, copy=False)


def _check_values(
    matrix: sp.spmatrix,
    where: str,
    values: Values,
) -> None:
    """Raise InputError for the first value outside the range."""
    data = matrix.data
    # The min and max of NaN are NaN, of which no comparison holds.
    if data.size == 0 or (data.min() >= values.low and data.max() <= values.high):
        return
    coo = matrix.tocoo()
    first = int(np.argmin((coo.data >= values.low) & (coo.data <= values.high)))
    raise InputError(
        f"{where}: expected {values.wanted}, got {coo.data[first]} at row {coo.row[first]}, "
        f"{values.column} {coo.col[first]}"
    )


# -------------------------------- the arrays of each format

Fail = Callable[[str], NoReturn]
Arrays = Mapping[str, np.ndarray]


def _check_compressed(
    arrays: Arrays, shape: tuple[int, int], fail: Fail
) -> tuple[np.ndarray, np.ndarray]:
    """CSR: indices of columns [nnz], pointers [rows + 1]."""
    if arrays["data"].ndim != 1:
        fail(f"values of shape {arrays['data'].shape}")
    return _check_pointers(arrays, shape, len(arrays["data"]), fail)


def _check_columns(
    arrays: Arrays, shape: tuple[int, int], fail: Fail
) -> tuple[np.ndarray, np.ndarray]:
    """CSC: as CSR, with the sizes exchanged."""
    return _check_compressed(arrays, shape[::-1], fail)


def _check_blocks(
    arrays: Arrays, shape: tuple[int, int], fail: Fail
) -> tuple[np.ndarray, np.ndarray]:
    """BSR: values [blocks, R, C]; the rest as CSR, of blocks."""
    data = arrays["data"]
    if data.ndim != 3 or 0 in data.shape[1:]:
        fail(f"blocks of shape {data.shape}")
    if shape[0] % data.shape[1] or shape[1] % data.shape[2]:
        fail(f"blocks of {data.shape[1]} x {data.shape[2]}")
    blocks = (shape[0] // data.shape[1], shape[1] // data.shape[2])
    return _check_pointers(arrays, blocks, len(data), fail)


def _check_pointers(
    arrays: Arrays, shape: tuple[int, int], stored: int, fail: Fail
) -> tuple[np.ndarray, np.ndarray]:
    """Indices [stored] of the second size and pointers [first size + 1], as scipy wants them."""
    indices = arrays["indices"]
    pointers = arrays["indptr"]
    if pointers.ndim != 1 or pointers.dtype.kind not in WHOLE:
        fail(f"indptr of type {pointers.dtype} and shape {pointers.shape}")
    if len(pointers) != shape[0] + 1:
        fail(f"indptr of {len(pointers)} numbers, not {shape[0] + 1}")
    if pointers[0] != 0 or pointers[-1] != stored:
        fail(f"indptr from {pointers[0]} to {pointers[-1]}, not from 0 to the {stored} values")
    falls = pointers[1:] < pointers[:-1]
    if falls.any():
        fail(f"indptr that falls after {np.argmax(falls)}")
    _check_ids("indices", indices, shape[1], stored, fail)
    kind = _index_type(stored)
    return indices.astype(kind, copy=False), pointers.astype(kind, copy=False)


def _check_pairs(
    arrays: Arrays, shape: tuple[int, int], fail: Fail
) -> tuple[tuple[np.ndarray, np.ndarray]]:
    """COO: rows [nnz] and columns [nnz]."""
    data = arrays["data"]
    if data.ndim != 1:
        fail(f"values of shape {data.shape}")
    rows = _check_ids("row", arrays["row"], shape[0], len(data), fail)
    columns = _check_ids("col", arrays["col"], shape[1], len(data), fail)
    kind = _index_type(len(data))
    return ((rows.astype(kind, copy=False), columns.astype(kind, copy=False)),)


def _check_diagonals(
    arrays: Arrays,
    shape: tuple[int, int],
    fail: Fail,
) -> tuple[np.ndarray]:
    """DIA: values [diagonals, up to columns] and the diagonals' offsets."""
    data = arrays["data"]
    offsets = arrays["offsets"]
    if data.ndim != 2 or data.shape[1] > shape[1]:
        fail(f"values of shape {data.shape}")
    if offsets.shape != data.shape[:1] or offsets.dtype.kind not in WHOLE:
        fail(
            f"offsets of type {offsets.dtype} and shape {offsets.shape} for values of shape "
            f"{data.shape}"
        )
    if offsets.size and (int(offsets.min()) <= -shape[0] or int(offsets.max()) >= shape[1]):
        fail(f"offsets from {offsets.min()} to {offsets.max()}")
    if len(np.unique(offsets)) != len(offsets):
        fail("a diagonal twice")
    return (offsets.astype(np.int32, copy=False),)


def _check_ids(
    name: str,
    ids: np.ndarray,
    size: int,
    stored: int,
    fail: Fail,
) -> np.ndarray:
    """Ids [stored], whole numbers in [0, size)."""
    if ids.ndim != 1 or ids.dtype.kind not in WHOLE:
        fail(f"{name} of type {ids.dtype} and shape {ids.shape}")
    if len(ids) != stored:
        fail(f"{name} of {len(ids)} numbers for {stored} values")
    if stored and (ids.min() < 0 or ids.max() >= size):
        first = int(np.argmax((ids < 0) | (ids >= size)))
        fail(f"{ids[first]} in {name} at entry {first}, outside [0, {size})")
    return ids


def _index_type(stored: int) -> type:
    return np.int32 if stored <= LARGEST else np.int64


CHECKS = {
    "csr": _check_compressed,
    "csc": _check_columns,
    "bsr": _check_blocks,
    "coo": _check_pairs,
    "dia": _check_diagonals,
}
