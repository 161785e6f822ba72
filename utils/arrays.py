"""Named arrays in one .npz file whose members can be mapped into memory instead of read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.reading.arrays import read_arrays


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz without compression, so that `map_arrays` can map it."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of `save_arrays`, copy-on-write: pages are read when they are looked at.

    Raises:
        InputError: not such a file, or a damaged one.
    """
    mapped = read_arrays(path, mapped=True)
    return {name: np.asarray(array) for name, array in mapped.items()}  # kernels take plain arrays
