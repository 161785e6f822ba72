"""ELIAS's graphs, training, stages, refusals and reports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import eval as evaluation
import train
from elias_utils import gen_approx_A, gen_cluster_A, quantize, report, sparse_ranker
from models.elias.graph import Graph, approximate_graph, cluster_count, cluster_graph
from models.elias.model import Elias2Config, Limits
from models.elias.report import BINS, bin_name, draw, graph_arrays, graph_facts
from models.elias.setup import positive_parents
from models.loading import load_method
from tests.commands import launch
from tests.conftest import with_values
from tests.helpers import load
from utils.config.config import ConfigError, build_config, to_yaml
from utils.config.methods import method_class
from utils.data.batches import training_batches
from utils.run.folder import find_run

ROOT = Path(__file__).parents[2]
STAGE1 = {"name": "elias-1", "max_leaf": 5, "tau": 0.1, "init": "labels", "init_bias": -3.0}
STAGE2 = {"name": "elias-2", "max_leaf": 5, "tau": 0.1, "init": "labels", "init_bias": -3.0}


def graph_of(rows, num_labels=4):
    """A graph from dicts {label: value}, one a cluster."""
    matrix = sp.lil_matrix((len(rows), num_labels), dtype=np.float32)
    for cluster, row in enumerate(rows):
        for label, value in row.items():
            matrix[cluster, label] = value
    return Graph.from_csr(matrix.tocsr())


def built(config):
    """A method with its graph, ready for a step."""
    torch.manual_seed(0)
    config.run_folder.mkdir(parents=True, exist_ok=True)
    method = method_class(config.method.name).build(config, load(config))
    accelerator = Accelerator(cpu=True)
    method.prepare(config.run_folder, accelerator)
    return method, accelerator


@pytest.fixture(scope="module")
def stage1(tiny_root, tiny_encoder, tmp_path_factory):
    """A finished stage 1; tests add files to it, none changes it."""
    return train.fit(
        build_config(
            {
                "data": {
                    "root": str(tiny_root),
                    "name": "tiny",
                    "max_len": 16,
                    "val_fraction": 0.2,
                },
                "encoder": {"name": "bag", "init": tiny_encoder},
                "method": STAGE1,
                "optim": {"lr": 0.05, "group_lr": {"table": 0.05}},
                "train": {"epochs": 6, "batch_size": 16},
                "run": {
                    "dir": str(tmp_path_factory.mktemp("stage1") / "run"),
                    "tensorboard": False,
                },
            },
            {},
        )
    )


# -------------------------------- graphs


@pytest.mark.parametrize(
    ("labels", "max_leaf", "clusters"),
    [(1, 100, 1), (100, 100, 1), (101, 100, 2), (670091, 100, 8192), (6491, 100, 128), (7, 2, 4)],
)
def test_number_of_clusters(labels, max_leaf, clusters):
    assert cluster_count(labels, max_leaf) == clusters


def test_a_graph_survives_saving(tmp_path):
    graph = graph_of([{0: 1, 2: 0.5}, {1: 0.25}])
    graph.save(tmp_path / "A.npz")
    again = Graph.load(tmp_path / "A.npz", 4)
    assert (again.labels == graph.labels).all()
    assert (again.values == graph.values).all()
    assert graph.labels.tolist() == [[0, 2], [1, -1]]
    assert graph.lengths.tolist() == [2, 1]


def test_parents_are_the_strongest_clusters():
    graph = graph_of([{0: 1, 1: 0.5, 2: 0.3}, {0: 0.2, 1: 0.5}, {1: 0.1, 2: 0.4}], 5)
    assert graph.parents().tolist() == [0, 0, 2, -1, -1]  # equal values: the lower cluster
    assert graph.parents(np.array([[1, 2, 3], [4, 5, 0], [6, 1, 0]], np.float32)).tolist() == [
        1,
        2,
        0,
        -1,
        -1,
    ]
    assert graph.unreachable() == 2


def test_clusters_are_balanced_and_hold_every_label_once():
    rows = sp.random(37, 20, 0.4, "csr", np.float32, random_state=0)
    graph = cluster_graph(rows, 5, seed=0)
    assert graph.num_clusters == 8
    assert set(graph.lengths.tolist()) <= {4, 5}
    assert sorted(graph.labels[graph.labels >= 0].tolist()) == list(range(37))
    assert (cluster_graph(rows, 5, seed=0).labels == graph.labels).all()


def slow_approximation(relevance, matching, before, kappa):
    """Clusters' labels by loops: each label's best cluster first, then by count."""
    counts = {}
    for point in range(relevance.shape[0]):
        for label in relevance[point].indices:
            for cluster in matching[point].indices:
                counts[label, cluster] = counts.get((label, cluster), 0) + matching[point, cluster]
    for label, parent in enumerate(before.parents()):
        if parent >= 0 and not any((label, c) in counts for c in range(before.num_clusters)):
            counts[label, parent] = 0  # keeps its old place
    rows = []
    for cluster in range(before.num_clusters):
        claims = []
        for (label, other), count in counts.items():
            if other == cluster:
                own = max(
                    (c for (k, c) in counts if k == label),
                    key=lambda c, k=label: (counts[k, c], -c),
                )
                claims.append((own != cluster, -count, label))
        rows.append({label for _, _, label in sorted(claims)[:kappa]})
    return rows


@pytest.mark.parametrize("kappa", [2, 3, 20])
def test_approximate_graph_equals_the_loops(kappa):
    rng = np.random.default_rng(kappa)
    relevance = sp.random(30, 12, 0.15, "csr", np.float32, random_state=1)
    relevance = relevance.multiply(np.arange(12) != 5).tocsr()  # a label without points
    relevance.eliminate_zeros()
    matching = sp.random(30, 4, 0.5, "csr", np.float32, random_state=2)
    matching.data = rng.uniform(0.1, 1, matching.nnz).astype(np.float32)
    before = graph_of(
        [{0: 1, 1: 1, 2: 1}, {3: 1, 4: 1, 5: 1}, {6: 1, 7: 1, 8: 1}, {9: 1, 10: 1, 11: 1}], 12
    )
    got = approximate_graph(relevance, matching, before, kappa)
    for cluster, expected in enumerate(slow_approximation(relevance, matching, before, kappa)):
        assert set(got.labels[cluster][got.labels[cluster] >= 0].tolist()) == expected
    assert got.lengths.max() <= kappa
    assert (got.values.max(1) == 1).all()
    if kappa == 20:
        assert got.unreachable() == 0


def test_a_cluster_that_no_point_visits_keeps_its_labels():
    relevance = sp.csr_matrix(np.array([[1, 0, 0], [0, 1, 0]], np.float32))
    matching = sp.csr_matrix(np.array([[1, 0], [0.5, 0]], np.float32))
    got = approximate_graph(relevance, matching, graph_of([{0: 1, 1: 1}, {2: 1, 1: 0.5}], 3), 2)
    assert got.labels.tolist() == [[0, 1], [1, 2]] or got.labels.tolist() == [[0, 1], [2, -1]]
    assert got.unreachable() == 0


def test_parents_of_positives():
    relevance = sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32))
    assert positive_parents(relevance, np.array([4, -1, 2])).tolist() == [
        [4, 2],
        [-1, -1],
        [-1, -1],
    ]


# -------------------------------- bad graphs and options


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            np.array([[1, 0], [0, 0]]),
            r"at least one label in each of 2 clusters; cluster 1 \(1 in all\) has none",
        ),
        (np.array([[1, 2]]), r"edge values in \(0, 1\], got 1.0 to 2.0"),
        (np.array([[1, -1]]), r"edge values in \(0, 1\], got -1.0"),
        (np.zeros((0, 2)), r"at least one label in each of 0 clusters"),
    ],
)
def test_bad_graphs(tmp_path, matrix, message):
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(matrix.astype(np.float32)))
    with pytest.raises(ValueError, match=message):
        Graph.load(tmp_path / "A.npz", 2)


def test_a_graph_of_another_size(tmp_path, make_config, stage1):
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(np.ones((3, 7), np.float32)))
    with pytest.raises(
        ValueError, match=r"A.npz: the graph has 7 labels, expected the 20 of the data set"
    ):
        train.fit(
            make_config(
                method={**STAGE1, "graph": str(tmp_path / "A.npz")},
                run={"dir": str(tmp_path / "x")},
            )
        )
    sp.save_npz(tmp_path / "B.npz", sp.csr_matrix(np.ones((3, 20), np.float32)))
    run = {"dir": str(tmp_path / "x"), "start_from": str(stage1)}
    with pytest.raises(ValueError, match="run.start_from: it has 4 clusters, this run 3 "):
        train.fit(make_config(method={**STAGE2, "graph": str(tmp_path / "B.npz")}, run=run))
    with pytest.raises(ValueError, match="run.start_from: it has 4 clusters, this run 2 "):
        train.fit(make_config(method={**STAGE2, "max_leaf": 10}, run=run))
    with pytest.raises(ValueError, match=r"no\.npz: no such file; expected a graph A"):
        train.fit(
            make_config(method={**STAGE1, "graph": "no.npz"}, run={"dir": str(tmp_path / "x")})
        )
    (tmp_path / "C.npz").write_text("not one")
    with pytest.raises(ValueError, match=r"C\.npz: not a scipy sparse matrix"):
        train.fit(
            make_config(
                method={**STAGE1, "graph": str(tmp_path / "C.npz")},
                run={"dir": str(tmp_path / "x")},
            )
        )
    assert not (tmp_path / "x").exists()


def test_a_stage_without_its_graph(make_config, tmp_path):
    with pytest.raises(
        ConfigError, match=r"method.graph is 'approx', .* but run.start_from names none; name a fin"
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


def test_unreachable_labels_are_counted_and_never_found(make_config, tmp_path, caplog):
    """Their clusters are not cluster 0 either."""
    matrix = sp.csr_matrix(np.eye(20, dtype=np.float32)[:18].reshape(2, 9, 20).sum(1))
    sp.save_npz(tmp_path / "A.npz", matrix)
    folder = train.fit(
        make_config(method={**STAGE1, "graph": str(tmp_path / "A.npz")}, train={"epochs": 2})
    )
    assert (
        "2 of 20 labels are in no cluster and can never be found"
        in (folder / "train.log").read_text()
    )
    facts = json.loads((folder / "val_metrics.json").read_text())
    assert facts["labels_unreachable"] == 2
    assert 0 < facts["recall_ceiling"] < 100
    assert facts["shortlist_recall"] <= facts["recall_ceiling"] + 0.01
    evaluation.evaluate(folder)
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert not np.isin([18, 19], scores.indices).any()
    assert np.diff(scores.indptr).max() <= 18


# -------------------------------- the step


def test_edge_weights_are_the_clipped_softmax(make_config):
    method, _ = built(
        make_config(method={**STAGE2, "graph": "cluster", "max_leaf": 7, "kappa": 10})
    )
    edges = method.model.edges.detach()
    labels = method.graph.labels
    log_edges = method.model.all_log_edges()
    for cluster, row in enumerate(labels):
        count = (row >= 0).sum()
        # beta = 0.15 kappa
        expected = (1.5 * count / 10 * edges[cluster, :count].softmax(0)).clamp(0, 1)
        np.testing.assert_allclose(np.exp(log_edges[cluster, :count]), expected, rtol=1e-5)
        assert (log_edges[cluster, count:] < -1e30).all() or count == labels.shape[1]


def test_edges_at_the_start(make_config, tmp_path):
    """Random, equal, or by how much less a label has there than in the cluster where it has
    most."""
    rows = np.zeros((2, 20), np.float32)
    rows[0, :12], rows[1, 8:] = 0.5, 1.0
    rows[0, 8], rows[1, 9] = 1.0, 0.001
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(rows))
    settings = {**STAGE2, "graph": str(tmp_path / "A.npz"), "kappa": 12}
    method, _ = built(make_config(method={**settings, "edge_init": "shares"}))
    expected = np.zeros((2, 12))  # of labels 0 to 11 and 8 to 19
    # labels 10 and 11 have 1 in the other cluster, label 8 has as much there
    expected[0, 10:] = np.log(0.5)
    expected[1, 1] = np.log(0.01)  # label 9, not less
    np.testing.assert_allclose(method.model.edges.detach(), expected, rtol=1e-5, atol=1e-6)
    assert (
        method.graph.parents(method.model.all_log_edges())[[0, 9, 10, 19]] == [0, 0, 1, 1]
    ).all()
    assert not built(make_config(method={**settings, "edge_init": "equal"}))[0].model.edges.any()
    random = built(make_config(method=settings))[0].model.edges
    assert 0 <= random.min() < 0.2 < 0.8 < random.max() <= 1


@pytest.mark.parametrize("loss", ["bce", "decoupled-softmax"])
def test_a_step_equals_autograd_through_dense_tables(make_config, loss):
    """The gradients of every part, against the search's definition on whole matrices."""
    method, accelerator = built(
        make_config(
            method={
                **STAGE2,
                "graph": "cluster",
                "init": "random",
                "K": 6,
                "beam": 2,
                "loss_lambda": 0.3,
                "max_leaf": 3,
            },
            loss={"name": loss},
        )
    )
    batch = next(training_batches(method.data.splits["trn"], None, method.config, 0))
    model = method.model
    s = method.config.method
    value = method.backward(batch, accelerator)
    got = {
        "labels": model.labels.factors.to_sparse(model.labels.shape).to_dense(),
        "bias": model.bias.factors.to_sparse(model.bias.shape).to_dense(),
        "clusters": model.clusters.grad,
        "edges": model.edges.grad.to_dense(),
    }

    copies = {name: getattr(model, name).detach().clone().requires_grad_() for name in got}
    queries = method.encoder(batch.queries).detach()
    raised = torch.log_softmax(queries @ copies["clusters"].T / s.tau, 1) + np.log(s.alpha)
    log_scores = raised.clamp(max=0)
    chosen = method._forced(raised.detach(), batch)
    relevance, filters = batch.relevance.toarray() > 0, batch.filters.toarray() > 0
    total = 0.0
    for i in range(len(queries)):
        paths = {}
        for cluster in chosen[i].tolist():
            row = method.graph.labels[cluster] if cluster >= 0 else []
            count = sum(label >= 0 for label in row)
            weights = (
                method.model.limits.beta
                * count
                / method.model.limits.kappa
                * copies["edges"][cluster, :count].softmax(0)
            ).clamp(max=1)
            for place in range(count):
                path = log_scores[i, cluster].exp() * weights[place]
                if row[place] not in paths or path > paths[row[place]]:
                    paths[row[place]] = path
        kept = sorted(paths, key=lambda label: (-paths[label].item(), label))[: s.K]
        final = {
            label: paths[label]
            * torch.sigmoid(copies["labels"][label] @ queries[i] / s.tau + copies["bias"][label, 0])
            for label in kept
        }
        hits = [label for label in kept if relevance[i, label]]
        misses = [label for label in kept if not relevance[i, label] and not filters[i, label]]
        if loss == "bce":
            total = (
                total
                - sum(final[k].log() for k in hits)
                - sum((1 - final[k]).log() for k in misses)
            )
        else:
            below = sum((final[k] for k in misses), torch.tensor(0.0))
            total = total - sum((final[k] / (final[k] + below)).log() for k in hits) / max(
                len(hits), 1
            )
        total = total - s.loss_lambda * sum(paths[k].log() for k in hits)
    total = total / len(queries)
    total.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-4)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, copies[name].grad, rtol=1e-3, atol=1e-5)


def test_a_shortlist_larger_than_what_is_reached(make_config):
    folder = train.fit(make_config(method={**STAGE1, "beam": 1, "K": 2000}, train={"epochs": 2}))
    evaluation.evaluate(folder, overrides=["--eval.ks", "[1, 20]"])
    scores = sp.load_npz(folder / "tst_score_mat.npz")
    assert np.diff(scores.indptr).max() <= 5  # one cluster's labels, though 20 were asked for
    assert np.isfinite(scores.data).all()


def test_label_classifiers_take_a_step_every_so_often(make_config):
    """Every third step with the mean of three steps' gradients; the bias with them."""
    config = make_config(
        method={**STAGE1, "accumulation_steps": 3}, train={"epochs": 1, "batch_size": 8}
    )
    method, accelerator = built(config)
    from utils.training.optim import build_optimizers

    optimizers = build_optimizers(method.parameter_groups(), config.optim)
    before = method.model.labels.detach().clone()
    moved, gradients = [], []
    for batch in training_batches(method.data.splits["trn"], None, config, 0):
        method.backward(batch, accelerator)
        gradients.append(method.model.labels.factors.to_sparse(before.shape).to_dense())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved.append(not torch.equal(method.model.labels, before))
        if len(moved) == 3:
            state = next(o for o in optimizers if method.model.labels in o.state).state[
                method.model.labels
            ]
            torch.testing.assert_close(
                state["exp_avg"], 0.1 * sum(gradients) / 3, rtol=1e-4, atol=1e-6
            )
            before = method.model.labels.detach().clone()
            after = before
        elif len(moved) in (4, 5):
            assert torch.equal(method.model.labels, after)
    assert moved[:3] == [False, False, True]


def test_averaged_weights_score(make_config):
    config = make_config(
        method={**STAGE1, "swa": True, "swa_start": 1, "swa_step": 1},
        train={"epochs": 2, "batch_size": 12},
    )
    method, accelerator = built(config)
    seen = []
    for epoch in range(2):
        for batch in training_batches(method.data.splits["trn"], None, config, epoch):
            if epoch == 1 and batch.key[2] > 0:
                seen.append(method.model.labels.detach().clone())
            method.backward(batch, accelerator)
            with torch.no_grad():
                for parameter in method.model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
    assert method.averaged == len(seen) == 3
    torch.testing.assert_close(method.average.labels, sum(seen) / 3)
    method.prepare_scoring(accelerator)
    assert np.shares_memory(method.index.labels.rows, method.average.labels.numpy())


def test_resuming_changes_nothing(make_config, tmp_path):
    method = {
        **STAGE2,
        "graph": "cluster",
        "swa": True,
        "swa_start": 1,
        "swa_step": 2,
        "accumulation_steps": 2,
        "dropout": 0.2,
    }
    settings = {"method": method, "train": {"epochs": 4, "batch_size": 16}}
    whole = train.fit(make_config(**settings, run={"dir": str(tmp_path / "whole"), "threads": 1}))
    config = make_config(
        **settings, run={"dir": str(tmp_path / "parts"), "threads": 1, "save_minutes": 1e-9}
    )
    original = train.EpochMeter.add
    steps = []

    def stop(self, loss, batch):
        original(self, loss, batch)
        steps.append(1)
        if len(steps) == 8:  # inside the third epoch
            raise KeyboardInterrupt

    train.EpochMeter.add = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train.fit(config)
    finally:
        train.EpochMeter.add = original
    parts = train.fit(config, resume=True)
    first, second = (load_file(f / "last" / "shared.safetensors") for f in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("labels.npy", "clusters.npy", "log_edges.npy"):
        assert (np.load(whole / "model" / name) == np.load(parts / "model" / name)).all()


# -------------------------------- stages and steps

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
    assert {f"shortlist_recall[{bin_name(*BINS[1])}]", "edge_entropy", "labels_per_cluster"} <= set(
        facts
    )
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
    method = method_class("elias-1").build(config, load(config))
    before = load_method(find_run(dexa)[1], dexa)
    method.start_from(before)
    config.run_folder.mkdir()
    method.prepare(config.run_folder, Accelerator(cpu=True))
    vectors = np.asarray(before.label_vectors())
    parents = method.graph.parents()
    np.testing.assert_array_equal(method.model.labels.detach().numpy(), vectors)
    for cluster in range(4):
        mean = vectors[parents == cluster].mean(0)
        np.testing.assert_allclose(
            method.model.clusters[cluster].detach().numpy(),
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
    method = method_class("elias-2").build(config, load(config))
    before = load_method(find_run(stage1)[1], stage1)
    method.start_from(before)
    assert (method.model.clusters.detach().numpy() == before.index.clusters.rows).all()
    assert (method.model.labels.detach().numpy() == before.index.labels.rows).all()
    assert torch.equal(method.encoder.table, before.encoder.table)
    config = with_values(config, method={"init": "random"})
    fresh = method_class("elias-2").build(config, load(config))
    fresh.start_from(before)
    assert not (fresh.model.labels.detach().numpy() == before.index.labels.rows).any(1).all()
    config = with_values(config, method={"init": "keep", "wl_dim": 8})
    projected = method_class("elias-2").build(config, load(config))
    with pytest.raises(
        ValueError, match=r"the label classifiers to keep are \(20, 16\), this run's \(20, 8\)"
    ):
        projected.start_from(before)


@pytest.mark.parametrize("kind", ["bce", "shares", "logs without a tree"])
def test_scores_of_given_labels(make_config, kind):
    """Both methods: labels that score_points returns have its scores, for points and for texts."""
    loss = {"name": "bce" if kind == "bce" else "decoupled-softmax"}
    more = (
        {"logs": True, "calibrate": False, "elias_weight": 1.0}
        if kind == "logs without a tree"
        else {}
    )
    stages = [
        {"name": "search", "method": {**STAGE1, "beam": 2}, "loss": loss},
        {"name": "rank", "method": {"name": "elias-ranker", "candidates": 6, **more}},
    ]
    folder = train.fit(make_config(method=STAGE1, train={"epochs": 3}, stages=stages))
    accelerator = Accelerator(cpu=True)
    for run in (folder / "stages" / "search", folder):
        config = find_run(run)[1]
        method = load_method(config, run)
        split = load(config).splits["tst"]
        points = np.array([3, 0, 11])
        texts = ["the linux tool", "", "glyph and letter"]
        kinds = (
            (method.score_points, method.score_labels, (split, points)),
            (method.score_texts, method.score_labels_of_texts, (texts,)),
        )
        for k in (3, 9):
            for search, score_given, of in kinds:

                def score(given, how=score_given, of=of):
                    return how(*of, given, accelerator)

                values, ids = search(*of, k, accelerator)
                got = score(ids)
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
                order = np.arange(20)[None].repeat(3, 0)
                whole = score(order)
                assert np.isfinite(whole).all()  # those that the beam does not reach too
                np.testing.assert_allclose(
                    np.take_along_axis(whole, ids.clip(0), 1)[ids >= 0],
                    values[ids >= 0],
                    rtol=1e-4,
                    atol=1e-6,
                )
                assert np.isneginf(score(np.full((3, 2), -1))).all()
                assert score(np.zeros((3, 0), np.int64)).shape == (3, 0)
        with pytest.raises(ValueError, match=r"expected given labels \[3, c\], got \(2, 1\)"):
            method.score_labels(split, points, np.zeros((2, 1), np.int64), accelerator)
        with pytest.raises(ValueError, match="expected given labels from -1 to 19, got 0 to 20"):
            method.score_labels_of_texts(["a"], np.array([[0, 20]]), accelerator)


def test_a_score_does_not_depend_on_how_many_are_asked_for(make_config):
    """ELIAS's scores become shares of its `candidates` best, however many labels are ranked."""
    stages = [
        {"name": "search", "method": STAGE1, "loss": {"name": "decoupled-softmax"}},
        {
            "name": "rank",
            "method": {"name": "elias-ranker", "candidates": 4, "logs": True, "elias_weight": 1.0},
        },
    ]
    folder = train.fit(make_config(method=STAGE1, stages=stages))
    method = load_method(find_run(folder)[1], folder)
    found = [method.score_texts(["the linux tool"], k, Accelerator(cpu=True)) for k in (4, 12)]
    both = [dict(zip(ids[0].tolist(), values[0].tolist(), strict=True)) for values, ids in found]
    assert all(both[1][label] == pytest.approx(score, rel=1e-5) for label, score in both[0].items())


def test_eval_in_other_precisions(stage1, make_config, tmp_path):
    """Converted in memory, then from files, which are mapped."""
    exact = evaluation.evaluate(stage1)["P@1"]
    found = {}
    for precision in ("bfloat16", "int8"):
        found[precision] = evaluation.evaluate(stage1, overrides=["--eval.precision", precision])[
            "P@1"
        ]
        assert found[precision] == pytest.approx(exact, abs=11)
        assert quantize(stage1, precision) == stage1 / "model"
        assert (stage1 / "model" / f"labels.{precision}.npy").is_file()
        assert (
            evaluation.evaluate(stage1, overrides=["--eval.precision", precision])["P@1"]
            == found[precision]
        )
    method = load_method(find_run(stage1, ["--eval.precision", "int8"])[1], stage1)
    assert isinstance(method.index.labels.rows, np.memmap)
    other = train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "dexml")}))
    with pytest.raises(
        ValueError, match=r"eval.precision is 'int8', but method dexml has no graph index"
    ):
        evaluation.evaluate(other, overrides=["--eval.precision", "int8"])
    with pytest.raises(ConfigError, match="quantize: expected an elias run, .* is one of dexml"):
        quantize(other)


# -------------------------------- the report


def test_figures_of_a_graph(tmp_path):
    class Index:
        edges = np.array([[0, 1, 2], [1, 3, -1]], np.int32)
        log_edges = np.log(np.array([[0.5, 0.5, 1.0], [0.04, 1.0, 1.0]], np.float32))

    arrays = graph_arrays(Index, 5)
    expected = -sum(p * np.log(p) for p in (0.25, 0.25, 0.5))
    assert arrays["entropy"][0] == pytest.approx(expected, rel=1e-5)
    assert arrays["labels"].tolist() == [3, 2]
    # label 1's second edge is too weak to count
    assert arrays["clusters"].tolist() == [1, 1, 1, 1, 0]
    facts = graph_facts(arrays)
    assert (facts["labels_unreachable"], facts["labels_in_several_clusters"]) == (1, 0)
    with pytest.raises(ValueError, match="no such file; the run is no finished elias run"):
        draw(tmp_path)


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
    assert metrics[0] == pytest.approx(metrics[1])
