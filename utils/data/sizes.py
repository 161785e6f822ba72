"""Sizes of a data set: what a recipe is checked against before anything is loaded.

    sizes = DataSizes.read(config)      # from headers and row pointers alone
    sizes = DataSizes.of(data)          # of a loaded Dataset

Those of a loaded data set are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.config.config import Config
from utils.data.dataset import check_dataset_folder
from utils.data.held_out import held_out_points
from utils.data.label_texts import blank_text_problem
from utils.data.relevance import load_relevance
from utils.errors import InputError
from utils.reading.arrays import read_arrays
from utils.reading.matrices import matrix_header

if TYPE_CHECKING:
    from utils.data.dataset import Dataset


@dataclass(frozen=True)
class DataSizes:
    """Numbers of points and labels.

    If they were `read`, there are at most so many validation points and used labels.
    """

    name: str
    folder: Path
    num_labels: int
    training: int  # points of the split trn
    validation: int  # points of the split val
    used_labels: int  # with training points
    label_problem: str  # why the labels' texts cannot be read; empty where they can

    @classmethod
    def of(cls, data: Dataset) -> DataSizes:
        """Take those of a data set that is loaded."""
        splits = data.splits
        used = int(np.count_nonzero(data.seen_counts))
        problem = data.label_problem or blank_text_problem(data.folder, data.num_labels)
        return cls(
            data.name,
            data.folder,
            data.num_labels,
            len(splits["trn"]),
            len(splits["val"]),
            used,
            problem,
        )

    @classmethod
    def read(cls, config: Config) -> DataSizes:
        """Read those of a data set that is not loaded yet.

        Raises:
            InputError: there is no such data set, or its Y.trn.npz is missing or damaged.
        """
        folder = config.dataset_folder
        found = training_counts(folder)
        held_out = held_out_points(found.points, config.data)
        training = found.points - held_out
        problem = blank_text_problem(folder, found.labels)
        return cls(
            config.data.name, folder, found.labels, training, held_out, found.labels, problem
        )

    def check_label_texts(self, needed: str) -> None:
        """Refuse labels without texts, but for the share that may have none.

        Args:
            needed: what for, for the message.
        Raises:
            InputError: too many labels have none.
        """
        if self.label_problem:
            raise InputError(f"{self.label_problem}; {needed}")


class TrainingCounts(NamedTuple):
    """What the header and the row pointers of Y.trn.npz say.

    Attributes:
        points: rows that have a label.
        labels: L.
        pairs: of a point and a label of it.
    """

    points: int
    labels: int
    pairs: int


def training_counts(folder: Path) -> TrainingCounts:
    """Read the counts of a data set's training points.

    Raises:
        InputError: there is no such data set, or its Y.trn.npz is missing or damaged.
    """
    check_dataset_folder(folder)
    path = folder / "Y.trn.npz"
    _, labels, pairs = matrix_header(path)
    if labels < 1:
        raise InputError(f"{path}: expected a column a label, got none")
    return TrainingCounts(_labelled_points(path, pairs), labels, pairs)


def _labelled_points(path: Path, entries: int) -> int:
    """Rows of Y.trn.npz that have an entry.

    Of a sound matrix in CSR the entries themselves are not read.
    """
    if read_arrays(path, ["format"], kinds="SU")["format"].item() in (b"csr", "csr"):
        ends = read_arrays(path, ["indptr"], kinds="iu")["indptr"]
        counts = np.diff(ends)
        if counts.sum() == entries and (counts >= 0).all():
            return int(np.count_nonzero(counts))
    relevance = load_relevance(path, None, path)  # it says what is wrong
    return int(np.count_nonzero(np.diff(relevance.indptr)))


def read_once() -> Callable[[Config], DataSizes]:
    """Return `DataSizes.read` that reads a data set once for stages of equal settings."""
    known: dict[tuple, DataSizes] = {}

    def read(config: Config) -> DataSizes:
        data = config.data
        key = (config.dataset_folder, data.val_fraction, data.val_max_points)
        if key not in known:
            known[key] = DataSizes.read(config)
        return known[key]

    return read
