"""ELIAS's steps: edges, gradients, accumulation, averages, and going on after a stop."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file

import eval as evaluation
import train
from models.elias.search import forced_clusters
from tests.elias.conftest import STAGE1, STAGE2, built
from utils.data.batches import training_batches
from utils.training import meter


def test_edge_weights_are_the_clipped_softmax(make_config):
    learner = built(make_config(method={**STAGE2, "graph": "cluster", "max_leaf": 7, "kappa": 10}))
    edges = learner.model.edges.detach()
    labels = learner.graph.labels
    log_edges = learner.model.all_log_edges(learner.edges)
    for cluster, row in enumerate(labels):
        count = (row >= 0).sum()
        # beta = 0.15 kappa
        expected = (1.5 * count / 10 * edges[cluster, :count].softmax(0)).clamp(0, 1)
        np.testing.assert_allclose(np.exp(log_edges[cluster, :count]), expected, rtol=1e-5)
        assert (log_edges[cluster, count:] < -1e30).all()


def test_edges_at_the_start(make_config, tmp_path):
    """Random, equal, or by how much less a label has there than in the cluster where it has
    most."""
    rows = np.zeros((2, 20), np.float32)
    rows[0, :12], rows[1, 8:] = 0.5, 1.0
    rows[0, 8], rows[1, 9] = 1.0, 0.001
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(rows))
    settings = {**STAGE2, "graph": str(tmp_path / "A.npz"), "kappa": 12}
    learner = built(make_config(method={**settings, "edge_init": "shares"}))
    expected = np.zeros((2, 12))  # of labels 0 to 11 and 8 to 19
    # labels 10 and 11 have 1 in the other cluster, label 8 has as much there
    expected[0, 10:] = np.log(0.5)
    expected[1, 1] = np.log(0.01)  # label 9, not less
    np.testing.assert_allclose(learner.model.edges.detach(), expected, rtol=1e-5, atol=1e-6)
    parents = learner.graph.parents(learner.model.all_log_edges(learner.edges))
    assert parents[[0, 9, 10, 19]].tolist() == [0, 0, 1, 1]
    assert not built(make_config(method={**settings, "edge_init": "equal"})).model.edges.any()
    random = built(make_config(method=settings)).model.edges
    assert 0 <= random.min() < 0.2 < 0.8 < random.max() <= 1


@pytest.mark.parametrize("loss", ["bce", "decoupled-softmax"])
def test_a_step_equals_autograd_through_dense_tables(make_config, loss):
    """The gradients of every part, against the search's definition on whole matrices."""
    learner = built(
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
    batch = next(training_batches(learner.data.splits["trn"], None, learner.config, 0))
    model = learner.model
    s = learner.config.method
    value = learner.backward(batch)
    got = {
        "labels": model.labels.factors.to_sparse(model.labels.shape).to_dense(),
        "bias": model.bias.factors.to_sparse(model.bias.shape).to_dense(),
        "clusters": model.clusters.grad,
        "edges": model.edges.grad.to_dense(),
    }

    copies = {name: getattr(model, name).detach().clone().requires_grad_() for name in got}
    queries = learner.model.encoder(batch.queries).detach()
    raised = torch.log_softmax(queries @ copies["clusters"].T / s.tau, 1) + np.log(s.alpha)
    log_scores = raised.clamp(max=0)
    step = learner.ahead(batch)
    chosen = forced_clusters(raised.detach(), 2, step.parents, step.fill, step.noise)
    relevance, filters = batch.relevance.toarray() > 0, batch.filters.toarray() > 0
    total = 0.0
    for i in range(len(queries)):
        paths = {}
        for cluster in chosen[i].tolist():
            row = learner.graph.labels[cluster] if cluster >= 0 else []
            count = sum(label >= 0 for label in row)
            weights = (
                learner.model.limits.beta
                * count
                / learner.model.limits.kappa
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
    learner = built(config)
    from utils.training.optim import build_optimizers

    optimizers = build_optimizers(learner.groups(), config.optim)
    before = learner.model.labels.detach().clone()
    moved, gradients = [], []
    for batch in training_batches(learner.data.splits["trn"], None, config, 0):
        learner.backward(batch)
        gradients.append(learner.model.labels.factors.to_sparse(before.shape).to_dense())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved.append(not torch.equal(learner.model.labels, before))
        if len(moved) == 3:
            state = next(o for o in optimizers if learner.model.labels in o.state).state[
                learner.model.labels
            ]
            torch.testing.assert_close(
                state["exp_avg"], 0.1 * sum(gradients) / 3, rtol=1e-4, atol=1e-6
            )
            before = learner.model.labels.detach().clone()
            after = before
        elif len(moved) in (4, 5):
            assert torch.equal(learner.model.labels, after)
    assert moved[:3] == [False, False, True]


def test_averaged_weights_score(make_config):
    config = make_config(
        method={**STAGE1, "swa": True, "swa_start": 1, "swa_step": 1},
        train={"epochs": 2, "batch_size": 12},
    )
    learner = built(config)
    seen = []
    for epoch in range(2):
        for batch in training_batches(learner.data.splits["trn"], None, config, epoch):
            if epoch == 1 and batch.key[2] > 0:
                seen.append(learner.model.labels.detach().clone())
            learner.backward(batch)
            with torch.no_grad():
                for parameter in learner.model.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
    assert learner.averaged == len(seen) == 3
    torch.testing.assert_close(learner.average.labels, sum(seen) / 3)
    rows = learner.ranker().graph.labels.rows
    assert np.shares_memory(rows, learner.average.labels.numpy())


@pytest.mark.parametrize("method", [STAGE1, {**STAGE2, "graph": "cluster"}])
def test_an_evaluation_on_a_gpu_searches_the_parameters_themselves(
    make_config, monkeypatch, method
):
    """What leaves a card is copied; what searches there must not come back as a second copy."""
    learner = built(make_config(method=method))
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    index = learner.ranker().graph
    queries = torch.randn(3, 16)
    found = index._on_gpu(queries, queries)
    clusters, labels, bias, edges, _ = index._tensors(queries.device)
    assert clusters.data_ptr() == learner.model.clusters.data_ptr()
    assert labels.data_ptr() == learner.model.labels.data_ptr()
    assert bias.data_ptr() == learner.model.bias.data_ptr()
    assert edges.data_ptr() == learner.edges.labels.data_ptr()
    for ours, reference in zip(found, index._on_cpu(queries, queries), strict=True):
        torch.testing.assert_close(ours, reference)


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
    original = meter.EpochMeter.add
    steps = []

    def stop(self, loss, batch):
        original(self, loss, batch)
        steps.append(1)
        if len(steps) == 8:  # inside the third epoch
            raise KeyboardInterrupt

    meter.EpochMeter.add = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train.fit(config)
    finally:
        meter.EpochMeter.add = original
    parts = train.fit(config, resume=True)
    first, second = (load_file(f / "last" / "shared.safetensors") for f in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("labels.npy", "clusters.npy", "log_edges.npy"):
        assert (np.load(whole / "model" / name) == np.load(parts / "model" / name)).all()
