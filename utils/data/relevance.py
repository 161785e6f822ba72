"""The relevance of a split, points x labels, and what it and the filters are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError
from utils.reading.input_files import check_file
from utils.reading.matrices import matrix_header, read_matrix
from utils.reading.matrix_checks import RELEVANCE
from utils.sparse import without_zeros

if TYPE_CHECKING:
    from hashlib import _Hash


def load_relevance(
    path: Path,
    num_texts: int | None,
    text_path: Path,
) -> sp.csr_matrix:
    """Read Y.{trn,tst}.npz as CSR float32 [N, L].

    Args:
        num_texts: lines of `text_path`, one for each row; None = there are no texts.
    Raises:
        InputError: naming the file, what was expected and what came.
    """
    check_file(path, "a scipy sparse matrix, points x labels")
    rows = matrix_header(path)[0]  # before a matrix of so many is made
    if num_texts is not None and rows != num_texts:
        raise InputError(
            f"{path} has {rows:,} rows but {text_path} has {num_texts:,} lines; expected one row "
            "a line"
        )
    return without_zeros(read_matrix(path, RELEVANCE))


def dataset_hashes(
    relevance: Sequence[sp.csr_matrix], filters: Sequence[sp.csr_matrix]
) -> tuple[str, str]:
    """Hash the relevance and the filters together, and the relevance alone, in one pass."""
    digest = hashlib.sha256()
    for matrix in relevance:
        _add_matrix(digest, matrix)
    alone = digest.hexdigest()[:16]
    for matrix in filters:
        _add_matrix(digest, matrix)
    return digest.hexdigest()[:16], alone


def _add_matrix(digest: _Hash, matrix: sp.csr_matrix) -> None:
    digest.update(repr(matrix.shape).encode())
    for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        digest.update(np.ascontiguousarray(array).tobytes())
