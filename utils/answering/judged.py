"""Predictions of points whose labels are known: what probabilities and thresholds are fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from utils.sparse import canonical, contains, entry_rows, topk_rows

SHOWN = 5  # best labels of a point whose probabilities are checked: what is usually shown
CONTEXT = 20  # best scores of a text, by which any score of it is judged


@dataclass(frozen=True)
class Judged:
    """Predictions of n points, a row each, in the order of a CSR matrix of scores.

    Attributes:
        points: [M] whose prediction it is.
        labels: [M] ids.
        scores: [M] float64.
        right: [M] bool.
        ranked: [n, CONTEXT] the best scores of each point, best first, -inf = no more.
        relevance: CSR [n, L].
    """

    points: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    ranked: np.ndarray
    relevance: sp.csr_matrix

    @classmethod
    def of(cls, scores: sp.csr_matrix, relevance: sp.csr_matrix) -> Judged:
        """Judge every stored score [n, L] by the points' labels [n, L]."""
        scores = canonical(scores)
        points = entry_rows(scores)
        return cls(
            points,
            scores.indices.astype(np.int64),
            scores.data.astype(np.float64),
            contains(relevance, points, scores.indices),
            topk_rows(scores, CONTEXT)[1],
            relevance,
        )

    def __len__(self) -> int:
        return len(self.points)

    @property
    def num_points(self) -> int:
        """Number of points, those without predictions among them."""
        return self.relevance.shape[0]

    @property
    def num_labels(self) -> int:
        """L."""
        return self.relevance.shape[1]

    @property
    def shown(self) -> np.ndarray:
        """Whether a prediction is one of the SHOWN best of its point, or as good [M] bool."""
        return self.scores >= self.ranked[self.points, SHOWN - 1]

    def positives(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Count the points that have each label [L].

        Args:
            rows: [n] bool, the points that count; None = all.
        """
        relevance = self.relevance if rows is None else self.relevance[rows]
        return np.bincount(relevance.indices, minlength=self.num_labels)
