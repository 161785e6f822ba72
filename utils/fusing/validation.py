"""What the validation points say of a fusion and of its members."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from utils import metrics

log = logging.getLogger(__name__)
CHECKED = (1, 3, 5, 10, 100)
HEADLINE = ("P@1", "P@3", "P@5", "PSP@1", "R@100")


def checked_ks(num_labels: int) -> list[int]:
    """The places at which a fusion is checked, none beyond the number of labels."""
    return sorted({min(k, num_labels) for k in CHECKED})


def headline(values: Mapping[str, float]) -> str:
    """The metrics of a log line, such as "P@1 52.83, P@3 36.10"."""
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items() if name in HEADLINE)


@dataclass(frozen=True)
class Validation:
    """Validation points that a fusion is fitted on."""

    relevance: sp.csr_matrix  # [N, L]
    label_weights: np.ndarray  # [L] the labels' inverse propensity

    @property
    def num_labels(self) -> int:
        return self.relevance.shape[1]

    def evaluate(self, scores: sp.csr_matrix) -> dict[str, float]:
        """Every metric of scores [N, L] at the checked places, in percent."""
        ks = checked_ks(self.num_labels)
        return metrics.evaluate(scores, self.relevance, self.label_weights, ks)

    def report(self, scored: Mapping[str, sp.csr_matrix]) -> dict[str, dict[str, float]]:
        """`evaluate` each of several score matrices, and log a line of each under its name."""
        checked = {}
        for name, scores in scored.items():
            checked[name] = self.evaluate(scores)
            log.info("%s: %s", name, headline(checked[name]))
        return checked


def warn_if_alike(relevant: np.ndarray) -> None:
    """Say that all candidates are right, or all wrong: nothing can be learned from them.

    relevant: [candidates] bool, of validation points.
    """
    if relevant.all() or not relevant.any():
        log.warning(
            "all %d candidates of the validation points are %s: how to weigh the members cannot "
            "be learned",
            len(relevant),
            "right" if relevant.any() else "wrong",
        )
