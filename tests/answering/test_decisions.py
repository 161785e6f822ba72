"""F1, coverage and labels against scikit-learn on dense matrices."""

import csv

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import metrics as sk

from utils.answering.decisions import (
    COLUMNS,
    average_precisions,
    coverage_error,
    decision_metrics,
    label_table,
    threshold_grid,
)


@pytest.fixture
def case():
    """12 points, 7 labels: a label without points, one without answers, a point without either."""
    rng = np.random.default_rng(1)
    scores = rng.integers(1, 9, (12, 7)) / 10
    relevance = rng.random((12, 7)) < 0.35
    answers = scores > 0.4
    relevance[:, 3] = False
    answers[:, 4] = False
    relevance[5] = False
    answers[5] = False
    return scores, relevance, answers


def test_f1_of_every_kind_is_scikit_learns(case):
    _, relevance, answers = case
    found = decision_metrics(sp.csr_matrix(answers), sp.csr_matrix(relevance))
    there = np.flatnonzero(relevance.any(0))
    for name, average, labels in (
        ("micro", "micro", None),
        ("macro", "macro", there),
        ("example", "samples", None),
    ):
        more = {"average": average, "labels": labels, "zero_division": 0}
        assert found[f"{name}_F1"] == pytest.approx(100 * sk.f1_score(relevance, answers, **more))
        precision = sk.precision_score(relevance, answers, **more)
        assert found[f"{name}_precision"] == pytest.approx(100 * precision)
        recall = sk.recall_score(relevance, answers, **more)
        assert found[f"{name}_recall"] == pytest.approx(100 * recall)
    assert found["answered"] == pytest.approx(100 * answers.any(1).mean())
    nothing = decision_metrics(sp.csr_matrix((3, 2)), sp.csr_matrix((3, 2)))
    assert set(nothing.values()) == {0.0}


def test_f1_of_one_label():
    """scikit-learn would take a single column for classes."""
    answers = sp.csr_matrix([[1], [1], [0], [1]])
    relevance = sp.csr_matrix([[1], [0], [1], [1]])
    found = decision_metrics(answers, relevance)
    assert found["micro_F1"] == pytest.approx(200 / 3) == found["macro_F1"]
    assert found["example_F1"] == pytest.approx(50)
    assert found["answered"] == pytest.approx(75)


def test_coverage_error_is_scikit_learns_with_what_is_not_kept_at_the_end(case):
    scores, relevance, _ = case
    expected = sk.coverage_error(relevance, scores)
    assert coverage_error(sp.csr_matrix(scores), sp.csr_matrix(relevance)) == expected
    kept = np.where(scores >= 0.3, scores, 0)
    expected = sk.coverage_error(relevance, np.where(kept > 0, kept, -1.0))
    assert coverage_error(sp.csr_matrix(kept), sp.csr_matrix(relevance)) == expected


def test_each_labels_numbers_are_scikit_learns(case):
    scores, relevance, answers = case
    kept = np.where(scores >= 0.3, scores, 0)
    found = average_precisions(sp.csr_matrix(kept), sp.csr_matrix(relevance))
    table = label_table(
        sp.csr_matrix(kept), sp.csr_matrix(relevance), np.arange(7), sp.csr_matrix(answers)
    )
    for label in range(7):
        true = relevance[:, label]
        given = answers[:, label]
        if not true.any():
            assert np.isnan(found[label]) and np.isnan(table.recall[label])
            continue
        expected = sk.average_precision_score(true, kept[:, label])
        assert found[label] == pytest.approx(100 * expected)
        assert table.recall[label] == pytest.approx(100 * sk.recall_score(true, given))
        assert table.f1[label] == pytest.approx(100 * sk.f1_score(true, given, zero_division=0))
        if given.any():
            assert table.precision[label] == pytest.approx(100 * sk.precision_score(true, given))
    assert np.isnan(table.precision[4]) and table.predicted[4] == 0


def test_the_table_of_labels_is_a_csv_that_keeps_any_text(case, tmp_path):
    scores, relevance, answers = case
    texts = ['a, "b"', "кот", "=1+1", "", "e", "f", "g"]
    for given in (sp.csr_matrix(answers), None):
        table = label_table(sp.csr_matrix(scores), sp.csr_matrix(relevance), np.arange(7), given)
        table.write(tmp_path / "labels.csv", texts)
        with open(tmp_path / "labels.csv", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == COLUMNS
        assert [row[1] for row in rows] == texts and [row[0] for row in rows] == list("0123456")
        predicted = [row[4] for row in rows]
        assert predicted == ([""] * 7 if given is None else list(map(str, answers.sum(0))))
        assert [row[7] == "" for row in rows] == (
            [True] * 7 if given is None else np.isnan(table.f1).tolist()
        )


def test_the_table_of_labels_has_own_names_where_there_are_some(case, tmp_path):
    scores, relevance, _ = case
    table = label_table(sp.csr_matrix(scores), sp.csr_matrix(relevance), np.arange(7), None)
    table.write(tmp_path / "labels.csv", list("abcdefg"), [f"n,{label}" for label in range(7)])
    with open(tmp_path / "labels.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == (*COLUMNS, "name")
    assert [row[-1] for row in rows] == [f"n,{label}" for label in range(7)]


def test_the_grid_is_what_scikit_learn_says_of_its_thresholds(case):
    scores, relevance, _ = case
    found = threshold_grid(sp.csr_matrix(scores), sp.csr_matrix(relevance))
    assert found["threshold"][0] == 0 and found["threshold"][-1] == pytest.approx(scores.max())
    there = np.flatnonzero(relevance.any(0))
    steps = (scores * 100).astype(int)  # as the grid rounds them
    for place in (0, 25, 41, 70):
        answers = steps >= round(found["threshold"][place] * 100)
        micro = sk.f1_score(relevance, answers, average="micro")
        macro = sk.f1_score(relevance, answers, labels=there, average="macro", zero_division=0)
        assert found["micro_F1"][place] == pytest.approx(100 * micro, abs=1e-3)
        assert found["macro_F1"][place] == pytest.approx(100 * macro, abs=1e-3)
