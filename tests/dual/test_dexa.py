"""Auxiliary vectors against the formula; the axes that make NGAME, SiameseXML and DEXML of one
class."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import train
from models.dual.auxiliary import AuxiliaryVectors, assign, number_of_vectors
from predict import Predictor
from utils.config.config import ConfigError
from utils.config.methods import method_class
from utils.data.batches import TextBatch, training_batches
from utils.data.dataset import load_dataset
from utils.pretrained.location import load_tokenizer
from utils.runtime import Runtime

CPU = Runtime(Accelerator(cpu=True))
TRIPLET = {"name": "triplet", "sample": True}


@pytest.fixture
def built(make_config, tiny_encoder):
    """built(**sections) -> (learner, first batch), prepared."""

    def build(**sections):
        config = make_config(**sections)
        torch.manual_seed(0)
        data = load_dataset(config, load_tokenizer(tiny_encoder))
        learner = method_class(config.method.name)(config, data, None, CPU)
        learner.prepare(Path())
        return learner, next(training_batches(data.splits["trn"], None, config, 0))

    return build


def gradients(learner):
    return {
        n: p.grad.to_dense().clone()
        for n, p in learner.module.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("gc_batch_size", [3, 64])
def test_a_step_equals_the_formula(built, gc_batch_size):
    """w_l = norm(E(z_l) + a_C(l)), decoupled softmax over all labels, by plain autograd on full
    matrices."""
    learner, batch = built(
        method={
            "name": "dexa",
            "num_vectors": 8,
            "num_head_vectors": 2,
            "tau": 0.2,
            "pool": "all",
            "gc_batch_size": gc_batch_size,
        }
    )
    loss = learner.backward(batch)
    got = gradients(learner)
    learner.module.zero_grad()
    queries = learner.module.encoder(batch.queries)
    texts = learner.module.encoder(TextBatch.take(learner.data.label_tokens, np.arange(20)))
    labels = torch.stack(
        [
            F.normalize(
                texts[i]
                + learner.module.auxiliary.table[int(learner.module.auxiliary.clusters[i])],
                dim=0,
            )
            for i in range(20)
        ]
    )
    scores = queries @ labels.T / 0.2
    known = torch.from_numpy(batch.relevance.toarray()) > 0
    absent = (torch.from_numpy(batch.filters.toarray()) > 0) & ~known
    expected = 0.0
    for i in range(len(scores)):
        negatives = torch.logsumexp(scores[i][~known[i] & ~absent[i]], 0)
        positive = scores[i][known[i]]
        expected = expected + (torch.logaddexp(positive, negatives) - positive).mean() / len(scores)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    plain = gradients(learner)
    assert got.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())
        )


def test_a_step_moves_the_vectors_of_its_labels_only(make_config, built):
    learner, batch = built(
        method={"name": "dexa", "num_vectors": "labels"}, loss=TRIPLET, train={"batch_size": 4}
    )
    before = learner.module.auxiliary.table.detach().clone()
    pool = learner.ahead(batch).labels.pool
    learner.backward(batch)
    gradient = learner.module.auxiliary.table.grad
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) == set(pool.ids)
    assert torch.equal(before, learner.module.auxiliary.table)


@pytest.mark.parametrize("plain", ["ngame", "dexml"])
def test_without_vectors_it_is_ngame_and_with_all_labels_dexml(built, plain):
    settings = {"pool": "all", "tau": 0.1}
    dexa = {**settings, "name": "dexa", "num_vectors": 0, "batches": "random"}
    first, batch = built(method=dexa)
    second = built(method={**settings, "name": plain})[0]
    losses = [m.backward(batch) for m in (first, second)]
    assert torch.equal(*losses)
    assert gradients(first).keys() == gradients(second).keys()
    assert all(torch.equal(v, gradients(second)[n]) for n, v in gradients(first).items())


def test_vectors_of_zeros_leave_the_labels_where_their_texts_are(built):
    """SiameseXML's residual at the start."""
    learner, _ = built(method={"name": "dexa", "num_vectors": "labels", "vector_init": "zeros"})
    torch.testing.assert_close(learner.ranker().label_embeddings, learner.embed_own_labels())
    assert learner.module.auxiliary.clusters.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("vectors", "head"), [(8, 0), (8, 3), (16, 15), (1, 0), (2, 1), (20, 0), (11, 3), (19, 3)]
)
def test_frequent_labels_have_a_vector_each_and_the_others_share(vectors, head):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20, 6)).astype(np.float32)
    counts = rng.integers(0, 9, 20)
    clusters = assign(embeddings, counts, vectors, head, seed=0, threads=1)
    assert set(clusters) == set(range(vectors))
    sizes = np.bincount(clusters)
    if vectors == 20:
        assert clusters.tolist() == list(range(20))
        return
    assert sizes[:head].tolist() == [1] * head
    frequent = np.flatnonzero(clusters < head)
    assert min(counts[frequent], default=9) >= max(np.delete(counts, frequent), default=0)
    assert np.ptp(sizes[head:]) <= 1


@pytest.mark.parametrize(("vectors", "head"), [(8, 3), (11, 3), (17, 1), (5, 4), (4, 0)])
def test_vectors_or_their_clusters_are_a_power_of_two(make_config, vectors, head):
    """As published: 66,536 vectors are 65,536 clusters and 1,000 head labels."""
    config = make_config(method={"name": "dexa", "num_vectors": vectors, "num_head_vectors": head})
    data = load_dataset(config, None)
    assert number_of_vectors(config, data) == vectors


@pytest.mark.parametrize("normalize", [True, False])
def test_a_label_is_its_text_plus_its_vector(normalize):
    """A new one has the vector of the nearest cluster that is not empty, however far it is."""
    auxiliary = AuxiliaryVectors(3, 4, 5, "zeros")
    assert auxiliary.clusters.tolist() == [-1] * 5
    torch.manual_seed(0)
    auxiliary.table.data.normal_()
    auxiliary.clusters.copy_(torch.tensor([2, 0, 1, 2, 0]))
    texts = torch.randn(3, 4)
    got = auxiliary(texts, torch.tensor([3, 1, 0]), normalize)
    new = auxiliary.nearest(
        texts, torch.stack([-texts[0], torch.zeros(4), -texts.sum(0)]), normalize
    )
    for i, text in enumerate(texts):
        scores = {0: float(-text @ texts[0]), 2: float(-text @ texts.sum(0))}
        for rows, cluster in ((got, [2, 0, 2][i]), (new, max(scores, key=scores.get))):
            label = (text + auxiliary.table[cluster]).detach()
            length = float(label.square().sum()) ** 0.5 if normalize else 1.0
            torch.testing.assert_close(rows[i], label / length)
    assert AuxiliaryVectors(3, 4, 5, "xavier").table.abs().sum() > 0


def test_labels_of_similar_texts_share_a_vector():
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 5))
    clusters = assign(np.eye(4, dtype=np.float32)[groups], np.ones(20), 4, 0, seed=0, threads=1)
    assert len(set(zip(groups.tolist(), clusters.tolist(), strict=True))) == 4


def test_a_new_label_gets_its_text_and_the_vector_of_the_nearest_cluster(make_config):
    folder = train.fit(
        make_config(
            method={"name": "dexa", "num_vectors": 4, "pool": "all", "tau": 0.05},
            train={"epochs": 15},
        )
    )
    predictor = Predictor(folder, labels=["zebra", "a kernel", "teapot"])
    assert predictor(["the linux tool"], k=3)[0][0]["text"] == "a kernel"
    ranker = Predictor(folder).ranker
    dim = ranker.reader.dim
    embeddings = F.normalize(torch.randn(5, dim), dim=1)
    got = ranker.represent_new(embeddings)
    assert ranker.centroids.shape == (4, dim)
    for row, text in zip(got, embeddings, strict=True):
        nearest = max(range(4), key=lambda c: float(text @ ranker.centroids[c]))
        torch.testing.assert_close(row, F.normalize(text + ranker.auxiliary.table[nearest], dim=0))


def test_it_starts_from_any_encoder_and_keeps_the_vectors_of_its_like(make_config, tmp_path):
    first = train.fit(
        make_config(method={"name": "dexml"}, train={"epochs": 1}, run={"dir": str(tmp_path / "a")})
    )
    settings = {"name": "dexa", "num_vectors": 4, "pool": "all"}
    second = train.fit(
        make_config(
            method=settings,
            train={"epochs": 1},
            run={"dir": str(tmp_path / "b"), "start_from": str(first)},
        )
    )
    third = train.fit(
        make_config(
            method=settings,
            train={"epochs": 0},
            run={"dir": str(tmp_path / "c"), "start_from": str(second)},
        )
    )
    one, two = (Predictor(f).ranker for f in (second, third))
    assert torch.equal(one.auxiliary.table, two.auxiliary.table)
    assert torch.equal(one.auxiliary.clusters, two.auxiliary.clusters)
    assert np.allclose(one.label_embeddings, two.label_embeddings)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"num_vectors": 6},
            r"num_vectors is 6, expected a power of two, or one beyond .* \(near: 4, 8\)",
        ),
        (
            {"num_vectors": 9, "num_head_vectors": 3},
            r"num_vectors is 9, .* \(near: 7 or 11 with the 3 head vectors\)",
        ),
        ({"num_vectors": 32}, "num_vectors is 32, more than the labels of tiny, 20"),
        (
            {"num_vectors": 8, "num_head_vectors": 21},
            "num_head_vectors is 21, more than the labels of tiny, 20",
        ),
        (
            {"num_vectors": 8, "num_head_vectors": 8},
            "num_head_vectors is 8, which leaves none of method.num_vectors, 8",
        ),
        (
            {"num_vectors": 8, "num_head_vectors": 20},
            "num_head_vectors is 20, which leaves none of method.num_vectors, 8",
        ),
        *(
            (
                {"num_vectors": count, "num_head_vectors": 1},
                f"num_head_vectors is 1, but with method.num_vectors {count} no labels share",
            )
            for count in ("labels", 20, 0)
        ),
        ({"num_vectors": "label"}, "num_vectors must be whole number or labels, got 'label'"),
    ],
)
def test_vectors_that_do_not_fit_are_one_clear_error(make_config, method, message):
    with pytest.raises(ConfigError, match=message):
        train.fit(make_config(method={"name": "dexa", **method}))
