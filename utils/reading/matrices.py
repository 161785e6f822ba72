"""Sparse matrices from outside: looked at before they are unpacked.

They are believed only where the bytes agree.

    read_matrix("Y.trn.npz", RELEVANCE)                # scipy's save_npz, any format -> CSR float32
    matrix_header("Y.trn.npz")                         # (rows, columns, stored entries)

Every error is an `InputError` of one line that begins with the file. Kinds of values, as RELEVANCE,
stand in `utils.reading.matrix_checks`.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.reading.archives import (
    Header,
    available_for,
    checked_members,
    member_header,
    opened_archive,
    read_member,
    reported,
)
from utils.reading.input_files import check_file
from utils.reading.matrix_checks import MEMBERS, NUMBERS, REAL, RawMatrix, Values, checked_csr
from utils.reading.matrix_limits import LARGEST


def read_matrix(
    path: str | Path, values: Values = NUMBERS, dtype: type | None = np.float32
) -> sp.csr_matrix:
    """Return the sparse matrix of scipy's `save_npz`, of any of its formats, as a canonical CSR.

    Explicit zeros stay. Entries that stand twice add up, in floating point: 100 + 100 is 200 in
    int8 too.

    Args:
        values: which values may stand in it; looked at before any add up.
        dtype: of the result; None = float64 where the file has it, else float32.
    Raises:
        InputError: naming the file and what is wrong with it.
    """
    path = check_file(path, "a scipy sparse matrix")
    with reported(path, "a scipy sparse matrix"), opened_archive(path) as archive:
        plan = _plan(archive, path)
        raw = _raw_matrix(archive, plan, path)
    with reported(path, "a scipy sparse matrix"):
        matrix = checked_csr(raw, str(path), values)
        entries = raw.arrays["data"].size
        del raw
        matrix.sum_duplicates()
        if 0 < matrix.nnz < entries and not np.abs(matrix.data).max() <= values.high:
            raise InputError(
                f"{path}: entries that stand more than once add up beyond {values.high:.4g}"
            )
        if dtype is not None:
            with np.errstate(over="ignore"):  # only where infinity may stand in it
                matrix = matrix.astype(dtype, copy=False)
    return matrix


def matrix_header(path: str | Path) -> tuple[int, int, int]:
    """Return (rows, columns, stored entries) of a sparse matrix, from its headers alone.

    Raises:
        InputError: naming the file and what is wrong with its headers.
    """
    path = check_file(path, "a scipy sparse matrix")
    with reported(path, "a scipy sparse matrix"), opened_archive(path) as archive:
        plan = _plan(archive, path)
    return *plan.shape, math.prod(plan.headers["data"].shape)


class Plan(NamedTuple):
    """What is to be read of a sparse matrix."""

    kind: str
    shape: tuple[int, int]
    members: dict[str, zipfile.ZipInfo]
    headers: dict[str, Header]


def _plan(archive: zipfile.ZipFile, path: Path) -> Plan:
    """The format, shape and headers of a sparse matrix."""
    members = checked_members(archive, path)
    for name in ("format", "shape", "data"):
        if name not in members:
            raise InputError(f"{path}: not a scipy sparse matrix (it has no array {name!r})")
    kind = _format(archive, members["format"], path)
    coords = kind == "coo" and "coords" in members
    names = ("data", "coords") if coords else ("data", *MEMBERS[kind])
    if missing := [name for name in names if name not in members]:
        raise InputError(
            f"{path}: not a scipy sparse matrix (it is a {kind} matrix without an array "
            f"{missing[0]!r})"
        )
    shape = _shape(archive, members["shape"], path)
    headers = {name: member_header(archive, members[name], path, REAL) for name in names}
    if coords and headers["coords"].shape[:1] != (2,):
        raise InputError(
            f"{path}: not a scipy sparse matrix (coords of shape {headers['coords'].shape})"
        )
    _check_lengths(kind, shape, headers, path)
    return Plan(kind, shape, {name: members[name] for name in names}, headers)


def _check_lengths(
    kind: str, shape: tuple[int, int], headers: dict[str, Header], path: Path
) -> None:
    """Refuse headers that tell already that the arrays do not fit: nothing is unpacked."""
    where = f"{path}: expected a valid {kind.upper()} of shape {shape}, got"
    lengths = {name: header.shape[0] for name, header in headers.items() if header.shape}
    for name in ("indices", "row", "col"):
        if name in lengths and lengths[name] != lengths.get("data"):
            raise InputError(
                f"{where} {name} of {lengths[name]} numbers for {lengths.get('data', 1)} values"
            )
    outer = {"csr": shape[0], "csc": shape[1]}.get(kind)
    if outer is not None and lengths.get("indptr", outer + 1) != outer + 1:
        raise InputError(f"{where} indptr of {lengths['indptr']} numbers, not {outer + 1}")


def _raw_matrix(
    archive: zipfile.ZipFile,
    plan: Plan,
    path: Path,
) -> RawMatrix:
    """The arrays of a sparse matrix, after a look at the memory that they and a CSR need."""
    data = plan.headers["data"]
    needed = sum(header.values for header in plan.headers.values())
    if data.dtype.kind != "f" or data.dtype.itemsize < 4:
        needed += math.prod(data.shape) * 4
    if plan.kind != "csr":
        needed += math.prod(data.shape) * 8 + (plan.shape[0] + 1) * 8
    available_for(needed, str(path))
    arrays = {name: read_member(archive, member) for name, member in plan.members.items()}
    if "coords" in arrays:
        arrays["row"], arrays["col"] = arrays.pop("coords")
    return RawMatrix(plan.kind, arrays, plan.shape)


def _format(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    path: Path,
) -> str:
    """The member `format`: bytes or text, one word."""
    header = member_header(archive, member, path, "SU")
    if header.values > 256:
        raise InputError(
            f"{path}: not a scipy sparse matrix (its array 'format' holds {header.values} bytes)"
        )
    word = read_member(archive, member).reshape(-1).tolist()
    kind = word[0] if word else ""
    if isinstance(kind, bytes):
        kind = kind.decode("ascii", "replace")
    if kind not in MEMBERS or len(word) != 1:
        raise InputError(
            f"{path}: not a scipy sparse matrix (expected a format of {', '.join(MEMBERS)}, got "
            f"{kind[:20]!r})"
        )
    return kind


def _shape(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    path: Path,
) -> tuple[int, int]:
    """The member `shape`: two whole numbers."""
    header = member_header(archive, member, path, "iu")
    if header.shape != (2,):
        raise InputError(
            f"{path}: not a scipy sparse matrix (its shape has the shape {header.shape}, expected "
            "two numbers)"
        )
    rows, columns = read_member(archive, member).tolist()
    if not all(0 <= size <= LARGEST for size in (rows, columns)):
        raise InputError(
            f"{path}: not a scipy sparse matrix (its shape is {(rows, columns)}, expected sizes "
            f"from 0 to {LARGEST})"
        )
    return rows, columns
