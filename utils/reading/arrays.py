"""Arrays of numpy's `save` and `savez` from outside: headers are checked before values are read.

    read_array("scores.npy", ndim=2, mapped=True)      # numpy's save, real numbers alone
    read_arrays("tree.npz")                            # numpy's savez -> {name: array}

Every error is an `InputError` of one line that begins with the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.reading.archives import (
    available_for,
    check_size,
    checked_members,
    mapped_values,
    member_header,
    member_start,
    opened_archive,
    read_header,
    read_member,
    reported,
)
from utils.reading.input_files import check_file
from utils.reading.matrix_checks import REAL


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
    with reported(path, "a .npy array"), open(path, "rb") as file:
        header = read_header(file, str(path), kinds, ndim)
        check_size(str(path), path.stat().st_size - header.start, header.values)
        if mapped:
            return mapped_values(path, header, header.start)
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
    with reported(path, "an .npz of arrays"), opened_archive(path) as archive:
        members = checked_members(archive, path)
        if missing := sorted(set(names or ()) - members.keys()):
            raise InputError(
                f"{path}: expected an array {missing[0]!r}, got only {', '.join(sorted(members))}"
            )
        chosen = members if names is None else {name: members[name] for name in names}
        headers = {name: member_header(archive, info, path, kinds) for name, info in chosen.items()}
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
                start = member_start(path, info) + headers[name].start
                arrays[name] = mapped_values(path, headers[name], start)
            else:
                arrays[name] = read_member(archive, info)
        return arrays


def array_names(path: str | Path) -> set[str]:
    """Return the names of the arrays in an .npz."""
    path = check_file(path, "an .npz of arrays")
    with reported(path, "an .npz of arrays"), opened_archive(path) as archive:
        return set(checked_members(archive, path))
