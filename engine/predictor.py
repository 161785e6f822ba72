"""Texts in, labels out: a run that answers.

Nothing but the run folder is needed: its `model/` holds the labels' texts.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from engine.chosen_labels import ALL_LABELS, ChosenLabels
from engine.memory_plan import scoring_memory
from engine.ranked_labels import (
    AUTO,
    Answer,
    Threshold,
    checked_k,
    checked_threshold,
    ranked_labels,
)
from models.contract import Ranker
from models.evaluation import compare_index
from models.loading import check_options, load_ranker
from utils import distributed
from utils.answering.thresholds import Thresholds
from utils.data.texts import ListTexts
from utils.errors import InputError
from utils.prepare.points import Point
from utils.reading.saved import answers_of
from utils.run.finding import find_run, warn_unfinished
from utils.run.model_files import label_texts_of_run, own_label_names
from utils.runtime import Runtime
from utils.text import TextLines, text_list

log = logging.getLogger(__name__)
TEXTS_AT_ONCE = 1 << 12
COMPARED_TEXTS = 200  # by which an approximate index is compared with exact search
COMPARED_K = 10


class Predictor:
    """A loaded run: texts in, labels out.

    Args:
        run: run folder or its config.yaml.
        labels: texts of labels to rank instead of the data set's; any number from 1, seen in
            training or not.
        overrides: of the config, as on the command line.
        add_labels: texts of labels to rank together with the run's own; their ids go on after
            those.
    Raises:
        InputError: no finished run, a damaged model or one of a newer version, or labels that are
            no texts; added ones that are empty, or there already.
    """

    def __init__(
        self,
        run: str | Path,
        labels: Sequence[str] | None = None,
        overrides: Sequence[str] = (),
        add_labels: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.config = find_run(run, overrides)
        self.has_own_labels = False  # others than the data set's
        self.label_names: Sequence[str] = ()  # their own, of a data set that has some
        warn_unfinished(self.folder)
        self.runtime = Runtime.start(self.config)
        with scoring_memory(self.config):
            ranker = load_ranker(self.config, self.folder, self.runtime)
        if labels is None:
            data = self.config.dataset_folder
            known = label_texts_of_run(self.folder, data, ranker.num_labels)
            self.label_names = own_label_names(self.folder, data, ranker.num_labels) or ()
        else:
            known = _checked_labels(labels)
            self.has_own_labels = True
            with scoring_memory(self.config):
                ranker = ranker.with_labels(ListTexts(known))
        if add_labels is not None:
            more = _checked_more_labels(add_labels, known)
            self.has_own_labels = True  # of the new ones no validation point says how likely
            with scoring_memory(self.config):
                ranker = ranker.with_more_labels(ListTexts(more))
            known = [*known, *more]
        self.label_texts: Sequence[str] = known
        self.ranker: Ranker = ranker
        check_options(ranker)
        if self.config.eval.index != "exact" and distributed.is_main():
            self._check_index()

    def _check_index(self) -> None:
        """Build the approximate index now, and warn where it finds little.

        Of texts of the test split, or of labels where there are none.
        """
        path = self.config.dataset_folder / "raw" / "tst_X.txt"
        texts = TextLines(path) if path.is_file() else self.label_texts
        step = -(-len(texts) // COMPARED_TEXTS)
        sample = ListTexts([texts[row] for row in range(0, len(texts), step)])
        with answers_of(self.folder):
            compare_index(self.ranker, sample, min(COMPARED_K, len(self.label_texts)))

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        texts: str,
        k: int = 5,
        threshold: Threshold = None,
        *,
        chosen: ChosenLabels = ALL_LABELS,
    ) -> Answer: ...

    @overload
    def __call__(
        self,
        texts: Iterable[str],
        k: int = 5,
        threshold: Threshold = None,
        *,
        chosen: ChosenLabels = ALL_LABELS,
    ) -> list[Answer]: ...

    def __call__(
        self,
        texts: str | Iterable[str],
        k: int = 5,
        threshold: Threshold = None,
        *,
        chosen: ChosenLabels = ALL_LABELS,
    ) -> Answer | list[Answer]:
        """Answer one text, or a list of texts.

        Under `accelerate launch` every process calls it with the same texts and scores its share of
        them; the main one gets the answers, the others an empty list.

        Args:
            texts: one text, or any number of them.
            k: labels of an answer, with a threshold at most.
            threshold: a probability that labels must have at least; "auto" = the run's own, chosen
                for `eval.threshold_for`.
            chosen: labels that may be answers.
        Returns:
            Of one text its answer: the k best labels, best first, [{"label": id, "text": ...,
            "score": ..., "probability": ...}]; the probability is None of a run without validation
            points and of labels that it was not trained on. "name" is the label's own, where the
            data set has some (raw/Y_ids.txt). Of several texts a list of such answers.
        Raises:
            InputError: what is given is no text, or there are not k labels, or no probabilities for
                a threshold.
        """
        listed = text_list(texts, "texts")
        if checked_k(k) > len(self.label_texts):
            raise InputError(
                f"k must be from 1 to the number of labels, {len(self.label_texts)}; got {k}"
            )
        thresholds = self._thresholds(threshold)
        with answers_of(self.folder), scoring_memory(self.config):
            ranked = chosen.ranked(len(listed), len(self.label_texts))
            found = ranked_labels(self.ranker, ListTexts(listed), k, **ranked)
        if found is None:
            return []
        if thresholds is not None:
            found = found.above(thresholds)
        answers = list(found.answers(self.label_texts, self.label_names))
        return answers[0] if isinstance(texts, str) else answers

    def _thresholds(self, asked: Threshold) -> Thresholds | None:
        """Thresholds of the labels; None = the k best whatever their probability.

        Raises:
            InputError: it is no threshold, or there are no probabilities, or none was chosen.
        """
        if asked is None:
            return None
        checked = checked_threshold(asked)
        if not self.gives_probabilities:
            raise InputError(
                f"threshold is {asked!r}, but {self.folder} gives no probabilities: "
                f"{self._why_not()}"
            )
        if checked != AUTO:
            return Thresholds.of_all(float(checked))
        if self.ranker.decider is None:
            raise InputError(
                f"threshold is 'auto', but {self.folder} has chosen none on validation points; "
                "expected a number from 0 to 1"
            )
        return self.ranker.decider.thresholds(self.config.eval)

    @property
    def gives_probabilities(self) -> bool:
        """Whether answers have a probability, so that there can be a threshold."""
        nothing = np.empty((0, 1))
        of_nothing = self.ranker.probabilities(nothing, nothing.astype(np.int64), nothing)
        return of_nothing is not None

    def _why_not(self) -> str:
        if self.has_own_labels:
            return "they are known of the labels that it was trained on, not of others"
        return (
            "they are calibrated on validation points as it is trained, and it had none "
            "(data.val_fraction 0) or is of an older version"
        )


def _checked_labels(labels: Sequence[str]) -> list[str]:
    """Texts of labels as a list; empty ones are warned of.

    Raises:
        InputError: there are none, or they are no texts.
    """
    labels = text_list(labels, "labels")
    if not labels:
        raise InputError("labels: expected at least one text, got none")
    empty = [number for number, text in enumerate(labels) if not text.strip()]
    if empty:
        log.warning(
            "%d of %d label texts are empty, e.g. that of id %d; they are ranked as any other",
            len(empty),
            len(labels),
            empty[0],
        )
    return labels


def _checked_more_labels(labels: Sequence[str], known: Sequence[str]) -> list[str]:
    """Texts of labels to add, as a list.

    Raises:
        InputError: there are none, one is empty, or one stands twice or among the known ones.
    """
    labels = text_list(labels, "added labels")
    if not labels:
        raise InputError("added labels: expected at least one text, got none")
    places: dict[str, str] = {}
    for number, text in enumerate(known):
        places.setdefault(text.strip(), f"the run's label {number}")
    for number, text in enumerate(labels, 1):
        called = text.strip()
        if not called:
            raise InputError(f"added labels: number {number} is empty, expected a text")
        if called in places:
            raise InputError(
                f"added labels: number {number}, {called[:60]!r}, is {places[called]} already; "
                "leave it out"
            )
        places[called] = f"number {number}"
    return labels


def predictions(
    predictor: Predictor,
    points: Iterable[str | Point],
    k: int,
    at_once: int = TEXTS_AT_ONCE,
    threshold: Threshold = None,
) -> Iterator[dict[str, Any]]:
    """Answers of any number of texts, in their order; a collective.

    The main process reads the texts and tells the others; only it gives answers.

    Args:
        points: texts, or rows of a table.
        at_once: texts that are read and answered together.
        threshold: as of a Predictor.
    Yields:
        {"id": ..., "text": ..., "score_is": what a score is, "labels": [{...}, ...]}, without id
            where a row has none.
    """
    points = iter(points)
    while some := _next_points(points, at_once):
        found = predictor([point.text for point in some], k, threshold)
        for point, labels in zip(some if found else [], found, strict=True):
            own_id = {} if point.id is None else {"id": point.id}
            told = {"text": point.text, "score_is": predictor.ranker.score_is}
            yield {**own_id, **told, "labels": labels}


def _next_points(points: Iterator[str | Point], count: int) -> list[Point]:
    """At most so many more points, on every process; [] at their end."""
    some = []
    if distributed.is_main():
        for point in itertools.islice(points, count):
            some.append(point if isinstance(point, Point) else Point(point))
    return distributed.broadcast(some)
