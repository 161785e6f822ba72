"""Thresholds against plain loops and scikit-learn."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import f1_score, precision_score, recall_score

from utils.answering import thresholds
from utils.answering.judged import Judged
from utils.answering.thresholds import (
    Thresholds,
    choose_thresholds,
    measured,
    threshold_curve,
)


def judged_of(probabilities, relevance):
    return Judged.of(sp.csr_matrix(probabilities), sp.csr_matrix(relevance))


@pytest.fixture
def small():
    """15 points and 6 labels, some probabilities equal, a label that no point has."""
    rng = np.random.default_rng(0)
    probabilities = rng.integers(1, 20, (15, 6)) / 20
    relevance = rng.random((15, 6)) < probabilities
    relevance[:, 2] = False
    return probabilities, relevance


def test_the_curve_is_what_scikit_learn_says_of_each_threshold(small):
    probabilities, relevance = small
    judged = judged_of(probabilities, relevance)
    curve = threshold_curve(probabilities.ravel(), judged)
    assert len(curve) == len(np.unique(probabilities)) and (np.diff(curve[:, 0]) < 0).all()
    there = np.flatnonzero(relevance.any(0))
    for threshold, precision, recall, micro, macro, count in curve:
        answers = probabilities >= threshold
        assert count == answers.sum()
        assert precision == pytest.approx(precision_score(relevance, answers, average="micro"))
        assert recall == pytest.approx(recall_score(relevance, answers, average="micro"))
        assert micro == pytest.approx(f1_score(relevance, answers, average="micro"))
        assert macro == pytest.approx(
            f1_score(relevance, answers, labels=there, average="macro", zero_division=0)
        )


@pytest.mark.parametrize("goal", ["micro_f1", "macro_f1"])
def test_the_best_threshold_of_all_labels_is_found(small, goal, monkeypatch):
    monkeypatch.setattr(thresholds, "LABEL_POINTS", 1000)
    probabilities, relevance = small
    judged = judged_of(probabilities, relevance)
    chosen = choose_thresholds(probabilities.ravel(), judged)[goal].thresholds
    assert len(chosen.labels) == 0
    there = np.flatnonzero(relevance.any(0)) if goal == "macro_f1" else None
    average = goal.removesuffix("_f1")

    def f1(threshold):
        answers = probabilities >= threshold
        return f1_score(relevance, answers, labels=there, average=average, zero_division=0)

    best = max(f1(threshold) for threshold in np.unique(probabilities))
    assert f1(chosen.value) == pytest.approx(best)
    answers = (probabilities >= chosen.value).ravel()
    assert measured(answers, judged, goal) == pytest.approx(best)


def two_kinds(points=400, seed=0):
    """Label 0 is right far more often than its probability says, label 1 far less often."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((points, 2)) * 0.98 + 0.01
    relevance = rng.random((points, 2)) < probabilities ** np.array([0.2, 6.0])
    return probabilities, relevance


@pytest.mark.parametrize("goal", ["micro_f1", "macro_f1"])
def test_labels_that_differ_have_thresholds_of_their_own_that_hold_on_other_points(goal):
    probabilities, relevance = two_kinds()
    chosen = choose_thresholds(probabilities.ravel(), judged_of(probabilities, relevance))[goal]
    assert chosen.thresholds.labels.tolist() == [0, 1]
    low, high = chosen.thresholds.values
    assert low < chosen.thresholds.value < high
    others, true = two_kinds(seed=1)
    judged = judged_of(others, true)
    own = measured(others.ravel() >= chosen.thresholds.of(judged.labels), judged, goal)
    one = measured(others.ravel() >= chosen.thresholds.value, judged, goal)
    assert own > one + 0.02
    assert own == pytest.approx(chosen.held_out[2], abs=0.04)


def test_labels_of_noise_or_of_few_points_have_none_of_their_own():
    rng = np.random.default_rng(0)
    probabilities = rng.random((300, 8)) * 0.9 + 0.05
    relevance = rng.random((300, 8)) < probabilities  # well calibrated: there is nothing to gain
    judged = judged_of(probabilities, relevance)
    found = choose_thresholds(probabilities.ravel(), judged)
    plain, own = (
        thresholds._held_out_answers(probabilities.ravel(), judged, "micro_f1", fold)
        for fold in [np.arange(300) % 5] * 2
    )
    better = measured(own[1], judged, "micro_f1") > measured(plain[0], judged, "micro_f1")
    assert better or len(found["micro_f1"].thresholds.labels) in (0, 8)
    few = judged_of(probabilities[:8], relevance[:8])  # fewer points than LABEL_POINTS
    for chosen in choose_thresholds(probabilities[:8].ravel(), few).values():
        assert len(chosen.thresholds.labels) == 0


def test_nothing_to_choose_from_is_no_error():
    nothing = Judged.of(sp.csr_matrix((3, 2)), sp.csr_matrix((3, 2)))
    for chosen in choose_thresholds(np.empty(0), nothing).values():
        assert 0 <= chosen.thresholds.value <= 1
    assert threshold_curve(np.empty(0), nothing).shape == (0, 6)
    wrong = judged_of(np.array([[0.3]]), np.array([[0.0]]))
    assert 0 <= choose_thresholds(np.array([0.3]), wrong)["micro_f1"].thresholds.value <= 1


def test_the_threshold_of_a_label():
    found = Thresholds(0.5, np.array([2, 7]), np.array([0.1, 0.9]))
    assert found.of(np.array([[2, 3], [7, -1]])).tolist() == [[0.1, 0.5], [0.9, 0.5]]
    assert Thresholds.of_all(0.2).of(np.array([0, -1])).tolist() == [0.2, 0.2]


def test_a_perfect_model_has_fractions_of_at_most_one():
    relevance = np.tile(np.eye(7, dtype=bool), (9, 1))
    judged = judged_of(np.where(relevance, 0.9, 0.1), relevance)
    curve = threshold_curve(np.where(relevance, 0.9, 0.1).ravel(), judged)
    assert curve[:, :-1].max() == 1 and curve[:, 4].max() == pytest.approx(1)
