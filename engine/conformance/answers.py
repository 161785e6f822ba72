"""What a finished run answers, as functions that raise AssertionError where it is not so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from engine.conformance.case import losses_of
from engine.conformance.processes import TEXTS
from engine.evaluator import evaluate_run
from engine.predictor import Predictor
from engine.trainer import fit
from models.contract import Learner, Ranker
from models.loading import load_run
from utils import distributed
from utils.config.config import Config
from utils.config.methods import method_class
from utils.data.dataset import Dataset, load_dataset
from utils.data.texts import ListTexts
from utils.run.finding import find_run
from utils.runtime import Runtime

COLLECTIVES = (
    "barrier",
    "main_first",
    "sum_tensor",
    "gather_parts",
    "gather_rows",
    "gather_arrays",
    "gather_on_main",
    "exchange_rows",
    "share_arrays",
    "broadcast",
    "agree",
    "total",
)


@contextlib.contextmanager
def no_collectives() -> Iterator[None]:
    """Inside, every function of utils.distributed that all processes must call raises.

    On one process too: a block is scored by the process that has it, alone.
    """

    def refused(name: str) -> Callable[..., None]:
        def raise_(*_: object, **__: object) -> None:
            raise AssertionError(f"distributed.{name} is a collective: not every process calls it")

        return raise_

    with contextlib.ExitStack() as patches:
        for name in COLLECTIVES:
            patches.enter_context(mock.patch.object(distributed, name, refused(name)))
        yield


def check_learning(config: Config, at_least: float = 0.0) -> Path:
    """Train and evaluate: the loss falls, and the test points' labels are found.

    Args:
        at_least: P@1 in percent; more than the most frequent label alone gives in any case.
    Returns:
        the run folder.
    """
    folder = fit(config)
    losses = losses_of(folder)
    if issubclass(method_class(config.method.name), Learner):
        assert losses, "a Learner logs the loss of each epoch"
    if losses:
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    found = evaluate_run(folder)["P@1"]
    usual = most_frequent_label(load_dataset(config, None))
    assert found > max(usual, at_least), (
        f"P@1 is {found:.1f}, expected more than {at_least:.1f}, and than {usual:.1f}, which the "
        "most frequent label has"
    )
    return folder


def most_frequent_label(data: Dataset) -> float:
    """P@1 on the test split of answering with the most frequent training label, in percent."""
    relevance = data.splits["tst"].relevance
    column = relevance[:, int(data.label_counts.argmax())]
    return 100 * column.nnz / relevance.shape[0]


def check_answers(folder: Path) -> None:
    """Ask a finished run as evaluation and a fusion do.

    Without a collective, every label once, best first, finite, an empty text included, or no text
    at all; labels looked up have the scores they rank by.
    """
    ranker, _ = load_run(folder, Runtime.start(find_run(folder)[1]))
    labels = ranker.num_labels
    with no_collectives():
        scores = ranker.open(ListTexts(TEXTS), given=True)
        values, ids = scores.best(labels)
        few = scores.best(min(3, labels))[1]
        looked_up = scores.of(ids)
        alone_values, alone = ranker.open(ListTexts(TEXTS)).best(labels)
        none = ranker.open(ListTexts([]), given=True)
        no_values, no_ids = none.best(min(2, labels))
        no_given = none.of(np.empty((0, 3), np.int64))
    assert values.shape == ids.shape == (len(TEXTS), labels), f"best(k) gives {values.shape}"
    assert np.isfinite(values).all(), "a score is not finite (one text is empty)"
    assert (np.diff(values, axis=1) <= 0).all(), "the labels do not come best first"
    everyone = [list(range(labels))] * len(TEXTS)
    assert [sorted(row) for row in ids.tolist()] == everyone, "best(L) has not every label once"
    assert (few == ids[:, : few.shape[1]]).all(), "best(3) are not the first three of best(L)"
    # what says nothing may be answered by how frequent labels are
    spoken = [row for row, text in enumerate(TEXTS) if text]
    np.testing.assert_allclose(
        alone_values[spoken, :3],
        values[spoken, :3],
        rtol=1e-4,
        atol=1e-5,
        err_msg="open(texts, given=True) has other scores than open(texts)",
    )
    np.testing.assert_allclose(
        looked_up, values, rtol=1e-4, atol=1e-5, err_msg="`of` has other scores than `best`"
    )
    assert len(no_values) == len(no_ids) == len(no_given) == 0, "no texts have no answers"
    check_gaps(ranker, ids)
    answers = [[place["label"] for place in row] for row in Predictor(folder)(TEXTS, k=labels)]
    assert answers == alone.tolist(), "predict answers otherwise than the ranker"
    check_decisions(folder, ranker)


def check_decisions(folder: Path, ranker: Ranker) -> None:
    """Probabilities lie within [0, 1] and fall with the score, and thresholds cut by them."""
    if ranker.decider is None:
        return
    predictor = Predictor(folder)
    whole = predictor(TEXTS, k=ranker.num_labels, threshold=0.0)
    auto = predictor(TEXTS, k=ranker.num_labels, threshold="auto")
    thresholds = ranker.decider.thresholds(predictor.config.eval)
    for every, answers in zip(whole, auto, strict=True):
        probabilities = np.array([label["probability"] for label in every])
        assert (probabilities >= 0).all() and (probabilities <= 1).all(), "no probabilities"
        if ranker.decider.calibration is not None:
            assert (np.diff(probabilities) <= 1e-6).all(), "a higher score, a lower probability"
        needed = thresholds.of(np.array([label["label"] for label in every]))
        clear = np.abs(probabilities - needed) > 1e-5  # rounded as they are told
        expected = {label["label"] for label, c in zip(every, clear, strict=True) if c}
        expected &= {every[i]["label"] for i in np.flatnonzero(probabilities >= needed)}
        found = {label["label"] for label in answers}
        unclear = {label["label"] for label, c in zip(every, clear, strict=True) if not c}
        assert found - unclear == expected, "`auto` does not cut at the run's thresholds"


def check_gaps(ranker: Ranker, ids: np.ndarray) -> None:
    """-1 among given labels is a gap: the scores of the others stand in their own places.

    Args:
        ids: the labels of TEXTS [n, L].
    """
    asked = ids[:, :2].copy()
    asked[:, 0] = -1
    with no_collectives():
        scores = ranker.open(ListTexts(TEXTS), given=True)
        gapped, whole = scores.of(asked), scores.of(ids)
    np.testing.assert_allclose(
        gapped[:, 1:],
        whole[:, 1 : gapped.shape[1]],
        rtol=1e-4,
        atol=1e-5,
        err_msg="a label of -1 changes the scores of the others",
    )


def check_saving(folder: Path, again: Path) -> None:
    """Save the model of a finished run once more: what is loaded from there answers the same.

    Args:
        again: a folder to be made.
    """
    _, config = find_run(folder)
    runtime = Runtime.start(config)
    ranker, _ = load_run(folder, runtime)
    expected = ranker.open(ListTexts(TEXTS)).best(ranker.num_labels)
    again.mkdir(parents=True)
    with no_collectives():
        ranker.save(again)
    answers = method_class(config.method.name).Answers
    other = answers.load(config, again, ranker.num_labels, runtime)
    found = other.open(ListTexts(TEXTS)).best(ranker.num_labels)
    for before, after in zip(expected, found, strict=True):
        assert (before == after).all(), "a loaded model that is saved again answers otherwise"
