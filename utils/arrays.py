"""Named arrays in one .npz file whose members can be mapped into memory instead of read."""
from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

LOCAL_HEADER = struct.Struct("<26xHH")      # of a zip member: the lengths of its name and of its extra field


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz without compression, so that `map_arrays` can map it."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `save_arrays`, mapped copy-on-write: pages are read when they are first looked at.

    Raises:
        ValueError: not such a file, or a damaged one.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                file.seek(member.header_offset)
                file.seek(sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))), 1)
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else \
                    np.lib.format.read_array_header_2_0
                shape, fortran, kind = header(file)
                if member.compress_type != zipfile.ZIP_STORED or kind.hasobject or fortran:
                    raise ValueError(f"array {member.filename} cannot be mapped")
                whole = file.tell() - member.header_offset + int(np.prod(shape)) * kind.itemsize
                if whole > path.stat().st_size:
                    raise ValueError(f"array {member.filename} is cut off")
                # A file of no bytes cannot be mapped; asarray: kernels take plain arrays.
                mapped = np.memmap(path, kind, "c", file.tell(), shape) if np.prod(shape) else np.empty(shape, kind)
                arrays[member.filename.removesuffix(".npy")] = np.asarray(mapped)
    except (OSError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path}: not a file of arrays ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return arrays
