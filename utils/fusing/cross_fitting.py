"""Models that judge candidates of points that they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.progress import ProgressBar

Model = Callable[[np.ndarray], np.ndarray]  # features [M, F] -> a value of each row [M]

FOLDS = 5


@dataclass(frozen=True)
class CandidateRows:
    """Candidates of validation points, a row each.

    Attributes:
        features: [M, F] float32.
        relevant: [M] bool.
        points: [M] int, whose candidate a row is.
    """

    features: np.ndarray
    relevant: np.ndarray
    points: np.ndarray
    num_points: int

    def cross_fitted(
        self,
        fit: Callable[[np.ndarray, np.ndarray], Model],
        folds: int = FOLDS,
    ) -> np.ndarray:
        """Judge each row by a model that was fitted on the points of the other folds.

        Args:
            fit: (features [m, F], relevant [m]) -> model.
            folds: groups of points, at least 2, drawn at random; no more of them than points.
        Returns:
            values [M] float64
        """
        if folds < 2:
            raise ValueError(f"fusion: expected at least 2 folds, got {folds}")
        folds = min(folds, self.num_points)
        fold = np.random.default_rng(0).permutation(self.num_points) % folds
        fold_of_row = fold[self.points]
        values = np.empty(len(self.features))
        with ProgressBar(folds, "fit and check the fuser", "folds") as bar:
            for number in range(folds):
                inside = fold_of_row == number
                model = fit(self.features[~inside], self.relevant[~inside])
                values[inside] = model(self.features[inside])
                bar.update()
        return values
