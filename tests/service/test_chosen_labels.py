"""Allowed and excluded labels: the same answers as by hand from those of all labels."""

import numpy as np
import pytest

from engine.chosen_labels import ChosenLabels
from engine.predictor import Predictor
from models.scores import best_of_given
from utils.data.texts import ListTexts
from utils.errors import InputError

TEXTS = ["the vim and linux tool", "photo", "", "snake or coffee"]


@pytest.fixture(params=["dual_run", "tree_run", "fusion_run"])
def predictor(request):
    return Predictor(request.getfixturevalue(request.param))


def ids(answer):
    return [label["label"] for label in answer]


def test_excluded_labels_leave_the_order_of_the_others(predictor):
    whole = predictor(TEXTS, k=20)
    excluded = sorted({ids(answer)[0] for answer in whole})
    assert excluded
    left = predictor(TEXTS, k=5, chosen=ChosenLabels(excluded=excluded))
    for all_labels, answer in zip(whole, left, strict=True):
        wanted = [label for label in all_labels if label["label"] not in excluded][:5]
        assert ids(answer) == ids(wanted)
        scores = [label["score"] for label in answer]
        assert scores == pytest.approx([label["score"] for label in wanted], abs=2e-6)


def test_allowed_labels_are_ranked_among_themselves(predictor):
    whole = predictor(TEXTS, k=20)
    allowed = [17, 3, 8, 3, 12]
    chosen = ChosenLabels(allowed=allowed, excluded=[12])
    for all_labels, answer in zip(whole, predictor(TEXTS, k=5, chosen=chosen), strict=True):
        wanted = [label for label in all_labels if label["label"] in (3, 8, 17)]
        assert ids(answer) == ids(wanted)
        scores = [label["score"] for label in answer]
        assert scores == pytest.approx([label["score"] for label in wanted], abs=2e-6)
    assert predictor("photo", chosen=ChosenLabels(allowed=[])) == []
    assert predictor("photo", chosen=ChosenLabels(allowed=[7], excluded=[7])) == []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (ChosenLabels(allowed=[3, 20]), "allowed: expected label ids from 0 to 19, got 20"),
        (ChosenLabels(excluded=[-1, 4]), "excluded: expected label ids from 0 to 19, got -1"),
    ],
)
def test_ids_of_no_label_are_refused(predictor, chosen, message):
    with pytest.raises(InputError, match=message):
        predictor(TEXTS, chosen=chosen)


def test_the_best_of_given_labels_by_hand():
    values = np.array([[1.0, 3.0, 3.0, -np.inf], [0.0, 0.0, 0.0, 0.0]], np.float32)
    labels = np.array([[2, 4, 6, 8], [1, 3, 5, 7]])
    scores, best = best_of_given(values, labels, 5)
    assert best.tolist() == [[4, 6, 2, -1, -1], [1, 3, 5, 7, -1]]
    assert scores.tolist() == [[3, 3, 1, -np.inf, -np.inf], [0, 0, 0, 0, -np.inf]]
    assert best_of_given(values, labels, 2)[1].tolist() == [[4, 6], [1, 3]]


def test_lines_of_label_texts_are_the_same_one_by_one_and_in_a_row(dual_run):
    known = Predictor(dual_run).label_texts
    assert list(known) == [known[label] for label in range(len(known))]
    assert len(ListTexts(list(known))) == 20
