import numpy as np
import pytest
import scipy.sparse as sp

from utils.clustering import matching
from utils.clustering.matching import count_matrix, top_assignment


def random_counts(labels=23, clusters=7, density=0.5, seed=0):
    """Small whole numbers: many ties; some labels have none."""
    rng = np.random.default_rng(seed)
    return np.where(
        rng.random((labels, clusters)) < density, rng.integers(1, 4, (labels, clusters)), 0
    ) * (rng.random(labels) < 0.8)[:, None].astype(np.float32)


def slow_top(counts, budget, binary, fallback=None):
    """Each row's largest entries, by a loop."""
    chosen = np.full(counts.shape, np.nan)  # nan: not chosen
    for row, values in enumerate(counts):
        best = sorted(
            (c for c in range(len(values)) if values[c] > 0), key=lambda c: (-values[c], c)
        )[:budget]
        if not best and fallback is not None:
            best = [fallback[row]]
        chosen[row, best] = 1 if binary else values[best]
    return chosen


def greedy(counts, budget, fallback):
    """One pass over all entries by descending count; a label joins until it has `budget`
    clusters."""
    chosen, size = np.zeros(counts.shape), np.zeros(len(counts), int)
    entries = [
        (label, cluster)
        for label in range(len(counts))
        for cluster in range(counts.shape[1])
        if counts[label, cluster] > 0
    ]
    for label, cluster in sorted(entries, key=lambda entry: -counts[entry]):
        if size[label] < budget:
            chosen[label, cluster] = 1
            size[label] += 1
    chosen[size == 0, fallback[size == 0]] = 1
    return chosen


def dense(matrix):
    """Stored entries, zeros included; nan where nothing is stored."""
    out = np.full(matrix.shape, np.nan)
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        out[row, matrix.indices[part]] = matrix.data[part]
    return out


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("block", [1, 10, 1 << 20])
def test_equals_a_loop(budget, binary, block, monkeypatch):
    monkeypatch.setattr(matching, "CELLS", block)
    counts = random_counts()
    fallback = np.arange(23) % 7
    for given in (None, fallback):
        got = top_assignment(
            sp.csr_matrix(counts), budget, axis="label", binary=binary, fallback=given
        )
        np.testing.assert_array_equal(dense(got), slow_top(counts, budget, binary, given))
    got = top_assignment(sp.csr_matrix(counts), budget, axis="cluster", binary=binary)
    assert got.shape == (7, 23) and got.dtype == np.float32 and got.has_canonical_format
    np.testing.assert_array_equal(dense(got), slow_top(counts.T, budget, binary))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 2, 4])
def test_equals_the_greedy_pass_over_all_entries(seed, budget):
    counts = random_counts(seed=seed)
    fallback = np.random.default_rng(seed).integers(0, 7, 23)
    got = top_assignment(
        sp.csr_matrix(counts), budget, axis="label", binary=True, fallback=fallback
    )
    np.testing.assert_array_equal(got.toarray(), greedy(counts, budget, fallback))


@pytest.mark.parametrize("binary", [True, False])
def test_counts_equal_a_loop(binary):
    rng = np.random.default_rng(0)
    relevance = (rng.random((40, 9)) < 0.2) * rng.uniform(0.5, 2, (40, 9))
    scores = (rng.random((40, 5)) < 0.4) * (1 if binary else rng.random((40, 5)))
    expected = np.zeros((9, 5))
    for point in range(40):
        for label in np.flatnonzero(relevance[point]):
            expected[label] += scores[point]
    counts = count_matrix(sp.csr_matrix(relevance), sp.csr_matrix(scores))
    assert counts.shape == (9, 5) and counts.dtype == np.float32 and counts.has_canonical_format
    np.testing.assert_allclose(counts.toarray(), expected, rtol=1e-6)


def test_unsorted_repeated_and_stored_zero_entries():
    # 2: 1 + 1
    counts = sp.csr_matrix(([1, 3, 1, 0, 0], [2, 1, 2, 0, 1], [0, 4, 5]), (2, 3), np.float32)
    before = counts.copy()
    got = top_assignment(counts, 2, axis="label", binary=False)
    np.testing.assert_array_equal(dense(got), [[np.nan, 3, 2], [np.nan] * 3])
    np.testing.assert_array_equal(counts.data, before.data)
    # a label twice is one positive
    y = sp.csr_matrix(([2.0, 2.0, 5.0], [0, 0, 1], [0, 2, 3]), (2, 2))
    np.testing.assert_array_equal(count_matrix(y, sp.csr_matrix(np.eye(2))).toarray(), np.eye(2))


def test_one_label_one_cluster_none():
    one = sp.csr_matrix(np.ones((1, 1), np.float32))
    assert top_assignment(one, 1, axis="label", binary=True).toarray() == 1
    # a cluster may have fewer labels
    assert top_assignment(one, 5, axis="cluster", binary=True).toarray() == 1
    empty = top_assignment(
        sp.csr_matrix((3, 4), dtype=np.float32), 2, axis="label", binary=True, fallback=[3, 0, 1]
    )
    assert empty.indices.tolist() == [3, 0, 1]
    assert top_assignment(
        sp.csr_matrix((0, 4), dtype=np.float32), 2, axis="label", binary=True
    ).shape == (0, 4)


def test_errors_name_what_came():
    counts = sp.csr_matrix(random_counts())

    def failing(match, counts=counts, budget=2, **options):
        with pytest.raises(ValueError, match=match):
            top_assignment(counts, budget, **{"axis": "label", "binary": True, **options})

    failing("8 copies of each label need as many clusters, there are 7", budget=8)
    failing("budget >= 1, got 0", budget=0)
    failing("unknown axis 'row'; known: label, cluster", axis="row")
    failing(r"shape \(23,\), got \(5,\)", fallback=np.zeros(5, int))
    failing(r"\[0, 7\), got 7 for label 3", fallback=np.where(np.arange(23) == 3, 7, 0))
    failing("axis 'label' only", axis="cluster", fallback=np.zeros(23, int))
    for bad in (-1, np.nan, np.inf):
        failing(
            f"finite counts >= 0, got {float(bad)} at row 1, label 0",
            counts=sp.csr_matrix([[1.0, 0], [bad, 0]]),
        )
    with pytest.raises(ValueError, match="3 points, the matching 4"):
        count_matrix(sp.csr_matrix((3, 2)), sp.csr_matrix((4, 2)))
