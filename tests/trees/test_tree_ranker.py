"""What a trained forest answers: by the definitions, for no text, and from a copy of itself."""

import numpy as np
import pytest
import scipy.sparse as sp

import train
from engine.conformance.answers import no_collectives
from models.evaluation import predict
from models.trees import ranker as module
from models.trees.ranker import TreeRanker
from predict import Predictor
from tests.conftest import with_values
from utils.answering.decider import DECIDER
from utils.data.texts import ListTexts
from utils.linear.partition_tree import COMBINERS
from utils.run.model_files import LABELS

TREE = {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8}
TEXTS = ["linux and chess", "photo", "the socket and the gcc tool", "arm and table"]
HINGE = COMBINERS["l3-hinge"]


def node_scores(tree, features):
    """Scores of all nodes of the last level [n, nodes], every cluster being kept."""
    count = len(tree.node_labels)
    nodes, scores = tree.clusters(features, beam=count, combiner=HINGE, level=len(tree.layers) - 1)
    by_node = np.empty_like(scores)
    np.put_along_axis(by_node, nodes, scores, axis=1)
    return by_node


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_scores_of_copies_are_merged(make_config, merge):
    folder = train.fit(make_config(method={**TREE, "name": "overlap", "copies": 3}))
    loaded = Predictor(folder).ranker
    config = with_values(loaded.config, method={"merge": merge})
    ranker = TreeRanker(config, loaded.features, loaded.forest, Predictor(folder).runtime)
    tree = loaded.forest.trees[0]
    by_node = node_scores(tree, loaded.features.of(ListTexts(TEXTS)))
    expected = np.zeros((len(TEXTS), 20), np.float32)
    for label in range(20):
        copies = by_node[:, tree.node_labels == label]
        expected[:, label] = copies.mean(axis=1) if merge == "mean" else copies.max(axis=1)
    labels = np.tile(np.arange(20), (len(TEXTS), 1))
    given = ranker.open(ListTexts(TEXTS), given=True)
    np.testing.assert_allclose(given.of(labels), expected, rtol=1e-5)
    values, ids = ranker.open(ListTexts(TEXTS)).best(20)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, 1), values, rtol=1e-5)


def test_a_forest_averages_what_each_tree_proposes_or_all_that_is_reached(make_config, monkeypatch):
    folder = train.fit(make_config(method={**TREE, "trees": 3, "beam": 2}))
    ranker = Predictor(folder).ranker
    texts = ListTexts(TEXTS)
    reached = [
        tree.reached(ranker.features.of(texts), beam=2, combiner=HINGE).toarray()
        for tree in ranker.forest.trees
    ]
    monkeypatch.setattr(module, "POOL", 2)
    proposed = np.zeros((len(TEXTS), 20))
    for scores in reached:
        for row, own in enumerate(scores):
            best = np.lexsort((np.arange(20), -own))[:2]
            proposed[row, best] += own[best]
    labels = np.tile(np.arange(20), (len(TEXTS), 1))
    assert (proposed > 0).sum() < (np.sum(reached, axis=0) > 0).sum()  # or nothing is tested
    values, ids = ranker.open(texts).best(1)
    np.testing.assert_allclose(values[:, 0], proposed.max(axis=1) / 3, rtol=1e-5)
    given = ranker.open(texts, given=True)
    np.testing.assert_allclose(given.of(labels), np.mean(reached, axis=0), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(ranker.open(texts).of(labels), given.of(labels))


@pytest.mark.parametrize("combiner", ["l3-hinge", "log-sigmoid"])
def test_texts_without_features_have_the_prior_whoever_asks(make_config, combiner):
    ranker = Predictor(train.fit(make_config(method={**TREE, "combiner": combiner}))).ranker
    texts = ListTexts(["linux and chess", "unseen"])
    opened = ranker.open(texts)
    values, ids = opened.best(3)
    assert ids[1].tolist() == ranker.forest.prior.ids[:3].tolist()
    assert values[1].tolist() == ranker.forest.prior.shares[:3].tolist()
    assert opened.sums["points"] == 2
    assert opened.sums["points_without_features"] == 1
    np.testing.assert_allclose(opened.of(ids), values, rtol=1e-6)
    given = ranker.open(texts, given=True)
    np.testing.assert_allclose(given.of(ids), values, rtol=1e-6)
    np.testing.assert_array_equal(given.best(3)[1][1], ids[1])


@pytest.mark.parametrize("trees", [1, 3])
def test_no_text_at_all(make_config, trees):
    ranker = Predictor(train.fit(make_config(method={**TREE, "trees": trees}))).ranker
    with no_collectives():
        for given in (False, True):
            scores = ranker.open(ListTexts([]), given)
            values, ids = scores.best(3)
            assert values.shape == ids.shape == (0, 3)
            assert scores.of(np.zeros((0, 2), np.int64)).shape == (0, 2)
    found, sums = predict(ranker, ListTexts([]), 3, sp.csr_matrix((0, 20)))
    assert found.shape == (0, 20)
    assert ranker.facts(sums) == {"inner_products": 0.0, "points_without_features": 0}
    assert ranker.facts({}) == {}


def test_a_loaded_model_is_saved_by_links(make_config, tmp_path):
    predictor = Predictor(train.fit(make_config(method={**TREE, "trees": 2})))
    ranker = predictor.ranker
    copy = tmp_path / "copy"
    copy.mkdir()
    ranker.save(copy)
    beside = {LABELS, DECIDER}  # the run adds these
    saved = {path.name for path in ranker.folder.iterdir()} - beside
    assert {path.name for path in copy.iterdir()} == saved
    for path in ranker.folder.glob("tree*.npz"):
        assert (copy / path.name).samefile(path)
    again = TreeRanker.load(ranker.config, copy, 20, predictor.runtime)
    for one, two in zip(
        ranker.open(ListTexts(TEXTS)).best(5), again.open(ListTexts(TEXTS)).best(5), strict=True
    ):
        np.testing.assert_array_equal(one, two)
