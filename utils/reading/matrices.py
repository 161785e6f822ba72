"""The door for files from outside: looked at before they are unpacked.

They are believed only where the bytes agree.

    check_file("raw/trn_X.txt")                        # a readable regular file, or one clear error
    present("X.trn.npz")                               # what is there and unreadable is an error
    read_matrix("Y.trn.npz", RELEVANCE)                # scipy's save_npz, any format -> CSR float32
    read_array("scores.npy", ndim=2, mapped=True)      # numpy's save, real numbers alone
    read_arrays("tree.npz")                            # numpy's savez -> {name: array}

A header that asks for more than the file holds, or than the machine has memory for, is refused
before any of it is allocated. Every error is an `InputError` of one line that begins with the file.
Where only `check_file` and `present` are wanted they come from `utils.reading.input_files`, which
imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import math
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.memory import host_memory
from utils.reading.input_files import check_file, present
from utils.reading.matrix_checks import (
    FEATURES,
    MEMBERS,
    NUMBERS,
    REAL,
    RELEVANCE,
    SCORES,
    RawMatrix,
    Values,
    check_size_is_meant,
    checked_csr,
)
from utils.reading.matrix_limits import LARGEST

__all__ = [
    "FEATURES",
    "NUMBERS",
    "RELEVANCE",
    "SCORES",
    "Values",
    "array_names",
    "available_for",
    "check_file",
    "check_size_is_meant",
    "matrix_header",
    "present",
    "read_array",
    "read_arrays",
    "read_matrix",
]

DEFLATE_RATIO = 1032  # bytes that one deflated byte can stand for, at the most
SMALL = 1 << 16  # bytes that need no look at the memory
MOST_MEMBERS = 10_000  # arrays of one .npz
MB = 1 << 20
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extra field


class Header(NamedTuple):
    """What a .npy says of itself."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int  # byte where its values begin

    @property
    def values(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


# -------------------------------- what others call


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
    with _reported(path, "a scipy sparse matrix"), _archive(path) as archive:
        plan = _plan(archive, path)
        raw = _raw_matrix(archive, plan, path)
    with _reported(path, "a scipy sparse matrix"):
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
    with _reported(path, "a scipy sparse matrix"), _archive(path) as archive:
        plan = _plan(archive, path)
    return *plan.shape, math.prod(plan.headers["data"].shape)


def read_array(
    path: str | Path, ndim: int | None = None, kinds: str = REAL, mapped: bool = False
) -> np.ndarray:
    """Return the array of numpy's `save`.

    Args:
        ndim: dimensions that it must have; None = any.
        kinds: kinds of dtype that it may have (`np.dtype.kind`).
        mapped: map it copy-on-write instead of reading it: pages are read when they are looked at.
    Raises:
        InputError: naming the file and what is wrong with it.
    """
    path = check_file(path, "a .npy array")
    with _reported(path, "a .npy array"), open(path, "rb") as file:
        header = _header(file, str(path), kinds, ndim)
        _check_size(str(path), path.stat().st_size - header.start, header.values)
        if mapped:
            return _mapped(path, header, header.start)
        available_for(header.values, str(path))
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(
    path: str | Path, names: Collection[str] | None = None, kinds: str = REAL, mapped: bool = False
) -> dict[str, np.ndarray]:
    """Return the arrays of numpy's `savez`, by name.

    Args:
        names: those that must be there and are read; None = all.
        kinds: kinds of dtype that they may have (`np.dtype.kind`).
        mapped: map those that are not compressed copy-on-write, as `read_array` does.
    Raises:
        InputError: naming the file, the array and what is wrong with it.
    """
    path = check_file(path, "an .npz of arrays")
    with _reported(path, "an .npz of arrays"), _archive(path) as archive:
        members = _members(archive, path)
        if missing := sorted(set(names or ()) - members.keys()):
            raise InputError(
                f"{path}: expected an array {missing[0]!r}, got only {', '.join(sorted(members))}"
            )
        chosen = members if names is None else {name: members[name] for name in names}
        headers = {
            name: _member_header(archive, info, path, kinds) for name, info in chosen.items()
        }
        in_place = set()
        if mapped:
            in_place = {
                name for name, info in chosen.items() if info.compress_type == zipfile.ZIP_STORED
            }
        needed = sum(headers[name].values for name in chosen if name not in in_place)
        available_for(needed, str(path))
        arrays = {}
        for name, info in chosen.items():
            if name in in_place:
                start = _start(path, info) + headers[name].start
                arrays[name] = _mapped(path, headers[name], start)
            else:
                arrays[name] = _read_member(archive, info)
        return arrays


def array_names(path: str | Path) -> set[str]:
    """Return the names of the arrays in an .npz."""
    path = check_file(path, "an .npz of arrays")
    with _reported(path, "an .npz of arrays"), _archive(path) as archive:
        return set(_members(archive, path))


def available_for(wanted: int, where: str) -> None:
    """Raise InputError if the machine has less than `wanted` bytes of memory left."""
    if wanted > SMALL and wanted > (available := host_memory()["available"]):
        raise InputError(
            f"{where}: needs {wanted / MB:,.0f} MB of memory, but {available / MB:,.0f} MB are "
            "available"
        )


# -------------------------------- matrices


class Plan(NamedTuple):
    """What is to be read of a sparse matrix."""

    kind: str
    shape: tuple[int, int]
    members: dict[str, zipfile.ZipInfo]
    headers: dict[str, Header]


def _plan(archive: zipfile.ZipFile, path: Path) -> Plan:
    """The format, shape and headers of a sparse matrix."""
    members = _members(archive, path)
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
    headers = {name: _member_header(archive, members[name], path, REAL) for name in names}
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


def _raw_matrix(archive: zipfile.ZipFile, plan: Plan, path: Path) -> RawMatrix:
    """The arrays of a sparse matrix, after a look at the memory that they and a CSR need."""
    data = plan.headers["data"]
    needed = sum(header.values for header in plan.headers.values())
    if data.dtype.kind != "f" or data.dtype.itemsize < 4:
        needed += math.prod(data.shape) * 4
    if plan.kind != "csr":
        needed += math.prod(data.shape) * 8 + (plan.shape[0] + 1) * 8
    available_for(needed, str(path))
    arrays = {name: _read_member(archive, member) for name, member in plan.members.items()}
    if "coords" in arrays:
        arrays["row"], arrays["col"] = arrays.pop("coords")
    return RawMatrix(plan.kind, arrays, plan.shape)


def _format(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """The member `format`: bytes or text, one word."""
    header = _member_header(archive, member, path, "SU")
    if header.values > 256:
        raise InputError(
            f"{path}: not a scipy sparse matrix (its array 'format' holds {header.values} bytes)"
        )
    word = _read_member(archive, member).reshape(-1).tolist()
    kind = word[0] if word else ""
    if isinstance(kind, bytes):
        kind = kind.decode("ascii", "replace")
    if kind not in MEMBERS or len(word) != 1:
        raise InputError(
            f"{path}: not a scipy sparse matrix (expected a format of {', '.join(MEMBERS)}, got "
            f"{kind[:20]!r})"
        )
    return kind


def _shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> tuple[int, int]:
    """The member `shape`: two whole numbers."""
    header = _member_header(archive, member, path, "iu")
    if header.shape != (2,):
        raise InputError(
            f"{path}: not a scipy sparse matrix (its shape has the shape {header.shape}, expected "
            "two numbers)"
        )
    rows, columns = _read_member(archive, member).tolist()
    if not all(0 <= size <= LARGEST for size in (rows, columns)):
        raise InputError(
            f"{path}: not a scipy sparse matrix (its shape is {(rows, columns)}, expected sizes "
            f"from 0 to {LARGEST})"
        )
    return rows, columns


# -------------------------------- .npz: a zip of .npy


@contextlib.contextmanager
def _reported(path: Path, expected: str) -> Iterator[None]:
    """Turn what numpy, zipfile, zlib and scipy raise for a damaged file into an error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2, comments of zip files
            yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not {expected} ({reason})") from error


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open zip; a file given by name would stay open where it is damaged."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield archive


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Arrays by name, checked: none claims more than the file can hold, no two share bytes."""
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS:
        raise InputError(f"{path}: expected at most {MOST_MEMBERS} arrays, got {len(infos)}")
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise InputError(f"{path}: the array {name!r} stands twice")
        if info.header_offset < end:
            raise InputError(f"{path}: the array {name!r} shares bytes with another")
        if info.compress_type == zipfile.ZIP_STORED:
            most = info.compress_size
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            most = info.compress_size * DEFLATE_RATIO
        else:
            raise InputError(
                f"{path}: the array {name!r} is packed in a way that numpy does not write"
            )
        if info.file_size > most:
            raise InputError(
                f"{path}: the array {name!r} claims {info.file_size:,} bytes in "
                f"{info.compress_size:,} bytes of the file"
            )
        end = info.header_offset + LOCAL_HEADER.size + info.compress_size
        members[name] = info
    if end > path.stat().st_size:
        raise InputError(f"{path}: its arrays claim more bytes than the file has")
    return members


def _member_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, kinds: str
) -> Header:
    """The checked header of an array: its values are exactly what the zip holds of it."""
    where = f"{path}: array {info.filename.removesuffix('.npy')!r}"
    with archive.open(info) as stream:
        header = _header(stream, where, kinds)
    _check_size(where, info.file_size - header.start, header.values)
    return header


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # to its end, where the checksum is compared
    return array


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """The byte of the file where a member that is not compressed begins, behind its own header."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return info.header_offset + LOCAL_HEADER.size + sum(lengths)


# -------------------------------- .npy


def _mapped(path: Path, header: Header, start: int) -> np.ndarray:
    """The values that begin at byte `start`, mapped copy-on-write."""
    if header.values == 0:  # no bytes cannot be mapped
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "c", start, header.shape, "F" if header.fortran else "C")


def _header(stream: IO[bytes], where: str, kinds: str, ndim: int | None = None) -> Header:
    """The header of a .npy, checked: types without Python objects, sizes that are none below 0."""
    version = np.lib.format.read_magic(stream)
    short = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if short else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.kind not in kinds or dtype.hasobject:
        raise InputError(f"{where}: expected {_kinds(kinds)}, got values of type {dtype}"[:300])
    if any(size < 0 for size in shape):
        raise InputError(f"{where}: expected sizes of 0 or more, got shape {shape}")
    if ndim is not None and len(shape) != ndim:
        raise InputError(
            f"{where}: expected {ndim} dimension{'s' if ndim > 1 else ''}, got shape {shape}"
        )
    return Header(shape, fortran, dtype, stream.tell())


def _kinds(kinds: str) -> str:
    if "f" in kinds:
        return "real numbers"
    return "text" if "U" in kinds else "whole numbers"


def _check_size(where: str, held: int, wanted: int) -> None:
    if held != wanted:
        raise InputError(
            f"{where}: the header asks for {wanted:,} bytes of values, {held:,} are there"
        )
