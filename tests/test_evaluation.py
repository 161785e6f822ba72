"""Predictions without filter pairs, and hard negatives, against the sorting of all scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from models.contract import Ranker
from models.dual.hard_negatives import HardNegatives
from models.evaluation import predict
from models.scores import Reached
from utils import distributed
from utils.data.texts import ListTexts
from utils.sparse import keep_topk, remove_pairs

POINTS = 11
LABELS = 30


class KnownScores(Ranker):
    """Ranks by a matrix of scores [n, L]; a text is the number of its row."""

    at_once = 4

    def __init__(self, scores):
        super().__init__(None, LABELS)
        self.scores = scores

    def open(self, texts, given=False):
        rows = [int(text) for text in texts.strings()]
        return Reached(self.scores[rows])

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, config, folder, num_labels, runtime):
        raise NotImplementedError


class Numbers(ListTexts):
    """As many texts as points."""

    def __init__(self):
        super().__init__([str(number) for number in range(POINTS)])


def scores_of(density):
    """Scores with ties."""
    rng = np.random.default_rng(0)
    matrix = sp.random(POINTS, LABELS, density, "csr", np.float32, rng)
    matrix.data = np.round(4 * matrix.data) + 1
    return matrix


def pairs_of(most):
    """One text has `most` pairs, some have one, others none."""
    rng = np.random.default_rng(1)
    matrix = sp.lil_matrix((POINTS, LABELS), dtype=np.float32)
    matrix[5, rng.permutation(LABELS)[:most]] = 1
    for row in range(0, 4):
        matrix[row, rng.integers(LABELS)] = 1
    return matrix.tocsr()


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("most", [0, 3, LABELS])
@pytest.mark.parametrize("k", [1, 7, LABELS, LABELS + 1])
def test_predictions_are_the_best_of_what_is_left(density, most, k):
    scores = scores_of(density)
    filters = pairs_of(most)
    found, _ = predict(KnownScores(scores), Numbers(), k, filters)
    expected = keep_topk(remove_pairs(scores, *filters.nonzero()), k)
    assert (found.indptr == expected.indptr).all()
    assert (found.indices == expected.indices).all()
    assert (found.data == expected.data).all()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shortlists_travel_at_their_own_size(monkeypatch, processes):
    """However many positives a query has: 4 bytes a label, cut where they were searched."""
    split = SimpleNamespace(
        texts=Numbers(), relevance=pairs_of(20), filters=sp.csr_matrix((POINTS, LABELS))
    )
    options = SimpleNamespace(shortlist_size=5)
    sent = []
    parts = []

    def share_arrays(own, total):
        sent.append(own.nbytes)
        parts.append(own)
        return own

    monkeypatch.setattr(distributed, "share_arrays", share_arrays)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    for name in ("gather_arrays", "broadcast", "total"):
        monkeypatch.setattr(distributed, name, None)
    scores = scores_of(1.0)
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        HardNegatives(options, split).mine(KnownScores(scores))
    assert sum(sent) == POINTS * 5 * 4
    lists = np.concatenate(parts)
    left = keep_topk(remove_pairs(scores, *split.relevance.nonzero()), 5)
    assert [set(row) - {-1} for row in lists] == [set(row.indices) for row in left]
    assert (np.diff(np.take_along_axis(scores.toarray(), lists.astype(int), 1), axis=1) <= 0).all()
