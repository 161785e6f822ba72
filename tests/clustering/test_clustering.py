import tracemalloc
from math import prod

import numpy as np
import pytest
import scipy.sparse as sp

from utils.clustering import clustering
from utils.clustering.clustering import TOLERANCE, balanced_hierarchy, centroids, splits_for


def gaussian(n, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def sparse_rows(n, width=40, density=0.15, seed=0):
    """CSR rows, some of them empty."""
    return sp.random(
        n, width, density, format="csr", dtype=np.float32, random_state=np.random.default_rng(seed)
    )


def unit(rows):
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-6)


def two_means(rows, left, first, second, iterations):
    """Mask of the `left` rows that go to the first of two centres, straight from the definition."""
    one = rows[first]
    two = rows[second]
    side = None
    best = -np.inf
    for _ in range(iterations):
        new = np.zeros(len(rows), bool)
        new[np.argsort(-(rows @ (one - two)), kind="stable")[:left]] = True
        if side is not None and (new == side).all():
            break
        side = new
        one, two = unit(rows[side].sum(0)), unit(rows[~side].sum(0))
        objective = (rows[side] @ one).sum() + (rows[~side] @ two).sum()
        if objective - best < TOLERANCE * len(rows):
            break
        best = objective
    return side


def slow_hierarchy(rows, splits, seed, iterations=20):
    """Row ids of every leaf, the cuts made in plain numpy with the same random draws."""
    rows = unit(np.asarray(rows, np.float64))
    draws = 0
    total = 1
    nodes = [(0, 1, np.arange(len(rows)))]  # (first cluster, number of clusters, rows)
    for split in splits:
        total *= split
        nodes = [(low * split, count * split, members) for low, count, members in nodes]
        while any(count > 1 for _, count, _ in nodes):
            open_nodes = [node for node in nodes if node[1] > 1]
            pairs = iter(np.random.default_rng([seed, draws]).random((len(open_nodes), 2)))
            draws = draws + 1
            after = []
            for low, count, members in nodes:
                if count == 1:
                    after.append((low, count, members))
                    continue
                n = len(members)
                middle = (2 * low + count) // 2
                first, second = (next(pairs) * [n, n - 1]).astype(int)
                second += second >= first
                left = middle * len(rows) // total - low * len(rows) // total
                side = two_means(rows[members], left, first, second, iterations)
                after += [
                    (low, middle - low, members[side]),
                    (middle, low + count - middle, members[~side]),
                ]
            nodes = after
    return [members for _, _, members in nodes]


def leaves(hierarchy):
    return np.split(hierarchy.order, hierarchy.bounds[-1][1:-1])


@pytest.mark.parametrize(
    "splits", [[2], [8], [2, 4], [3], [5, 2], [7, 3], [1], [1, 6], [2, 2, 2, 2]]
)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("make", [gaussian, sparse_rows])
def test_equals_the_definition(splits, wide, make, monkeypatch):
    if wide:  # every node shared by all threads, in several blocks
        monkeypatch.setattr(clustering, "WIDE", 1)
        monkeypatch.setattr(clustering, "BLOCK", 7)
    rows = make(101)
    dense = rows.toarray() if sp.issparse(rows) else rows
    got = leaves(balanced_hierarchy(rows, splits, seed=3))
    expected = slow_hierarchy(dense, splits, seed=3)
    assert [g.tolist() for g in got] == [e.tolist() for e in expected]


@pytest.mark.parametrize(
    "n, splits",
    [
        (n, splits)
        for n in (1, 7, 64, 97, 210)
        for splits in ([1], [7], [2, 3], [5, 7], [4, 4, 4], [32, 3], [6, 5, 7])
        if prod(splits) <= n
    ],
)
def test_sizes_of_a_level_differ_by_at_most_one(n, splits):
    hierarchy = balanced_hierarchy(gaussian(n), splits, seed=1)
    assert np.array_equal(np.sort(hierarchy.order), np.arange(n))
    for level in range(len(splits)):
        sizes = np.bincount(hierarchy.clusters(level), minlength=prod(splits[: level + 1]))
        assert len(sizes) == prod(splits[: level + 1]) and np.ptp(sizes) <= 1 and sizes.min() >= 1
        assert np.array_equal(sizes, np.diff(hierarchy.bounds[level]))
        above = hierarchy.clusters(level - 1) if level else np.zeros(n, int)
        assert np.array_equal(hierarchy.parents(level)[hierarchy.clusters(level)], above)
        assert (np.bincount(hierarchy.parents(level)) == splits[level]).all()
    assert all((np.diff(leaf) > 0).all() for leaf in leaves(hierarchy))


@pytest.mark.parametrize("make", [gaussian, sparse_rows])
def test_the_number_of_threads_changes_nothing(make, monkeypatch):
    monkeypatch.setattr(clustering, "WIDE", 100)
    monkeypatch.setattr(clustering, "BLOCK", 64)
    rows = make(1000)
    one, three = (
        balanced_hierarchy(rows, [4, 5, 6], seed=2, threads=threads) for threads in (1, 3)
    )
    assert np.array_equal(one.order, three.order)
    other = balanced_hierarchy(rows, [4, 5, 6], seed=3)
    assert not np.array_equal(one.order, other.order)


@pytest.mark.parametrize("kind", [np.float64, np.float16, "view", "read-only", "csr64", "twice"])
def test_other_rows_of_the_same_values(kind):
    dense = sparse_rows(200).toarray()
    dense = np.round(dense * 64) / 64  # exact in half precision
    expected = balanced_hierarchy(dense, [4, 4], seed=0).order
    if kind == "csr64":
        rows = sp.csr_matrix(dense)
        rows = sp.csr_matrix(
            (rows.data, rows.indices.astype(np.int64), rows.indptr.astype(np.int64)), rows.shape
        )
    elif kind == "twice":  # entries of halves at the same place add up
        half = sp.coo_matrix(dense / 2)
        indptr = np.concatenate([[0], np.cumsum(2 * np.bincount(half.row, minlength=200))])
        rows = sp.csr_matrix((np.repeat(half.data, 2), np.repeat(half.col, 2), indptr), dense.shape)
    elif kind == "view":
        rows = np.repeat(dense, 2, axis=1)[:, ::2]
    elif kind == "read-only":
        rows = dense.copy()
        rows.flags.writeable = False
    else:
        rows = dense.astype(kind)
    before = rows.copy()
    assert np.array_equal(balanced_hierarchy(rows, [4, 4], seed=0).order, expected)
    assert abs(rows - before).max() == 0


@pytest.mark.parametrize("as_csr", [False, True])
def test_planted_clusters_are_found(as_csr):
    rng = np.random.default_rng(0)
    planted = rng.permutation(np.repeat(np.arange(16), 20))
    rows = np.eye(16, 30, dtype=np.float32)[planted] * rng.uniform(1, 9, (320, 1)).astype(
        np.float32
    )
    rows += rng.normal(scale=0.02, size=rows.shape).astype(np.float32)
    found = balanced_hierarchy(sp.csr_matrix(rows) if as_csr else rows, [4, 4], seed=0).clusters()
    together = planted[:, None] == planted[None]
    assert ((found[:, None] == found[None]) == together).mean() > 0.98  # random clusters: 0.88


@pytest.mark.parametrize("as_csr", [False, True])
def test_more_iterations_never_lower_the_similarity(as_csr):
    rows = np.repeat(gaussian(60, dim=4), 3, axis=0)
    rows = sp.csr_matrix(rows) if as_csr else rows
    similarity = []
    for iterations in range(1, 6):
        found = balanced_hierarchy(rows, [2], seed=0, iterations=iterations).clusters()
        centres = centroids(rows, found, 2)
        centres = centres.toarray() if as_csr else centres
        similarity.append((unit(rows.toarray() if as_csr else rows) * centres[found]).sum())
    assert (np.diff(similarity) > -1e-4).all() and similarity[-1] > similarity[0] + 1


@pytest.mark.parametrize("as_csr", [False, True])
def test_zeros_identical_rows_and_a_single_one(as_csr):
    def clusters(rows, splits):
        rows = np.asarray(rows, np.float32)
        return (
            balanced_hierarchy(sp.csr_matrix(rows) if as_csr else rows, splits, seed=0)
            .clusters()
            .tolist()
        )

    assert clusters([[1, 2]], [1]) == [0]
    assert clusters([[1, 2]], []) == [0]
    assert clusters(np.zeros((5, 3)), [5]) == [0, 1, 2, 3, 4]  # by row id
    assert clusters(np.ones((6, 3)), [2, 3]) == [0, 1, 2, 3, 4, 5]
    mixed = clusters([[0, 0], [1, 0], [0, 0], [1, 0], [1e-36, 0], [0, 1], [0, 1], [0, 1]], [4])
    assert np.bincount(mixed).tolist() == [2, 2, 2, 2] and mixed[1] == mixed[3]
    assert clusters(np.zeros((4, 0)), [2]) == [0, 0, 1, 1]  # no columns


def test_small_nodes_of_wide_sparse_rows_cost_their_own_entries():
    """Two million columns, one entry a row: neither memory nor time goes with columns x nodes."""
    n, width = 4096, 2_000_000
    rows = sp.csr_matrix((np.ones(n, np.float32), np.arange(n) * 400, np.arange(n + 1)), (n, width))
    balanced_hierarchy(rows, [2], seed=0)
    tracemalloc.start()
    hierarchy = balanced_hierarchy(rows, [2048], seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(hierarchy.bounds[0]) == 2049
    assert peak < 30 * width


def test_errors_name_what_came():
    rows = gaussian(10)
    with pytest.raises(ValueError, match="^index: 16 clusters cannot be made of 10 rows$"):
        balanced_hierarchy(rows, [4, 4], seed=0, name="index")
    with pytest.raises(ValueError, match="1 clusters cannot be made of 0 rows"):
        balanced_hierarchy(rows[:0], [], seed=0)
    for splits, threads, iterations in (([2, 0], 1, 1), ([2], 0, 1), ([2], 1, 0)):
        with pytest.raises(ValueError, match="of at least 1"):
            balanced_hierarchy(rows, splits, seed=0, threads=threads, iterations=iterations)
    for bad in (np.nan, np.inf, 1e30):
        rows = gaussian(10)
        rows[7, 2] = bad
        for given in (rows, sp.csr_matrix(rows)):
            with pytest.raises(ValueError, match=r"NaN, infinity or more in row 7"):
                balanced_hierarchy(given, [2], seed=0)
    with pytest.raises(ValueError, match=r"splits_for.*0 and 2"):
        splits_for(10, 0, 2)
    for clusters in ([0, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"\[0, 3\)"):
            centroids(gaussian(3), clusters, 3)


@pytest.mark.parametrize(
    "n, max_leaf, per_level, expected",
    [
        (100, 100, 32, []),
        (101, 100, 32, [2]),
        (200, 100, 2, [2]),
        (201, 100, 2, [2, 2]),
        (1, 1, 2, []),
        (6491, 100, 32, [4, 32]),  # 2^ceil(log2(64.91)) = 128
        (670_091, 100, 32, [8, 32, 32]),  # 8192
        (670_091, 100, 2, [2] * 13),
        (800, 100, 32, [8]),
        (3200, 100, 32, [32]),
        (3201, 100, 32, [2, 32]),
        (30, 10, 3, [3]),
        (31, 10, 3, [2, 3]),
        (61, 10, 3, [3, 3]),
        (91, 10, 3, [2, 3, 3]),
        (5000, 100, 100, [50]),
    ],
)
def test_splits(n, max_leaf, per_level, expected):
    assert splits_for(n, max_leaf, per_level) == expected
    assert -(-n // prod(expected)) <= max_leaf


def test_splits_for_powers_of_two_equal_the_formula():
    for n in range(1, 500):
        for max_leaf in (2, 5, 7, 100):
            expected = 2 ** max(0, int(np.ceil(np.log2(n / max_leaf) - 1e-12)))
            for per_level in (2, 4, 32):
                splits = splits_for(n, max_leaf, per_level)
                assert prod(splits) == expected and all(s == per_level for s in splits[1:])
                assert all(1 < s <= per_level for s in splits)
            assert prod(splits_for(n, max_leaf, 3)) <= n


@pytest.mark.parametrize("as_csr", [False, True])
def test_centroids(as_csr):
    rows = sparse_rows(50).toarray()
    clusters = np.random.default_rng(1).integers(0, 8, 50)
    clusters[clusters == 5] = 4  # nobody is in cluster 5
    expected = np.zeros((9, 40))
    for row, cluster in zip(rows, clusters, strict=True):
        expected[cluster] += unit(row)
    got = centroids(sp.csr_matrix(rows) if as_csr else rows, clusters, 9)
    assert got.dtype == np.float32 and sp.issparse(got) == as_csr
    np.testing.assert_allclose(got.toarray() if as_csr else got, unit(expected), atol=1e-6)
