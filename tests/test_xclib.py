"""Our metrics beside those of xclib itself, where it is installed (requirements-xclib.txt).

tests/test_metrics.py compares with values that xclib has once computed, and with its formulas.
"""

import numpy as np
import pytest
import scipy.sparse as sp

from utils.metrics import evaluate, inverse_propensity

xclib = pytest.importorskip("xclib.evaluation.xc_metrics", reason="xclib is not installed")
POINTS = 300
LABELS = 120
K = 5


@pytest.fixture(scope="module")
def matrices():
    """Relevance and scores without ties, of which xclib may break some another way."""
    rng = np.random.default_rng(0)
    relevance = sp.random(POINTS, LABELS, 0.05, "csr", random_state=rng)
    relevance.data[:] = 1
    scores = sp.random(POINTS, LABELS, 0.3, "csr", random_state=rng)
    scores.data = rng.permutation(scores.nnz) + 1.0
    return relevance, scores


def test_propensities(matrices):
    relevance, _ = matrices
    counts = np.bincount(relevance.indices, minlength=LABELS)
    ours = inverse_propensity(counts, POINTS, 0.55, 1.5)
    theirs = np.ravel(xclib.compute_inv_propesity(relevance, 0.55, 1.5))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "weighted"),
    [
        ("P", "precision", False),
        ("nDCG", "ndcg", False),
        ("R", "recall", False),
        ("PSP", "psprecision", True),
        ("PSnDCG", "psndcg", True),
    ],
)
def test_metrics(matrices, ours, theirs, weighted):
    relevance, scores = matrices
    counts = np.bincount(relevance.indices, minlength=LABELS)
    propensity = inverse_propensity(counts, POINTS, 0.55, 1.5)
    found = evaluate(scores, relevance, propensity, tuple(range(1, K + 1)))
    given = (propensity,) if weighted else ()
    expected = getattr(xclib, theirs)(scores, relevance, *given, k=K)
    values = [found[f"{ours}@{k}"] for k in range(1, K + 1)]
    np.testing.assert_allclose(values, 100 * np.ravel(expected), rtol=1e-5)
