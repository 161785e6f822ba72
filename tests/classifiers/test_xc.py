"""Extreme classifiers against the formula, what a step touches, the path without label texts, and
fusion of both."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import eval as evaluation
import train
from models.loading import load_method
from models.method import embed_rows
from predict import Predictor
from tests.tiny import write_dataset
from utils import distributed
from utils.config.config import ConfigError
from utils.config.methods import method_class
from utils.data.batches import TextBatch, training_batches
from utils.data.dataset import load_dataset
from utils.fusing.score_tree import ScoreTreeSettings, choose
from utils.pretrained.location import load_tokenizer
from utils.run.finding import find_run

TRIPLET = {
    "name": "triplet",
    "hardest_positives": 3,
    "hardest_negatives": 5,
    "margin": 0.2,
    "hardness_tau": 1.0,
}


@pytest.fixture
def encoder_run(make_config, tmp_path):
    """Folder of a trained dexa run."""
    return train.fit(
        make_config(
            method={"name": "dexa", "num_vectors": 4, "pool": "all", "tau": 0.1},
            train={"epochs": 4},
            run={"dir": str(tmp_path / "encoder")},
        )
    )


@pytest.fixture
def built(make_config, tiny_encoder, encoder_run):
    """built(**sections) -> (xc method on that run, first batch, accelerator)."""

    def build(method=(), **sections):
        config = make_config(
            method={"name": "xc", "cluster_size": 4, "dropout": 0.0, **dict(method)},
            run={"start_from": str(encoder_run)},
            **sections,
        )
        xc = method_class("xc").build(config, load_dataset(config, load_tokenizer(tiny_encoder)))
        xc.start_from(load_method(find_run(encoder_run)[1], encoder_run))
        return (
            xc,
            next(training_batches(xc.data.splits["trn"], None, config, 0)),
            Accelerator(cpu=True),
        )

    return build


def test_rows_start_as_the_label_vectors_and_rank_as_they_do(built, encoder_run):
    method, _, accelerator = built()
    vectors = np.load(encoder_run / "model" / "label_embeddings.npy")
    np.testing.assert_array_equal(method.weight.detach().numpy(), vectors)
    method.prepare_scoring(accelerator)
    before = Predictor(encoder_run).ranker.method
    texts = TextBatch.take(method.data.splits["tst"].tokens, np.arange(5))
    for xc, dexa in zip(*(m.eval().score(texts, 20) for m in (method, before)), strict=True):
        torch.testing.assert_close(xc, dexa, rtol=1e-5, atol=1e-5)


def test_validation_by_kept_embeddings_ranks_as_by_texts(built):
    method, _, accelerator = built()
    with torch.no_grad():
        method.bias.normal_()  # which tau weighs against the rows
    method.prepare_scoring(accelerator)
    split = method.data.splits["val"]
    rows = split.rows[np.arange(len(split))]
    kept = method.score_points(split, np.arange(len(split)), 7, accelerator)
    plain = method.score_rows(split.tokens, rows, 7, accelerator)
    np.testing.assert_array_equal(kept[1], plain[1])
    np.testing.assert_allclose(kept[0], plain[0], rtol=1e-5)
    assert method.score_points(split, np.arange(0), 7, accelerator)[1].shape == (0, 7)


@pytest.mark.parametrize("pool", ["all", "in-batch"])
@pytest.mark.parametrize("loss", ["decoupled-softmax", "triplet"])
def test_a_step_equals_the_formula_on_cosines(built, pool, loss):
    method, batch, accelerator = built({"pool": pool, "tau": 0.5}, loss={**TRIPLET, "name": loss})
    value = method.backward(batch, accelerator)
    gradient = method.weight.grad.to_dense()
    method.zero_grad()
    labels = np.arange(20) if pool == "all" else np.unique(batch.relevance.indices)
    queries = method.encoder(batch.queries).detach()
    scores = queries @ F.normalize(method.weight, dim=1)[labels].T / 0.5 + method.bias[labels]
    known = torch.from_numpy(batch.relevance.toarray()[:, labels]) > 0
    absent = (torch.from_numpy(batch.filters.toarray()[:, labels]) > 0) & ~known
    expected = 0.0
    for row, own, hidden in zip(scores, known, absent, strict=True):
        negatives, positives = row[~own & ~hidden], row[own]
        if loss == "triplet":
            negatives, positives = (
                negatives.sort(descending=True).values[:5],
                positives.sort().values[:3],
            )
            for positive in positives:
                hinges = (negatives - positive + 0.2).clamp(min=0)
                violating = hinges > 0
                shares = torch.softmax(negatives[violating].detach(), 0)
                expected = expected + (shares * hinges[violating]).sum() / len(positives) / len(
                    scores
                )
        else:
            terms = torch.logaddexp(positives, torch.logsumexp(negatives, 0)) - positives
            expected = expected + terms.mean() / len(scores)
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, method.weight.grad.to_dense(), rtol=1e-4, atol=1e-6)


def test_a_process_takes_its_own_rows_of_the_pool(built, monkeypatch):
    """Of 20 labels process 1 of 2 has rows 10 to 19: row 0 of its weight is label 10."""
    method, batch, _ = built()
    weight = method.weight.detach().clone()
    bias = torch.randn(20)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        method.weight = torch.nn.Parameter(weight[10 * rank : 10 * rank + 10])
        method.bias = torch.nn.Parameter(bias[10 * rank : 10 * rank + 10])
        pool, rows, own_bias = method.rows(batch)
        torch.testing.assert_close(rows.detach(), F.normalize(weight[pool.own], dim=1))
        torch.testing.assert_close(own_bias.detach(), bias[pool.own])
        seen += pool.own.tolist()
    assert seen == sorted(set(batch.relevance.indices))


def test_in_batch_pools_touch_the_rows_of_the_batchs_positives_only(built):
    method, batch, accelerator = built(loss=TRIPLET, train={"batch_size": 4})
    method.backward(batch, accelerator)
    for parameter in (method.weight, method.bias):
        assert parameter.grad.is_sparse
        assert set(parameter.grad.coalesce().indices()[0].tolist()) == set(batch.relevance.indices)


def test_a_frozen_encoder_encodes_each_query_once_and_stays(make_config, encoder_run, monkeypatch):
    calls = []
    original = embed_rows
    monkeypatch.setattr(
        "models.classifiers.xc.embed_rows", lambda *a: calls.append(1) or original(*a)
    )
    folder = train.fit(
        make_config(
            method={"name": "xc", "pool": "all", "tau": 0.1, "cluster_size": 4},
            run={"start_from": str(encoder_run)},
            train={"epochs": 3},
        )
    )
    assert calls == [1]
    first, second = (Predictor(f).ranker.method.encoder.state_dict() for f in (encoder_run, folder))
    assert all(torch.equal(v, second[n]) for n, v in first.items())


def test_a_trainable_encoder_moves(make_config, encoder_run):
    folder = train.fit(
        make_config(
            method={"name": "xc", "pool": "all", "freeze": False, "cluster_size": 4},
            run={"start_from": str(encoder_run)},
            train={"epochs": 1},
        )
    )
    first, second = (Predictor(f).ranker.method.encoder.state_dict() for f in (encoder_run, folder))
    assert not torch.equal(first["table"], second["table"])
    with pytest.raises(
        ValueError, match=r"the xc run trained its encoder \(method.freeze: false\)"
    ):
        train.fit(
            make_config(
                method={"name": "fused"},
                train={"epochs": 0},
                run={"start_from": str(folder), "dir": str(folder) + "-fused"},
            )
        )


def test_the_whole_path_without_label_texts(make_config, tmp_path):
    """Surrogate classes, then classifiers that tell the labels of a cluster apart, then fusion."""
    folder = write_dataset(tmp_path / "sets" / "few")
    (folder / "raw" / "Y.txt").unlink()
    config = make_config(
        data={"root": str(tmp_path / "sets"), "name": "few"},
        method={"name": "fused"},
        stages=[
            {
                "name": "surrogate",
                "method": {"name": "surrogate", "num_clusters": 8, "tau": 0.1},
                "train": {"epochs": 10},
            },
            {
                "name": "xc",
                "method": {
                    "name": "xc",
                    "pool": "all",
                    "tau": 0.05,
                    "cluster_size": 4,
                    "dropout": 0.1,
                },
                "train": {"epochs": 15},
            },
            {"name": "fused", "train": {"epochs": 0}},
        ],
    )
    run = train.fit(config)
    surrogate = Predictor(run / "stages" / "surrogate").ranker.method
    clusters = surrogate.clusters.numpy()
    assert sorted(np.bincount(clusters)) == [2] * 4 + [3] * 4
    assert surrogate.weight.shape == (8, 16)
    values, ids = surrogate.score(
        TextBatch.take(load(config).splits["tst"].tokens, np.arange(3)), 20
    )
    scores = torch.empty(3, 20).scatter(1, ids, values) - surrogate.log_share
    # labels of a cluster differ by their share of its training points alone
    for cluster in range(8):
        assert scores[:, clusters == cluster].std(1, unbiased=False).max() < 1e-4
    assert (
        evaluation.evaluate(run / "stages" / "xc")["P@1"]
        > evaluation.evaluate(run / "stages" / "surrogate")["P@1"]
    )
    assert evaluation.evaluate(run)["P@1"] > 60


def load(config):
    from models.encoders.encoder import tokenizer_source

    return load_dataset(config, load_tokenizer(tokenizer_source(config.encoder)))


@pytest.fixture
def fused(make_config, encoder_run, tmp_path):
    """(fused method, its xc run)."""
    xc = train.fit(
        make_config(
            method={"name": "xc", "pool": "all", "tau": 0.1, "cluster_size": 4},
            train={"epochs": 3},
            run={"dir": str(tmp_path / "xc"), "start_from": str(encoder_run)},
        )
    )
    settings = {
        "name": "fused",
        "embedding_weight": 0.7,
        "tree_weight": 0.5,
        "candidates": 3,
        "min_leaf": 2,
    }
    folder = train.fit(
        make_config(method=settings, train={"epochs": 0}, run={"start_from": str(xc)})
    )
    return folder, xc


def test_fused_scores_are_the_formula_on_the_union_of_candidates(fused, encoder_run):
    folder, xc = fused
    method, classifier, dexa = (Predictor(f).ranker.method for f in (folder, xc, encoder_run))
    texts = TextBatch.take(load(method.config).splits["tst"].tokens, np.arange(6))
    method.eval()
    queries = method.encoder(texts)
    first = queries @ F.normalize(classifier.weight, dim=1).T + 0.1 * classifier.bias
    second = queries @ torch.as_tensor(dexa.label_embeddings).T
    values, ids = method.score(texts, 3)
    for i in range(6):
        union = sorted(
            set(first[i].topk(3).indices.tolist()) | set(second[i].topk(3).indices.tolist())
        )
        features = (
            torch.stack(
                [
                    first[i][union],
                    second[i][union],
                    torch.from_numpy(method.fusion.statistics[union, 0]),
                ],
                1,
            )
            .detach()
            .numpy()
        )
        final = 0.5 * method.fusion.tree(features) + 0.7 * features[:, 1] + features[:, 0]
        best = sorted(zip(-final, union, strict=True))[:3]
        assert ids[i].tolist() == [label for _, label in best]
        np.testing.assert_allclose(values[i], [-s for s, _ in best], rtol=1e-4)
    assert (ids >= 0).all()


@pytest.mark.parametrize(
    ("given", "trees", "embeddings"),
    [
        ({}, [0, 0.1, 0.3, 1], [0, 0.25, 0.5, 1, 2]),
        ({"tree_weight": 0.4}, [0.4], [0, 0.25, 0.5, 1, 2]),
        ({"tree_weight": 0.2, "embedding_weight": 0}, [0.2], [0]),
    ],
)
def test_open_weights_are_chosen_among_those_that_the_options_name(
    make_config, fused, tmp_path, monkeypatch, given, trees, embeddings
):
    """By cross-fitted nDCG@5; the classifier's weight is 1."""
    asked = []

    def recorded(scored, choices, metric):
        asked.append((choices, metric))
        return choose(scored, choices, metric)

    monkeypatch.setattr("models.classifiers.fused.choose", recorded)
    config = make_config(
        method={"name": "fused", "depth": 3, "min_leaf": 4, **given},
        train={"epochs": 0},
        run={"start_from": str(fused[1]), "dir": str(tmp_path / "open")},
    )
    train.fit(config)
    choices, metric = asked[0]
    assert metric == "nDCG@5"
    assert choices == [
        ScoreTreeSettings(tree, (1.0, embedding), depth=3, min_leaf=4)
        for tree in trees
        for embedding in embeddings
    ]
    named = {field.name: field.metadata["meaning"] for field in fields(config.method)}
    for key, values in (("tree_weight", trees), ("embedding_weight", embeddings)):
        if len(values) > 1:
            assert f"the best of {', '.join(map(str, values))} by" in named[key]


def test_fusion_is_fitted_on_validation_and_says_what_cross_fitting_thinks(fused):
    folder, _ = fused
    checked = json.loads((folder / "model" / "fusion.json").read_text())
    assert list(checked) == ["classifier", "embedding", "fused, cross-fitted"]
    assert all(0 <= found["P@1"] <= 100 for found in checked.values())
    again = evaluation.evaluate(folder, "val")
    assert again["P@1"] == pytest.approx(
        json.loads((folder / "val_metrics.json").read_text())["P@1"]
    )


def test_approximate_search_of_both_members(fused):
    pytest.importorskip("faiss")
    folder, _ = fused
    exact = evaluation.evaluate(folder)
    found = evaluation.evaluate(folder, overrides=["--eval.index", "hnsw"])
    assert found["P@1"] == pytest.approx(exact["P@1"], abs=5)


def test_a_damaged_file_of_any_of_these_models_is_one_clear_error(
    fused, encoder_run, make_config, tmp_path
):
    surrogate = train.fit(
        make_config(
            method={"name": "surrogate", "num_clusters": 8},
            train={"epochs": 1},
            run={"dir": str(tmp_path / "surrogate")},
        )
    )
    own = {
        "auxiliary.safetensors",
        "classifier.safetensors",
        "clusters.safetensors",
        "fusion.npz",
        "method.json",
    }
    seen = set()
    for folder in (*fused, encoder_run, surrogate):
        config = find_run(folder)[1]
        for path in (p for p in (folder / "model").iterdir() if p.name in own):
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(
                ValueError, match="the model cannot be loaded; a file is missing or damaged"
            ):
                load_method(config, folder)
            path.write_bytes(whole)
            seen.add(path.name)
        load_method(config, folder)
    assert seen == own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": {"name": "xc"}},
            "method xc starts from a trained encoder: run it as a stage after",
        ),
        (
            {"method": {"name": "fused"}},
            "method fused joins the classifiers and label embeddings of an xc run",
        ),
        (
            {"method": {"name": "surrogate", "num_clusters": 21}},
            "num_clusters is 21, more than the labels of tiny, 20",
        ),
        (
            {"method": {"name": "fused"}, "run": {"start_from": "x"}},
            "fitted, not trained: expected train.epochs 0, got 2",
        ),
        (
            {
                "method": {"name": "fused"},
                "run": {"start_from": "x"},
                "train": {"epochs": 0},
                "data": {"val_fraction": 0},
            },
            "fitted on validation points: expected at least 2 of them, data.val_fraction 0.0 "
            "gives 0",
        ),
    ],
)
def test_a_stage_without_what_it_needs_is_one_clear_error(make_config, settings, message):
    config = make_config(**settings)
    with pytest.raises(ConfigError, match=message):
        train.fit(config)
    assert not (config.run_folder / "config.yaml").exists()


def test_stages_that_do_not_fit_each_other_are_named(make_config, encoder_run, tmp_path):
    with pytest.raises(
        ValueError, match="method fused starts from an xc run, not from one of dexa"
    ):
        train.fit(
            make_config(
                method={"name": "fused"}, train={"epochs": 0}, run={"start_from": str(encoder_run)}
            )
        )
    write_dataset(tmp_path / "sets" / "tiny", labels=7)
    with pytest.raises(ValueError, match=r"that run has 20 labels, this one 7"):
        train.fit(
            make_config(
                method={"name": "xc", "cluster_size": 4},
                data={"root": str(tmp_path / "sets")},
                run={"start_from": str(encoder_run)},
            )
        )
