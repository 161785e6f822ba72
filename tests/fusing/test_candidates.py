"""Candidates of a fusion: put together, taken apart and written as a matrix, against loops."""

import numpy as np
import pytest
import scipy.sparse as sp

from utils.fusing.candidates import Candidates, joined, merge

LABELS = 9


def random_candidates(points, k, seed):
    """Of two members that propose k of nine labels, some of them none."""
    rng = np.random.default_rng(seed)
    ids = [np.stack([rng.permutation(LABELS)[:k] for _ in range(points)]) for _ in range(2)]
    for proposed in ids:
        proposed[rng.random(proposed.shape) < 0.2] = -1
    labels, ranks = merge(ids, LABELS)
    return Candidates(labels, ranks, rng.normal(size=ranks.shape).astype(np.float32), k)


def places(found):
    """Of each point {label: (ranks, scores)}."""
    return [
        {
            int(label): (ranks.tolist(), scores.tolist())
            for label, ranks, scores in zip(*point, strict=True)
            if label != -1
        }
        for point in zip(found.labels, found.ranks, found.scores, strict=True)
    ]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_joined_parts_hold_the_points_of_all(order):
    made = [random_candidates(points, 3, seed) for seed, points in enumerate((4, 2, 3))]
    narrow = Candidates(*(a[:, :2] for a in (made[0].labels, made[0].ranks, made[0].scores)), 3)
    parts = [[narrow, *made[1:]][i] for i in order]
    got = joined(parts)
    assert places(got) == [point for part in parts for point in places(part)]
    assert got.labels.shape[1] == max(part.labels.shape[1] for part in parts)
    assert got.labels.min() == -1
    assert got.k == joined(parts[:1]).k == 3


def test_removed_pairs_are_no_candidates():
    found = random_candidates(6, 4, seed=7)
    removed = {(0, int(found.labels[0, 0])), (3, int(found.labels[3, 1])), (5, 0), (5, 8)}
    rows, columns = zip(*removed, strict=True)
    pairs = sp.csr_matrix((np.ones(len(removed)), (rows, columns)), (6, LABELS))
    assert places(found.without_pairs(pairs)) == [
        {label: what for label, what in point.items() if (i, label) not in removed}
        for i, point in enumerate(places(found))
    ]


def test_a_member_left_out_takes_its_own_proposals_along():
    found = random_candidates(6, 4, seed=8)
    for member in range(2):
        other = 1 - member
        assert places(found.without(member)) == [
            {
                label: ([ranks[other]], [scores[other]])
                for label, (ranks, scores) in point.items()
                if ranks[other] < 4  # 4: it proposed another
            }
            for point in places(found)
        ]


def test_values_as_a_matrix():
    found = random_candidates(6, 4, seed=9)
    values = np.arange(1, found.known.sum() + 1, dtype=np.float32)
    got = found.as_csr(values, LABELS)
    slow = np.zeros((6, LABELS))
    at = iter(values)
    for row, labels in enumerate(found.labels):
        for label in labels:
            if label != -1:
                slow[row, label] = next(at)
    np.testing.assert_array_equal(got.toarray(), slow)


@pytest.mark.parametrize("wrong", [-2, LABELS])
def test_ids_of_no_label_are_refused(wrong):
    right = np.array([[-1, LABELS - 1, 0]])
    labels, ranks = merge([right, right], LABELS)
    assert labels.tolist() == [[LABELS - 1, 0]]
    assert ranks.tolist() == [[[1, 1], [2, 2]]]
    with pytest.raises(ValueError, match=r"expected label ids in \[-1, 9\)"):
        merge([right, np.array([[0, wrong, 1]])], LABELS)


def test_without_proposals_or_points_one_empty_place_is_left():
    none = np.full((2, 3), -1)
    for points in (2, 0):
        labels, ranks = merge([none[:points]] * 2, LABELS)
        assert labels.tolist() == [[-1]] * points
        assert ranks.shape == (points, 1, 2)
