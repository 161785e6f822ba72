"""What a ranker says of some texts, opened once: its best labels, and its scores of any others.

    scores = ranker.open(texts)             # encodes, or walks a tree, once
    values, ids = scores.best(100)          # [n, 100] each
    scores.of(labels)                       # [n, c], labels that others proposed too

Local to a process: nothing here is a collective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from utils.candidate_kernels import best_of_rows, stored_given
from utils.reading.saved import check_answers
from utils.sparse import canonical, contains


@dataclass(frozen=True)
class MemberView:
    """What one member of a fusion says of some texts.

    Attributes:
        name: of the member.
        ids: its own k best labels of each text [n, k] int64, best first, filter pairs removed, -1 =
            no more.
        contributions: what it adds to the scores of given labels [n, c] float32, 0 where the given
            label is -1.
    """

    name: str
    ids: np.ndarray
    contributions: np.ndarray


class Scores(ABC):
    """Scores of n texts.

    Attributes:
        sums: what is counted on the way, such as inner products, summed over the texts; `predict`
            adds blocks and processes.
    """

    sums: Mapping[str, float] = {}

    @abstractmethod
    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of each text, best first.

        Returns:
            scores [n, k] float32 and ids [n, k] int64; -inf and -1 = no more.
        """

    @abstractmethod
    def of(self, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] float32 of given labels [n, c].

        A label that is not reached has the lowest score of the text's others; what stands where a
        label is -1 has no meaning.
        """

    def among(self, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of some labels of each text, best first.

        Args:
            labels: ids [n, c], ascending and distinct in a row.
        Returns:
            as `best`. What a search has not reached is no answer where the search can tell.
        """
        return best_of_given(self.of(labels), labels, k)

    def reached(self) -> np.ndarray | None:
        """Ids of the labels that were scored [n, K] int64, -1 = no more; None = all of them."""
        return None

    def views(
        self,
        labels: np.ndarray,
        k: int,
        removed: sp.csr_matrix,
    ) -> list[MemberView]:
        """What each member says; [] without members.

        Args:
            labels: whose scores are explained [n, c].
            k: labels of each member's own.
            removed: filter pairs [n, L], which no member's own labels are of.
        """
        return []


class Index(Protocol):
    """A search over all labels by inner product (utils/search.py)."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best labels of queries [B, D]: scores and ids [B, k], best first."""

    def of(self, queries: Tensor, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] of given labels [n, c]; whatever where a label is -1."""


class InnerProducts(Scores):
    """Of queries with the rows of an index over all labels.

    Args:
        queries: [n, D].
        at_once: queries searched together: a search holds at_once x labels scores at most.
    """

    def __init__(
        self,
        queries: Tensor,
        index: Index,
        at_once: int,
    ) -> None:
        self.queries = queries
        self.index = index
        self.at_once = at_once

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search all labels, `at_once` queries at a time."""
        values = np.empty((len(self.queries), k), np.float32)
        ids = np.empty((len(self.queries), k), np.int64)
        for start in range(0, len(self.queries), self.at_once):
            rows = slice(start, start + self.at_once)
            best_values, best_ids = self.index.search(self.queries[rows], k)  # [b, k] each
            values[rows] = best_values.float().cpu().numpy()
            ids[rows] = best_ids.cpu().numpy()
        return values, ids

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self.index.of(self.queries, labels)


class Reached(Scores):
    """Scores of the labels that a search reached.

    Args:
        scores: CSR [n, L] of those labels.
        negative: scores may be negative: a label that is not reached has the lowest of the text
            then, and 0 otherwise.
    """

    def __init__(self, scores: sp.csr_matrix, negative: bool = False) -> None:
        self.scores = canonical(scores)
        self.negative = negative

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        shape = self.scores.shape[0], k
        ids = np.empty(shape, np.int64)
        values = np.empty(shape, np.float32)
        best_of_rows(self.scores.indptr, self.scores.indices, self.scores.data, k, ids, values)
        return values, ids

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Look the scores up; see `negative` for labels that were not reached."""
        given = np.empty(labels.shape, np.float32)
        lowest = np.zeros(len(labels), np.float32)
        if self.negative:
            lowest = self.scores.min(axis=1, explicit=True).toarray().ravel()
        stored_given(
            self.scores.indptr, self.scores.indices, self.scores.data, labels, lowest, given
        )
        return given

    def among(self, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of labels that are not reached none is an answer."""
        given = np.empty(labels.shape, np.float32)
        unreached = np.full(len(labels), -np.inf, np.float32)
        stored_given(
            self.scores.indptr, self.scores.indices, self.scores.data, labels, unreached, given
        )
        return best_of_given(given, labels, k)


def best_of_given(
    values: np.ndarray,
    labels: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of labels [n, c], ascending in a row, by their scores [n, c]: as `Scores.best`.

    Labels with a score of -inf are none.
    """
    found = min(k, labels.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :found]  # ties: the lower id stands first
    best = np.full((len(labels), k), -np.inf, np.float32)
    ids = np.full((len(labels), k), -1, np.int64)
    best[:, :found] = np.take_along_axis(values, order, 1)
    ids[:, :found] = np.take_along_axis(labels, order, 1)
    ids[np.isneginf(best)] = -1
    return best, ids


def best_without(
    scores: Scores,
    k: int,
    removed: sp.csr_matrix | None,
    num_labels: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best labels of opened texts without some pairs [b, L]: scores and ids [b, k].

    As many more are searched as a text of the block has pairs.
    """
    most_removed = 0 if removed is None else int(np.diff(removed.indptr).max(initial=0))
    values, ids = scores.best(min(k + most_removed, num_labels))
    check_answers(values, "scores")
    if removed is None or not most_removed:
        return values, ids
    is_gone = (ids < 0) | contains(removed, np.arange(len(ids))[:, None], ids)
    order = np.lexsort((ids, -values, is_gone), axis=1)[:, :k]
    is_gone = np.take_along_axis(is_gone, order, 1)
    values = np.where(is_gone, -np.inf, np.take_along_axis(values, order, 1))
    return values, np.where(is_gone, -1, np.take_along_axis(ids, order, 1))


class KnownAlone(Scores):
    """Scores by a model that knows the first labels alone; others it does not reach.

    Args:
        opened: its scores.
        count: of the labels that it knows.
    """

    def __init__(self, opened: Scores, count: int) -> None:
        self._opened = opened
        self._count = count

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        values, ids = self._opened.best(min(k, self._count))
        more = ((0, 0), (0, k - values.shape[1]))
        padded = np.pad(values, more, constant_values=-np.inf)
        return padded, np.pad(ids, more, constant_values=-1)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Score given labels; new ones have the lowest of the text's others."""
        is_known = (labels >= 0) & (labels < self._count)
        scores = self._opened.of(np.where(is_known, labels, -1))
        return lowest_where_unreached(np.where(is_known, scores, -np.inf))


def lowest_where_unreached(scores: np.ndarray) -> np.ndarray:
    """Give labels that are not reached, -inf in scores [n, c], the lowest of the text's others.

    0 where there are none.
    """
    reached = ~np.isneginf(scores)
    lowest = np.where(reached, scores, np.inf).min(1, keepdims=True, initial=np.inf)
    lowest = np.where(np.isfinite(lowest), lowest, 0.0)
    return np.where(reached, scores, lowest).astype(np.float32)


def empty_best(k: int) -> tuple[np.ndarray, np.ndarray]:
    """What `Scores.best` says of no text."""
    return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
