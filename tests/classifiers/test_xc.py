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
from engine.conformance.made import write_dataset
from models.classifiers.linear_ranker import XcRanker
from models.classifiers.xc import Xc
from models.encoders import reader as readers
from models.evaluation import predict
from models.loading import load_run
from predict import Predictor
from tests.helpers import load
from utils import distributed
from utils.config.config import ConfigError
from utils.data.batches import training_batches
from utils.fusing.score_tree import ScoreTreeSettings, choose
from utils.parameters import DeclaredParameter
from utils.runtime import Runtime

CPU = Runtime(Accelerator(cpu=True))

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
def built(make_config, encoder_run):
    """built(**sections) -> (xc learner on that run, first batch)."""

    def build(method=(), **sections):
        config = make_config(
            method={"name": "xc", "cluster_size": 4, "dropout": 0.0, **dict(method)},
            run={"start_from": str(encoder_run)},
            **sections,
        )
        data = load(config)
        learner = Xc(config, data, lambda: load_run(encoder_run, CPU)[0], CPU)
        return learner, next(training_batches(data.splits["trn"], None, config, 0))

    return build


def test_rows_start_as_the_label_vectors_and_rank_as_they_do(built, encoder_run):
    learner, _ = built()
    vectors = np.load(encoder_run / "model" / "label_embeddings.npy")
    np.testing.assert_array_equal(learner.module.weight.detach().numpy(), vectors)
    texts = learner.data.splits["tst"].texts[:5]
    before = Predictor(encoder_run).ranker.open(texts).best(20)
    # the temperature stretches the scores of both
    values, ids = learner.ranker().open(texts).best(20)
    np.testing.assert_allclose(values, before[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ids, before[1])


@pytest.mark.parametrize("freeze", [True, False])
def test_validation_points_are_encoded_once_if_the_encoder_is_frozen(built, monkeypatch, freeze):
    learner, _ = built({"freeze": freeze})
    readers.forget()
    with torch.no_grad():
        learner.module.bias.normal_()  # which tau weighs against the rows
    split = learner.data.splits["val"]
    calls = []
    learner.module.encoder.register_forward_hook(lambda *_: calls.append(1))
    kept = [learner.ranker().open(split.texts[:]).best(7) for _ in range(3)]
    assert len(calls) == (1 if freeze else 3)
    assert learner.ranker().open(split.texts[:0]).best(7)[1].shape == (0, 7)
    queries = learner.module.encoder.eval()(queries_of(split)).detach()
    rows = F.normalize(learner.module.weight, dim=1)
    slow = (queries @ rows.T + learner.module.bias).topk(7)  # tau is 1
    for values, ids in kept:
        np.testing.assert_array_equal(ids, slow.indices)
        np.testing.assert_allclose(values, slow.values.detach(), rtol=1e-5, atol=1e-6)


def queries_of(split):
    from utils.data.batches import TextBatch

    return TextBatch.take(split.tokens, split.rows)


@pytest.mark.parametrize("method", [{"pool": "all"}, {"pool": "in-batch", "cosine": False}])
def test_a_step_changes_the_scores(built, method):
    """A ranker looks at the learner's tensors; one that is made after a step sees what is new."""
    learner, batch = built(method)
    texts = learner.data.splits["tst"].texts
    before = learner.ranker().open(texts).best(20)[0].copy()
    learner.backward(batch)
    with torch.no_grad():
        for parameter in (learner.module.weight, learner.module.bias):
            parameter -= 0.5 * parameter.grad.to_dense()
    after = learner.ranker().open(texts).best(20)[0]
    assert not np.allclose(before, after)
    rows = learner.ranker().rows
    assert rows.weight.data_ptr() == learner.module.weight.data_ptr()  # no copy of L x D


@pytest.mark.parametrize("pool", ["all", "in-batch"])
@pytest.mark.parametrize("loss", ["decoupled-softmax", "triplet"])
def test_a_step_equals_the_formula_on_cosines(built, pool, loss):
    learner, batch = built({"pool": pool, "tau": 0.5}, loss={**TRIPLET, "name": loss})
    module = learner.module
    value = learner.backward(batch)
    gradient = module.weight.grad.to_dense()
    module.zero_grad()
    labels = np.arange(20) if pool == "all" else np.unique(batch.relevance.indices)
    queries = module.encoder(batch.queries).detach()
    scores = queries @ F.normalize(module.weight, dim=1)[labels].T / 0.5 + module.bias[labels]
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
    torch.testing.assert_close(gradient, module.weight.grad.to_dense(), rtol=1e-4, atol=1e-6)


def test_a_process_takes_its_own_rows_of_the_pool(built, monkeypatch):
    """Of 20 labels process 1 of 2 has rows 10 to 19: row 0 of its weight is label 10."""
    learner, batch = built()
    module = learner.module
    weight = module.weight.detach().clone()
    bias = torch.randn(20)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        own = slice(10 * rank, 10 * rank + 10)
        module.weight = DeclaredParameter(weight[own], module.weight.kind)
        module.bias = DeclaredParameter(bias[own], module.bias.kind)
        step = learner.ahead(batch)
        pool = step.labels.pool
        rows, own_bias = learner.step_rows(step)
        torch.testing.assert_close(rows.detach(), F.normalize(weight[pool.own], dim=1))
        torch.testing.assert_close(own_bias.detach(), bias[pool.own])
        seen += pool.own.tolist()
    assert seen == sorted(set(batch.relevance.indices))


def test_in_batch_pools_touch_the_rows_of_the_batchs_positives_only(built):
    learner, batch = built(loss=TRIPLET, train={"batch_size": 4})
    learner.backward(batch)
    for parameter in (learner.module.weight, learner.module.bias):
        assert parameter.grad.is_sparse
        assert set(parameter.grad.coalesce().indices()[0].tolist()) == set(batch.relevance.indices)


def test_a_frozen_encoder_encodes_each_query_once_and_stays(make_config, encoder_run, monkeypatch):
    calls = []
    original = Xc.embed_queries
    monkeypatch.setattr(Xc, "embed_queries", lambda self: calls.append(1) or original(self))
    folder = train.fit(
        make_config(
            method={"name": "xc", "pool": "all", "tau": 0.1, "cluster_size": 4},
            run={"start_from": str(encoder_run)},
            train={"epochs": 3},
        )
    )
    assert calls == [1]
    first, second = (encoder_of(f).state_dict() for f in (encoder_run, folder))
    assert all(torch.equal(v, second[n]) for n, v in first.items())


def encoder_of(folder):
    """The encoder of a run."""
    return Predictor(folder).ranker.reader.encoder


def test_a_trainable_encoder_moves(make_config, encoder_run):
    folder = train.fit(
        make_config(
            method={"name": "xc", "pool": "all", "freeze": False, "cluster_size": 4},
            run={"start_from": str(encoder_run)},
            train={"epochs": 1},
        )
    )
    first, second = (encoder_of(f).state_dict() for f in (encoder_run, folder))
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
    surrogate = Predictor(run / "stages" / "surrogate").ranker
    clusters = surrogate.rows.clusters.numpy()
    assert sorted(np.bincount(clusters)) == [2] * 4 + [3] * 4
    assert surrogate.rows.weight.shape == (8, 16)
    texts = load(config).splits["tst"].texts[:3]
    scores = surrogate.open(texts).of(np.tile(np.arange(20), (3, 1)))
    scores -= surrogate.rows.log_share.numpy()
    # labels of a cluster differ by their share of its training points alone
    for cluster in range(8):
        assert scores[:, clusters == cluster].std(1).max() < 1e-4
    assert (
        evaluation.evaluate(run / "stages" / "xc")["P@1"]
        > evaluation.evaluate(run / "stages" / "surrogate")["P@1"]
    )
    assert evaluation.evaluate(run)["P@1"] > 60


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
    ranker, classifier, dexa = (Predictor(f).ranker for f in (folder, xc, encoder_run))
    texts = load(ranker.config).splits["tst"].texts[:6]
    queries = texts.embeddings(ranker.reader)
    first = queries @ F.normalize(classifier.rows.weight, dim=1).T + 0.1 * classifier.rows.bias
    second = queries @ torch.as_tensor(next(iter(dexa.vectors().values())).rows).T
    fusion = ranker.model.fusion
    values, ids = ranker.open(texts).best(3)
    for i in range(6):
        proposed = [scores[i].topk(3).indices.tolist() for scores in (first, second)]
        union = sorted(set(proposed[0]) | set(proposed[1]))
        statistic = torch.from_numpy(fusion.statistics[union, 0])
        features = torch.stack([first[i][union], second[i][union], statistic], 1).numpy()
        final = 0.5 * fusion.tree(features) + 0.7 * features[:, 1] + features[:, 0]
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


def test_a_fusion_is_fitted_whatever_the_epochs(fused, make_config, tmp_path):
    """A config of earlier versions says 0; one that says nothing has the default."""
    folder, xc = fused
    method = {"name": "fused", "embedding_weight": 0.7, "tree_weight": 0.5}
    limits = {"candidates": 3, "min_leaf": 2}
    run = {"start_from": str(xc), "dir": str(tmp_path / "again")}
    again = train.fit(make_config(method={**method, **limits}, train={"epochs": 5}, run=run))
    for name in ("fusion.npz", "classifier.safetensors", "label_embeddings.npy"):
        assert (again / "model" / name).read_bytes() == (folder / "model" / name).read_bytes()


@pytest.mark.parametrize("setting", [{"normalize": False}, {"prompt": "query: "}])
def test_a_fusion_of_an_encoder_that_reads_otherwise_is_refused(
    fused, make_config, tmp_path, setting
):
    run = {"start_from": str(fused[1]), "dir": str(tmp_path / "again")}
    key = next(iter(setting))
    with pytest.raises(ConfigError, match=rf"its encoder.{key} is .*, this run's"):
        train.fit(make_config(method={"name": "fused"}, encoder=setting, run=run))


def test_no_texts_have_no_answers(fused, encoder_run):
    for folder in fused:
        ranker, _ = load_run(folder, CPU)
        texts = load(ranker.config).splits["tst"].texts[:0]
        scores = ranker.open(texts, given=True)
        assert scores.best(4)[0].shape == scores.best(4)[1].shape == (0, 4)
        assert scores.of(np.zeros((0, 2), np.int64)).shape == (0, 2)
        found, _ = predict(ranker, texts, 3, load(ranker.config).splits["tst"].filters[:0])
        assert found.shape == (0, 20)


def test_an_xc_run_goes_on_from_another(fused, make_config, tmp_path):
    """Rows from its directions, biases too, and the label vectors that it began with."""
    _, first = fused
    run = {"start_from": str(first), "dir": str(tmp_path / "again")}
    again = train.fit(
        make_config(method={"name": "xc", "cluster_size": 4}, run=run, train={"epochs": 0})
    )
    before, after = (load_run(folder, CPU)[0] for folder in (first, again))
    assert isinstance(after, XcRanker)
    torch.testing.assert_close(after.rows.weight, F.normalize(before.rows.weight, dim=1))
    assert torch.equal(after.rows.bias, before.rows.bias)
    np.testing.assert_array_equal(after.rows.embeddings, before.rows.embeddings)


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
        for path in (p for p in (folder / "model").iterdir() if p.name in own):
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(
                ValueError, match="the model cannot be loaded; a file is missing or damaged"
            ):
                load_run(folder, CPU)
            path.write_bytes(whole)
            seen.add(path.name)
        load_run(folder, CPU)
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


def test_stages_that_do_not_fit_each_other_are_named(make_config, encoder_run):
    with pytest.raises(
        ValueError, match="method fused starts from an xc run, not from one of dexa"
    ):
        train.fit(
            make_config(
                method={"name": "fused"}, train={"epochs": 0}, run={"start_from": str(encoder_run)}
            )
        )
