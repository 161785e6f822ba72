"""What a saved fuser may be, at its boundaries; its trees against a walk by hand."""

from dataclasses import replace

import numpy as np
import pytest

from utils.fusing.calibration import Calibration
from utils.fusing.features import num_features
from utils.fusing.fuser import Fuser, SeenLabels
from utils.fusing.fuser_models import Boosted, Linear

# two trees: 0 -> (1 -> 2, 3), 4; and a single leaf
TREES = Boosted(
    roots=np.array([0, 5]),
    feature=np.array([1, 0, -1, -1, -1, -1]),
    threshold=np.array([0.5, 2.0, 0.0, 0.0, 0.0, 0.0]),
    left=np.array([1, 2, 0, 0, 0, 0]),
    right=np.array([4, 3, 0, 0, 0, 0]),
    value=np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2]),
    start=np.asarray(10.0),
)
ROWS = np.array([[2.0, 0.5], [2.5, 0.5], [2.0, 0.75], [2.5, 0.25], [-9.0, 9.0]], np.float32)


def slow_leaf(x, y):
    """To the left where a feature is at most the threshold."""
    if y > 0.5:
        return 1.6
    return 0.8 if x > 2 else 0.4


def test_trees_add_up_their_leaves():
    assert TREES(ROWS).tolist() == pytest.approx([10 + 3.2 + slow_leaf(*row) for row in ROWS])


def test_shares_are_the_steps_from_root_to_leaf():
    """Feature 1 leads from 0.1 to 0.2 or 1.6, then feature 0 to a leaf; of owners 2 and 0."""
    slow = []
    for x, y in ROWS:
        first = 1.6 - 0.1 if y > 0.5 else 0.2 - 0.1
        second = 0.0 if y > 0.5 else slow_leaf(x, y) - 0.2
        slow.append([second, 0.0, first])
    got = TREES.shares(ROWS, np.array([0, 2]))
    np.testing.assert_allclose(got, slow, atol=1e-12)
    linear = Linear(np.array([2.0, -3.0]), np.asarray(0.5))
    np.testing.assert_allclose(
        linear.shares(ROWS, np.array([0, 2])), [[2 * x, 0, -3 * y] for x, y in ROWS]
    )
    np.testing.assert_allclose(linear(ROWS), [2 * x - 3 * y + 0.5 for x, y in ROWS])


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("roots", 0, -1),
        ("roots", 1, 6),
        ("left", 1, 1),
        ("right", 0, 6),
        ("feature", 0, 2),
        ("feature", 0, -1),
        ("feature", 5, 0),
    ],
)
def test_trees_that_are_none_are_refused(name, place, value):
    TREES.check(2)
    wrong = getattr(TREES, name).copy()
    wrong[place] = value
    with pytest.raises(ValueError, match=r"expected (whole trees|trees whose children)"):
        replace(TREES, **{name: wrong}).check(2)


@pytest.mark.parametrize("name", ["threshold", "value"])
def test_arrays_of_trees_have_a_place_for_each_node(name):
    longer = np.append(getattr(TREES, name), getattr(TREES, name)[-1:])
    with pytest.raises(ValueError, match="expected trees whose children"):
        replace(TREES, **{name: longer}).check(2)


def test_no_tree_is_refused():
    none = replace(TREES, **{n: getattr(TREES, n)[:0] for n in Boosted.PARTS if n != "start"})
    with pytest.raises(ValueError, match="expected whole trees, got 0 roots and 0 nodes"):
        none.check(2)


@pytest.fixture
def fuser():
    seen = SeenLabels(np.zeros(4, np.float32), np.array([1.0, 2.0, 3.0, 4.0]))
    model = Linear(np.ones(num_features(2)), np.asarray(0.0))
    return Fuser.of_labels(seen, ("a", "b"), model, Calibration(1.0, 0.0), 0.5)


def test_probabilities_are_scores_without_the_factor_of_the_tail(fuser):
    labels = np.array([[0, 3], [1, 2]])
    scores = np.array([[0.5, 0.8], [0.3, 0.9]])
    slow = [
        [score / (label + 1) ** 0.5 for score, label in zip(*row, strict=True)]
        for row in zip(scores, labels, strict=True)
    ]
    np.testing.assert_allclose(fuser.probabilities(scores, labels), slow, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "forest"}, "kind: expected linear or boosted, got 'forest'"),
        ({"kind": ["linear"]}, "kind: expected linear or boosted"),
        ({"members": "a"}, "members: expected a list of names, got 'a'"),
        ({"members": '{"a": 1}'}, "members: expected a list of names"),
        ({"members": "[]"}, r"members: expected a list of names, got '\[\]'"),
        ({"members": '["a", 1]'}, "members: expected a list of names"),
        ({"members": '["a"]'}, r"expected weights \[14\], got \(21,\)"),
        ({"boost": np.ones(3, np.float32)}, "a frequency and a factor for each label"),
        ({"calibration": np.ones(3)}, "calibration"),
    ],
)
def test_a_file_that_is_no_fuser_is_refused(fuser, tmp_path, changes, message):
    path = tmp_path / "fuser.npz"
    fuser.save(path)
    assert Fuser.load(path).members == ("a", "b")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **changes})
    with pytest.raises(ValueError, match=message):
        Fuser.load(path)
