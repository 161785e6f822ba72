"""The learned fusion against its slow definition."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from utils.fusing.calibration import platt
from utils.fusing.candidates import Candidates, merge, relevant_places
from utils.fusing.features import feature_owners, features, rising_features
from utils.fusing.fuser import Fuser, SeenLabels
from utils.fusing.fuser_fitting import FuserChoice, candidate_rows, cross_fit, fit_fusers
from utils.fusing.fuser_models import KINDS, Boosted, Linear, TreeLimits, fit_model
from utils.fusing.kernels import PER_MEMBER, TOGETHER
from utils.fusing.validation import Validation, checked_ks, headline
from utils.metrics import reliability

LABELS, MEMBERS = 40, 3
LIMITS = TreeLimits(trees=30, leaves=6, min_leaf=10)


@pytest.fixture(scope="module")
def problem():
    """Candidates of 200 points whose first member knows most, and their relevance."""
    rng = np.random.default_rng(0)
    truth = rng.random((200, LABELS)) < 0.15
    scores = truth[:, :, None] * np.array([2.0, 1.0, 0.0]) + rng.normal(size=(200, LABELS, MEMBERS))
    ids = [np.argsort(-scores[:, :, m], axis=1)[:, :12] for m in range(MEMBERS)]
    labels, ranks = merge(ids, LABELS)
    own = np.take_along_axis(scores, np.maximum(labels, 0)[:, :, None], 1).astype(np.float32)
    counts = np.log1p(np.arange(LABELS)).astype(np.float32)
    return Candidates(labels, ranks, own, 12), sp.csr_matrix(truth.astype(np.float32)), counts


def fitted(problem, kind, tail=0.0):
    found, relevance, counts = problem
    rows = candidate_rows(found, relevance, counts)
    crossed = cross_fit(rows, kind, LIMITS)
    model = fit_model(kind, LIMITS, rows.features, rows.relevant)
    seen = SeenLabels(counts, np.linspace(1, 3, LABELS))
    fuser = Fuser.of_labels(seen, ["a", "b", "c"], model, crossed.calibration, tail)
    return fuser, crossed.log_odds


def test_the_union_holds_every_proposal_once_with_its_ranks():
    one, two = np.array([[3, 1, -1], [0, 2, 4]]), np.array([[1, 5, 3], [4, 4 - 1, 1]])
    labels, ranks = merge([one, two], 6)
    for i in range(2):
        expected = set(one[i]) | set(two[i]) - {-1}
        assert sorted(x for x in labels[i] if x >= 0) == sorted(expected - {-1})
        for place, label in enumerate(labels[i]):
            for m, member in enumerate((one, two)):
                where = np.flatnonzero(member[i] == label)
                if label >= 0:
                    assert ranks[i, place, m] == (where[0] if len(where) else 3)
    with pytest.raises(ValueError, match=r"label ids in \[-1, 5\), got -1 to 5"):
        merge([one, two], 5)


def test_features_are_those_of_each_member_their_agreement_and_frequency(problem):
    found, _, counts = problem
    rows = features(found, counts)
    at = 0
    for i in range(len(found.labels)):
        known = found.labels[i] >= 0
        for j in np.flatnonzero(known):
            for m in range(MEMBERS):
                own = found.scores[i][known][:, m].astype(np.float64)
                score = found.scores[i, j, m]
                rank = found.ranks[i, j, m] + 1
                ordered = np.sort(own)
                z = (own - own.max()) / own.std()
                gap = score - own.max()
                np.testing.assert_allclose(
                    rows[at, PER_MEMBER * m : PER_MEMBER * (m + 1)],
                    [
                        score,
                        gap,
                        gap / own.std(),
                        gap / own.std() - np.log(np.exp(z).sum()),
                        ordered[-1] - ordered[-2] if gap == 0 else 0,
                        np.log(rank),
                        1 / rank,
                    ],
                    rtol=1e-4,
                    atol=1e-4,
                )
            ranks = found.ranks[i, j]
            logs = np.log(ranks + 1)
            np.testing.assert_allclose(
                rows[at, PER_MEMBER * MEMBERS :],
                [
                    *((ranks < min(most, found.k)).sum() for most in (1, 3, 10, 100)),
                    logs.min(),
                    logs.mean(),
                    counts[found.labels[i, j]],
                ],
                rtol=1e-5,
            )
            at += 1
    assert at == len(rows)


def test_what_every_member_finds_better_has_features_that_say_so(problem):
    """None falls that should rise; the label's frequency, where either is right, does both."""
    found, _, counts = problem
    rows = features(found, counts)
    rising = np.array(rising_features(MEMBERS))
    first = 0
    signs = set()
    for i in range(40):
        known = found.known[i]
        scores, ranks = found.scores[i][known], found.ranks[i][known]
        own = rows[first : first + known.sum()]
        first += known.sum()
        for a in range(len(own)):
            for b in range(len(own)):
                if (scores[a] > scores[b]).all() and (ranks[a] <= ranks[b]).all():
                    gain = own[a] - own[b]
                    assert (gain * rising >= -1e-6).all()
                    signs |= {(f, int(np.sign(gain[f]))) for f in range(len(gain)) if gain[f]}
    # each of them is told by some pair, the last one either way
    assert {f for f, _ in signs} == set(range(len(rising)))
    assert {f for f, sign in signs if (f, -sign) in signs} == {len(rising) - 1}


def test_features_of_one_candidate_and_of_equal_scores_are_finite():
    one = Candidates(
        np.array([[4, -1], [2, 3]]),
        np.zeros((2, 2, 1), np.int32),
        np.ones((2, 2, 1), np.float32),
        1,
    )
    rows = features(one, np.zeros(5, np.float32))
    assert rows.shape == (3, PER_MEMBER + TOGETHER)
    np.testing.assert_allclose(
        rows[:, :5], [[1, 0, 0, 0, 0], *[[1, 0, 0, -np.log(2), 0]] * 2], atol=1e-6
    )


def test_the_exported_trees_are_those_of_scikit_learn(problem):
    from sklearn.ensemble import HistGradientBoostingClassifier

    found, relevance, counts = problem
    x = features(found, counts)
    relevant = relevant_places(found, relevance)
    model = HistGradientBoostingClassifier(
        max_iter=20,
        max_leaf_nodes=6,
        learning_rate=0.1,
        min_samples_leaf=10,
        l2_regularization=1.0,
        monotonic_cst=rising_features(MEMBERS),
        early_stopping=False,
        random_state=0,
    ).fit(x, relevant)
    np.testing.assert_allclose(
        Boosted.fit(x, relevant, TreeLimits(20, 6, 10))(x), model.decision_function(x), atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fused_beats_each_member_and_probabilities_are_reliable(problem, kind):
    found, relevance, _ = problem
    fuser, log_odds = fitted(problem, kind)
    assert fuser.kind == kind
    best = {
        name: np.take_along_axis(
            relevance.toarray(),
            np.take_along_axis(
                found.labels, np.where(found.known, values, -np.inf).argmax(1)[:, None], 1
            ),
            1,
        ).mean()
        for name, values in {
            "fused": fuser(found),
            **{m: found.scores[:, :, m] for m in range(MEMBERS)},
        }.items()
    }
    assert best["fused"] > max(best[m] for m in range(MEMBERS))
    assert (fuser(found)[~found.known] == -np.inf).all()
    told = reliability(1 / (1 + np.exp(-log_odds)), relevant_places(found, relevance))
    gaps = np.abs(np.subtract(told["score"], told["right"]))
    assert np.average(gaps, weights=told["count"]) < 0.05


@pytest.mark.parametrize("folds", [2, 3])
def test_cross_fitted_log_odds_are_those_of_models_of_the_other_folds(problem, folds):
    """The fold of a point is its place in a permutation, modulo the folds; one calibration of all:
    a margin + b."""
    found, relevance, counts = problem
    x = features(found, counts)
    relevant = relevant_places(found, relevance)
    points = np.repeat(np.arange(200), found.known.sum(1))
    fold_of = np.random.default_rng(0).permutation(200) % folds
    margins = np.empty(len(x))
    for fold in range(folds):
        outside = [i for i, point in enumerate(points) if fold_of[point] != fold]
        inside = [i for i, point in enumerate(points) if fold_of[point] == fold]
        margins[inside] = Linear.fit(x[outside], relevant[outside], LIMITS)(x[inside])
    crossed = cross_fit(candidate_rows(found, relevance, counts), "linear", LIMITS, folds)
    assert crossed.calibration == platt(margins, relevant)
    slope, offset = crossed.calibration.slope, crossed.calibration.intercept
    assert abs(offset) > 1e-3  # of both signs the values differ
    np.testing.assert_allclose(crossed.log_odds, [slope * m + offset for m in margins])
    seen = SeenLabels(counts, np.ones(LABELS))
    model = fit_model("linear", LIMITS, x, relevant)
    fuser = Fuser.of_labels(seen, ["a", "b", "c"], model, crossed.calibration, 0.0)
    whole = Linear.fit(x, relevant, LIMITS)
    np.testing.assert_allclose(
        fuser(found)[found.known],
        [1 / (1 + np.exp(-slope * m - offset)) for m in whole(x)],
        rtol=1e-5,
    )


def test_fewer_points_than_folds_are_a_fold_each(problem):
    found, relevance, counts = problem
    few = replace(found, labels=found.labels[:3], ranks=found.ranks[:3], scores=found.scores[:3])
    rows = candidate_rows(few, relevance[:3], counts)
    assert rows.num_points == 3
    log_odds = cross_fit(rows, "linear", LIMITS).log_odds
    np.testing.assert_array_equal(log_odds, cross_fit(rows, "linear", LIMITS, folds=3).log_odds)


def test_a_linear_model_is_ridge_regression_of_scaled_features(problem):
    """Its gradient is zero: sum of (p - y) z = RIDGE n w of features z in standard deviations."""
    found, relevance, counts = problem
    x = features(found, counts).astype(np.float64)
    x[:, 3] = 2.0  # says nothing, and cannot be scaled
    relevant = relevant_places(found, relevance)
    model = Linear.fit(x.astype(np.float32), relevant, LIMITS)
    spread = x.std(0)
    spread[3] = 1
    z = (x - x.mean(0)) / spread
    wrong = 1 / (1 + np.exp(-model(x))) - relevant
    assert wrong.sum() == pytest.approx(0, abs=1e-3 * len(x))
    np.testing.assert_allclose(
        z.T @ wrong, -1e-5 * len(x) * model.weight * spread, atol=2e-4 * len(x)
    )
    assert model.weight[3] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_to_the_log_odds(problem, kind):
    """With what the members' agreement and the label's frequency add, up to a constant."""
    found, _, counts = problem
    fuser, _ = fitted(problem, kind)
    odds = fuser(found)[found.known].astype(np.float64)
    odds = np.log(odds / (1 - odds))
    x = features(found, counts)
    every = fuser.calibration.slope * fuser.model.shares(x, feature_owners(MEMBERS))
    assert every.shape == (len(x), MEMBERS + 1)
    np.testing.assert_allclose(
        fuser.shares(found)[found.known], every[:, :MEMBERS], rtol=1e-5, atol=1e-6
    )
    rest = odds - every.sum(1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_scores_are_equal(problem, kind, tmp_path):
    fuser, _ = fitted(problem, kind)
    fuser.save(tmp_path / "fuser.npz")
    again = Fuser.load(tmp_path / "fuser.npz")
    assert again.members == ("a", "b", "c")
    np.testing.assert_array_equal(again(problem[0]), fuser(problem[0]))


def test_a_fuser_of_other_training_points_has_their_frequencies(problem):
    found, _, counts = problem
    fuser, _ = fitted(problem, "linear", tail=0.5)
    np.testing.assert_allclose(fuser.boost, np.linspace(1, 3, LABELS) ** 0.5, rtol=1e-6)
    moved = fuser.of_points(SeenLabels(counts + 1, np.full(LABELS, 4.0)))
    assert (moved.boost == 2).all() and moved.model is fuser.model
    np.testing.assert_allclose(moved.log_counts, counts + 1)
    # of the last feature, a label's log frequency
    slope = fuser.calibration.slope * fuser.model.weight[-1]
    odds = [
        np.log(p / (1 - p))
        for p in (
            f(found)[found.known] / f.boost[found.labels[found.known]] for f in (fuser, moved)
        )
    ]
    np.testing.assert_allclose(odds[1] - odds[0], slope, atol=1e-2)


def test_damaged_files_are_refused(problem, tmp_path):
    fuser, _ = fitted(problem, "boosted")
    fuser.model.left[:] = 0  # a walk that never ends
    fuser.save(tmp_path / "circle.npz")
    with pytest.raises(
        ValueError, match="circle.npz: not a saved fuser .*children come after their parents"
    ):
        Fuser.load(tmp_path / "circle.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match="text.npz: not an .npz of arrays"):
        Fuser.load(tmp_path / "text.npz")


def test_a_member_left_out_takes_its_own_proposals_along(problem):
    found = problem[0]
    others = found.without(1)
    assert others.scores.shape[2] == MEMBERS - 1
    alone = found.known & (found.ranks[:, :, 1] < 12) & (np.delete(found.ranks, 1, 2) == 12).all(2)
    assert alone.any()
    assert np.array_equal(others.known, found.known & ~alone)


def test_members_that_propose_every_label_leave_every_candidate():
    labels, ranks = merge([np.array([[0, 1, 2]]), np.array([[1, 0, 2]]), np.array([[0, 1, 2]])], 3)
    found = Candidates(labels, ranks, np.zeros((1, 3, 3), np.float32), 3)
    assert found.without(2).known.all()


def test_scores_that_are_not_finite_name_their_member(problem):
    found = problem[0]
    found.check_finite(["a", "b", "c"], "validation points")
    scores = found.scores.copy()
    scores[3, :2, 1] = np.nan
    with pytest.raises(
        ValueError,
        match=rf"b: 2 of .* scores of candidates of validation points are not finite; "
        rf"the first is nan, point 3, label {found.labels[3, 0]}",
    ):
        replace(found, scores=scores).check_finite(["a", "b", "c"], "validation points")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_right_or_wrong_candidates_the_members_are_summed(problem, value):
    found, relevance, counts = problem
    same = sp.csr_matrix(np.full(relevance.shape, value, np.float32))
    same.eliminate_zeros()
    fuser, _ = fitted((found, same, counts), "boosted")
    total = (
        found.scores
        - np.where(found.known[:, :, None], found.scores, -np.inf).max(1, keepdims=True)
    ).sum(2)
    order = np.argsort(np.where(found.known, -total, np.inf), 1)
    sorted_scores = np.take_along_axis(fuser(found), order, 1)
    assert (np.diff(np.where(np.isfinite(sorted_scores), sorted_scores, -1)) <= 1e-7).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_that_are_all_right_or_all_wrong_are_called_so(problem, kind, value):
    """By Platt's targets: (n + 1) / (n + 2) or 1 / (n + 2) of n candidates."""
    found, relevance, counts = problem
    same = sp.csr_matrix(np.full(relevance.shape, value, np.float32))
    same.eliminate_zeros()
    fuser, log_odds = fitted((found, same, counts), kind)
    n = found.known.sum()
    expected = (n + 1) / (n + 2) if value else 1 / (n + 2)
    scores = fuser(found)[found.known]
    for probability in (1 / (1 + np.exp(-log_odds)), scores):
        assert probability.mean() == pytest.approx(expected, rel=0.1)
        np.testing.assert_allclose(probability, expected, atol=2 / n)
    assert len(np.unique(scores)) > 100  # the members' order is still there


@pytest.mark.parametrize("right", [1, 3, 50, 99])
def test_calibration_fits_the_smoothed_targets(right):
    """A calibration of both classes is the best of all near it; separable margins make no
    certainty."""
    rng = np.random.default_rng(right)
    margins = rng.normal(size=100) * 7 + 3
    relevant = np.zeros(100, bool)
    relevant[np.argsort(margins)[100 - right :]] = True  # separable
    calibration = platt(margins, relevant)
    slope, intercept = calibration.slope, calibration.intercept
    target = np.where(relevant, (right + 1) / (right + 2), 1 / (100 - right + 2))

    def loss(a, b):
        odds = a * margins + b
        return np.mean(np.logaddexp(0, odds) - target * odds)

    assert all(
        loss(slope, intercept) <= loss(slope * x, intercept + y) + 1e-6
        for x in (0.95, 1, 1.05)
        for y in (-0.1, 0, 0.1)
    )
    assert np.mean(1 / (1 + np.exp(-slope * margins - intercept))) == pytest.approx(
        target.mean(), abs=1e-3
    )


@pytest.mark.parametrize("margins", [[], [2.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
def test_calibration_of_few_or_equal_margins(margins):
    margins = np.array(margins)
    for relevant in (
        np.zeros(len(margins), bool),
        np.ones(len(margins), bool),
        np.arange(len(margins)) == 0,
    ):
        calibration = platt(margins, relevant)
        slope, intercept = calibration.slope, calibration.intercept
        assert slope > 0  # also where the relevant ones have the lowest margin
        target = np.where(
            relevant, (relevant.sum() + 1) / (relevant.sum() + 2), 1 / ((~relevant).sum() + 2)
        )
        if len(margins):
            assert np.mean(1 / (1 + np.exp(-slope * margins - intercept))) == pytest.approx(
                target.mean(), abs=0.01
            )


def test_kind_and_tail_are_those_of_the_best_target_by_cross_fitting(problem):
    found, relevance, counts = problem
    seen = SeenLabels(counts, np.linspace(1, 30, LABELS))
    validation = Validation(relevance, np.linspace(1, 30, LABELS))
    rows = candidate_rows(found, relevance, counts)
    for target in ("nDCG@5", "PSP@5"):
        choice = FuserChoice(KINDS, LIMITS, target)
        fusers = fit_fusers(found, ["a", "b", "c"], validation, seen, choice)
        values = {}
        for kind in KINDS:
            odds = cross_fit(rows, kind, LIMITS).log_odds
            for tail in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0):
                boost = seen.boost(tail)[found.labels[found.known]]
                scores = found.as_csr(boost / (1 + np.exp(-odds)), LABELS)
                values[kind, tail] = validation.evaluate(scores)[target]
        best = max(values.values())
        assert values[fusers.fuser.kind, fusers.fuser.tail] == best
        assert fusers.checked["fused, cross-fitted"][target] == best
        assert list(fusers.checked) == ["a", "b", "c", "fused, cross-fitted", "reliability"]


def test_without_a_member_the_others_are_fused(problem):
    found, relevance, counts = problem
    seen = SeenLabels(counts, np.ones(LABELS))
    choice = FuserChoice(["linear"], LIMITS, "nDCG@5")
    names = ["a", "b", "c"]
    fusers = fit_fusers(found, names, Validation(relevance, np.ones(LABELS)), seen, choice)
    assert {name: fuser.members for name, fuser in fusers.without.items()} == {
        "a": ("b", "c"),
        "b": ("a", "c"),
        "c": ("a", "b"),
    }
    others = found.without(1)
    assert fusers.without["b"](others).shape == others.labels.shape


def test_metrics_are_checked_at_places_that_there_are():
    assert checked_ks(200) == [1, 3, 5, 10, 100]
    assert checked_ks(7) == [1, 3, 5, 7]
    assert headline({"P@1": 52.834, "R@5": 1.0, "R@100": 80}) == "P@1 52.83, R@100 80.00"
