"""Labels as a Python program has them: lists of names a text, or a matrix of texts x labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import MultiLabelBinarizer

from utils.errors import InputError
from utils.prepare.lines import clean
from utils.text import text_list

log = logging.getLogger(__name__)
Name = str | int  # of a label; an int is an id without a meaning
SHOWN = 5  # examples in a message


@dataclass(frozen=True)
class LabelledTexts:
    """The labels of n texts.

    Attributes:
        relevance: CSR [n, L], float32, relevant where > 0.
        names: of the labels, L of them, distinct: all str, or all int.
        texts: of the labels, L of them; None where they have none.
    """

    relevance: sp.csr_matrix
    names: list[Name]
    texts: list[str] | None

    @property
    def has_names(self) -> bool:
        """Whether labels are told apart by text, not by number."""
        return isinstance(self.names[0], str)


def read_labels(labels: Any, label_texts: Any = None) -> LabelledTexts:
    """Read the labels of training texts.

    Args:
        labels: for each text its labels' names, str or int; or a matrix [n, L], dense, sparse or a
            DataFrame whose columns are the names.
        label_texts: {name: text}, where labels of no text may be among the names; of a matrix also
            its L texts, which are then the names.
    Raises:
        InputError: they are none of this.
    """
    if is_matrix(labels):
        return _of_matrix(labels, label_texts)
    rows = name_rows(labels)
    if label_texts is not None and not isinstance(label_texts, Mapping):
        raise InputError(
            "label_texts: expected a mapping {name: text}, as labels are given by their names, got "
            f"{type(label_texts).__name__}"
        )
    texts = _checked_texts(label_texts or {})
    names = sorted(_known_names(rows, texts))
    if not names:
        raise InputError("labels: expected at least one label, got none")
    return LabelledTexts(_matrix_of(rows, names), names, _texts_of(names, texts))


def relevance_of(labels: Any, names: Sequence[Name]) -> sp.csr_matrix:
    """The matrix CSR [n, L] of labels of other texts, by the names that training had.

    Labels that training did not have are counted in the log; what is asked of them is lost.

    Raises:
        InputError: a matrix has another number of columns.
    """
    if is_matrix(labels):
        matrix = _csr(labels)
        if matrix.shape[1] != len(names):
            raise InputError(
                f"labels: expected a matrix with {len(names)} columns, one for each label of "
                f"training, got {matrix.shape[1]}"
            )
        return matrix
    known = set(names)
    rows = name_rows(labels)
    unknown = Counter(name for row in rows for name in row if name not in known)
    if unknown:
        examples = ", ".join(repr(name) for name, _ in unknown.most_common(SHOWN))
        log.warning(
            "%d labels of these texts were not in training and are left out: %s",
            len(unknown),
            examples,
        )
    return _matrix_of([[name for name in row if name in known] for row in rows], names)


def is_matrix(labels: Any) -> bool:
    """Whether labels come as a matrix, dense or sparse, or as a table."""
    return sp.issparse(labels) or getattr(labels, "ndim", 1) == 2


def name_rows(labels: Any) -> list[list[Name]]:
    """The names of each text's labels, on one line each.

    Raises:
        InputError: naming the first text whose labels are no list of names.
    """
    if isinstance(labels, (str, bytes, Mapping)) or not isinstance(labels, Iterable):
        raise InputError(
            "labels: expected a list of names for each text or a matrix [n, L], got "
            f"{type(labels).__name__}"
        )
    rows = [_names_of(row, number) for number, row in enumerate(labels)]
    kinds = {isinstance(name, str) for row in rows for name in row}
    if len(kinds) > 1:
        raise InputError("labels: expected names that are all str or all int, got both")
    if kinds == {False} and _may_be_a_matrix(rows):
        raise InputError(
            "labels: expected a list of names for each text, got rows of 0 and 1 that look like a "
            "binary matrix; give that as an array: numpy.array(labels)"
        )
    return rows


def _names_of(row: Any, number: int) -> list[Name]:
    """The names of one text's labels."""
    is_list = isinstance(row, Iterable) and not isinstance(row, (str, bytes, Mapping))
    if not is_list:
        raise InputError(
            f"labels: expected a list of names for each text, got {row!r} "
            f"({type(row).__name__}) at place {number}"
        )
    return [_checked_name(name, number) for name in row]


def _checked_name(name: Any, number: int) -> Name:
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
        return int(name)
    if not isinstance(name, str):
        raise InputError(
            f"labels: expected names of type str or int, got {name!r} ({type(name).__name__}) at "
            f"place {number}"
        )
    cleaned = str(clean(name))
    if not cleaned:
        raise InputError(f"labels: expected a name, got {name!r} at place {number}")
    return cleaned


def _may_be_a_matrix(rows: list[list[Name]]) -> bool:
    """Whether lists of numbers are rather the rows of a binary matrix."""
    are_even = len({len(row) for row in rows}) == 1
    is_repeated = any(len(set(row)) < len(row) for row in rows)
    return are_even and is_repeated and {name for row in rows for name in row} <= {0, 1}


def _known_names(rows: list[list[Name]], texts: Mapping[Name, str]) -> set[Any]:
    """The names of the labels of training texts and of those that have a text alone."""
    names: set[Any] = {name for row in rows for name in row} | set(texts)
    if len({isinstance(name, str) for name in names}) > 1:
        raise InputError(
            "label_texts: expected names of the type of those in labels, got both str and int"
        )
    return names


def _checked_texts(label_texts: Mapping[Any, Any]) -> dict[Name, str]:
    """Texts by name; InputError for what is no text."""
    names = [_checked_name(name, number) for number, name in enumerate(label_texts)]
    texts = text_list(list(label_texts.values()), "label_texts")
    return dict(zip(names, texts, strict=True))


def _texts_of(names: Sequence[Name], texts: Mapping[Name, str]) -> list[str] | None:
    """The texts by id: a name is its own text, a number says nothing."""
    if not texts and not isinstance(names[0], str):
        return None
    return [texts.get(name, name if isinstance(name, str) else "") for name in names]


def _matrix_of(rows: list[list[Name]], names: Sequence[Name]) -> sp.csr_matrix:
    """Rows of names as CSR [n, L] of ones."""
    kind = object if isinstance(names[0], str) else int
    binarizer = MultiLabelBinarizer(classes=np.array(names, kind), sparse_output=True)
    return sp.csr_matrix(binarizer.fit_transform(rows), dtype=np.float32)


def _of_matrix(labels: Any, label_texts: Any) -> LabelledTexts:
    """Labels of a matrix; see `read_labels`."""
    matrix = _csr(labels)
    count = matrix.shape[1]
    if count == 0:
        raise InputError("labels: expected a matrix with a column for each label, got none")
    columns = getattr(labels, "columns", None)
    if columns is not None:
        names = [_checked_name(name, number) for number, name in enumerate(columns)]
    else:
        names = list(range(count))
    if label_texts is None:
        return LabelledTexts(matrix, _distinct(names, "labels"), _texts_of(names, {}))
    if isinstance(label_texts, Mapping):
        known = _checked_texts(label_texts)
        columns_known = set(names)
        if unknown := [name for name in known if name not in columns_known]:
            raise InputError(
                f"label_texts: {unknown[0]!r} is no column of labels; expected ids from 0 to "
                f"{count - 1}, or the columns' names"
            )
        return LabelledTexts(matrix, _distinct(names, "labels"), _texts_of(names, known))
    texts = text_list(label_texts, "label_texts")
    if len(texts) != count:
        raise InputError(
            f"label_texts: expected {count} texts, one for each column of labels, got {len(texts)}"
        )
    if columns is None:
        names = [_checked_name(text, number) for number, text in enumerate(texts)]
    return LabelledTexts(matrix, _distinct(names, "label_texts"), texts)


def _distinct(names: list[Name], what: str) -> list[Name]:
    """The names; InputError where one stands twice."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{what}: expected distinct names, got {name!r} {count} times; labels of equal texts "
            "need names: a list of names for each text and label_texts={name: text}"
        )
    return names


def _csr(labels: Any) -> sp.csr_matrix:
    """A copy of a matrix as CSR of float32 without zeros; InputError for what is no relevance."""
    if getattr(getattr(labels, "dtype", None), "kind", "") == "c":
        raise InputError("labels: expected a matrix of real numbers, got complex ones")
    try:
        matrix = sp.csr_matrix(labels, dtype=np.float32, copy=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"labels: expected a matrix of numbers, got {error}") from None
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    good = np.isfinite(matrix.data) & (matrix.data >= 0)
    if not good.all():
        place = int(np.argmin(good))
        row = int(np.searchsorted(matrix.indptr, place, "right")) - 1
        raise InputError(
            "labels: expected a matrix of 0 and 1 (or graded relevance > 0), got "
            f"{matrix.data[place]} in row {row}, column {matrix.indices[place]}"
        )
    return matrix
