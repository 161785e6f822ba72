"""XMC: fit, answers, scikit-learn's tools, and what it leaves behind."""

import copy
import gc
import json
import logging
import os
import pickle
import random
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from engine.conformance.made import write_dataset
from utils.errors import InputError
from xmckit import XMC

TREE = {"method": {"name": "xr-linear"}}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """60 texts, their labels' names, and the same as a matrix [60, 20] of sorted names."""
    folder = write_dataset(tmp_path_factory.mktemp("made") / "tiny")
    texts = (folder / "raw/trn_X.txt").read_text().splitlines()
    names = (folder / "raw/Y.txt").read_text().splitlines()
    matrix = sp.load_npz(folder / "Y.trn.npz")
    order = np.argsort(names)
    labels = [[names[label] for label in row.indices] for row in matrix]
    return texts, labels, matrix[:, order], [names[label] for label in order]


@pytest.fixture(scope="module")
def fitted(points):
    texts, labels, _, _ = points
    return XMC(TREE).fit(texts, labels)


@pytest.mark.parametrize("k", [0, 1.5, True, None, "3"])
def test_a_k_that_is_no_whole_number_is_refused(fitted, k):
    for answer in (fitted.predict, fitted.decision_function, fitted.predictor_):
        with pytest.raises(InputError, match=f"k: expected a whole number from 1, got {k!r}"):
            answer(["vim"], k=k)


@pytest.mark.parametrize("seed", ["a", 1.5, True, np.random.RandomState(0)])
def test_a_seed_that_is_no_whole_number_is_refused(points, seed):
    with pytest.raises(InputError, match="random_state: expected a whole number or None"):
        XMC(TREE, random_state=seed).fit(*points[:2])


def test_learns_and_answers_by_names(fitted, points):
    texts, labels, matrix, names = points
    assert fitted.classes_.tolist() == names
    answers = fitted.predict(texts, k=3, threshold=None)
    assert len(answers) == 60
    hits = sum(answer[0] in row for answer, row in zip(answers, labels, strict=True))
    assert hits > 55
    assert fitted.score(texts, labels) == pytest.approx(hits / 60)
    assert fitted.score(texts, matrix) == pytest.approx(hits / 60)
    assert fitted.evaluate(texts, labels) == fitted.evaluate(texts, matrix.toarray())
    counts = np.bincount(matrix.indices, minlength=20)
    assert fitted.label_counts_.tolist() == counts.tolist()
    assert "PSP@5" in fitted.evaluate(texts, labels)


def test_one_text_has_one_answer_and_k_is_at_most_all_labels(fitted, points):
    text = points[0][0]
    one = fitted.predict(text, k=2, threshold=None)
    assert one == fitted.predict([text], k=2, threshold=None)[0]
    assert len(one) == 2
    assert 2 < len(fitted.predict(text, k=1000, threshold=None)) <= 20
    assert fitted.predict([]) == []
    (best, *_) = fitted.predict(text, threshold=None, return_scores=True)
    assert best["label"] == one[0]
    assert best["text"] == one[0]
    assert fitted.predict("") is not None


def test_scores_of_a_text_are_a_sparse_row(fitted, points):
    texts = points[0]
    scores = fitted.decision_function(texts, k=4)
    assert sp.issparse(scores)
    assert scores.shape == (60, 20)
    assert np.diff(scores.indptr).max() <= 4
    best = scores.toarray().argmax(1)
    answers = fitted.predict(texts, k=1, threshold=None)
    assert [answer[0] for answer in answers] == fitted.classes_[best].tolist()


def test_probabilities_and_thresholds(fitted, points):
    texts, labels, _, _ = points
    probabilities = fitted.predict_proba(texts, k=20)
    assert probabilities.shape == (60, 20)
    assert 0 <= probabilities.data.min() <= probabilities.data.max() <= 1
    dense = probabilities.toarray()
    for row, answer in enumerate(fitted.predict(texts, k=20, threshold=0.5)):
        assert set(answer) == set(fitted.classes_[dense[row] >= 0.5])
    thresholds = fitted.predictor_.ranker.decider.thresholds(fitted.predictor_.config.eval)
    above = dense >= thresholds.of(np.arange(20))[None]
    for row, answer in enumerate(fitted.predict(texts, k=20)):
        assert set(answer) == set(fitted.classes_[above[row]])
    with pytest.raises(InputError, match="threshold"):
        fitted.predict(texts, threshold=1.5)
    found = fitted.evaluate(texts, labels)
    answers = [set(answer) for answer in fitted.predict(texts, k=20)]
    hits = sum(len(answer & set(row)) for answer, row in zip(answers, labels, strict=True))
    sizes = sum(map(len, answers)) + sum(map(len, labels))
    assert found["micro_F1"] == pytest.approx(100 * 2 * hits / sizes)


def test_without_validation_points_there_are_no_probabilities(points):
    texts, labels, _, _ = points
    model = XMC(TREE, overrides={"data.val_fraction": 0}).fit(texts, labels)
    assert len(model.predict(texts[0], k=3)) == 3
    assert "micro_F1" not in model.evaluate(texts, labels)
    assert model.predict(texts[0], return_scores=True)[0]["probability"] is None
    with pytest.raises(InputError, match="the fit had none"):
        model.predict_proba(texts)
    with pytest.raises(InputError, match="no probabilities"):
        model.predict(texts, threshold=0.5)


def test_leaves_nothing_behind(points, capsys):
    texts, labels, _, _ = points
    root = logging.getLogger()
    handler = logging.NullHandler()
    root.addHandler(handler)

    def state():
        return {
            "handlers": list(root.handlers),
            "level": root.level,
            "threads": torch.get_num_threads(),
            "environment": dict(os.environ),
            "screen": (sys.stdout.errors, sys.stderr.errors),
        }

    before = state()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    try:
        model = XMC(TREE, overrides={"run.threads": 1, "run.seed": 7}).fit(texts, labels)
        model.predict(texts)
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
        assert state() == before
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr() == ("", "")
    folder = model.run_folder_
    assert "training" in (folder / "train.log").read_text()
    del model
    gc.collect()
    assert not folder.exists()


def test_verbose_shows_the_log(points, capsys):
    texts, labels, _, _ = points
    XMC(TREE, verbose=True).fit(texts, labels)
    assert "57 training, 3 validation" in capsys.readouterr().err


def test_cross_validation_and_search(points):
    texts, labels, matrix, _ = points
    once = [(range(20, 60), range(20))]
    assert cross_val_score(XMC(TREE), texts, labels, cv=2).min() > 0.5
    dense = matrix.toarray() > 0
    assert cross_val_score(XMC(TREE), pd.Series(texts), dense, cv=once).min() > 0.5
    choices = [{"method.max_leaf": 2}, {"method.max_leaf": np.int64(10)}]
    search = GridSearchCV(XMC(TREE), {"overrides": choices}, cv=once).fit(texts, labels)
    assert search.best_params_["overrides"] in choices
    assert search.best_estimator_.predict(texts[0], threshold=None)
    assert isinstance(search.predict(texts[0]), list)


def test_clone_and_parameters(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert copied.set_params(random_state=3).random_state == 3
    with pytest.raises(NotFittedError):
        copied.predict("a text")
    with pytest.raises(NotFittedError):
        copied.save("nowhere")


def test_pickled_and_copied_it_answers_the_same(fitted, points):
    texts = points[0]
    expected = fitted.predict(texts, return_scores=True)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert other.predict(texts, return_scores=True) == expected
        assert other.run_folder_ != fitted.run_folder_
    unfitted = pickle.loads(pickle.dumps(XMC(TREE, random_state=2)))
    assert unfitted.random_state == 2


def test_a_run_that_no_estimator_made_is_opened(fitted, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(fitted.run_folder_, copied)
    (copied / "estimator.json").unlink()
    model = XMC.load(copied)
    assert model.classes_.tolist() == fitted.classes_.tolist()
    assert model.predict("the vim tool") == fitted.predict("the vim tool")
    assert model.label_counts_ is None
    assert "PSP@1" not in model.evaluate(["the vim tool"], [["editor"]])


def test_saved_it_answers_the_same(fitted, points, tmp_path):
    texts, labels, _, _ = points
    folder = fitted.save(tmp_path / "saved")
    model = XMC.load(folder)
    assert model.config == TREE
    assert model.predict(texts, return_scores=True) == fitted.predict(texts, return_scores=True)
    assert model.evaluate(texts, labels) == fitted.evaluate(texts, labels)
    assert clone(model).fit(texts, labels).score(texts, labels) > 0.5
    with pytest.raises(InputError, match="expected a new or empty folder"):
        fitted.save(folder)
    with pytest.raises(InputError):
        XMC.load(tmp_path)


def test_a_precision_that_no_threshold_reaches_leaves_the_ranking_metrics(points):
    texts, labels, _, _ = points
    others = [[name + " x"] for name in texts]  # labels that nobody can predict
    goal = {"eval.threshold_for": "precision", "eval.wanted_precision": 1.0}
    model = XMC(TREE, overrides=goal).fit(texts, others)
    with pytest.raises(InputError, match="wanted_precision"):
        model.predict(texts[0])
    found = model.evaluate(texts, others)
    assert "P@1" in found and "micro_F1" not in found
    assert model.score(texts, others) == found["P@1"] / 100


def test_fewer_than_one_label_is_refused(fitted):
    for answer in (fitted.predict, fitted.decision_function, fitted.predict_proba):
        for k in (0, -1):
            with pytest.raises(InputError, match="k"):
                answer("a text", k=k)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": [{"a": 1}] * 20}, "names: expected distinct names"),
        ({"names": ["a"] * 20}, "names: expected distinct names"),
        ({"names": [*range(19), "a"]}, "names: expected distinct names"),
        ({"names": [2**70, *range(19)]}, "names: expected distinct names"),
        ({"parameters": {"leaves": 3}}, "parameters: XMC has no 'leaves'"),
        ({"parameters": {"config": {"method": {"name": "os:Evil"}}}}, "code of a module outside"),
        ({"parameters": {"overrides": {"loss.name": "evil.os:loss"}}}, "code of a module outside"),
        (
            {"parameters": {"overrides": {"encoder.trust_remote_code": True}}},
            "code of a module outside",
        ),
        ({"label_counts": [1]}, "expected 20 names and label_counts"),
        ({"format": 2}, "written by another version"),
    ],
)
def test_a_stranger_s_facts_are_checked(fitted, tmp_path, change, message):
    folder = fitted.save(tmp_path / "saved")
    path = folder / "estimator.json"
    facts = json.loads(path.read_text())
    path.unlink()  # it may be a link to the run's
    path.write_text(json.dumps({**facts, **change}))
    with pytest.raises(InputError, match=message):
        XMC.load(folder)


def test_a_named_folder_keeps_the_run_and_is_taken_once(points, tmp_path):
    texts, labels, _, _ = points
    folder = tmp_path / "kept"
    model = XMC(TREE, folder=folder).fit(texts, labels)
    answers = model.predict(texts)
    assert XMC.load(folder).predict(texts) == answers
    assert model.fit(texts, labels).predict(texts) == answers  # its own it may replace
    with pytest.raises(InputError, match="expected a new or empty folder"):
        XMC(TREE, folder=folder).fit(texts, labels)
    del model
    gc.collect()
    assert XMC.load(folder).predict(texts) == answers


def test_settings_that_cannot_be(points, tmp_path):
    texts, labels, _, _ = points
    with pytest.raises(InputError, match=r"data\.root is the estimator's own"):
        XMC(TREE, overrides={"data.root": "x"}).fit(texts, labels)
    with pytest.raises(InputError, match=r"keys such as train\.epochs"):
        XMC(TREE, overrides={"epochs": 3}).fit(texts, labels)
    with pytest.raises(InputError, match="no preset 'bets'"):
        XMC("bets").fit(texts, labels)
    with pytest.raises(InputError, match="preset's name, a path"):
        XMC(3).fit(texts, labels)
    with pytest.raises(InputError, match="unknown"):
        XMC({"method": {"name": "xr-linear", "leaves": 3}}).fit(texts, labels)
    with pytest.raises(InputError, match="got 60 texts and labels of 59"):
        XMC(TREE).fit(texts, labels[:-1])
    with pytest.raises(InputError, match="no text|at least one label|no training point"):
        XMC(TREE).fit(texts, [[] for _ in texts])


def test_one_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process, but this is one of 2"):
        XMC(TREE).fit(["a"], [["b"]])


def test_one_label_and_few_points():
    model = XMC(TREE).fit(["a red fox", "a blue sky", "a red car"], [["red"], [], ["red"]])
    assert model.classes_.tolist() == ["red"]
    assert model.predict("red", threshold=None) == ["red"]
    assert model.evaluate(["a red hat"], [["red"]])["P@1"] == 100


def test_a_preset_is_a_config(points):
    texts, labels, _, _ = points
    model = XMC("tree", overrides={"method.trees": 1, "run.threads": 1}).fit(texts, labels)
    assert model.predictor_.config.method.trees == 1
    assert model.score(texts, labels) > 0.5


def test_a_dual_encoder_knows_labels_by_their_text(points, small_encoder):
    texts, labels, _, _ = points
    config = {
        "method": {"name": "dexml"},
        "encoder": {"name": "bag", "init": small_encoder},
        "train": {"epochs": 1, "batch_size": 16},
    }
    model = XMC(config, random_state=1).fit(texts, labels, {"zebra": "a striped horse"})
    assert "zebra" in model.classes_
    answer = model.predict("x", k=21, threshold=None, return_scores=True)
    assert len(answer) == 21
    entry = next(entry for entry in answer if entry["label"] == "zebra")
    assert entry["text"] == "a striped horse"
    again = XMC(config, random_state=1).fit(texts, labels, {"zebra": "a striped horse"})
    assert again.predict(texts, return_scores=True) == model.predict(texts, return_scores=True)
