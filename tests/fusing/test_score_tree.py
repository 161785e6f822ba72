"""Fusion against scikit-learn's own prediction and against loops; and that it does not fool
itself."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.tree import DecisionTreeRegressor

from utils.fusing.score_tree import (
    ScoredCandidates,
    ScoreTree,
    ScoreTreeSettings,
    Tree,
    aligned,
    choose,
    cross_fit,
    fit,
    fit_tree,
    union_of,
)
from utils.fusing.validation import warn_if_alike
from utils.metrics import evaluate
from utils.sparse import contains, entry_rows


def made(points=200, labels=30, seed=0, noise=0.5):
    """(two members that score different candidates, relevance): each sees half of what makes a
    label relevant."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2, points, labels))
    relevance = sp.csr_matrix(hidden.sum(0) > 2.2, dtype=np.float32)
    members = []
    for part in hidden:
        scores = part + noise * rng.normal(size=part.shape)
        scores[scores < np.sort(scores, 1)[:, -12, None]] = 0  # its 12 best
        members.append(sp.csr_matrix(scores.astype(np.float32)))
    return members, relevance, rng.uniform(1, 5, (labels, 1)).astype(np.float32)


SETTINGS = ScoreTreeSettings(1.0, (1.0, 1.0), depth=4, min_leaf=10)


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_the_tree_of_arrays_predicts_as_scikit_learn(depth):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3)).astype(np.float32)
    relevant = rng.random(500) < 0.2
    tree = fit_tree(features, relevant, depth, 5)
    expected = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=5, random_state=0).fit(
        features, relevant
    )
    new = rng.normal(size=(300, 3))
    np.testing.assert_allclose(tree(new), expected.predict(new), rtol=1e-6)
    assert tree(new[:0]).shape == (0,)


@pytest.mark.parametrize("relevant", [np.zeros(8, bool), np.ones(8, bool)])
def test_candidates_of_one_kind_make_a_tree_of_one_leaf(relevant):
    tree = fit_tree(np.arange(8.0)[:, None], relevant, 7)
    assert tree.feature.tolist() == [-1]
    assert tree(np.zeros((2, 1))).tolist() == [float(relevant[0])] * 2


def test_every_candidate_gets_a_score_of_every_member():
    first = sp.csr_matrix(np.array([[3.0, 0, 1, 0], [0, 0, 0, 0]], np.float32))
    second = sp.csr_matrix(np.array([[0, 5.0, 2, 0], [0, 0, 0, -4]], np.float32))
    union = union_of([first, second])
    assert list(zip(entry_rows(union).tolist(), union.indices.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 3),
    ]
    # the lowest where missing
    assert aligned([first, second], union).tolist() == [[3, 2], [1, 5], [1, 2], [0, -4]]


def test_the_final_score_is_the_formula():
    members, relevance, statistics = made()
    settings = ScoreTreeSettings(0.3, (0.7, 0.0), depth=3, min_leaf=10)
    fusion = fit(ScoredCandidates.of(members, statistics, relevance), settings)
    union = union_of(members)
    fused = fusion.fuse(members)
    dense = [m.toarray() for m in members]
    for (row, label), got in zip(
        zip(entry_rows(union), union.indices, strict=True), fused.data, strict=True
    ):
        scores = [
            d[row, label] if contains(m, row, label) else m[row].data.min()
            for m, d in zip(members, dense, strict=True)
        ]
        p = fusion.tree(np.array([[*scores, statistics[label, 0]]]))[0]
        assert got == pytest.approx(0.3 * p + 0.7 * scores[0], rel=1e-5)


def test_fusing_helps_on_points_it_was_not_fitted_on_and_cross_fitting_says_how_much():
    (first, second), relevance, statistics = made(points=900)
    scored = ScoredCandidates.of([first[:400], second[:400]], statistics, relevance[:400])
    fusion = fit(scored, SETTINGS)
    fused = evaluate(fusion.fuse([first[400:], second[400:]]), relevance[400:], ks=(1,))["P@1"]
    alone = max(evaluate(m[400:], relevance[400:], ks=(1,))["P@1"] for m in (first, second))
    assert fused > alone + 10
    said = evaluate(
        cross_fit(scored, SETTINGS),
        relevance[:400],
        ks=(1,),
    )["P@1"]
    assert said == pytest.approx(fused, abs=6)


def test_a_tree_that_learns_noise_is_found_out_by_cross_fitting():
    """Relevance that nothing predicts: on the points it was fitted on a deep tree looks far better
    than it is."""
    rng = np.random.default_rng(1)
    members = [sp.csr_matrix(rng.random((60, 20), np.float32) + 1) for _ in range(2)]
    relevance = sp.csr_matrix(rng.random((60, 20)) < 0.1, dtype=np.float32)
    settings = ScoreTreeSettings(1.0, (0.0, 0.0), depth=12, min_leaf=1)
    statistics = np.ones((20, 1), np.float32)
    scored = ScoredCandidates.of(members, statistics, relevance)
    fusion = fit(scored, settings)
    seen = evaluate(fusion.fuse(members), relevance, ks=(1,))["P@1"]
    honest = evaluate(cross_fit(scored, settings), relevance, ks=(1,))["P@1"]
    assert seen > 60
    assert honest < 35


def test_cross_fitting_keeps_the_order_of_the_points():
    members, relevance, statistics = made(points=23)
    scored = ScoredCandidates.of(members, statistics, relevance)
    scores = cross_fit(scored, SETTINGS, folds=4)
    assert (np.diff(scores.indptr) == np.diff(union_of(members).indptr)).all()
    assert (scores.indices == union_of(members).indices).all()


def test_cross_fitted_scores_are_those_of_trees_fitted_on_the_other_folds():
    members, relevance, statistics = made(points=30)
    fold = np.random.default_rng(0).permutation(30) % 3
    other = ScoreTreeSettings(0.2, (0.0, 1.0), depth=4, min_leaf=10)
    scored = ScoredCandidates.of(members, statistics, relevance)
    for settings in (SETTINGS, other):
        got = cross_fit(scored, settings, folds=3)
        for number in range(3):
            inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            outer = ScoredCandidates.of(
                [m[outside] for m in members], statistics, relevance[outside]
            )
            fusion = fit(outer, settings)
            union = union_of(members)[inside]
            rows = entry_rows(union)
            scores = aligned([m[inside] for m in members], union)
            np.testing.assert_allclose(got[inside].data, fusion(scores, union.indices), rtol=1e-5)
            assert len(rows) == got[inside].nnz


def test_weights_are_chosen_by_cross_fitting():
    """A member of noise gets no weight."""
    (first, _), relevance, statistics = made(points=300, noise=0.0)
    noise = first.copy()
    noise.data = np.random.default_rng(5).normal(size=first.nnz).astype(np.float32)
    choices = [ScoreTreeSettings(0.1, (1.0, w), depth=3, min_leaf=30) for w in (4.0, 0.0, 1.0)]
    scored = ScoredCandidates.of([first, noise], statistics, relevance)
    assert choose(scored, choices, "nDCG@5").member_weights == (
        1.0,
        0.0,
    )
    with pytest.raises(ValueError, match="settings of one depth and min_leaf"):
        choose(scored, [SETTINGS, *choices], "P@1")


def test_saved_without_pickles_and_read_back(tmp_path):
    members, relevance, statistics = made()
    fusion = fit(ScoredCandidates.of(members, statistics, relevance), SETTINGS)
    fusion.save(tmp_path / "fusion.npz")
    again = ScoreTree.load(tmp_path / "fusion.npz")
    assert (again.fuse(members) != fusion.fuse(members)).nnz == 0
    (tmp_path / "fusion.npz").write_bytes(b"not this")
    with pytest.raises(ValueError, match=r"fusion\.npz: not an .npz of arrays"):
        ScoreTree.load(tmp_path / "fusion.npz")
    fusion.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "fusion.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"fusion\.npz: not an .npz of arrays"):
        ScoreTree.load(tmp_path / "fusion.npz")
    with pytest.raises(ValueError, match=r"none\.npz: no such file"):
        ScoreTree.load(tmp_path / "none.npz")


@pytest.mark.parametrize(("name", "value"), [("left", 0), ("right", "nodes"), ("feature", 3)])
def test_a_tree_from_a_stranger_cannot_run_in_a_circle(tmp_path, name, value):
    members, relevance, statistics = made()
    fusion = fit(ScoredCandidates.of(members, statistics, relevance), SETTINGS)
    arrays = {f.name: getattr(fusion.tree, f.name) for f in fields(Tree)}
    arrays[name][0] = len(arrays[name]) if value == "nodes" else value
    fusion.save(tmp_path / "fusion.npz")
    with pytest.raises(ValueError, match="children come after their parents, over 3 features"):
        ScoreTree.load(tmp_path / "fusion.npz")


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_saved_tree_has_nodes_and_arrays_of_their_number(tmp_path, nodes):
    members, relevance, statistics = made()
    fusion = fit(ScoredCandidates.of(members, statistics, relevance), SETTINGS)
    leaf = {f.name: getattr(fusion.tree, f.name)[-1:] for f in fields(Tree)}
    small = replace(fusion, tree=Tree(**{name: a[:nodes] for name, a in leaf.items()}))
    small.save(tmp_path / "small.npz")
    if nodes:
        got = ScoreTree.load(tmp_path / "small.npz")
        assert got.tree(np.zeros((2, 3))).tolist() == leaf["value"].astype(np.float32).tolist() * 2
        uneven = replace(small, tree=replace(small.tree, value=np.zeros(2)))
        uneven.save(tmp_path / "small.npz")
        expected = r"arrays \[1\] of the tree's nodes"
    else:
        expected = "children come after their parents"
    with pytest.raises(ValueError, match=expected):
        ScoreTree.load(tmp_path / "small.npz")


def test_a_tree_walks_to_the_left_where_the_feature_is_at_most_the_threshold():
    tree = Tree(
        np.array([1, 0, -1, -1, -1]),
        np.array([0.5, 2.0, 0.0, 0.0, 0.0]),
        np.array([1, 2, -1, -1, -1]),
        np.array([4, 3, -1, -1, -1]),
        np.array([0.0, 0.0, 0.25, 0.5, 0.75]),
    )
    features = np.array([[2.0, 0.5], [2.5, 0.5], [2.0, 0.75], [2.5, 0.25], [-9.0, 9.0]])
    slow = [0.75 if y > 0.5 else 0.5 if x > 2 else 0.25 for x, y in features]
    assert tree(features).tolist() == slow


@pytest.mark.parametrize("folds", [2, 20])
def test_from_two_folds_to_one_a_point(folds):
    members, relevance, statistics = made(points=20)
    scored = ScoredCandidates.of(members, statistics, relevance)
    scores = cross_fit(scored, SETTINGS, folds=folds)
    assert scores.nnz == union_of(members).nnz


@pytest.mark.parametrize(
    ("relevant", "said"),
    [
        ([True, True], "all 2 candidates of the validation points are right"),
        ([False], "all 1 candidates of the validation points are wrong"),
        ([True, False], None),
    ],
)
def test_candidates_of_one_kind_are_said(caplog, relevant, said):
    warn_if_alike(np.array(relevant))
    assert [m.partition(":")[0] for m in caplog.messages] == ([said] if said else [])


def test_bad_input_is_one_clear_error():
    members, relevance, statistics = made(points=20)
    scored = ScoredCandidates.of(members, statistics, relevance)
    with pytest.raises(ValueError, match="a weight for each of 2 members, got \\[1.0\\]"):
        fit(scored, ScoreTreeSettings(1.0, (1.0,), depth=3, min_leaf=10))
    with pytest.raises(ValueError, match=r"label statistics \[30, S\], got \(29, 1\)"):
        ScoredCandidates.of(members, statistics[:-1], relevance)
    with pytest.raises(ValueError, match="members of one shape"):
        ScoredCandidates.of([members[0], members[1][:5]], statistics, relevance)
    with pytest.raises(ValueError, match="finite features"):
        fit_tree(np.full((3, 1), np.nan), np.ones(3, bool), 3)
    for wrong in (np.zeros((4, 3)), np.zeros(4)):
        with pytest.raises(ValueError, match=r"expected scores \[M, 2\]"):
            fit(scored, SETTINGS)(wrong, np.zeros(4, int))
    with pytest.raises(ValueError, match=r"label statistics \[30, S\], got \(30,\)"):
        ScoredCandidates.of(members, statistics[:, 0], relevance)
    for features, relevant in (
        (np.zeros(3), np.ones(3, bool)),
        (np.zeros((0, 2)), np.ones(0, bool)),
        (np.zeros((3, 2)), np.ones(2, bool)),
        (np.zeros((3, 2)), np.ones((3, 2), bool)),
    ):
        with pytest.raises(ValueError, match=r"expected features \[M, F\] with M > 0"):
            fit_tree(features, relevant, 3)
    for folds in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 folds, got {folds}"):
            cross_fit(scored, SETTINGS, folds=folds)


def test_more_folds_than_points_leave_out_one_point_each():
    members, relevance, statistics = made(points=20)
    scored = ScoredCandidates.of(members, statistics, relevance)
    most = cross_fit(scored, SETTINGS, folds=20)
    assert (cross_fit(scored, SETTINGS, folds=99) != most).nnz == 0
