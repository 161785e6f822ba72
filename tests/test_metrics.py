"""Metrics against reference values of xclib and against loops that follow the formulas of
`utils.metrics`.

python -m pytest tests/test_metrics.py
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import utils.metrics
from utils.metrics import (
    describe,
    evaluate,
    inverse_propensity,
    paired_bootstrap,
    per_point,
    reliability,
)

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"


def csr(rows, labels):
    """CSR from a dict {label: value} per row, explicit zeros included."""
    indices = np.array([label for row in rows for label in row], dtype=np.int32)
    values = np.array([value for row in rows for value in row.values()], dtype=np.float32)
    return sparse.csr_matrix(
        (values, indices, np.cumsum([0, *map(len, rows)])), shape=(len(rows), labels)
    )


def random_rows(rng, points, labels, low, high):
    """A dict {label: integer in [low, high)} per row, with 0 to L entries: ties and empty rows
    abound."""
    chosen = [rng.permutation(labels)[: rng.integers(labels + 1)].tolist() for _ in range(points)]
    return [{label: int(rng.integers(low, high)) for label in row} for row in chosen]


def gain(ranked, weight, k):
    """(sum of gains / k, discounted sum) of a ranking, labels without a weight gaining nothing."""
    gains = [weight.get(label, 0.0) for label in ranked[:k]]
    return sum(gains) / k, sum(g / math.log2(r + 2) for r, g in enumerate(gains))


def slow_metrics(scores, relevance, weights, k, pairs):
    """The six metrics at k in percent, by loops over points; scores and relevance are dicts per
    row."""
    sums = dict.fromkeys(("P", "nDCG", "PSP", "PSnDCG", "R", "MRR", "best PSP", "best PSnDCG"), 0.0)
    for i, (row, truth) in enumerate(zip(scores, relevance, strict=True)):
        ranked = [label for _, label in sorted((-row[j], j) for j in row if (i, j) not in pairs)]
        one = {label: 1.0 for label, value in truth.items() if value > 0}  # y
        inverse = {label: weights[label] for label in one}  # y / p
        ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(one)))) or 1.0
        best = gain(sorted(one, key=lambda label: -weights[label]), inverse, k)
        plain, weighted = gain(ranked, one, k), gain(ranked, inverse, k)
        ranks = [r + 1 for r, label in enumerate(ranked[:k]) if label in one]
        point = {
            "P": plain[0],
            "nDCG": plain[1] / ideal,
            "PSP": weighted[0],
            "PSnDCG": weighted[1] / ideal,
            "R": len(ranks) / max(len(one), 1),
            "MRR": 1 / ranks[0] if ranks else 0.0,
            "best PSP": best[0],
            "best PSnDCG": best[1] / ideal,
        }
        sums = {name: sums[name] + point[name] for name in sums}
    norm = {"PSP": sums.pop("best PSP") or 1, "PSnDCG": sums.pop("best PSnDCG") or 1}
    return {
        f"{name}@{k}": 100 * total / norm.get(name, len(scores)) for name, total in sums.items()
    }


@pytest.mark.parametrize("case", range(3))
def test_equals_xclib(case):
    expected = json.loads((FIXTURES / "expected.json").read_text())
    assert len(expected) == 3
    with np.load(FIXTURES / f"case{case}.npz") as file:
        shape = file["shape"]
        scores = sparse.csr_matrix(
            (file["score_data"], file["score_indices"], file["score_indptr"]), shape
        )
        ones = np.ones(len(file["y_indices"]), dtype=np.float32)
        relevance = sparse.csr_matrix((ones, file["y_indices"], file["y_indptr"]), shape)
        weights = inverse_propensity(
            file["train_freq"], *(file[key].item() for key in ("n_train", "a", "b"))
        )
        np.testing.assert_allclose(weights, file["inv_propensity"], rtol=1e-12)
    metrics = evaluate(scores, relevance, weights, ks=range(1, 6))
    for name, values in expected[case].items():
        got = [metrics[f"{name}@{k}"] / 100 for k in range(1, 6)]
        np.testing.assert_allclose(got, values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("seed", range(12))
def test_equals_loops_over_the_formulas(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    points, labels = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    # one, a few or all at a time
    monkeypatch.setattr(utils.metrics, "CELLS", [1, 60, 1 << 19][seed % 3])
    scores, relevance = (
        random_rows(rng, points, labels, -2, 3),
        random_rows(rng, points, labels, 0, 3),
    )
    weights = inverse_propensity(rng.integers(0, 9, size=labels), 50, a=0.55, b=1.5)
    pairs = np.stack([rng.integers(points, size=25), rng.integers(labels, size=25)], axis=1)
    for used in (None, pairs):
        got = evaluate(csr(scores, labels), csr(relevance, labels), weights, (1, 2, 3, 5, 20), used)
        removed = set() if used is None else set(map(tuple, used.tolist()))
        slow = {
            key: value
            for k in (1, 2, 3, 5, 20)
            for key, value in slow_metrics(scores, relevance, weights.tolist(), k, removed).items()
        }
        assert got == pytest.approx(slow, rel=1e-12, abs=1e-12)
        assert all(type(value) is float for value in got.values())


def test_by_hand():
    # rankings 1 0 2, then 2, then none
    scores = csr([{0: 0.5, 1: 0.9, 2: 0.5}, {2: 0.0}, {}], labels=3)
    metrics = evaluate(
        scores, csr([{0: 1, 2: 4}, {2: 1}, {}], 3), np.array([2.0, 1.0, 3.0]), ks=(1, 2)
    )
    discount = 1 / math.log2(3)
    expected = {
        "P@1": 1 / 3,
        "P@2": (1 / 2 + 1 / 2) / 3,
        "R@1": 1 / 3,
        "R@2": (1 / 2 + 1) / 3,
        "MRR@1": 1 / 3,
        "MRR@2": (1 / 2 + 1) / 3,
        "nDCG@1": 1 / 3,
        "nDCG@2": (discount / (1 + discount) + 1) / 3,
        "PSP@1": 3 / (3 + 3),
        "PSP@2": (2 + 3) / (3 + 2 + 3),
        "PSnDCG@1": 3 / (3 + 3),
        "PSnDCG@2": (2 * discount / (1 + discount) + 3) / ((3 + 2 * discount) / (1 + discount) + 3),
    }
    assert metrics == pytest.approx({key: 100 * value for key, value in expected.items()})


def test_perfect_ranking_gives_100():
    rng = np.random.default_rng(3)
    relevance = csr(
        [dict.fromkeys(rng.permutation(30)[: rng.integers(1, 9)], 1) for _ in range(25)], 30
    )
    weights = inverse_propensity(rng.permutation(30), 25, a=0.6, b=2.6)
    scores = relevance.copy()
    scores.data = weights[relevance.indices]
    metrics = evaluate(scores, relevance, weights, ks=(1, 3, 5, 10))
    ideal = [f"{name}@{k}" for name in ("nDCG", "PSP", "PSnDCG", "MRR") for k in (1, 3, 5, 10)]
    assert {key: metrics[key] for key in ideal} == pytest.approx(dict.fromkeys(ideal, 100))
    scores.data = -scores.data  # the worst order of the relevant labels
    worse = evaluate(scores, relevance, weights, ks=(1,))
    assert worse["nDCG@1"] == pytest.approx(100) and worse["PSP@1"] < 100


def test_no_relevant_label_and_no_prediction_give_0():
    nothing, something = csr([{}, {}], 4), csr([{0: 1}, {3: 1}], 4)
    for scores, relevance in ((something, nothing), (nothing, something), (nothing, nothing)):
        metrics = evaluate(scores, relevance, np.ones(4), ks=(1, 5))
        assert len(metrics) == 12 and set(metrics.values()) == {0.0}


def test_relevance_is_binary_and_explicit_zeros_are_not_relevant():
    scores = csr([{0: 3, 1: 2, 2: 1}], 4)
    rows = {0: 0, 1: 7, 3: 0.5}, {1: 1, 3: 1}
    graded, binary = (evaluate(scores, csr([row], 4), np.ones(4)) for row in rows)
    assert graded == binary and graded["P@1"] == 0 and graded["MRR@3"] == 50


def test_filter_pairs_leave_relevance_and_inputs_alone():
    scores, relevance = csr([{0: 3, 1: 2}, {0: 3, 1: 2}], 3), csr([{0: 1, 1: 1}, {0: 1}], 3)
    metrics = evaluate(scores, relevance, ks=(1, 2), filter_pairs=[[1, 0], [0, 0], [0, 2]])
    assert metrics["P@1"] == 50 and metrics["R@2"] == 25 and scores.nnz == 4
    assert evaluate(scores, relevance, filter_pairs=np.zeros(0)) == evaluate(scores, relevance)


def test_without_propensities_there_is_no_psp():
    metrics = evaluate(csr([{0: 1}], 2), csr([{0: 1}], 2))
    assert set(metrics) == {
        f"{name}@{k}" for name in ("P", "nDCG", "R", "MRR") for k in (1, 3, 5, 10, 100)
    }


def test_per_point_averages_to_evaluate_and_resamples():
    rng = np.random.default_rng(5)
    scores, relevance = (csr(random_rows(rng, 30, 8, 0, 3), 8) for _ in range(2))
    weights = inverse_propensity(rng.integers(0, 9, size=8), 30, a=0.5, b=0.4)
    points = per_point(scores, relevance, weights)
    assert points.mean() == pytest.approx(evaluate(scores, relevance, weights), rel=1e-12)
    assert points.values["P@1"].shape == (30,) and set(points.best) == {
        k for k in points.values if "PS" in k
    }
    sample = rng.integers(30, size=30)
    again = evaluate(scores[sample], relevance[sample], weights)
    assert points.mean(sample) == pytest.approx(again, rel=1e-12)
    with pytest.raises(ValueError, match="at least one point"):
        points.mean([])


def test_inverse_propensity_by_the_formula():
    got = inverse_propensity([0, 1, 100], 1000, a=0.55, b=1.5)
    slow = [1 + (math.log(1000) - 1) * (1.5 + 1) ** 0.55 * (n + 1.5) ** -0.55 for n in (0, 1, 100)]
    assert got.tolist() == pytest.approx(slow, rel=1e-12)
    fewest = inverse_propensity([2], 3, a=1, b=1)  # log 3 > 1 is asked for
    assert fewest.tolist() == pytest.approx([1 + (math.log(3) - 1) * 2 / 3])
    assert inverse_propensity(sparse.csr_matrix(np.eye(2)).sum(axis=0), 10, 0.5, 0.4).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], 2, 0.5, 0.4), "num_points >= 3.* got 2"),
        (([1], 9, 0, 0.4), "a > 0 and b > 0, got a = 0"),
        (([1], 9, 0.5, 0), "a > 0 and b > 0, got a = 0.5, b = 0"),
        (([-1], 9, 0.5, 0.4), "label counts >= 0"),
    ],
)
def test_inverse_propensity_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        inverse_propensity(*arguments)


ONE = csr([{0: 1}, {1: 1}], 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": csr([{0: 1}], 3)}, r"expected the shape of scores \(1, 3\), got \(2, 3\)"),
        (
            dict.fromkeys(("scores", "relevance"), sparse.csr_matrix((0, 3))),
            r"one point .* got shape \(0, 3\)",
        ),
        ({"scores": np.ones((2, 3))}, "scores: expected a scipy sparse matrix, got ndarray"),
        ({"scores": csr([{}, {2: np.nan}], 3)}, "scores: .* got nan at row 1, label 2"),
        ({"relevance": csr([{}, {2: -1}], 3)}, "relevance: .* got -1.0 at row 1, label 2"),
        ({"inv_propensity": np.ones(2)}, r"expected shape \(3,\), got \(2,\)"),
        ({"inv_propensity": np.zeros(3)}, "inv_propensity: expected finite values > 0"),
        ({"ks": (0, 1)}, "ks: expected one or more"),
        ({"filter_pairs": [[0, 3]]}, r"within \(2, 3\), got \[0 3\] to \[0 3\]"),
        ({"filter_pairs": [[0.5, 1]]}, r"expected integers \[F, 2\], got float64 \(1, 2\)"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**({"scores": ONE, "relevance": ONE} | changes))


def test_describe_is_an_aligned_table():
    lines = describe({"P@1": 42.194, "R@100": 100.0, "PSnDCG@1": 7.5, "P@5": 3.0}).split("\n")
    assert lines[:2] == ["@k           1       5     100", "P        42.19    3.00"]
    assert lines[2:] == ["PSnDCG    7.50", "R                       100.00"]
    with pytest.raises(ValueError, match="keys like 'P@1', got 'loss'"):
        describe({"loss": 1.0})


def test_bootstrap_is_that_of_a_loop_over_samples(monkeypatch):
    rng = np.random.default_rng(2)
    relevance = sparse.csr_matrix((rng.random((15, 9)) < 0.3).astype(np.float32))
    systems = [sparse.csr_matrix(rng.random((15, 9))) for _ in range(2)]
    weights = inverse_propensity(rng.integers(0, 9, 9), 30, a=0.55, b=1.5)
    monkeypatch.setattr("utils.metrics.CELLS", 15 * 7)  # 7 samples at a time, 20 in all
    found = paired_bootstrap(
        [per_point(s, relevance, weights, (1, 3)) for s in systems], 20, seed=4
    )
    generator = np.random.default_rng(4)
    for sample in range(20):
        drawn = generator.integers(15, size=15)
        for scores, values in zip(systems, found, strict=True):
            # of the same points for both
            slow = evaluate(scores[drawn], relevance[drawn], weights, (1, 3))
            assert {len(value) for value in values.values()} == {20}
            assert {key: value[sample] for key, value in values.items()} == pytest.approx(
                slow, rel=1e-12
            )


def test_interval_of_a_difference_is_about_two_standard_errors():
    rng = np.random.default_rng(0)
    relevance = sparse.csr_matrix(np.eye(2)[np.zeros(800, int)])
    one, two = (
        sparse.csr_matrix(np.eye(2)[(rng.random(800) > share).astype(int)]) for share in (0.4, 0.5)
    )
    points = [per_point(scores, relevance, ks=(1,)).only(["P@1"]) for scores in (one, two)]
    first, second = paired_bootstrap(points, 4000)
    low, high = np.percentile(second["P@1"] - first["P@1"], (2.5, 97.5))
    gain = 100 * (points[1].values["P@1"] - points[0].values["P@1"])
    error = gain.std() / np.sqrt(800)
    assert [low, high] == pytest.approx(
        [gain.mean() - 1.96 * error, gain.mean() + 1.96 * error], abs=0.3 * error
    )


def test_reliability_by_loops():
    rng = np.random.default_rng(1)
    scores = np.append(rng.random(300), [0.0, 1.0])
    right = rng.random(302) < 0.4
    found = reliability(scores, right)
    for b in range(10):
        inside = [i for i, s in enumerate(scores) if min(int(s * 10), 9) == b]
        assert found["count"][b] == len(inside)
        assert found["score"][b] == pytest.approx(np.mean(scores[inside]))
        assert found["right"][b] == pytest.approx(np.mean(right[inside]))
    assert reliability(np.array([0.95]), np.array([True]))["count"] == [0] * 9 + [1]
    for bad in ([], [-0.1, 0.5], [0.5, 1.2]):
        assert reliability(np.array(bad), np.zeros(len(bad), bool)) is None
