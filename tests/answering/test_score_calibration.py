"""Calibration of scores: reliable on other points, never against the order, whatever is given."""

import numpy as np
import pytest
import scipy.sparse as sp

from utils.answering.judged import CONTEXT, Judged
from utils.answering.score_calibration import (
    PARTS,
    ScoreCalibration,
    cross_fitted_probabilities,
    fit_calibration,
)
from utils.errors import InputError
from utils.metrics import expected_calibration_error, reliability


def made(points=600, labels=30, seed=0, scale=5.0, squash=False):
    """Scores whose softmax over a text's labels says which is right; each text has its own level.

    Returns:
        judged predictions, and the true probability of each.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(points, labels)) * 2
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    relevance = sp.csr_matrix(rng.random((points, labels)) < truth)
    scores = (logits + rng.normal(size=(points, 1)) * 2) / scale
    if squash:
        scores = 1 / (1 + np.exp(-scores * scale))
    return Judged.of(sp.csr_matrix(scores.astype(np.float32)), relevance), truth.ravel()


def error(probabilities, judged):
    return expected_calibration_error(reliability(probabilities, judged.right))


@pytest.mark.parametrize("squash", [False, True])
def test_probabilities_are_reliable_on_points_that_were_not_seen(squash):
    judged, _ = made(squash=squash)
    others, truth = made(seed=1, squash=squash)
    found = fit_calibration(judged).of_points(others)
    assert error(found, others) < 1.5
    assert error(np.full(len(others), 0.5), others) > 40
    if not squash:  # the rivals are known by their scores: nearly the softmax itself
        assert np.abs(found - truth).mean() < 0.02


def test_cross_fitted_probabilities_are_of_calibrations_that_did_not_see_the_point():
    judged, _ = made(points=60)
    crossed = cross_fitted_probabilities(judged)
    whole = fit_calibration(judged).of_points(judged)
    assert (crossed != whole).all() or np.mean(crossed != whole) > 0.9
    assert error(crossed, judged) > error(whole, judged)


def test_the_order_of_a_text_never_turns_around():
    rng = np.random.default_rng(0)
    for seed in range(3):
        judged, _ = made(points=20, labels=8, seed=seed)
        calibration = fit_calibration(judged)
        ranked = np.sort(rng.normal(size=(5, CONTEXT)), axis=1)[:, ::-1]
        scores = np.sort(rng.normal(size=(5, 40)) * 3, axis=1)
        assert (np.diff(calibration(scores, ranked), axis=1) >= 0).all()
    # lower scores are right: the slope stays above 0
    turned = sp.csr_matrix((-judged.scores, (judged.points, judged.labels)))
    wrong_way = Judged.of(turned, judged.relevance)
    found = fit_calibration(wrong_way)
    assert found.weights[0] > 0


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong(right):
    scores = sp.csr_matrix(np.random.default_rng(0).random((9, 4)).astype(np.float32))
    relevance = sp.csr_matrix(np.full((9, 4), right))
    judged = Judged.of(scores, relevance)
    for found in (fit_calibration(judged).of_points(judged), cross_fitted_probabilities(judged)):
        assert ((found > 0.8) == right).all() and ((found < 0.2) == (not right)).all()


def test_one_label_one_point_and_none():
    one = Judged.of(sp.csr_matrix([[0.3]]), sp.csr_matrix([[1.0]]))
    assert fit_calibration(one).of_points(one) > 0.5
    assert cross_fitted_probabilities(one) > 0.5
    nothing = Judged.of(sp.csr_matrix((3, 2)), sp.csr_matrix((3, 2)))
    assert len(cross_fitted_probabilities(nothing)) == 0
    calibration = fit_calibration(nothing)
    found = calibration(np.array([[0.2, -np.inf]]), np.array([[0.2, -np.inf]]))
    assert np.isfinite(found).all() and found[0, 1] == 0


def test_a_saved_calibration_is_the_same_and_a_damaged_one_is_refused():
    judged, _ = made(points=40)
    calibration = fit_calibration(judged)
    arrays = calibration.arrays()
    assert set(arrays) == set(PARTS)
    again = ScoreCalibration.of_arrays(arrays, "x.npz")
    assert (again.of_points(judged) == calibration.of_points(judged)).all()
    for name, value, message in (
        ("is_logit", np.array(7), "is_logit: expected 0 or 1, got 7"),
        ("knots", arrays["knots"][::-1], "knots: expected a curve that rises"),
        ("weights", -arrays["weights"], "expected a weight of scores above 0"),
        ("limits", arrays["limits"][:, ::-1], "limits: expected the smaller ones first"),
    ):
        with pytest.raises(InputError, match=message):
            ScoreCalibration.of_arrays({**arrays, name: value}, "x.npz")
