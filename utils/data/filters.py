"""Pairs that a data set never counts: filter_labels_{train,test}.txt, a line `row label` each.

Published numbers of the sets whose labels are other points' texts leave these pairs out; without
them a text's own label stands first. A file that is there and is not read would change every number
in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.reading.input_files import FILTER_FILES, FILTER_PREFIX, filter_pair, present
from utils.text import decode_line

log = logging.getLogger(__name__)
LONGEST_LINE = 1 << 16


def load_filters(
    folder: Path, shapes: dict[str, tuple[int, int]], required: bool = False
) -> dict[str, sp.csr_matrix]:
    """Return the filter pairs of splits as CSRs of ones.

    Files of that kind that are not used are named in the log.

    Args:
        shapes: (points, labels) of the splits, `trn` and `tst`.
        required: whether their files must be there; an empty one says that there are no pairs.
    Raises:
        InputError: a file is missing, or not as it should be; two files say different things.
    """
    files = {split: _present(folder, FILTER_FILES[split]) for split in shapes}
    missing = [FILTER_FILES[split][0] for split, paths in files.items() if not paths]
    if required and missing:
        raise InputError(
            f"{folder}: data.filters is required, but there is no {' and no '.join(missing)}; "
            f"expected {FILTER_FILES['trn'][0]} and {FILTER_FILES['tst'][0]} with lines `row "
            "label`, empty where no pair is left out (data.filters: optional goes "
            f"without){_unused(folder)}"
        )
    filters = {split: _load_one(paths, shapes[split]) for split, paths in files.items()}
    if unused := _unused(folder):
        log.warning(
            "%s: filters are read from %s alone%s",
            folder,
            " and ".join(names[0] for names in FILTER_FILES.values()),
            unused,
        )
    return filters


def load_filter(path: Path, shape: tuple[int, int]) -> sp.csr_matrix:
    """Return the pairs of one file as a CSR of ones [N, L].

    Raises:
        InputError: naming the line that is no pair, or one of another data set.
    """
    rows: list[int] = []
    labels: list[int] = []
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            text = decode_line(line, path, number).strip()
            if not text:
                continue
            try:
                row, label = filter_pair(text)
            except InputError as error:
                raise InputError(f"{path}: line {number}: {error}") from None
            if row >= shape[0] or label >= shape[1]:
                raise InputError(
                    f"{path}: line {number}: pair {row} {label} is out of range: rows go from 0 "
                    f"to {shape[0] - 1}, labels from 0 to {shape[1] - 1}"
                )
            rows.append(row)
            labels.append(label)
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, labels)), shape=shape)
    matrix.data[:] = 1.0  # a pair that stands twice was summed
    return matrix


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if present(folder / name)]


def _load_one(paths: list[Path], shape: tuple[int, int]) -> sp.csr_matrix:
    """The pairs of a split, of whichever names its file has."""
    if not paths:
        return sp.csr_matrix(shape, dtype=np.float32)
    first, *others = [load_filter(path, shape) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        if (first != other).nnz:
            raise InputError(
                f"{path}: expected the pairs of {paths[0].name}, which is there as well, got "
                "others; remove one of the two"
            )
    if paths[0].name not in (names[0] for names in FILTER_FILES.values()):
        log.warning("%s: taken as %s", paths[0], FILTER_FILES["tst"][0])
    return first


def _unused(folder: Path) -> str:
    """What to say of files that look like filters and have none of the names, or nothing."""
    known = {name for names in FILTER_FILES.values() for name in names}
    there = sorted(
        path.name for path in folder.iterdir() if path.name.lower().startswith(FILTER_PREFIX)
    )
    unused = [name for name in there if name not in known]
    return f"; not used: {', '.join(unused[:5])} ({len(unused)})" if unused else ""
