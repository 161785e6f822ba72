"""ELIAS's stages: options that fit, what a run starts from, graphs and rankers made by commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eval as evaluation
import train
from engine.elias_steps import gen_approx_A, gen_cluster_A, report, sparse_ranker
from models.contract import label_vectors_of
from models.elias.graph import Graph
from models.elias.options import Elias2Config, Limits
from models.evaluation import FREQUENCIES, bin_name
from tests.commands import launch
from tests.conftest import with_values
from tests.elias.conftest import STAGE1, STAGE2, learner_of, ranker_of
from utils.config.config import ConfigError, to_yaml
from utils.run.finding import find_run


def test_a_stage_without_its_graph(make_config, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"method.graph is 'approx', .* but run.start_from names none; name a fin",
    ):
        train.fit(make_config(method=STAGE2))
    dexml = train.fit(make_config(train={"epochs": 1}))
    with pytest.raises(ValueError, match="need an elias run to start from, got a dexml run"):
        train.fit(
            make_config(method=STAGE2, run={"dir": str(tmp_path / "x"), "start_from": str(dexml)})
        )
    with pytest.raises(ValueError, match="need an elias run to start from, got a dexml run"):
        train.fit(
            make_config(
                method={**STAGE1, "init": "keep"},
                run={"dir": str(tmp_path / "x"), "start_from": str(dexml)},
            )
        )
    with pytest.raises(
        ConfigError, match="method elias-ranker ranks the labels that an elias run finds"
    ):
        train.fit(make_config(method={"name": "elias-ranker"}, run={"dir": str(tmp_path / "x")}))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kappa": 21}, "method.kappa is 21, larger than the number of labels, 20"),
        ({"beam": 5}, "method.beam is 5, larger than the number of clusters, 4"),
        ({"kappa": 10, "beta": 10}, "method.beta is 10, expected less than method.kappa, 10"),
        (
            {"kappa": 3},
            r"method.kappa is 3, but 20 labels in 4 clusters \(method.max_leaf\) are 5 in one",
        ),
        (
            {"max_leaf": 1},
            r"method.max_leaf is 1, which makes 32 clusters \(a power of two\) of 20 labels",
        ),
    ],
)
def test_options_that_do_not_fit(make_config, option, message):
    with pytest.raises(ValueError, match=message):
        train.fit(make_config(method={**STAGE2, "graph": "cluster", **option}))


def test_other_losses_are_refused(make_config):
    for loss in ({"name": "softmax"}, {"sample": True}, {"weighted": True}):
        with pytest.raises(
            ConfigError, match="loss.name must be one of bce, decoupled-softmax for elias-1"
        ):
            train.fit(make_config(method=STAGE1, loss=loss))


def test_options_without_a_value_fit_the_data():
    limits = Limits.of(Elias2Config(name="elias-2"), 8, 50)
    assert (limits.beam, limits.kappa, limits.beta) == (8, 50, 7.5)
    limits = Limits.of(Elias2Config(name="elias-2"), 8192, 670091)
    assert (limits.beam, limits.kappa, limits.beta) == (20, 1000, 150)


STAGES = [
    {"name": "warm", "method": {**STAGE1}, "train": {"epochs": 2}},
    {"name": "one", "method": {**STAGE1}},
    {"name": "two", "method": {**STAGE2, "init": "keep"}},
    {"name": "ranker", "method": {"name": "elias-ranker", "candidates": 10}},
]


def test_the_whole_recipe(make_config, tmp_path):
    """Cluster, train, cluster again with embeddings, train, approximate, train, rank; each from the
    one before."""
    folder = train.fit(make_config(method=STAGE1, train={"epochs": 6}, stages=STAGES))
    logs = [(folder / "stages" / n / "train.log").read_text() for n in ("warm", "one", "two")]
    assert "graph: balanced clusters of sparse features" in logs[0]
    assert "graph: balanced clusters of dense and sparse features" in logs[1]
    assert "graph: the labels that each cluster attracts" in logs[2]
    for name in ("warm", "one", "two"):
        assert (folder / "stages" / name / "plots" / "graph.png").stat().st_size > 5000
    facts = json.loads((folder / "stages" / "two" / "val_metrics.json").read_text())
    assert facts["clusters_per_label"] >= 1
    recall = f"shortlist_recall[{bin_name(*FREQUENCIES[1])}]"
    assert {recall, "edge_entropy", "labels_per_cluster"} <= set(facts)
    assert evaluation.evaluate(folder)["P@1"] > 40
    assert evaluation.evaluate(folder / "stages" / "two")["P@1"] > 40
    for step in (gen_approx_A, sparse_ranker, report):
        with pytest.raises(
            ConfigError,
            match=rf"{step.__name__}: expected an elias run, .* is one of elias-ranker; "
            r"those of its stages are \S+/one and \S+/two and \S+/warm$",
        ):
            step(folder)
    with pytest.raises(
        ConfigError, match=r"not a run folder.*train that run first, .*alone: --no_model true"
    ):
        gen_cluster_A(make_config(method=STAGE1, run={"start_from": str(tmp_path / "none")}))
    before = json.loads((folder / "tst_metrics.json").read_text())
    (folder / "stages").rename(tmp_path / "elsewhere")  # the model needs none of them
    assert evaluation.evaluate(folder)["P@1"] == before["P@1"]


def test_a_fresh_encoder_takes_the_clusters_of_the_run_before_and_nothing_else(
    make_config, stage1, tmp_path
):
    """As released: cluster by a first run's embeddings, then stage 1 from the pretrained encoder
    again."""
    run = {"dir": str(tmp_path / "fresh"), "start_from": str(stage1)}
    config = make_config(
        method={**STAGE1, "init": "random", "fresh_encoder": True}, train={"epochs": 0}, run=run
    )
    folder = train.fit(config)
    pretrained = load_file(Path(config.encoder.init) / "model.safetensors")[
        "embeddings.word_embeddings.weight"
    ]
    assert torch.equal(load_file(folder / "model" / "head.safetensors")["table"], pretrained)
    assert not torch.equal(load_file(stage1 / "model" / "head.safetensors")["table"], pretrained)
    again = gen_cluster_A(config, out=tmp_path / "A.npz")
    made, expected = (Graph.load(path, 20) for path in (folder / "graph.npz", again))
    assert (made.labels == expected.labels).all()
    for method, message in (
        ({"graph": "approx"}, "expected method.graph cluster .* got approx and random"),
        ({"init": "keep"}, "got cluster and keep"),
    ):
        with pytest.raises(ConfigError, match=message):
            train.fit(with_values(config, method=method, run={"dir": str(tmp_path / "x")}))
    with pytest.raises(
        ConfigError, match="fresh_encoder clusters the labels by the run .* names none"
    ):
        train.fit(with_values(config, run={"dir": str(tmp_path / "x"), "start_from": None}))


def test_steps_alone(make_config, stage1, tmp_path):
    """gen_cluster_A, gen_approx_A and sparse_ranker as functions; the files work as
    method.graph."""
    stage1 = Path(shutil.copytree(stage1, tmp_path / "stage1"))
    config = make_config(
        method=STAGE1, run={"dir": str(tmp_path / "next"), "start_from": str(stage1)}
    )
    sparse, dense = (
        gen_cluster_A(config, model=False, out=tmp_path / "sparse.npz"),
        gen_cluster_A(config),
    )
    assert dense == tmp_path / "next.cluster_A.npz"
    assert Graph.load(sparse, 20).num_clusters == Graph.load(dense, 20).num_clusters == 4
    approximate = gen_approx_A(stage1, kappa=8)
    assert approximate == stage1 / "approx_A.npz"
    assert Graph.load(approximate, 20).lengths.max() <= 8
    elsewhere = approximate.rename(tmp_path / "A.npz")
    run = {"dir": str(tmp_path / "two"), "start_from": str(stage1)}
    folder = train.fit(make_config(method={**STAGE2, "graph": str(elsewhere), "kappa": 8}, run=run))
    inside = train.fit(
        make_config(method={**STAGE2, "kappa": 8}, run={**run, "dir": str(tmp_path / "inside")})
    )
    assert (
        np.load(folder / "model" / "edges.npy") == np.load(inside / "model" / "edges.npy")
    ).all()
    ranker = sparse_ranker(folder)
    assert ranker == tmp_path / "two-ranker"
    assert evaluation.evaluate(ranker)["P@1"] > 40
    with pytest.raises(
        ConfigError, match="method.kappa must be a whole number from 1 to the .* labels, 20; got 21"
    ):
        gen_approx_A(stage1, kappa=21)
    with pytest.raises(ConfigError, match="gen_approx_A: expected an elias run"):
        gen_approx_A(ranker)
    with pytest.raises(
        ConfigError, match="gen_cluster_A: expected a config of elias-1 or elias-2, got dexml"
    ):
        gen_cluster_A(make_config())


def test_label_classifiers_start_as_label_vectors(make_config, tmp_path):
    """Of any run that has some; clusters from the means of their labels' vectors."""
    dexa = train.fit(
        make_config(method={"name": "dexa", "num_vectors": "labels", "vector_init": "xavier"})
    )
    run = {"dir": str(tmp_path / "x"), "start_from": str(dexa)}
    config = make_config(method={**STAGE1, "init": "vectors"}, run=run)
    before = ranker_of(dexa)
    learner = learner_of(config, lambda: before)
    config.run_folder.mkdir()
    learner.prepare(config.run_folder)
    vectors = np.asarray(label_vectors_of(before))
    parents = learner.graph.parents()
    np.testing.assert_array_equal(learner.model.labels.detach().numpy(), vectors)
    for cluster in range(4):
        mean = vectors[parents == cluster].mean(0)
        np.testing.assert_allclose(
            learner.model.clusters[cluster].detach().numpy(),
            mean / np.linalg.norm(mean),
            rtol=1e-4,
            atol=1e-6,
        )
    with pytest.raises(
        ConfigError, match="method.init is 'vectors', .* but run.start_from names none"
    ):
        train.fit(
            make_config(method={**STAGE1, "init": "vectors"}, run={"dir": str(tmp_path / "y")})
        )
    one = train.fit(
        make_config(method=STAGE1, train={"epochs": 1}, run={"dir": str(tmp_path / "one")})
    )
    with pytest.raises(
        ValueError, match="from a elias-1 run: it is one that has no label vectors to start"
    ):
        train.fit(
            make_config(
                method={**STAGE1, "init": "vectors"},
                run={"dir": str(tmp_path / "y"), "start_from": str(one)},
            )
        )


def test_starting_from_another_encoder_and_keeping_labels(make_config, tmp_path, stage1):
    """Stage 2 keeps the encoder and W_C; `keep` also W_L; a dual encoder gives its encoder."""
    run = {"dir": str(tmp_path / "two"), "start_from": str(stage1)}
    config = make_config(method={**STAGE2, "init": "keep"}, run=run)
    before = ranker_of(stage1)
    learner = learner_of(config, lambda: before)
    assert (learner.model.clusters.detach().numpy() == before.graph.clusters.rows).all()
    assert (learner.model.labels.detach().numpy() == before.graph.labels.rows).all()
    assert torch.equal(learner.model.encoder.table, before.reader.encoder.table)
    config = with_values(config, method={"init": "random"})
    fresh = learner_of(config, lambda: before)
    assert not (fresh.model.labels.detach().numpy() == before.graph.labels.rows).any(1).all()
    config = with_values(config, method={"init": "keep", "wl_dim": 8})
    with pytest.raises(
        ValueError, match=r"the label classifiers to keep are \(20, 16\), this run's \(20, 8\)"
    ):
        learner_of(config, lambda: before)


def test_steps_under_launch(stage1, tmp_path):
    """Two processes make the graphs and the ranker that one makes."""
    path = tmp_path / "c.yaml"
    # without and with embeddings
    for name, start in (("sparse", None), ("dense", str(stage1))):
        config = find_run(stage1)[1]
        config = with_values(config, run={"start_from": start, "dir": str(tmp_path / name)})
        path.write_text(to_yaml(config))
        got = launch(2, "elias_utils.py", "gen_cluster_A", path)
        assert got.stdout == f"graph: {tmp_path / name}.cluster_A.npz\n"
        alone = Graph.load(gen_cluster_A(config, out=tmp_path / "alone.npz"), 20)
        together = Graph.load(tmp_path / f"{name}.cluster_A.npz", 20)
        assert (together.labels == alone.labels).all()
        assert (together.values == alone.values).all()
    one = gen_approx_A(stage1, kappa=8, out=tmp_path / "one.npz")
    launch(
        2,
        "elias_utils.py",
        "gen_approx_A",
        stage1,
        "--method.kappa",
        8,
        "--out",
        tmp_path / "two.npz",
    )
    first, second = (Graph.load(tmp_path / f"{name}.npz", 20) for name in ("one", "two"))
    assert one == tmp_path / "one.npz"
    assert (first.labels == second.labels).all()
    np.testing.assert_allclose(second.values, first.values, rtol=1e-4)
    words = ("sparse_ranker", stage1, "--run.dir", tmp_path / "ranker", "--method.candidates", 10)
    got = launch(2, "elias_utils.py", *words)
    assert got.stdout == f"run: {tmp_path / 'ranker'}\n"
    alone = sparse_ranker(
        stage1, ["--run.dir", str(tmp_path / "alone"), "--method.candidates", "10"]
    )
    metrics = [
        json.loads((f / "val_metrics.json").read_text()) for f in (tmp_path / "ranker", alone)
    ]
    thresholds = [found.pop("threshold") for found in metrics]
    assert metrics[0] == pytest.approx(metrics[1])
    assert thresholds[0]["value"] == pytest.approx(thresholds[1]["value"])
