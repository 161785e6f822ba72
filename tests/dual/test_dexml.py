"""DEXML's step against plain autograd on the formula, and its pools."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import train
from models.batching.label_pool import LabelPool
from models.dual.dexml import Dexml
from models.encoders.bag import BagEncoder
from models.evaluation import evaluate
from predict import Predictor
from utils.data.batches import TextBatch, training_batches
from utils.data.dataset import load_dataset
from utils.data.micro_batches import MicroBatches
from utils.data.texts import ListTexts
from utils.pretrained.location import load_tokenizer
from utils.runtime import Runtime
from utils.training.grad_cache import GradCache, backward_all

CPU = Runtime(Accelerator(cpu=True))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


@pytest.fixture
def built(make_config, tokenizer):
    """built(**sections) -> (learner, first batch)."""

    def build(**sections):
        config = make_config(**sections)
        data = load_dataset(config, tokenizer)
        torch.manual_seed(0)
        learner = Dexml(config, data, None, CPU)
        return learner, next(training_batches(data.splits["trn"], None, config, 0))

    return build


def gradients(learner):
    return {
        name: p.grad.to_dense().clone()
        for name, p in learner.module.named_parameters()
        if p.grad is not None
    }


def plain_loss(learner, batch, loss_name, tau):
    """The formulas of the paper on full score matrices, encoding each text batch in one go."""
    data = learner.data
    queries = learner.module.encoder(batch.queries)
    labels = learner.module.encoder(TextBatch.take(data.label_tokens, np.arange(data.num_labels)))
    scores = queries @ labels.T / tau
    known = torch.from_numpy(batch.relevance.toarray()) > 0
    absent = (torch.from_numpy(batch.filters.toarray()) > 0) & ~known
    total = 0.0
    for i in range(len(scores)):
        present, positive = scores[i][~absent[i]], scores[i][known[i]]
        if loss_name == "softmax":
            total = total + (torch.logsumexp(present, 0) - positive).sum()
        elif loss_name == "decoupled-softmax":
            negatives = torch.logsumexp(scores[i][~absent[i] & ~known[i]], 0)
            total = total + (torch.logaddexp(positive, negatives) - positive).mean()
        else:
            targets = known[i][~absent[i]].float()
            total = (
                total
                + F.binary_cross_entropy_with_logits(present, targets, reduction="sum")
                / scores.shape[1]
            )
    return total / len(scores)


@pytest.mark.parametrize("loss", ["softmax", "decoupled-softmax", "bce"])
@pytest.mark.parametrize("gc_batch_size", [1, 3, 7, 64])
def test_a_step_with_gradient_caching_equals_the_formula(built, loss, gc_batch_size):
    learner, batch = built(
        loss={"name": loss},
        method={"gc_batch_size": gc_batch_size, "tau": 0.2},
        train={"batch_size": 10},
    )
    got = learner.backward(batch)
    cached = gradients(learner)
    learner.module.zero_grad()
    expected = plain_loss(learner, batch, loss, 0.2)
    expected.backward()
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-6)
    plain = gradients(learner)
    assert cached.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(
            cached[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())
        )


@pytest.mark.parametrize(
    "encoder", [{"name": "bag", "dropout": 0.3}, {"name": "minilm", "layers": 1, "dropout": 0.3}]
)
def test_gradient_caching_equals_plain_autograd_with_dropout_on(built, encoder, monkeypatch):
    """The plain version keeps every micro-batch's graph; both see the same random numbers in the
    same order."""
    settings = {
        "encoder": encoder,
        "method": {"gc_batch_size": 4, "tau": 0.2},
        "train": {"batch_size": 10},
    }
    results = []
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr(
                GradCache,
                "embed",
                lambda self: torch.cat([self.encode(t) for t in self.micro_batches]),
            )
        learner, batch = built(**settings)
        torch.manual_seed(1)
        loss = learner.backward(batch)
        results.append((loss, gradients(learner), torch.rand(1)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=0)
    for name, value in results[1][1].items():
        torch.testing.assert_close(
            results[0][1][name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())
        )
    # the random state goes on as if nothing had been computed twice
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
@pytest.mark.parametrize("encoder", ["bag", "transformer"])
def test_a_step_by_tokens_equals_one_by_texts(built, tiny_encoder, tokens, encoder):
    """Rows stay in the order of the queries, gradients those of one micro-batch."""
    name = tiny_encoder if encoder == "transformer" else encoder
    settings = {"encoder": {"name": name, "dropout": 0.0}, "train": {"batch_size": 16}}
    learner, batch = built(**settings)
    loss = learner.backward(batch)
    expected = gradients(learner)
    learner, batch = built(**settings, method={"micro_batch_tokens": tokens})
    assert (learner.made(batch).queries.place is None) == (tokens == 10**6)
    torch.testing.assert_close(learner.backward(batch), loss, rtol=1e-6, atol=1e-6)
    got = gradients(learner)
    assert got.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-6 * largest, msg=key)


def test_micro_batches_with_zero_gradient_are_not_computed_again():
    encoder = BagEncoder.__new__(BagEncoder)
    torch.nn.Module.__init__(encoder)
    weight = torch.nn.Parameter(torch.ones(3))
    calls = []

    def encode(texts):
        calls.append(len(texts))
        return weight.expand(len(texts), 3) * texts.offsets[1:, None]

    parts = TextBatch(torch.ones(6, dtype=torch.int32), np.ones(6, int)).split(2)
    cache = GradCache(encode, MicroBatches(parts))
    embeddings = cache.embed()
    assert embeddings.shape == (6, 3)
    embeddings[2:4].sum().backward()
    backward_all([cache])
    assert len(calls) == 4  # three forward, one again
    assert weight.grad.tolist() == [3.0, 3.0, 3.0]


def test_a_ranker_made_after_a_step_scores_otherwise(built):
    """Rankers of a learner may look at its tensors, but remember nothing of before."""
    learner, batch = built()
    before = evaluate(learner.ranker(), learner.data, "val").scores
    learner.backward(batch)
    optimizer = torch.optim.SGD(learner.module.parameters(), lr=1.0)
    optimizer.step()
    after = evaluate(learner.ranker(), learner.data, "val").scores
    assert np.abs((before - after).toarray()).max() > 1e-3


def test_no_text_has_no_answer(built):
    scores = built()[0].ranker().open(ListTexts([]))
    values, ids = scores.best(3)
    assert values.shape == ids.shape == (0, 3)


def test_in_batch_pool_is_the_sampled_positives(built):
    learner, batch = built(method={"pool": "in-batch"}, train={"batch_size": 8})
    step = learner.ahead(batch)
    pool, texts, sampled = step.labels.pool, step.texts, step.sampled
    assert sampled.sum() == 8
    assert pool.ids.tolist() == sorted(set(batch.relevance.indices[sampled]))
    assert sum(map(len, texts.parts)) == len(pool.ids)
    assert torch.isfinite(learner.backward(batch))


def test_hard_negatives_are_the_top_labels_that_are_not_positive(built):
    learner, batch = built(
        method={"pool": "hnm", "shortlist_size": 4, "num_negatives": 2, "hard_neg_start": 1},
        train={"batch_size": 8},
    )
    learner.begin(0)
    assert learner.state() == {}
    learner.begin(1)
    lists, split = learner.state()["shortlists"], learner.data.splits["trn"]
    assert lists.shape == (48, 4)
    learner.module.eval()
    with torch.no_grad():
        queries = learner.module.encoder(TextBatch.take(split.tokens, split.rows))
        labels = learner.module.encoder(TextBatch.take(learner.data.label_tokens, np.arange(20)))
    scores = (queries @ labels.T).numpy()
    for i, row in enumerate(lists):
        barred = set(split.relevance[i].indices) | set(split.filters[i].indices)
        allowed = [label for label in np.argsort(-scores[i], kind="stable") if label not in barred]
        np.testing.assert_allclose(scores[i][row], scores[i][allowed[:4]], rtol=1e-5)
        assert not barred & set(row)
    drawn = learner.negatives.draw(batch, np.random.default_rng(0))
    assert len(drawn) == 16
    for i, point in enumerate(batch.points):
        mine = drawn[2 * i : 2 * i + 2]
        assert len(set(mine)) == 2
        assert set(mine) <= set(lists[point])
    step = learner.ahead(batch)
    pool, sampled = step.labels.pool, step.sampled
    assert set(batch.relevance.indices[sampled]) <= set(pool.ids)
    assert torch.isfinite(learner.backward(batch))


def test_shortlists_shorter_than_the_label_set_allow_are_padded_not_filled(built):
    learner, batch = built(method={"pool": "hnm", "shortlist_size": 100, "num_negatives": 100})
    learner.begin(0)
    lists = learner.state()["shortlists"]
    split = learner.data.splits["trn"]
    for i, row in enumerate(lists):
        barred = set(split.relevance[i].indices) | set(split.filters[i].indices)
        assert sorted(row[row >= 0]) == sorted(set(range(20)) - barred)
    assert torch.isfinite(learner.backward(batch))


def test_shortlists_are_refreshed_at_their_interval_and_restored(built):
    learner, _ = built(method={"pool": "hnm", "refresh_interval": 3, "hard_neg_start": 1})
    learner.begin(1)
    first = learner.state()["shortlists"]
    with torch.no_grad():
        learner.module.encoder.table.normal_()
    for epoch in (2, 3):
        learner.begin(epoch)
        assert learner.state()["shortlists"] is first
    learner.begin(4)
    assert not np.array_equal(learner.state()["shortlists"], first)
    learner.load_state({"shortlists": first}, Path())
    assert learner.state()["shortlists"] is first


@pytest.mark.parametrize(
    ("label_max_len", "seen"),
    [
        (5, 3),  # and the tokens that begin and end a text
        (None, 14),  # as long as a query, data.max_len 16
    ],
)
def test_new_labels_are_cut_where_labels_are(make_config, label_max_len, seen):
    folder = train.fit(
        make_config(train={"epochs": 0}, data={"max_len": 16, "label_max_len": label_max_len})
    )
    words = ["editor", "shell", "image", "network"] * 5
    labels = [" ".join(words[:count]) for count in range(1, 20)]
    answer = Predictor(folder, labels=labels)(["the linux tool"], k=len(labels))[0]
    score = {found["label"] + 1: found["score"] for found in answer}  # by the number of words
    longest = score[len(labels)]
    assert [count for count in score if score[count] == pytest.approx(longest, rel=1e-6)] == (
        sorted(range(seen, 20))
    )


@pytest.mark.parametrize("pool", ["all", "in-batch"])
def test_a_step_looks_nothing_up_that_was_made_ahead(built, monkeypatch, pool):
    learner, batch = built(method={"pool": pool}, train={"batch_size": 8})
    plain = learner.backward(batch)
    batch.ahead = learner.ahead(batch)
    assert (learner.ahead(batch).labels.pool is batch.ahead.labels.pool) == (pool == "all")
    monkeypatch.setattr(LabelPool, "positives", None)
    assert torch.equal(learner.backward(batch), plain)


def test_label_0_is_drawn_and_an_empty_place_never(built):
    learner, batch = built(
        method={"pool": "hnm", "shortlist_size": 3, "num_negatives": 2}, train={"batch_size": 8}
    )
    shortlists = np.full((48, 3), -1, np.int32)
    shortlists[batch.points[0], 2] = 0
    learner.load_state({"shortlists": shortlists}, None)
    assert learner.negatives.draw(batch, np.random.default_rng(0)).tolist() == [0]
    shortlists[batch.points[1]] = [7, 8, 9]
    drawn = learner.negatives.draw(batch, np.random.default_rng(0)).tolist()
    assert drawn[0] == 0
    assert len(set(drawn[1:])) == 2 and set(drawn[1:]) < {7, 8, 9}
