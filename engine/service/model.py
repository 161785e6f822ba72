"""The model that a service answers with: a run, its labels, and what it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from engine.chosen_labels import ALL_LABELS, ChosenLabels
from engine.predictor import Predictor
from engine.ranked_labels import AUTO, Answer
from engine.service.label_search import LabelSearch
from engine.service.problems import Problem, shown
from engine.service.settings import Settings
from models.evaluation import explain
from utils.data.texts import ListTexts
from utils.distributed import cpu_threads
from utils.errors import InputError

log = logging.getLogger(__name__)
WARMING = ["", "a text", "another text of a few more words"]
SHOWN = 5  # labels that each member of a fusion names


@dataclass(frozen=True)
class ServedModel:
    """A loaded run.

    Attributes:
        labels: their texts.
        members: names of a fusion's; none of others.
        calibrated: its answers have probabilities.
        has_threshold: the run has chosen one of its own.
        loaded: when, in seconds since 1970.
    """

    predictor: Predictor
    labels: LabelSearch
    members: tuple[str, ...]
    calibrated: bool
    has_threshold: bool
    loaded: float

    @classmethod
    def load(cls, settings: Settings) -> ServedModel:
        """Load a run and answer a few texts, so that the first request finds everything ready.

        Raises:
            InputError: as of Predictor, and where the run cannot answer new texts.
        """
        words = list(settings.overrides)
        if not any(word.startswith("--run.threads") for word in words):
            words += ["--run.threads", str(max(1, cpu_threads(None) // settings.workers))]
        predictor = Predictor(settings.run, overrides=words)
        texts = list(predictor.label_texts)
        predictor.label_texts = texts  # in memory: an answer reads no file
        predictor.label_names = list(predictor.label_names)
        calibrated = predictor.gives_probabilities
        model = cls(
            predictor,
            LabelSearch(texts),
            _members(predictor),
            calibrated,
            calibrated and _has_threshold(predictor),
            time.time(),
        )
        model._warm(settings)
        return model

    def _warm(self, settings: Settings) -> None:
        """Compile and map what answers need."""
        many = (WARMING * settings.batch)[: max(settings.batch, len(WARMING))]
        for texts in (WARMING[:1], WARMING[1:2], WARMING, many):
            self.answer(texts, settings.limits.k)
        self.answer(WARMING, 1, ChosenLabels(allowed=(0,)))
        answers = self.answer(WARMING, 1, ChosenLabels(excluded=(0,)))
        self.explain(WARMING, answers)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_exact(self) -> bool:
        """Whether the k best labels are the first k of more."""
        return bool(self.predictor.config.eval.index == "exact")

    def answer(
        self,
        texts: Sequence[str],
        k: int,
        chosen: ChosenLabels = ALL_LABELS,
        auto: bool = False,
    ) -> list[Answer]:
        """The best labels of each text.

        Args:
            auto: those above the run's own threshold alone.
        """
        threshold = AUTO if auto else None
        return self.predictor(list(texts), min(k, len(self)), threshold, chosen=chosen)

    def explain(
        self,
        texts: Sequence[str],
        answers: Sequence[Answer],
    ) -> list[list[dict[str, Any]]]:
        """What each member of a fusion says of each text; [] without members.

        Returns:
            of each text {"name", "labels": the member's own best, "adds": what it adds to the score
            of each label of the answer, in log-odds}
        """
        if not self.members:
            return [[] for _ in texts]
        most = max(map(len, answers))
        given = np.full((len(texts), most), -1, np.int64)
        for row, answer in enumerate(answers):
            given[row, : len(answer)] = [label["label"] for label in answer]
        nothing = sp.csr_matrix((len(texts), len(self)), dtype=bool)
        best = min(SHOWN, len(self))
        views = explain(self.predictor.ranker, ListTexts(texts), given, best, nothing)
        said: list[list[dict[str, Any]]] = []
        for row, answer in enumerate(answers):
            of_text = []
            for view in views:
                adds = view.contributions[row, : len(answer)].tolist()
                own = [self._label(label) for label in view.ids[row].tolist() if label >= 0]
                of_text.append(
                    {"name": view.name, "labels": own, "adds": [round(add, 4) for add in adds]}
                )
            said.append(of_text)
        return said

    def _label(self, label: int) -> dict[str, Any]:
        return {"label": label, "text": self.labels.texts[label]}

    def find(
        self,
        query: str,
        offset: int,
        limit: int,
    ) -> dict[str, Any]:
        """A page of the labels whose text has the words of a query."""
        total, ids = self.labels.find(query, offset, limit)
        following = offset + limit if offset + limit < total else None
        return {
            "total": total,
            "labels": [self._label(label) for label in ids],
            "next": following,
        }

    def chosen(self, allowed: Sequence[int | str] | None, excluded: Sequence[int | str]) -> Any:
        """Labels by id or text -> ChosenLabels.

        Raises:
            Problem: 422 that names what is no label.
        """
        if allowed is None and not excluded:
            return ALL_LABELS
        kept = None if allowed is None else self._ids(allowed, "allowed")
        return ChosenLabels(kept, self._ids(excluded, "excluded"))

    def check_threshold(self, threshold: float | str | None) -> None:
        """Problem 422 for a threshold where there are no probabilities, or that is not chosen."""
        if threshold is not None and not self.calibrated:
            raise Problem(
                422,
                f"threshold: expected null, got {shown(threshold)}: this run was not calibrated, "
                "its answers have no probabilities",
            )
        if threshold == AUTO and not self.has_threshold:
            raise Problem(
                422,
                "threshold: expected a number from 0 to 1 or null, got 'auto': this run has chosen "
                "none of its own",
            )

    def _ids(self, labels: Sequence[int | str], where: str) -> tuple[int, ...]:
        ids: set[int] = set()
        for number, label in enumerate(labels):
            if isinstance(label, str):
                found = self.labels.named(label)
            else:
                found = [label] if 0 <= label < len(self) else []
            if not found:
                raise Problem(
                    422,
                    f"{where}[{number}]: expected a label id from 0 to {len(self) - 1} or the "
                    f"text of a label, got {shown(label)}; GET /labels?q= searches for texts",
                )
            ids.update(found)
        return tuple(sorted(ids))

    def facts(self) -> dict[str, Any]:
        """What the model is."""
        config = self.predictor.config
        return {
            "run": self.predictor.folder.name,
            "method": config.method.name,
            "data": config.data.name,
            "labels": len(self),
            "members": list(self.members),
            "calibrated": self.calibrated,
            "score_is": self.predictor.ranker.score_is,
        }


def _members(predictor: Predictor) -> tuple[str, ...]:
    """Names of what a ranker explains itself by."""
    texts = ListTexts(WARMING[1:2])
    given = np.zeros((1, 1), np.int64)
    nothing = sp.csr_matrix((1, len(predictor.label_texts)), dtype=bool)
    return tuple(view.name for view in explain(predictor.ranker, texts, given, 1, nothing))


def _has_threshold(predictor: Predictor) -> bool:
    """Whether a run has chosen a threshold of its own, and if not logs why."""
    try:
        predictor(WARMING[:1], 1, AUTO)
    except InputError as error:
        log.warning("%s", error)
        return False
    return True
