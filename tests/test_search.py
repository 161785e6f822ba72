import numpy as np
import pytest
import torch

from utils.search import exact_topk


@pytest.mark.parametrize("block", [1, 3, 7, 10, 100])
@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("as_array", [False, True])
def test_equals_a_full_sort(block, k, as_array):
    rng = np.random.default_rng(0)
    queries, labels = (rng.normal(size=(n, 5)).astype(np.float32) for n in (6, 10))
    bias = rng.normal(size=10).astype(np.float32)
    full = queries @ labels.T + bias
    expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
    got_labels = labels if as_array else torch.from_numpy(labels)
    scores, ids = exact_topk(torch.from_numpy(queries), got_labels, k, bias=torch.from_numpy(bias), block=block)
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), np.take_along_axis(full, expected, 1), rtol=1e-5)


def test_equal_scores_go_by_label_id():
    _, ids = exact_topk(torch.ones(1, 2), torch.ones(6, 2), 6, block=2)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_one_label_and_no_queries():
    scores, ids = exact_topk(torch.zeros(0, 2), torch.ones(1, 2), 1)
    assert scores.shape == ids.shape == (0, 1)


@pytest.mark.parametrize("k", [0, 7])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match="k must be from 1 to the number of labels, 6; got"):
        exact_topk(torch.ones(1, 2), torch.ones(6, 2), k)
