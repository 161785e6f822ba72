import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.synthetic_tree import (
    FEATURES,
    FEATURES_PER_POINT,
    LABELS_PER_POINT,
    made_problem,
    write_problem,
)
from utils.clustering.clustering import centroids


def test_the_shape_of_the_whole_in_small():
    features, relevance = made_problem(3000, 4100)
    assert features.shape == (3000, FEATURES) and relevance.shape == (3000, 4100)
    for matrix in (features, relevance):
        assert matrix.dtype == np.float32 and matrix.has_canonical_format
    assert features.nnz / 3000 == pytest.approx(FEATURES_PER_POINT, rel=0.05)
    assert relevance.nnz / 3000 == pytest.approx(LABELS_PER_POINT, rel=0.1)
    np.testing.assert_allclose(
        np.sqrt(np.asarray(features.multiply(features).sum(1))), 1, rtol=1e-5
    )
    assert (relevance.data == 1).all() and (np.diff(relevance.indptr) > 0).all()
    frequency = np.bincount(relevance.indices, minlength=4100)
    assert (frequency > 0).mean() > 0.99
    # a power law: many rare ones, few frequent ones
    assert np.median(frequency) <= 4 and frequency.max() > 20
    again = made_problem(3000, 4100)
    assert (features != again[0]).nnz == 0 and (relevance != again[1]).nnz == 0
    assert (features != made_problem(3000, 4100, seed=1)[0]).nnz > 0


def test_labels_can_be_learned_from_features(tmp_path):
    write_problem(tmp_path, fraction=0.004)
    x, xt, y, yt = (
        sp.load_npz(tmp_path / f"{kind}.{split}.npz") for kind in "XY" for split in ("trn", "tst")
    )
    assert x.shape == (1962, FEATURES) and yt.shape == (196, 2680) and len(xt.indptr) == 197
    points, labels = y.nonzero()
    best = (xt @ centroids(x[points], labels, y.shape[1]).T).toarray().argmax(1)
    assert np.asarray(yt[np.arange(196), best]).mean() > 0.2  # by chance: 0.002


def test_fractions_outside():
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match=r"\(0, 1\], got"):
            write_problem("nowhere", fraction)
