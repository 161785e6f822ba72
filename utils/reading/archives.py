"""A .npy and a zip of them, looked at before any values are unpacked.

A header that asks for more than the file holds, or than the machine has memory for, is refused
before any of it is allocated. `utils.reading.arrays` and `utils.reading.matrices` read by it.
"""

from __future__ import annotations

import contextlib
import math
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.memory import host_memory

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


def available_for(wanted: int, where: str) -> None:
    """Raise InputError if the machine has less than `wanted` bytes of memory left."""
    if wanted > SMALL and wanted > (available := host_memory()["available"]):
        raise InputError(
            f"{where}: needs {wanted / MB:,.0f} MB of memory, but {available / MB:,.0f} MB are "
            "available"
        )


@contextlib.contextmanager
def reported(path: Path, expected: str) -> Iterator[None]:
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
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open zip; a file given by name would stay open where it is damaged."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield archive


def checked_members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
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


def member_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, kinds: str
) -> Header:
    """The checked header of an array: its values are exactly what the zip holds of it."""
    where = f"{path}: array {info.filename.removesuffix('.npy')!r}"
    with archive.open(info) as stream:
        header = read_header(stream, where, kinds)
    check_size(where, info.file_size - header.start, header.values)
    return header


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # to its end, where the checksum is compared
    return array


def member_start(path: Path, info: zipfile.ZipInfo) -> int:
    """The byte of the file where a member that is not compressed begins, behind its own header."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return info.header_offset + LOCAL_HEADER.size + sum(lengths)


def mapped_values(
    path: Path,
    header: Header,
    start: int,
) -> np.ndarray:
    """The values that begin at byte `start`, mapped copy-on-write."""
    if header.values == 0:  # no bytes cannot be mapped
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "c", start, header.shape, "F" if header.fortran else "C")


def read_header(
    stream: IO[bytes],
    where: str,
    kinds: str,
    ndim: int | None = None,
) -> Header:
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


def check_size(
    where: str,
    held: int,
    wanted: int,
) -> None:
    if held != wanted:
        raise InputError(
            f"{where}: the header asks for {wanted:,} bytes of values, {held:,} are there"
        )
