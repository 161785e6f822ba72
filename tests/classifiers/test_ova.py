"""One classifier row a label, or a cluster of labels: what is saved and scored, by its formulas."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from models.classifiers.linear_ranker import LinearRanker
from models.encoders.building import load_encoder
from predict import Predictor
from tests.helpers import load
from utils.config.config import ConfigError
from utils.data.batches import TextBatch
from utils.search import ExactIndex, HnswIndex

SURROGATE = {"name": "surrogate", "num_clusters": 6}


def first_queries(config, folder):
    """The first test texts' words, and their embeddings [5, D] by the run's encoder."""
    tokens = load(config).splits["tst"].tokens
    encoder = load_encoder(config.encoder, folder / "model").eval()
    raw = (folder.parent / "texts.txt").read_text().splitlines()[:5]
    return raw, encoder(TextBatch.take(tokens, np.arange(5))).detach().numpy()


@pytest.fixture
def fit(make_config, tiny_root, tmp_path):
    """fit(method, **sections) -> (config, folder) of a run with a decay of its weights."""

    def run(method, **sections):
        (tmp_path / "texts.txt").write_text((tiny_root / "tiny/raw/tst_X.txt").read_text())
        config = make_config(
            method=method, **{"train": {"epochs": 2, "batch_size": 16}, **sections}
        )
        return config, train.fit(config, overwrite=True)

    return run


@pytest.mark.parametrize("method", [{"name": "ova"}, SURROGATE])
def test_scores_are_inner_products_by_the_temperature_and_biases(fit, method):
    """x . w / tau + b, of a label's row or of its cluster's, there with the log of its share."""
    config, folder = fit({**method, "tau": 0.25})
    saved = load_file(folder / "model" / "classifier.safetensors")
    weight, bias = saved["weight"], saved["bias"]
    if method is SURROGATE:
        clusters = load_file(folder / "model" / "clusters.safetensors")
        weight = weight[clusters["clusters"]]
        bias = bias[clusters["clusters"]] + clusters["log_share"]
    texts, queries = first_queries(config, folder)
    for answer, query in zip(Predictor(folder)(texts, k=20), queries, strict=True):
        got = {found["label"]: found["score"] for found in answer}
        slow = {label: query @ weight[label] / 0.25 + bias[label] for label in range(20)}
        assert got == pytest.approx(slow, rel=1e-4, abs=1e-4)
        assert list(got) == sorted(got, key=got.get, reverse=True)


def test_a_label_has_its_share_of_the_points_of_its_cluster(fit):
    config, folder = fit(SURROGATE)
    saved = load_file(folder / "model" / "clusters.safetensors")
    points = [1 + int(n) for n in load(config).label_counts]  # one more: none has no share
    sizes = [0] * 6
    for label, cluster in enumerate(saved["clusters"]):
        sizes[cluster] += points[label]
    slow = [np.log(points[i] / sizes[cluster]) for i, cluster in enumerate(saved["clusters"])]
    np.testing.assert_allclose(saved["log_share"], slow, rtol=1e-6)


def test_clusters_are_kept_where_a_run_starts_from_them(fit, tmp_path):
    _, first = fit(SURROGATE)
    again = {"run": {"dir": str(tmp_path / "again"), "start_from": str(first), "seed": 5}}
    _, second = fit(SURROGATE, **again)
    for name in ("clusters", "log_share"):
        one, two = (load_file(f / "model" / "clusters.safetensors")[name] for f in (first, second))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_run_goes_on_from_the_rows_of_another(fit, tmp_path, epochs):
    _, first = fit({"name": "ova"})
    again = {"run": {"dir": str(tmp_path / "again"), "start_from": str(first)}}
    _, second = fit({"name": "ova"}, **again, train={"epochs": epochs, "batch_size": 16})
    one, two = (load_file(f / "model" / "classifier.safetensors") for f in (first, second))
    for name in ("weight", "bias"):
        assert np.array_equal(one[name], two[name]) == (epochs == 0)


def test_only_the_rows_decay_not_their_biases(fit):
    """AdamW: the step of the loss is at most lr, that of the decay lr times decay of the value."""
    _, first = fit({"name": "ova"})
    start = {"run": {"start_from": str(first), "dir": f"{first}-decayed"}}
    optim = {"lr": 1e-3, "weight_decay": 100.0, "warmup": 0, "schedule": "constant"}
    _, second = fit({"name": "ova"}, **start, optim=optim, train={"epochs": 1, "batch_size": 60})
    one, two = (load_file(f / "model" / "classifier.safetensors") for f in (first, second))
    assert np.abs(one["bias"]).max() > 0.05
    np.testing.assert_allclose(two["bias"], one["bias"], atol=1.1e-3)
    np.testing.assert_allclose(two["weight"], 0.9 * one["weight"], atol=1.1e-3)


def test_as_many_clusters_as_labels_but_not_more(fit):
    fit({**SURROGATE, "num_clusters": 20})
    with pytest.raises(ConfigError, match="num_clusters is 21, more than the labels of tiny, 20"):
        fit({**SURROGATE, "num_clusters": 21})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (SURROGATE, {"name": "ova"}, "other classes: 6, this run's one a label"),
        ({"name": "ova"}, SURROGATE, "other classes: one a label, this run's 6"),
        (SURROGATE, {**SURROGATE, "num_clusters": 4}, "other classes: 6, this run's 4"),
    ],
)
def test_rows_of_other_classes_are_refused(fit, tmp_path, before, after, message):
    _, first = fit(before)
    with pytest.raises(ConfigError, match=message):
        fit(after, run={"dir": str(tmp_path / "after"), "start_from": str(first)})


def test_a_classifier_starts_from_an_encoder_without_rows(fit, tmp_path):
    _, first = fit({"name": "dexml"})
    again = {"run": {"dir": str(tmp_path / "again"), "start_from": str(first)}}
    _, second = fit({"name": "ova"}, **again, train={"epochs": 0})
    assert not load_file(second / "model" / "classifier.safetensors")["weight"].any()


def test_search_in_training_is_exact_and_that_of_a_model_as_it_is_asked_for(fit):
    _, folder = fit({"name": "ova"}, eval={"index": "hnsw"})
    saved = Predictor(folder).ranker
    assert isinstance(saved.index, HnswIndex)
    in_training = LinearRanker(saved.config, saved.reader, saved.rows)
    assert isinstance(in_training.index, ExactIndex)
