"""Scores of given labels against their slow definitions."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.scores import InnerProducts, Reached
from utils.search import ExactIndex
from utils.sparse import lookup, topk_rows

POINTS, LABELS, DIM = 70, 30, 9


@pytest.fixture
def asked():
    """Labels asked of each point, some -1."""
    return np.random.default_rng(1).integers(-1, LABELS, (POINTS, 12))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["array", "tensor", "half"])
def test_inner_products_of_given_labels(asked, kind, with_bias):
    generator = torch.Generator().manual_seed(0)
    queries, rows = (torch.randn(n, DIM, generator=generator) for n in (POINTS, LABELS))
    bias = torch.randn(LABELS, generator=generator) if with_bias else None
    rows = rows.half() if kind == "half" else rows
    expected = (queries @ rows.float().T + (0 if bias is None else bias)).numpy()
    found = InnerProducts(
        queries, ExactIndex(rows.numpy() if kind == "array" else rows, bias), 64
    ).of(asked)
    assert found.dtype == np.float32
    known = asked >= 0
    np.testing.assert_allclose(
        found[known], expected[np.nonzero(known)[0], asked[known]], rtol=1e-5, atol=1e-5
    )


def test_reached_labels_are_ranked_and_looked_up(asked):
    """Rows of any length, an empty one among them, and equal scores."""
    scores = sp.random(POINTS, LABELS, 0.4, "csr", np.float32, np.random.default_rng(0))
    scores.data = np.ceil(scores.data * 5) / 5
    scores = sp.vstack(
        [scores[:3], sp.csr_matrix((1, LABELS), dtype=np.float32), scores[4:]], "csr"
    )
    reached = Reached(scores)
    np.testing.assert_array_equal(
        reached.of(asked), lookup(scores, np.arange(POINTS)[:, None], asked)
    )
    # where scores may be negative, no score is the lowest
    below = Reached(-scores, negative=True).of(asked)
    dense = -scores.toarray()
    stored = scores.toarray() != 0
    for i, j in np.argwhere(asked >= 0):
        lowest = dense[i][stored[i]].min(initial=0)
        assert below[i, j] == (dense[i, asked[i, j]] if stored[i, asked[i, j]] else lowest)
    for k in (1, 7, LABELS + 3):
        ids, values = topk_rows(scores, k)
        found = reached.best(k)
        np.testing.assert_array_equal(found[0], values)
        np.testing.assert_array_equal(found[1], ids)
