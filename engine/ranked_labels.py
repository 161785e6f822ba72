"""The best labels of some texts, with how likely each of them is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.contract import Ranker
from models.evaluation import best_labels
from utils.answering.judged import CONTEXT
from utils.answering.thresholds import Thresholds
from utils.data.texts import Texts
from utils.errors import InputError

AUTO = "auto"  # the run's own threshold

Threshold = float | str | None
Answer = list[dict[str, Any]]  # labels of one text, best first


def checked_threshold(asked: Any) -> float | str:
    """A threshold as a number from 0 to 1, or AUTO; InputError for what is neither."""
    if isinstance(asked, str):
        if asked == AUTO:
            return AUTO
        try:
            asked = float(asked)
        except ValueError:
            asked = repr(asked)
    is_number = isinstance(asked, (int, float, np.number)) and not isinstance(asked, bool)
    if is_number and 0 <= asked <= 1:
        return float(asked)
    raise InputError(f"threshold: expected a probability from 0 to 1 or {AUTO!r}, got {asked}")


def checked_k(k: Any) -> int:
    """Return a number of labels; InputError for what is no whole number from 1."""
    is_whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if not is_whole or k < 1:
        raise InputError(f"k: expected a whole number from 1, got {k!r}")
    return int(k)


@dataclass(frozen=True)
class RankedLabels:
    """The best labels of n texts, best first.

    Attributes:
        scores: [n, k], -inf = no more.
        ids: [n, k], -1 = no more.
        probabilities: [n, k]; None where nothing tells them.
    """

    scores: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray | None

    def above(self, thresholds: Thresholds) -> RankedLabels:
        """Those alone whose probability is at least their label's threshold."""
        assert self.probabilities is not None, "asked for before"
        is_answer = (self.ids >= 0) & (self.probabilities >= thresholds.of(self.ids))
        return replace(self, ids=np.where(is_answer, self.ids, -1))

    def answers(self, texts: Sequence[str], names: Sequence[str] = ()) -> Iterator[Answer]:
        """Yield the answer of each text.

        Args:
            texts: of the labels.
            names: their own; labels beyond the last have none.
        """
        for row, ids in enumerate(self.ids.tolist()):
            answer = [self._label(row, place, texts) for place, i in enumerate(ids) if i >= 0]
            for label in answer:
                if label["label"] < len(names):
                    label["name"] = names[label["label"]].strip()
            yield answer

    def _label(
        self,
        row: int,
        place: int,
        texts: Sequence[str],
    ) -> dict[str, Any]:
        label = int(self.ids[row, place])
        probability = None
        if self.probabilities is not None:
            probability = round(float(self.probabilities[row, place]), 6)
        return {
            "label": label,
            "text": texts[label],
            "score": round(float(self.scores[row, place]), 6),
            "probability": probability,
        }


def ranked_labels(
    ranker: Ranker,
    texts: Texts,
    k: int,
    **chosen: Any,
) -> RankedLabels | None:
    """The k best labels of every text; a collective.

    A probability looks at the best scores of a text, whichever labels are asked for.

    Args:
        chosen: labels that may be answers, as `best_labels` takes them.
    Returns:
        None on other processes than the main one.
    """
    context = min(CONTEXT, ranker.num_labels) if ranker.decider is not None else 1
    scores, ids, _ = best_labels(ranker, texts, k if chosen else max(k, context), **chosen)
    ranked = scores
    if chosen and ranker.decider is not None:
        ranked, _, _ = best_labels(ranker, texts, context)
    if scores is None or ids is None or ranked is None:
        return None
    scores = scores[:, :k]
    ids = ids[:, :k]
    return RankedLabels(scores, ids, ranker.probabilities(scores, ids, ranked))
