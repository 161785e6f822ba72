"""What a data set is: counts of points, labels, words and duplicates, read from its files.

facts = dataset_facts(Path("Datasets/Mine"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.data.facts import sample_lines
from utils.data.label_texts import blank_text_problem, label_text_path
from utils.data.relevance import load_relevance
from utils.errors import InputError
from utils.features.tfidf import has_no_blanks
from utils.reading.input_files import present
from utils.text import count_lines, iter_lines

LOOKED_AT = 2000  # characters of a text that is looked at for blanks
FEW = 5  # training points of a rare label, at most


@dataclass(frozen=True)
class Spread:
    """How a count is spread: its mean, median and largest value."""

    mean: float
    median: float
    largest: int

    @classmethod
    def of(cls, counts: np.ndarray) -> Spread:
        """Take those of counts [n]; zeros of none."""
        if not len(counts):
            return cls(0.0, 0.0, 0)
        return cls(float(counts.mean()), float(np.median(counts)), int(counts.max()))


@dataclass(frozen=True)
class DatasetFacts:
    """Counts of a data set; shares lie in [0, 1].

    Attributes:
        training_points, test_points: rows of Y.trn and Y.tst.
        unlabelled_points: training points without a label, which are skipped.
        labels: L.
        labels_of_a_point, points_of_a_label: over labelled training points, over seen labels.
        never_seen, seen_once, seen_rarely: shares of the labels with no training point, one, and at
            most FEW.
        words: of a text, None without texts; label_words: of a label's text.
        has_label_texts: whether an encoder can read the labels' texts; label_problem: why not.
        has_no_blanks: whether most texts have no blanks between words.
        features_given: X.trn.npz is there.
        filters_given: filter_labels files are there.
        test_in_training: share of the test texts that also are training texts, blanks and case
            apart; repeated_training: share of the training texts that stand before already.
    """

    name: str
    training_points: int
    test_points: int
    unlabelled_points: int
    labels: int
    pairs: int
    labels_of_a_point: Spread
    points_of_a_label: Spread
    never_seen: float
    seen_once: float
    seen_rarely: float
    words: Spread | None
    label_words: Spread | None
    has_label_texts: bool
    label_problem: str
    has_no_blanks: bool
    features_given: bool
    filters_given: bool
    test_in_training: float | None
    repeated_training: float | None

    def as_json(self) -> dict[str, object]:
        """Plain numbers and texts."""
        return dataclasses.asdict(self)


def dataset_facts(folder: Path) -> DatasetFacts:
    """Read all of a data set.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    texts = folder / "raw" / "trn_X.txt"
    has_texts = present(texts)
    relevance = _relevance(folder, "trn")
    test = _relevance(folder, "tst")
    counts = np.bincount(relevance.indices, minlength=relevance.shape[1])
    of_points = np.diff(relevance.indptr)
    num_labels = relevance.shape[1]
    problem = blank_text_problem(folder, num_labels)
    repeated: tuple[float | None, float | None] = (None, None)
    if has_texts and present(folder / "raw" / "tst_X.txt"):
        repeated = duplicates(iter_lines(texts), iter_lines(folder / "raw" / "tst_X.txt"))
    filters = [folder / f"filter_labels_{split}.txt" for split in ("train", "test")]
    return DatasetFacts(
        name=folder.name,
        training_points=relevance.shape[0],
        test_points=test.shape[0],
        unlabelled_points=int((of_points == 0).sum()),
        labels=num_labels,
        pairs=relevance.nnz,
        labels_of_a_point=Spread.of(of_points[of_points > 0]),
        points_of_a_label=Spread.of(counts[counts > 0]),
        never_seen=float((counts == 0).mean()),
        seen_once=float((counts == 1).mean()),
        seen_rarely=float(((counts > 0) & (counts <= FEW)).mean()),
        words=_words(texts),
        label_words=_words(label_text_path(folder)),
        has_label_texts=not problem,
        label_problem=problem,
        has_no_blanks=has_texts and most_have_no_blanks(sample_lines(texts, 2000)),
        features_given=present(folder / "X.trn.npz"),
        filters_given=all(present(path) for path in filters),
        test_in_training=repeated[0],
        repeated_training=repeated[1],
    )


def _relevance(folder: Path, split: str) -> sp.csr_matrix:
    texts = folder / "raw" / f"{split}_X.txt"
    lines = count_lines(texts) if present(texts) else None
    matrix = load_relevance(folder / f"Y.{split}.npz", lines, texts)
    if not matrix.shape[1]:
        raise InputError(f"{folder / f'Y.{split}.npz'}: expected a column a label, got none")
    return matrix


def _words(path: Path) -> Spread | None:
    """Words of a sample of the texts of a file; None where it is missing."""
    if not present(path):
        return None
    return Spread.of(np.array([len(line.split()) for line in sample_lines(path)]))


def most_have_no_blanks(texts: list[str]) -> bool:
    """Whether most texts are written without blanks between words, as TF-IDF asks."""
    without = sum(has_no_blanks(text[:LOOKED_AT]) for text in texts)
    return 2 * without > len(texts)


def duplicates(training: Iterable[str], test: Iterable[str]) -> tuple[float, float]:
    """Shares of equal texts, blanks and case apart.

    Returns:
        the share of the test texts that are training texts, and that of the training texts that
        stand before already.
    """
    known: set[int] = set()
    points = 0
    for text in training:
        points += 1
        known.add(_fingerprint(text))
    repeated = points - len(known)
    asked = 0
    found = 0
    for text in test:
        asked += 1
        found += _fingerprint(text) in known
    return found / max(asked, 1), repeated / max(points, 1)


def _fingerprint(text: str) -> int:
    """A number that equal texts share; 8 bytes a text."""
    return hash(" ".join(text.lower().split()))
