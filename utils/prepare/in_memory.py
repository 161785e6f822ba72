"""A data set from texts and labels that a Python program holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.prepare.writer import Writer

# The layout has a test split. This one's only point is nobody's, and nothing is trained on it.
NO_TEST_POINT = "no test point"


@dataclass(frozen=True)
class Points:
    """Training points and their labels.

    Attributes:
        texts: of the points, n of them.
        relevance: CSR [n, L], relevant where > 0.
        names: of the labels, L of them; None where they have none but their ids.
        label_texts: of the labels, L of them; None where they have none.
    """

    texts: Sequence[str]
    relevance: sp.csr_matrix
    names: Sequence[str] | None = None
    label_texts: Sequence[str] | None = None


def prepare_points_in_memory(
    points: Points,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Write training points as a data set without test points.

    Raises:
        InputError: no point has a label, or a text is no Unicode.
    """
    with Writer(out, "python", [], overwrite) as writer:
        _write_lines(writer, "raw/trn_X.txt", points.texts)
        _write_lines(writer, "raw/tst_X.txt", [NO_TEST_POINT])
        if points.names is not None:
            _write_lines(writer, "raw/Y_ids.txt", points.names)
        if points.label_texts is not None:
            _write_lines(writer, "raw/Y.txt", points.label_texts)
        writer.put("Y.trn", points.relevance)
        nothing = sp.csr_matrix((1, points.relevance.shape[1]), dtype=np.float32)
        writer.put("Y.tst", nothing)
        return writer.finish()


def _write_lines(
    writer: Writer,
    name: str,
    lines: Iterable[str],
) -> None:
    for line in lines:
        writer.write(name, line)
