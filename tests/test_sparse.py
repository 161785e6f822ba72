"""Sparse helpers against loops over rows, with ties, explicit zeros, negative scores and empty
rows.

python -m pytest tests/test_sparse.py
"""

import numpy as np
import pytest
from scipy import sparse

import utils.sparse
from utils.sparse import check_relevance, contains, lookup, remove_pairs, topk_csr, topk_rows


def random_csr(rng, points, labels, dtype=np.float32):
    """CSR with rows of 0 to L entries in shuffled order of ids; few distinct values, 0 and < 0
    among them."""
    lengths = rng.integers(0, labels + 1, size=points)
    indices = np.concatenate([rng.permutation(labels)[:n] for n in lengths]).astype(np.int32)
    values = rng.integers(-3, 4, size=len(indices)).astype(dtype)
    return sparse.csr_matrix((values, indices, np.cumsum([0, *lengths])), shape=(points, labels))


def entries(matrix):
    """{(row, label): value} of everything stored."""
    return {
        (i, int(matrix.indices[p])): matrix.data[p].item()
        for i in range(matrix.shape[0])
        for p in range(matrix.indptr[i], matrix.indptr[i + 1])
    }


def slow_topk(matrix, k):
    """topk_rows by sorting every row in python."""
    stored = entries(matrix)
    (points, _) = matrix.shape
    ids, values = np.full((points, k), -1), np.full((points, k), -np.inf, dtype=np.float32)
    for i in range(points):
        ranked = sorted((-value, label) for (row, label), value in stored.items() if row == i)[:k]
        for r, (negated, label) in enumerate(ranked):
            ids[i, r], values[i, r] = label, -negated
    return ids, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_topk_rows_equals_sorting_each_row(dtype, k, monkeypatch):
    rng = np.random.default_rng(k)
    for cells in (1, 7, 1 << 20):  # blocks of one row, of a few rows, of all rows
        monkeypatch.setattr(utils.sparse, "CELLS", cells)
        matrix = random_csr(rng, points=23, labels=9, dtype=dtype)
        before = entries(matrix)
        ids, values = topk_rows(matrix, k)
        slow_ids, slow_values = slow_topk(matrix, k)
        np.testing.assert_array_equal(ids, slow_ids)
        np.testing.assert_array_equal(values, slow_values)
        assert ids.dtype == np.int64 and values.dtype == np.float32 and entries(matrix) == before


def test_topk_rows_breaks_ties_by_lower_id_and_keeps_zeros_and_infinities():
    matrix = sparse.csr_matrix(([0.0, 1, 1, -np.inf, -2], ([0] * 5, [4, 3, 1, 0, 2])), shape=(2, 5))
    ids, values = topk_rows(matrix, 6)
    assert ids.tolist() == [[1, 3, 4, 2, 0, -1], [-1] * 6]
    assert values.tolist() == [[1, 1, 0, -2, -np.inf, -np.inf], [-np.inf] * 6]


def test_topk_rows_orders_float64_beyond_float32():
    matrix = sparse.csr_matrix([[1 - 1e-12, 1 - 1e-13, 1 - 1e-14]])
    assert topk_rows(matrix, 3)[0].tolist() == [[2, 1, 0]]


def test_topk_rows_names_the_nan_and_refuses_k_0():
    matrix = sparse.csr_matrix(([1.0, np.nan], ([0, 3], [1, 2])), shape=(4, 5))
    with pytest.raises(ValueError, match="got nan at row 3, label 2"):
        topk_rows(matrix, 2)
    with pytest.raises(ValueError, match="k >= 1, got 0"):
        topk_rows(matrix, 0)


def test_topk_csr_drops_padding_and_keeps_zeros():
    values = np.array([[2, 0, 5], [9, 9, -1]], dtype=np.float32)
    matrix = topk_csr(values, np.array([[4, 0, -1], [-1, -1, 3]]), 5)
    assert entries(matrix) == {(0, 4): 2, (0, 0): 0, (1, 3): -1}
    assert matrix.has_canonical_format and matrix.shape == (2, 5) and matrix.dtype == np.float32
    assert topk_csr(np.zeros((3, 0)), np.zeros((3, 0), dtype=int), 5).nnz == 0


def test_topk_csr_inverts_topk_rows():
    matrix = random_csr(np.random.default_rng(0), points=17, labels=6)
    ids, values = topk_rows(matrix, 6)
    assert entries(topk_csr(values, ids, 6)) == entries(matrix)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 5]], r"ids in \[-1, 5\), got 0 to 5"),
        ([[-2, 1]], "got -2 to 1"),
        ([[3, 3]], "label 3 twice in row 0"),
        ([[0, 1, 2]], r"one shape \[N, k\]"),
    ],
)
def test_topk_csr_refuses_wrong_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        topk_csr(np.ones((1, 2)), np.array(ids), 5)


def test_pairs_equal_a_dictionary():
    rng = np.random.default_rng(1)
    for _ in range(20):
        matrix = random_csr(rng, points=8, labels=5)
        stored = entries(matrix)
        rows, cols = rng.integers(8, size=30), rng.integers(5, size=30)
        pairs = list(zip(rows.tolist(), cols.tolist(), strict=True))
        assert contains(matrix, rows, cols).tolist() == [pair in stored for pair in pairs]
        assert lookup(matrix, rows, cols).tolist() == [stored.get(pair, 0) for pair in pairs]
        left = remove_pairs(matrix, rows, cols)
        assert entries(left) == {
            pair: value for pair, value in stored.items() if pair not in set(pairs)
        }
        assert left.has_canonical_format and entries(matrix) == stored


def test_contains_broadcasts_and_never_finds_padding():
    # the last label of row 0 neighbours the key of (1, -1)
    matrix = sparse.csr_matrix(np.eye(3)[::-1])
    found = contains(matrix, np.arange(3)[:, None], np.array([[-1, 0, 1, 2, 3]] * 3))
    assert found.astype(int).tolist() == [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    assert not contains(sparse.csr_matrix((2, 2)), [0, 1], [1, 1]).any()


def test_keys_do_not_overflow_32_bits():
    matrix = sparse.csr_matrix(
        ([1.0, 2.0], ([3, 99_999], [7, 999_999])), shape=(100_000, 1_000_000)
    )
    assert lookup(matrix, [3, 99_999, 99_999], [7, 999_999, 7]).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("rows", "cols", "message"),
    [
        ([2], [0], r"rows in \[0, 2\), got 2 to 2"),
        ([0], [-1], r"cols in \[0, 3\), got -1 to -1"),
        ([0, 1], [1], r"one shape \[F\]"),
    ],
)
def test_remove_pairs_refuses_pairs_outside(rows, cols, message):
    with pytest.raises(ValueError, match=message):
        remove_pairs(sparse.csr_matrix((2, 3)), rows, cols)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1])
def test_check_relevance_names_the_first_bad_entry(bad):
    matrix = sparse.csr_matrix(([1.0, bad, bad], ([0, 2, 2], [4, 1, 3])), shape=(3, 5))
    with pytest.raises(ValueError, match=rf"Y\.trn\.npz: .* got {float(bad)} at row 2, label 1"):
        check_relevance(matrix, "Y.trn.npz")


def test_check_relevance_returns_canonical_float32():
    matrix = sparse.csr_matrix(([3, 0, 1, 1], [2, 1, 0, 0], [0, 2, 4]), shape=(2, 3))
    checked = check_relevance(matrix, "Y")
    assert entries(checked) == {(0, 2): 3, (1, 0): 2}
    assert checked.has_canonical_format and checked.dtype == np.float32 and checked.format == "csr"
    assert matrix.data.tolist() == [3, 0, 1, 1] and matrix.indices.tolist() == [2, 1, 0, 0]


def test_check_relevance_refuses_broken_input():
    broken = sparse.csr_matrix((2, 3))
    broken.data = np.ones(1)
    broken.indices = np.array([3])
    broken.indptr = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"Y\.npz: expected a valid CSR of shape \(2, 3\)"):
        check_relevance(broken, "Y.npz")
    with pytest.raises(ValueError, match="expected a scipy sparse matrix, got ndarray"):
        check_relevance(np.eye(2), "Y.npz")
