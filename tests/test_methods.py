"""Every method through one conformance test: it learns, scores, saves, loads and starts other
runs."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator

import eval as evaluation
import train
from engine.conformance.answers import check_answers, check_learning, check_saving
from engine.conformance.learners import check_steps
from engine.conformance.made import write_dataset
from models.contract import Learner
from models.evaluation import predict
from predict import Predictor
from tests.conftest import with_values
from tests.helpers import load
from tests.settings import SETTINGS
from utils.config.methods import METHODS, method_class
from utils.metrics import evaluate
from utils.runtime import Runtime


def test_every_method_is_covered():
    assert {s["method"]["name"] for s in SETTINGS.values()} == set(METHODS)


@pytest.fixture(params=SETTINGS)
def config(request, make_config):
    return make_config(**SETTINGS[request.param], train={"epochs": 15})


def test_conformance(config, tmp_path):
    folder = check_learning(config, at_least=40)  # the most frequent label alone gives about 15
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    data = load(config)
    again = evaluate(scores, data.splits["tst"].relevance, None, (1, 3))
    metrics = json.loads((folder / "tst_metrics.json").read_text())
    assert again["P@1"] == pytest.approx(metrics["P@1"])
    assert scores.multiply(data.splits["tst"].filters).nnz == 0

    check_answers(folder)
    check_saving(folder, tmp_path / "again")
    if issubclass(method_class(config.method.name), Learner):
        check_steps(config, tmp_path / "steps")
    answer = Predictor(folder)(["the linux tool"], k=20)[0]
    assert answer[0]["text"] == "kernel"


@pytest.mark.parametrize("encoder", ["bag", "transformer"])
def test_mixed_precision_trains_and_scores(make_config, tiny_encoder, tmp_path, encoder):
    """Encoding in bfloat16; losses and search stay in float32. Another run of the same process goes
    back."""
    settings = {
        "encoder": {"name": tiny_encoder if encoder == "transformer" else "bag"},
        "method": {"gc_batch_size": 8},
        "train": {"epochs": 8, "mixed_precision": "bf16"},
    }
    folder = train.fit(make_config(**settings))
    losses = [
        r["loss"]
        for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if r["kind"] == "train"
    ]
    assert losses[-1] < losses[0]
    assert evaluation.evaluate(folder)["P@1"] >= 0
    plain = train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "plain")}))
    assert (plain / "model").is_dir()


@pytest.mark.parametrize("name", ["dexml-all", "ova"])
def test_batch_size_of_prediction_and_label_blocks_do_not_matter(make_config, name):
    config = make_config(**SETTINGS[name], train={"epochs": 1})
    data = load(config)
    torch.manual_seed(0)
    kind = method_class(config.method.name)
    recipe = kind(config, data, None, Runtime(Accelerator(cpu=True)))
    if name == "ova":
        torch.nn.init.normal_(recipe.module.weight)
    test = data.splits["tst"]
    expected, _ = predict(recipe.ranker(), test.texts, 7, test.filters)
    assert np.diff(expected.indptr).tolist() == [7] * 20
    recipe.config = with_values(config, eval={"batch_size": 3, "label_block": 4})
    got, _ = predict(recipe.ranker(), test.texts, 7, test.filters)
    assert (got.indices == expected.indices).all()
    np.testing.assert_allclose(got.data, expected.data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_one_or_two_labels(tmp_path, make_config, name, labels):
    write_dataset(tmp_path / "sets" / "few", points=9, test_points=3, labels=labels)
    settings = dict(SETTINGS[name])
    for key in settings["method"].keys() & {"num_vectors", "num_clusters", "num_head_vectors"}:
        settings["method"] = {**settings["method"], key: 0 if key == "num_head_vectors" else labels}
    if name == "deepxml":
        first = {**settings["stages"][0], "method": {"name": "surrogate", "num_clusters": labels}}
        settings["stages"] = [first, *settings["stages"][1:]]
    if name == "overlap":  # one cluster; two copies need two
        settings["method"] = {**settings["method"], "copies": 1}
    # some after swa_start, or the config is refused
    epochs = 20 if settings["method"].get("swa") else 1
    config = make_config(
        **settings, data={"root": str(tmp_path / "sets"), "name": "few"}, train={"epochs": epochs}
    )
    folder = train.fit(config)
    metrics = evaluation.evaluate(folder)
    assert set(metrics) >= {"P@1", "R@1"}
    assert "P@3" not in metrics
    if labels == 1:
        assert metrics["P@1"] == 100.0


def test_new_labels_are_ranked_by_their_text(make_config):
    folder = train.fit(make_config(train={"epochs": 15}))
    predictor = Predictor(folder, labels=["zebra", "a kernel", "teapot"])
    got = predictor(["the linux tool"], k=3)[0]
    assert got[0]["text"] == "a kernel"
    assert sorted(p["label"] for p in got) == [0, 1, 2]


def test_classifiers_say_that_they_cannot_rank_new_labels(make_config):
    folder = train.fit(make_config(method={"name": "ova"}, train={"epochs": 1}))
    with pytest.raises(ValueError, match="method ova knows labels by their training points"):
        Predictor(folder, labels=["zebra"])
