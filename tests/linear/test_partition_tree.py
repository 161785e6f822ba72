"""Beam search against loops over the tree, and the tree's growth."""

import numpy as np
import pytest
import scipy.sparse as sp

from tests.helpers import made, planted, ranking, small_tree, weights_of
from utils.arrays import map_arrays, save_arrays
from utils.linear.partition_tree import COMBINERS
from utils.linear.tree_training import (
    beam_matrix,
    fit_tree,
    label_centroids,
    tree_levels,
)
from utils.sparse import normalised

FORMULAS = {
    "l1-hinge": lambda s: np.exp(-max(0, 1 - s)),
    "l3-hinge": lambda s: np.exp(-(max(0, 1 - s) ** 3)),
    "sigmoid": lambda s: 1 / (1 + np.exp(-s)),
    "log-sigmoid": lambda s: np.log(1 / (1 + np.exp(-s))),
    "sum": lambda s: s,
}


def slow_search(tree, features, k, beam, name, mean):
    """Beam search by the formula, a point and a node at a time."""
    multiply = name not in ("log-sigmoid", "sum")
    whole = np.hstack(
        [features.sparse.toarray(), features.dense, np.full((len(features), 1), tree.bias)]
    )
    margins = [whole @ weights_of(layer, tree.shape) for layer in tree.layers]
    found = []
    for point in range(len(features)):
        kept = [(1.0 if multiply else 0.0, 0)]
        for level, layer in enumerate(tree.layers):
            paths = []
            for score, parent in kept:
                for node in range(layer.child_ptr[parent], layer.child_ptr[parent + 1]):
                    own = FORMULAS[name](margins[level][point, node])
                    paths.append((score * own if multiply else score + own, node))
            kept = sorted(paths, key=lambda path: (-path[0], path[1]))
            if level < len(tree.layers) - 1:
                kept = kept[:beam]
        by_label = {}
        for score, node in kept:
            by_label.setdefault(int(tree.node_labels[node]), []).append(score)
        merged = {
            label: np.mean(scores) if mean else max(scores) for label, scores in by_label.items()
        }
        found.append((sorted(merged.items(), key=lambda item: (-item[1], item[0]))[:k], len(kept)))
    return found


@pytest.mark.parametrize(
    ("name", "mean", "dense", "copies"),
    [
        ("l3-hinge", True, 0, False),
        ("l1-hinge", True, 4, True),
        ("sigmoid", False, 0, True),
        ("log-sigmoid", True, 3, False),
        ("sum", True, 0, True),
    ],
)
@pytest.mark.parametrize("beam", [1, 4])
def test_search_equals_the_slow_definition(name, mean, dense, copies, beam):
    features, _, _, tree = small_tree(dense=dense, copies=copies)
    ids, values, products = tree.search(
        features, 10, beam=beam, combiner=COMBINERS[name], mean=mean, threads=2
    )
    slow = slow_search(tree, features, 10, beam, name, mean)
    for point, (expected, _) in enumerate(slow):
        length = len(expected)
        np.testing.assert_allclose(
            values[point, :length], [score for _, score in expected], rtol=2e-4, atol=1e-5
        )
        assert (ids[point, length:] == -1).all()
        assert len(set(ids[point, :length])) == length
    agree = np.mean(
        [ids[p, : len(e)].tolist() == [label for label, _ in e] for p, (e, _) in enumerate(slow)]
    )
    assert agree > 0.95  # two scores may round to another order
    assert products == pytest.approx(np.mean([count for _, count in slow]))


def test_more_labels_asked_for_than_there_are():
    features, _, _, tree = small_tree()
    ids, values, _ = tree.search(features, 50, beam=99, combiner=COMBINERS["l3-hinge"])
    assert (np.sort(ids, axis=1)[:, -23:] == np.arange(23)).all()
    assert (ids[:, 23:] == -1).all()
    assert np.isneginf(values[:, 23:]).all()


def test_features_of_another_width_are_refused():
    _, _, _, tree = small_tree()
    with pytest.raises(
        ValueError,
        match="features of 41 sparse and 0 dense columns, expected 40 and 0 as in training",
    ):
        tree.search(made(columns=41), 3, beam=2, combiner=COMBINERS["sum"])


@pytest.mark.parametrize("labels", [1, 2, 7])
def test_few_labels(labels):
    features, relevance, skeleton, tree = small_tree(labels=labels, max_leaf=1, splits=2)
    ids, _, _ = tree.search(features, labels, beam=10, combiner=COMBINERS["l3-hinge"])
    assert (np.sort(ids, axis=1) == np.arange(labels)).all()
    assert skeleton.leaves <= labels


def test_never_more_clusters_than_labels():
    assert tree_levels(6491, 100, 32) == [4, 32]
    assert tree_levels(16409, 100, 32) == [8, 32]
    assert tree_levels(90, 100, 32) == []
    for labels in range(1, 40):
        levels = tree_levels(labels, 1, 2)
        assert np.prod(levels) <= labels


def test_every_label_is_in_one_leaf_and_near_its_like():
    features, relevance, skeleton, _ = small_tree()
    assert np.sort(skeleton.node_labels).tolist() == list(range(23))
    sizes = np.diff(skeleton.child_ptrs[-1])
    assert sizes.max() <= 3 and sizes.max() - sizes.min() <= 1
    assert skeleton.membership(23).sum() == 23


def test_centroids_are_normalised_sums_of_points():
    features = made()
    relevance = planted(features, 4).tocsr() * 3  # graded relevance does not matter
    got = label_centroids(relevance, features.sparse).toarray()
    for label in range(4):
        total = features.sparse.toarray()[relevance[:, [label]].toarray().ravel() > 0].sum(axis=0)
        np.testing.assert_allclose(got[label], total / np.linalg.norm(total), atol=1e-6)
    assert normalised(sp.csr_matrix((1, 3), dtype=np.float32)).nnz == 0


@pytest.mark.parametrize("negatives", ["beam", "both"])
def test_negatives_of_the_beam(negatives):
    """The rankers of the leaves see the points that the beam brings; with positives too for
    `both`."""
    from utils.linear.tree_training import _positives, _reach

    features, relevance, skeleton, tree = small_tree()
    rank = ranking(negatives)
    last = len(tree.layers) - 1
    positives = _positives(relevance, skeleton)
    layers = list(tree.layers[:last])
    reach = _reach(features, positives, layers, skeleton, rank, level=last).toarray() > 0
    nodes, _ = tree.clusters(features, beam=2, combiner=COMBINERS["l3-hinge"], level=last - 1)
    expected = beam_matrix(nodes, skeleton.leaves).toarray() > 0
    if negatives == "both":
        expected |= (relevance @ skeleton.membership(23)).toarray() > 0
    np.testing.assert_array_equal(reach, expected)
    fitted = fit_tree(features, relevance, skeleton, rank)
    assert len(fitted.layers) == len(tree.layers)


def test_kept_levels_are_not_trained_again():
    features, relevance, skeleton, tree = small_tree()
    seen = []
    again = fit_tree(
        features,
        relevance,
        skeleton,
        ranking(),
        kept=tree.layers[:1],
        keep=lambda level, _: seen.append(level),
    )
    assert seen == list(range(1, len(tree.layers)))
    for a, b in zip(tree.layers, again.layers, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_arrays_are_mapped(tmp_path):
    arrays = {
        "a": np.arange(6).reshape(2, 3),
        "none": np.zeros((0, 4), np.float32),
        "one": np.array(5),
    }
    save_arrays(tmp_path / "x.npz", arrays)
    got = map_arrays(tmp_path / "x.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
    assert isinstance(got["a"].base, np.memmap)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.npz: not an .npz of arrays"):
        map_arrays(tmp_path / "cut.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(
        ValueError, match=r"objects.npz: array 'a': expected .*, got values of type object"
    ):
        map_arrays(tmp_path / "objects.npz")
