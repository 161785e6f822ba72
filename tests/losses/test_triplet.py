"""The triplet loss against loops over queries, positives and negatives, and its gradient against
finite differences."""

import math

import pytest
import torch

from losses import ROW_LOSSES, Positives, triplet, violations


def make(num_queries=6, num_labels=17, dim=4, density=0.25, seed=0):
    """Positives with absent entries and weights, a row without positives, a row of positives
    alone."""
    rng = torch.Generator().manual_seed(seed)
    queries, labels = (
        torch.nn.functional.normalize(
            torch.randn(n, dim, generator=rng, dtype=torch.float64), dim=1
        )
        for n in (num_queries, num_labels)
    )
    known = torch.rand(num_queries, num_labels, generator=rng) < density
    known[0, -1] = True
    if num_queries > 2:
        known[1], known[2] = False, True
    rows, cols = known.nonzero(as_tuple=True)
    weights = torch.rand(len(rows), generator=rng) + 0.5
    counted = torch.rand(len(rows), generator=rng) < 0.6
    bias = torch.randn(num_labels, generator=rng, dtype=torch.float64) / 10
    return queries, labels, bias, Positives.build(rows, cols, num_queries, weights, counted)


def by_loops(
    queries,
    labels,
    positives,
    bias=None,
    tau=1.0,
    margin=0.3,
    hardest_negatives=10,
    hardest_positives=None,
    hardness_tau=0.1,
):
    total = 0.0
    known = list(
        zip(
            positives.rows.tolist(),
            positives.cols.tolist(),
            positives.counted.tolist(),
            positives.weights.tolist(),
            strict=True,
        )
    )
    for i in range(len(queries)):
        scores = [
            float(queries[i] @ z) / tau + (0 if bias is None else float(bias[j]))
            for j, z in enumerate(labels)
        ]
        barred = {col for row, col, _, _ in known if row == i}
        negatives = sorted((s for j, s in enumerate(scores) if j not in barred), reverse=True)[
            :hardest_negatives
        ]
        own = sorted((scores[col], w) for row, col, counted, w in known if row == i and counted)[
            :hardest_positives
        ]
        for score, weight in own:
            violating = [n for n in negatives if n - score + margin > 0]
            norm = sum(math.exp(n / hardness_tau) for n in violating)
            loss = sum(math.exp(n / hardness_tau) / norm * (n - score + margin) for n in violating)
            total += loss * weight / len(own)
    return total / max(len(queries), 1)


OPTIONS = [
    {},
    {"margin": 1.0},
    {"hardest_negatives": 1},
    {"hardest_positives": 1, "hardness_tau": 1.0},
    {"hardest_positives": 3, "hardest_negatives": 5, "margin": 0.2, "hardness_tau": 1.0},
    {"tau": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(6, 17), (1, 1), (3, 2), (1, 40), (0, 5)])
def test_equals_the_loops(size, options):
    queries, labels, bias, positives = make(*size) if size[0] else make(1, size[1])
    if size[0] == 0:  # a process without queries in a small last batch
        queries = queries[:0]
        positives = Positives.build(*torch.zeros(2, 0, dtype=torch.int64), 0)
    for b in (None, bias):
        got = triplet(queries=queries, labels=labels, positives=positives, bias=b, **options)
        assert float(got) == pytest.approx(
            by_loops(queries, labels, positives, b, **options), rel=1e-6, abs=1e-9
        )


def test_gradient_equals_finite_differences_where_one_negative_counts():
    """With several, the weights that choose among them are left out of the gradient on purpose."""
    queries, labels, bias, positives = make()
    inputs = tuple(t.requires_grad_() for t in (queries, labels, bias))
    assert torch.autograd.gradcheck(
        lambda q, z, b: triplet(
            queries=q, labels=z, bias=b, positives=positives, hardest_negatives=1
        ),
        inputs,
    )


def test_the_weights_are_constants_of_the_gradient():
    queries, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.6, 0.0], [0.4, 0.0]])
    positives = Positives.build(torch.tensor([0]), torch.tensor([0]), 1)
    labels.requires_grad_()
    triplet(queries=queries, labels=labels, positives=positives).backward()
    shares = torch.softmax(torch.tensor([6.0, 4.0]), 0)
    torch.testing.assert_close(labels.grad[:, 0], torch.tensor([-1.0, *shares.tolist()]))


def test_rows_without_positives_or_negatives_have_loss_and_gradient_zero():
    queries, labels, _, positives = make()
    queries.requires_grad_()
    triplet(queries=queries, labels=labels, positives=positives).backward()
    assert queries.grad[1].tolist() == queries.grad[2].tolist() == [0.0] * 4
    assert torch.isfinite(queries.grad).all()
    assert queries.grad.abs().sum() > 0


@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
def test_violations_are_counted_as_by_loops(margin):
    queries, labels, _, positives = make()
    scores = queries @ labels.T
    known = set(zip(positives.rows.tolist(), positives.cols.tolist(), strict=True))
    violating = pairs = 0
    for row, col, counted in zip(
        positives.rows.tolist(), positives.cols.tolist(), positives.counted.tolist(), strict=True
    ):
        for other in range(len(labels)):
            if counted and (row, other) not in known:
                pairs += 1
                violating += bool(scores[row, other] > scores[row, col] - margin)
    got = violations(queries=queries, labels=labels, positives=positives, margin=margin)
    assert [int(n) for n in got] == [violating, pairs]


def test_wrong_shapes_are_named():
    queries, labels, _, positives = make()
    with pytest.raises(ValueError, match=r"one D, got \(6, 4\) and \(17, 3\)"):
        ROW_LOSSES["triplet"](queries=queries, labels=labels[:, :3], positives=positives)
