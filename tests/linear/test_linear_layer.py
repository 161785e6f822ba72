"""Linear rankers against scikit-learn's solver and against dense algebra."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.svm import LinearSVC

from tests.helpers import made, planted, weights_of
from utils.candidate_kernels import best_of_rows
from utils.linear.kernels import LANES, fit_chunk, merge_copies, score_pairs
from utils.linear.layer import Features, Solver, fit_layer, score_candidates


def all_points(features, parents=1):
    return sp.csc_matrix(np.ones((len(features), parents), np.float32))


@pytest.mark.parametrize("dense", [0, 5])
@pytest.mark.parametrize("nodes", [1, LANES, LANES + 3])
def test_weights_are_those_of_scikit_learn(dense, nodes):
    features = made(dense=dense)
    positives = planted(features, nodes)
    layer = fit_layer(
        features,
        np.array([0, nodes]),
        positives,
        all_points(features),
        Solver(cost=0.7, bias=1.5, eps=1e-6, passes=3000, threshold=0),
    )
    got = weights_of(layer, features.shape)
    whole = np.hstack([features.sparse.toarray(), features.dense])
    for node in range(nodes):
        peer = LinearSVC(C=0.7, intercept_scaling=1.5, tol=1e-7, max_iter=100_000, dual=True)
        peer.fit(whole, positives[:, [node]].toarray().ravel())
        np.testing.assert_allclose(got[:-1, node], peer.coef_[0], atol=2e-3)
        assert got[-1, node] * 1.5 == pytest.approx(peer.intercept_[0], abs=2e-3)


def test_clusters_are_trained_on_their_own_points_alone():
    features = made(points=60)
    positives = planted(features, 5)
    rng = np.random.default_rng(3)
    reach = sp.csc_matrix(rng.random((60, 2)) < 0.6)
    child_ptr = np.array([0, 2, 5])
    solver = Solver(eps=1e-6, passes=2000, threshold=0)
    got = weights_of(fit_layer(features, child_ptr, positives, reach, solver), features.shape)
    for parent in range(2):
        rows = np.flatnonzero(reach[:, [parent]].toarray().ravel())
        nodes = slice(child_ptr[parent], child_ptr[parent + 1])
        alone = fit_layer(
            features[rows],
            np.array([0, nodes.stop - nodes.start]),
            positives[rows][:, nodes].tocsc(),
            all_points(features[rows]),
            solver,
        )
        np.testing.assert_allclose(got[:, nodes], weights_of(alone, features.shape), atol=2e-3)


def test_threads_and_blocks_do_not_matter():
    features = made(points=70, dense=3)
    solver = Solver(eps=0.1)
    positives = planted(features, 24)
    reach = all_points(features, 6)
    child_ptr = np.arange(0, 25, 4)
    one, two = (
        fit_layer(features, child_ptr, positives, reach, solver, threads=threads)
        for threads in (1, 2)
    )
    for name, array in one.arrays().items():
        assert np.array_equal(array, two.arrays()[name]), name
    assert one.values.dtype == np.float32


def test_threshold_drops_small_weights_but_never_the_bias():
    features = made()
    positives = planted(features, 3)
    full, cut = (
        weights_of(
            fit_layer(
                features,
                np.array([0, 3]),
                positives,
                all_points(features),
                Solver(threshold=threshold),
            ),
            features.shape,
        )
        for threshold in (0, 0.4)
    )
    expected = np.where(np.abs(full) >= 0.4, full, 0)
    expected[-1] = full[-1]
    np.testing.assert_array_equal(cut, expected)
    assert 0 < np.count_nonzero(cut) < np.count_nonzero(full)


def test_edges_of_fitting():
    features = made()
    none = sp.csc_matrix((len(features), 2), dtype=np.float32)
    layer = fit_layer(
        features,
        np.array([0, 0, 2]),
        none,
        sp.csc_matrix((len(features), 2), dtype=np.float32),
        Solver(),
    )  # a cluster without children, one without points
    assert len(layer.values) == 0
    assert layer.child_ptr.tolist() == [0, 0, 2]
    all_positive = fit_layer(
        features, np.array([0, 1]), all_points(features), all_points(features), Solver()
    )
    margins = (
        features.sparse @ weights_of(all_positive, features.shape)[:-1]
        + weights_of(all_positive, features.shape)[-1]
    )
    assert (margins > 0.5).all()  # a label of every point


def test_positives_outside_of_the_points_do_not_count():
    features = made(points=20)
    points = np.array([1, 4, 9], np.int32)
    scratch = np.full(30, -1, np.int32)
    settings = (1.0, 1.0, 0.01, 100, 0.0, 0, scratch)
    with_others = fit_chunk(
        *features.arrays,
        30,
        features.dense,
        points,
        np.array([0, 3]),
        np.array([0, 4, 19], np.int32),
        np.ones(3, np.float32),
        *settings,
    )
    alone = fit_chunk(
        *features.arrays,
        30,
        features.dense,
        points,
        np.array([0, 1]),
        np.array([4], np.int32),
        np.ones(1, np.float32),
        *settings,
    )
    for a, b in zip(with_others, alone, strict=True):
        assert np.array_equal(a, b)
    assert (scratch == -1).all()


def test_absent_points_are_neither_positive_nor_negative():
    """A stored 0 leaves a point out of one node's problem; the others keep it."""
    features = made(points=40)
    positives = planted(features, 3)
    absent = np.zeros((40, 3), bool)
    absent[[3, 8, 20, 31], [0, 0, 2, 2]] = True
    dense = positives.toarray()
    dense[absent] = 0
    rows, columns = np.nonzero((dense > 0) | absent)
    marked = sp.csc_matrix((dense[rows, columns], (rows, columns)), shape=dense.shape)
    solver = Solver(eps=1e-6, passes=3000, threshold=0)
    got = weights_of(
        fit_layer(features, np.array([0, 3]), marked, all_points(features), solver), features.shape
    )
    for node in range(3):
        kept = np.flatnonzero(~absent[:, node])
        alone = fit_layer(
            features[kept],
            np.array([0, 1]),
            sp.csc_matrix(dense[kept][:, [node]]),
            all_points(features[kept]),
            solver,
        )
        np.testing.assert_allclose(got[:, node], weights_of(alone, features.shape)[:, 0], atol=2e-3)


# few queries a chunk: binary search; many: spread out
@pytest.mark.parametrize("queries_each", [1, 40])
def test_scores_are_inner_products(queries_each):
    features = made(points=40, columns=2000, dense=4, density=0.02)
    positives = planted(features, 7)
    child_ptr = np.array([0, 3, 7])
    layer = fit_layer(
        features, child_ptr, positives, all_points(features, 2), Solver(threshold=0.01, bias=2.0)
    )
    whole = np.hstack([features.sparse.toarray(), features.dense, np.full((40, 1), 2.0)])
    expected = whole @ weights_of(layer, features.shape)
    queries, chunks = (x.ravel() for x in np.meshgrid(np.arange(queries_each), [0, 1]))
    sizes = np.diff(child_ptr)[chunks]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    out = np.zeros(offsets[-1], np.float32)
    scratch = np.full(2000, -1, np.int32)
    score_pairs(
        *features.arrays,
        features.dense,
        np.float32(2.0),
        queries,
        chunks,
        offsets[:-1],
        *layer.weights,
        2000,
        scratch,
        out,
    )
    for query, chunk, offset, size in zip(queries, chunks, offsets, sizes, strict=False):
        np.testing.assert_allclose(
            out[offset : offset + size],
            expected[query, child_ptr[chunk] : child_ptr[chunk + 1]],
            atol=1e-5,
        )
    assert (scratch == -1).all()


def test_candidates_get_the_margins_of_their_labels():
    features = made(points=30, dense=2)
    positives = planted(features, 6)
    layer = fit_layer(
        features, np.arange(7), positives, all_points(features, 6), Solver(threshold=0)
    )
    candidates = sp.csr_matrix(np.random.default_rng(1).random((30, 6)) < 0.5)
    got = score_candidates(layer, features, candidates, threads=2)
    whole = np.hstack([features.sparse.toarray(), features.dense, np.ones((30, 1))])
    expected = whole @ weights_of(layer, features.shape)
    assert (got.indices == candidates.indices).all()
    np.testing.assert_allclose(got.data, expected[candidates.nonzero()], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"expected one child a cluster and candidates of shape \(30, 6\), got"
    ):
        score_candidates(layer, features, candidates[:, :5])


@pytest.mark.parametrize("k", [1, 4, 9, 30])
def test_best_of_rows_is_a_stable_sort(k):
    rng = np.random.default_rng(k)
    sizes = np.array([0, 1, 9, 25, 4])
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    values = rng.integers(0, 4, ptr[-1]).astype(np.float32)  # many ties
    ids = np.concatenate([rng.permutation(50)[:size] for size in sizes]).astype(np.int64)
    out_ids, out_values = np.empty((5, k), np.int64), np.empty((5, k), np.float32)
    best_of_rows(ptr, ids, values, k, out_ids, out_values)
    for row in range(5):
        own = slice(ptr[row], ptr[row + 1])
        expected = sorted(zip(-values[own], ids[own], strict=True))[:k]
        assert out_ids[row].tolist() == [i for _, i in expected] + [-1] * (k - len(expected))
        assert out_values[row].tolist() == [-v for v, _ in expected] + [-np.inf] * (
            k - len(expected)
        )


@pytest.mark.parametrize("mean", [True, False])
def test_copies_merge_to_their_mean_or_maximum(mean):
    ptr = np.array([0, 5, 5, 8])
    ids, values = np.array([3, 1, 3, 2, 3, 7, 7, 7]), np.array([1, 5, 2, 4, 6, 1, 2, 3], np.float32)
    out = np.empty_like(ptr)
    merge_copies(ptr, ids, values, mean, out)
    assert out.tolist() == [0, 3, 3, 4]
    assert ids[:4].tolist() == [1, 2, 3, 7]
    assert values[:4].tolist() == ([5, 4, 3, 2] if mean else [5, 4, 6, 3])


def test_features_side_by_side():
    features = made(points=5, dense=2)
    assert features[np.array([3, 1])].dense.tolist() == features.dense[[3, 1]].tolist()
    assert features.shape == (30, 2)
    with pytest.raises(ValueError, match="5 rows of sparse features but 4 of dense ones"):
        Features.build(features.sparse, np.zeros((4, 1)))
    blank = Features.build(sp.csr_matrix((2, 3)), np.array([[0.0], [1.0]]))
    assert blank.empty.tolist() == [True, False]
