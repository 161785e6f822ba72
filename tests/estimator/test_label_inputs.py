"""Labels as a Python program gives them."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from engine.label_inputs import read_labels, relevance_of
from utils.errors import InputError


def test_names_are_sorted_and_counted_once_a_text():
    got = read_labels([["b", "a", "a"], (), {"c"}, np.array(["b"])])
    assert got.names == ["a", "b", "c"]
    assert got.texts == ["a", "b", "c"]
    assert got.relevance.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_names_may_be_numbers_which_are_no_texts():
    got = read_labels([[10], [9, 10]])
    assert got.names == [9, 10]
    assert got.texts is None
    assert got.relevance.toarray().tolist() == [[0, 1], [1, 1]]


def test_texts_come_by_name_and_bring_labels_along():
    got = read_labels(pd.Series([["b"], ["c"]]), {"a": "an apple", "b": "a bean"})
    assert got.names == ["a", "b", "c"]
    assert got.texts == ["an apple", "a bean", "c"]


@pytest.mark.parametrize("kind", [np.array, sp.csr_matrix, sp.csc_array, pd.DataFrame])
def test_a_matrix_has_ids_for_names(kind):
    got = read_labels(kind([[0, 1, 0], [1, 0, 2]]))
    assert got.names == [0, 1, 2]
    assert got.texts is None
    assert got.relevance.toarray().tolist() == [[0, 1, 0], [1, 0, 2]]


@pytest.mark.parametrize("read", [read_labels, lambda labels: relevance_of(labels, range(3))])
def test_a_matrix_stays_as_it_was(read):
    """Neither sorted nor rid of its zeros: it is the caller's."""
    parts = ([1.0, 0.0, 1.0], [2, 0, 1], [0, 2, 3])
    matrix = sp.csr_matrix(tuple(map(np.array, parts)), (2, 3), dtype=np.float32)
    read(matrix)
    assert (matrix.data.tolist(), matrix.indices.tolist(), matrix.indptr.tolist()) == parts


def test_a_matrix_takes_names_from_texts_or_columns():
    matrix = np.eye(2)
    assert read_labels(matrix, ["red", "blue"]).names == ["red", "blue"]
    table = pd.DataFrame(matrix, columns=["red", "blue"])
    got = read_labels(table, ["a red", "a blue"])
    assert got.names == ["red", "blue"]
    assert got.texts == ["a red", "a blue"]
    assert read_labels(table).texts == ["red", "blue"]
    assert read_labels(matrix, {0: "a red"}).texts == ["a red", ""]


@pytest.mark.parametrize(
    ("labels", "texts", "message"),
    [
        ("a|b", None, "got str"),
        (["a|b"], None, "list of names for each text, got 'a|b' .* at place 0"),
        ([["a"], None], None, "at place 1"),
        ([["a"], [1.5]], None, "str or int, got 1.5"),
        ([["a"], [1]], None, "both"),
        ([[" "]], None, "expected a name"),
        ([[0, 1, 0], [1, 0, 0]], None, "look like a binary matrix"),
        ([["a"]], ["a text"], "expected a mapping"),
        ([["a"]], {1: "a text"}, "label_texts: .* both"),
        (np.zeros((2, 0)), None, "a column for each label"),
        (np.eye(2), ["one"], "expected 2 texts"),
        (np.eye(2), ["one", "one"], "distinct names, got 'one' 2 times"),
        (np.eye(2), {5: "five"}, "5 is no column"),
        (np.array([[-1.0, 0.0]]), None, "0 and 1"),
        (np.array([[np.nan, 0.0]]), None, "0 and 1"),
        (np.array([[1.0, 0.0], [0.0, -1.0]]), None, "got -1.0 in row 1, column 1"),
        (np.array([[1j, 0.0]]), None, "expected a matrix of real numbers"),
        (np.array([["a", "b"]]), None, "matrix of numbers"),
    ],
)
def test_what_is_no_label_is_refused(labels, texts, message):
    with pytest.raises(InputError, match=message):
        read_labels(labels, texts)


def test_other_texts_are_read_by_the_names_of_training(caplog):
    names = ["a", "b"]
    got = relevance_of([["b", "x"], [], ["x", "y"]], names)
    assert got.toarray().tolist() == [[0, 1], [0, 0], [0, 0]]
    assert "2 labels of these texts were not in training" in caplog.text
    assert relevance_of(sp.csr_matrix([[0, 3]]), names).toarray().tolist() == [[0, 3]]
    with pytest.raises(InputError, match="2 columns"):
        relevance_of(np.eye(3), names)
