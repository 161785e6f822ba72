"""Which labels may be answers: allowed ones alone, or all but excluded ones.

predictor(["gnome image viewer"], k=5, chosen=ChosenLabels(allowed=[3, 17, 20]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.errors import InputError


@dataclass(frozen=True)
class ChosenLabels:
    """Labels that may be answers.

    A method that ranks all labels ranks the allowed ones among themselves. Of one that searches
    (trees, fusions), those answer that the search reaches: perhaps fewer than were asked for.

    Attributes:
        allowed: ids of the labels that are ranked; None = all.
        excluded: ids of labels that are no answers, even where they are allowed.
    """

    allowed: Sequence[int] | None = None
    excluded: Sequence[int] = ()

    def ranked(self, texts: int, num_labels: int) -> dict[str, Any]:
        """What `best_labels` takes for so many texts.

        Raises:
            InputError: an id is that of no label.
        """
        left_out = _label_ids(self.excluded, num_labels, "excluded")
        if self.allowed is not None:
            allowed = _label_ids(self.allowed, num_labels, "allowed")
            return {"among": np.setdiff1d(allowed, left_out)}
        if not len(left_out):
            return {}
        pairs = np.tile(left_out, texts)
        ends = np.arange(texts + 1) * len(left_out)
        is_out = np.ones(len(pairs), bool)
        return {"removed": sp.csr_matrix((is_out, pairs, ends), (texts, num_labels))}


def _label_ids(
    labels: Sequence[int],
    num_labels: int,
    what: str,
) -> np.ndarray:
    """Ids as an array, ascending and distinct."""
    ids = np.unique(np.asarray(labels, np.int64))
    if len(ids) and not 0 <= ids[0] <= ids[-1] < num_labels:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise InputError(f"{what}: expected label ids from 0 to {num_labels - 1}, got {wrong}")
    return ids


ALL_LABELS = ChosenLabels()
