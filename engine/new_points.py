"""Labelled rows that a finished run has not seen, as a split that it can be evaluated on.

They are rows of a file, or those of another data set; their labels are matched with the run's by
name. Label frequencies and propensities are those of the run's training data.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from models.evaluation import Evaluation, metric_ks
from utils import distributed, metrics
from utils.config.config import Config
from utils.data.dataset import (
    SPLITS,
    Dataset,
    Split,
    check_dataset_folder,
    load_dataset,
    token_cache,
)
from utils.data.filters import load_filters
from utils.data.held_out import saved_validation_rows
from utils.data.label_names import LabelNames, listed
from utils.data.point_ids import ids_beside
from utils.data.relevance import dataset_hashes, load_relevance
from utils.data.texts import FileTexts, ListTexts, TextFile, Texts
from utils.errors import InputError
from utils.prepare.points import Point, PointReader
from utils.prepare.rows import Rows
from utils.reading.input_files import present
from utils.run.environment import check_same_data
from utils.run.model_files import label_names_of_run, label_texts_of_run
from utils.text import count_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PointsFile:
    """Labelled rows in a file.

    Attributes:
        path: of the file, or `-`.
        reader: of its format.
        name: of what is written about them; None = by the file's name.
    """

    path: str
    reader: PointReader
    name: str | None = None


@dataclass(frozen=True)
class NewSplit(Split):
    """Rows beside the run's own.

    Attributes:
        given: their texts.
    """

    given: Texts = field(default_factory=lambda: ListTexts([]))

    @cached_property
    def texts(self) -> Texts:
        return self.given


@dataclass(frozen=True)
class RunData(Dataset):
    """What is known of a run's data set where it is not at hand: its labels alone.

    Attributes:
        known_texts: the labels' texts.
    """

    known_texts: Sequence[str] = ()

    @cached_property
    def label_texts(self) -> Sequence[str]:
        return self.known_texts


@dataclass(frozen=True)
class UnknownLabels:
    """Labels of new rows that a run does not know.

    Attributes:
        names: of these U labels.
        relevance: CSR [n, U].
    """

    names: Sequence[str]
    relevance: sp.csr_matrix

    def facts(self, known: sp.csr_matrix) -> dict[str, object]:
        """Tell how many there are, beside the relevance [n, L] of labels that are known."""
        pairs = int(self.relevance.nnz)
        return {
            "unknown_labels": len(self.names),
            "unknown_pairs": pairs,
            "unknown_names": list(self.names[:100]),
            "most_recall": round(100 * known.nnz / max(known.nnz + pairs, 1), 2),
        }

    def warn(self, known: sp.csr_matrix) -> None:
        """Say what there is, and what it means for the metrics."""
        facts = self.facts(known)
        log.warning(
            "%d labels (%d of %d pairs of a row and a label) are unknown to this run, which can "
            "never predict them: %s; the metrics count them as missed, so that no more than "
            "%.1f %% of all pairs can be found; `known_labels_only` has the metrics without them",
            facts["unknown_labels"],
            facts["unknown_pairs"],
            known.nnz + self.relevance.nnz,
            listed(self.names),
            facts["most_recall"],
        )

    def counted(
        self,
        config: Config,
        data: Dataset,
        scores: sp.csr_matrix,
        known: sp.csr_matrix,
    ) -> dict[str, float]:
        """Metrics that count unknown labels as missed.

        Args:
            scores: predictions [n, L].
            known: relevance of the labels that are known [n, L].
        """
        relevance = sp.csr_matrix(sp.hstack([known, self.relevance]))
        relevance.sort_indices()
        parts = (scores.data, scores.indices, scores.indptr)
        wide = sp.csr_matrix(parts, shape=relevance.shape)
        propensity = data.inverse_propensity()
        if propensity is not None:
            settings = data.config
            rarest = metrics.inverse_propensity(
                [0], data.num_train, settings.propensity_a, settings.propensity_b
            )
            propensity = np.append(propensity, np.repeat(rarest, len(self.names)))
        return metrics.evaluate(wide, relevance, propensity, metric_ks(config, data))


@dataclass(frozen=True)
class NewPoints:
    """Labelled rows, matched with a run's labels.

    Attributes:
        data: the run's, with the rows as one more split.
        split: its name.
        unknown: labels that the run does not know.
        ids: the rows' own; None where they have none.
    """

    data: Dataset
    split: str
    unknown: UnknownLabels
    ids: Sequence[str] | None = None

    def with_unknown(
        self, config: Config, evaluation: Evaluation
    ) -> tuple[Evaluation, dict[str, object]]:
        """Count unknown labels as missed, where there are some; say so.

        Returns:
            the evaluation with these metrics, and what is told beside them.
        """
        if not self.unknown.names or evaluation.scores is None:
            return evaluation, {}
        known = self.data.splits[self.split].relevance
        self.unknown.warn(known)
        counted = self.unknown.counted(config, self.data, evaluation.scores, known)
        told = {**self.unknown.facts(known), "known_labels_only": evaluation.metrics}
        return dataclasses.replace(evaluation, metrics=counted), told


# -------------------------------- the run's own


def run_data(
    config: Config,
    folder: Path,
    num_labels: int,
) -> Dataset:
    """Return the data set of a run, or its labels alone where it is not at hand any more."""
    try:
        data = load_dataset(config, None, saved_validation_rows(folder, config.data))
        check_same_data(folder, data)
        return data
    except InputError as error:
        log.warning(
            "the data that the run was trained on is not at hand, so that PSP, PSnDCG and label "
            "frequencies are left out: %s",
            error,
        )
    texts = label_texts_of_run(folder, config.dataset_folder, num_labels)
    nothing = sp.csr_matrix((0, num_labels), dtype=np.float32)
    file = TextFile(config.dataset_folder / "raw" / "trn_X.txt", config.data, token_cache(config))
    empty = np.empty(0, np.int64)
    splits = {name: Split(name, empty, None, nothing, nothing, file) for name in SPLITS}
    return RunData(
        name=config.data.name,
        folder=config.dataset_folder,
        config=config.data,
        label_tokens=None,
        label_problem="",
        label_stand_ins="",
        num_labels=num_labels,
        splits=splits,
        label_counts=np.zeros(num_labels, np.int64),
        num_train=0,
        hash="",
        relevance_hash="",
        known_texts=texts,
    )


def _with_split(data: Dataset, split: Split) -> Dataset:
    """A data set with one more split; its hash is that of the split's rows."""
    whole, alone = dataset_hashes([split.relevance], [split.filters])
    return dataclasses.replace(
        data, splits={**data.splits, split.name: split}, hash=whole, relevance_hash=alone
    )


# -------------------------------- rows of a file


def points_of_file(
    config: Config,
    folder: Path,
    num_labels: int,
    file: PointsFile,
) -> NewPoints:
    """Read the rows of a file for a run of so many labels.

    Raises:
        InputError: naming the file, the line and what is wrong with it.
    """
    name = file.name or _name_of(file.path)
    known = label_names_of_run(folder, config.dataset_folder, num_labels)
    rows = _LabelledRows(known)
    points = list(file.reader.points(file.path)) if distributed.is_main() else []
    for number, point in enumerate(distributed.broadcast(points), 1):
        try:
            rows.add(point)
        except InputError as error:
            raise InputError(f"{file.path}: row {number}: {error}") from None
    if not rows.texts:
        raise InputError(f"{file.path}: expected at least one row, got none")
    relevance = rows.known_pairs.csr(num_labels)
    split = NewSplit(
        name,
        np.arange(len(rows.texts)),
        None,
        relevance,
        sp.csr_matrix(relevance.shape, dtype=np.float32),
        TextFile(Path(file.path), config.data, token_cache(config)),
        ListTexts(rows.texts),
    )
    unknown = UnknownLabels(
        list(rows.unknown_names), rows.unknown_pairs.csr(len(rows.unknown_names))
    )
    data = _with_split(run_data(config, folder, num_labels), split)
    return NewPoints(data, name, unknown, rows.ids or None)


def _name_of(path: str) -> str:
    """What is written about a file's rows is called like the file."""
    stem = Path(path).name.removesuffix(".gz").partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "points"
    return f"{name}-points" if name in SPLITS else name


def check_new_name(name: str) -> str:
    """Return a name of files; InputError for one that is a split's, or no name of files."""
    if name in SPLITS or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"--name: expected letters, digits, -, _ and ., and none of {', '.join(SPLITS)}; got "
            f"{name!r}"
        )
    return name


class _LabelledRows:
    """Rows of a file, whose labels are known to a run or not."""

    def __init__(self, known: LabelNames) -> None:
        self._known = known
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.known_pairs = Rows(max)
        self.unknown_pairs = Rows(max)
        self.unknown_names: dict[str, int] = {}

    def add(self, point: Point) -> None:
        """Take one more row."""
        self.texts.append(point.text)
        if point.id is not None:
            self.ids.append(str(point.id))
        pairs: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
        for called, relevance in point.labels:
            label = self._known.find(called)
            is_known = label >= 0
            if not is_known and relevance > 0:
                label = self.unknown_names.setdefault(called, len(self.unknown_names))
            if is_known or relevance > 0:
                pairs[is_known].append((label, relevance))
        for is_known, rows in ((True, self.known_pairs), (False, self.unknown_pairs)):
            labels = [label for label, _ in pairs[is_known]]
            rows.add(labels, [relevance for _, relevance in pairs[is_known]])


# -------------------------------- rows of another data set


def points_of_dataset(
    config: Config,
    folder: Path,
    num_labels: int,
    other: str,
    source: str,
) -> NewPoints:
    """Read the rows of another data set, beside the run's own, for a run of so many labels.

    Its own filter pairs are not counted, as in an evaluation of a run on it.

    Args:
        other: name of the data set.
        source: which of its rows: trn or tst.
    Raises:
        InputError: it is not there, or its labels cannot be told from the run's.
    """
    if source not in ("trn", "tst"):
        raise InputError(
            f"split {source}: another data set ({other}) has no validation points of this run; "
            "expected tst or trn"
        )
    there = dataclasses.replace(config, data=dataclasses.replace(config.data, name=other))
    path = there.dataset_folder
    check_dataset_folder(path)
    texts = path / "raw" / f"{source}_X.txt"
    relevance = load_relevance(
        path / f"Y.{source}.npz", count_lines(texts) if present(texts) else None, texts
    )
    labels = LabelNames.of_dataset(path, relevance.shape[1])
    known = label_names_of_run(folder, config.dataset_folder, num_labels)
    ids = labels.ids_in(known, str(path))
    filters = load_filters(path, {source: relevance.shape})[source]
    file = TextFile(texts, there.data, token_cache(there))
    rows = np.arange(relevance.shape[0])
    name = other if source == "tst" else f"{other}_{source}"
    split = NewSplit(
        name,
        rows,
        None,
        _renumbered(relevance, ids, num_labels),
        _renumbered(filters, ids, num_labels),
        file,
        FileTexts(file, rows),
    )
    data = _with_split(run_data(config, folder, num_labels), split)
    return NewPoints(data, name, _unknown_of(relevance, ids, labels), ids_beside(texts))


def _renumbered(
    matrix: sp.csr_matrix,
    ids: np.ndarray,
    num_labels: int,
) -> sp.csr_matrix:
    """Columns of a matrix at the places `ids` [columns] of another, -1 = left out: [n, L]."""
    places = sp.csr_matrix(
        (np.ones(len(ids), np.float32)[ids >= 0], (np.flatnonzero(ids >= 0), ids[ids >= 0])),
        shape=(len(ids), num_labels),
    )
    moved = sp.csr_matrix(matrix @ places)
    moved.sort_indices()
    return moved


def _unknown_of(
    relevance: sp.csr_matrix,
    ids: np.ndarray,
    labels: LabelNames,
) -> UnknownLabels:
    """The labels that have pairs and no id."""
    used = np.unique(relevance.indices)
    missing = used[ids[used] < 0]
    called = labels.names or labels.texts
    assert called is not None or not len(missing), "labels without names have ids"
    names = [called[label] for label in missing.tolist()] if called is not None else []
    unknown = sp.csr_matrix(relevance[:, missing])
    return UnknownLabels(names, unknown)
