"""Pools of labels and a batch's positives among them, against loops over the batch."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from losses import Exchange, triplet
from models.batching import label_pool
from models.batching.label_pool import (
    LabelPool,
    StepLabels,
    pool_loss,
    sample_positives,
    sample_size,
)
from utils.config.config import LossConfig
from utils.data.batches import Batch, TextBatch


def make_batch(rows, labels, filters=(), num_labels=10):
    def matrix(pairs):
        out = sp.lil_matrix((rows, num_labels), dtype=np.float32)
        for row, label, value in pairs:
            out[row, label] = value
        return out.tocsr()

    return Batch(
        np.arange(rows),
        matrix(labels),
        matrix([(r, c, 1) for r, c in filters]),
        TextBatch(torch.zeros(0, dtype=torch.int32), np.zeros(rows, np.int64)),
        (0, 0, 0),
    )


BATCH = make_batch(
    3, [(0, 1, 1.0), (0, 4, 2.0), (0, 9, 1.0), (1, 4, 0.5)], filters=[(0, 4), (0, 5), (2, 9)]
)


def triples(positives, own):
    return {
        (int(r), int(own[c]), bool(n))
        for r, c, n in zip(positives.rows, positives.cols, positives.counted, strict=True)
    }


POOLS = [
    np.arange(10),
    np.arange(4),  # of the first labels: the next one is outside
    np.array([0, 1, 4]),
    np.array([1, 4, 5, 9]),
    np.array([9]),
    np.zeros(0, np.int64),
]


def random_batch(seed):
    rng = np.random.default_rng(seed)
    pairs = [(r, c) for r in range(5) for c in range(10)]
    labels = [(r, c, rng.uniform(0.5, 2)) for r, c in pairs if rng.random() < 0.3]
    filters = [pair for pair in pairs if rng.random() < 0.2]
    return make_batch(5, labels, filters)


def slow_positives(batch, ids, loss, sampled):
    """(row, label) -> (weight, counted?); a filter pair that is not relevant is absent."""
    found = {}
    for row in range(batch.relevance.shape[0]):
        for at in range(batch.relevance.indptr[row], batch.relevance.indptr[row + 1]):
            label = int(batch.relevance.indices[at])
            weight = float(batch.relevance.data[at]) if loss.weighted else 1.0
            found[row, label] = weight, bool(sampled[at]) if loss.sample else True
        for label in batch.filters[[row]].indices.tolist():
            found.setdefault((row, label), (1.0, False))
    return {pair: value for pair, value in found.items() if pair[1] in ids.tolist()}


def as_rank(monkeypatch, rank, processes):
    monkeypatch.setattr(label_pool.distributed, "rank", lambda: rank)
    monkeypatch.setattr(label_pool.distributed, "world_size", lambda: processes)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("ids", POOLS, ids=lambda ids: f"{ids.tolist()}")
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_positives_equal_loops_over_the_batch(monkeypatch, ids, processes, by_rows):
    """Of the own labels, or of the own queries among all labels; together those of the batch."""
    lengths = np.random.default_rng(0).permutation(10)
    for seed in range(6):
        batch = random_batch(seed)
        loss = LossConfig(weighted=seed % 2 == 0, sample=seed % 3 == 0)
        sampled = np.random.default_rng(seed).random(batch.relevance.nnz) < 0.5
        expected = slow_positives(batch, ids, loss, sampled)
        per_row = [sum(n for (r, _), (_, n) in expected.items() if r == row) for row in range(5)]
        got, sizes, rows_before = {}, [], 0
        for rank in range(processes):
            as_rank(monkeypatch, rank, processes)
            pool = LabelPool(ids, lengths)
            own = pool.positives(batch, loss, sampled, by_rows=by_rows)
            names = ids if by_rows else pool.own
            first_row = rows_before if by_rows else 0
            rows_before += len(own.per_row)
            assert own.per_row.tolist() == per_row[first_row:][: len(own.per_row)]
            assert own.cols.tolist() == sorted(own.cols.tolist())
            got |= {
                (int(r) + first_row, int(names[c])): (pytest.approx(float(w)), bool(n))
                for r, c, w, n in zip(own.rows, own.cols, own.weights, own.counted, strict=True)
            }
            sizes.append(len(pool.own))
            assert pool.sizes[rank] == len(pool.own)
            assert pool.own.tolist() == sorted(pool.own.tolist(), key=lambda i: lengths[i])
            of_ids = pool.by_id(torch.from_numpy(pool.own))
            assert of_ids.tolist() == sorted(pool.own.tolist())
        assert expected == got
        assert sum(sizes) == len(ids)
        if by_rows:
            assert rows_before == 5


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_pool_may_be_cut_where_the_shares_of_all_labels_end(monkeypatch, processes):
    ids = np.array([0, 1, 2, 6, 9])
    for rank in range(processes):
        as_rank(monkeypatch, rank, processes)
        share = label_pool.distributed.share(10)
        assert LabelPool(ids, num_labels=10).own.tolist() == [i for i in ids if i in share]


def test_a_pool_that_stays_on_a_device_is_not_moved_with_batches():
    lengths = np.array([3, 1, 2])
    pool = LabelPool(np.arange(3), lengths)
    moved = pool.moved(lambda part: part + 10)
    assert moved.own_ids.tolist() == [11, 12, 10]
    assert pool.own_ids.tolist() == pool.own.tolist() == [1, 2, 0]
    fixed = pool.on(torch.device("cpu"))
    assert fixed.moved(lambda part: part + 10) is fixed


class Recorded(Exchange):
    """Knows the sum over processes; keeps this one's addend."""

    def __init__(self, total):
        self.total = total
        self.addend = None

    def sum(self, value):
        self.addend = value
        return self.total.clone()


@pytest.mark.parametrize("name", ["triplet", "mine:loss"])
@pytest.mark.parametrize("biased", [False, True])
def test_losses_of_two_processes_add_up_to_the_whole(monkeypatch, biased, name):
    """The value is the whole batch's on each process, its gradient the process's share of it."""
    batch = random_batch(1)
    ids = np.array([1, 3, 4, 5, 9])
    settings = LossConfig(name=name)
    generator = torch.Generator().manual_seed(0)
    queries, labels = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64) if biased else None
    queries.requires_grad_()
    labels.requires_grad_()
    positives = LabelPool(ids).positives(batch, settings, None)
    whole = triplet(queries=queries, labels=labels, positives=positives, bias=bias, tau=0.5)
    expected = torch.autograd.grad(whole, (queries, labels))
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        pool = LabelPool(ids, np.arange(10)[::-1])
        exchange = Recorded(whole.detach())
        place = torch.from_numpy(np.searchsorted(ids, pool.own))

        def gather(own, total, sizes, pool=pool):
            everything = labels if own.dim() == 2 else bias
            assert torch.equal(own, everything[pool.range.start : pool.range.stop])
            assert (total, sizes) == (5, [2, 3])
            return everything

        monkeypatch.setattr(label_pool.distributed, "gather_rows", gather)
        monkeypatch.setattr(label_pool.distributed, "loss_exchange", lambda e=exchange: e)
        own = label_pool.distributed.share(5)
        own_bias = bias[place] if biased else None
        value = pool_loss(
            triplet,
            queries[own.start : own.stop],
            labels[place],
            StepLabels.of(pool, batch, settings, None),
            options=settings,
            tau=0.5,
            bias=own_bias,
        )
        assert value.item() == pytest.approx(whole.item())
        parts.append((exchange.addend, *torch.autograd.grad(value, (queries, labels))))
    for got, wanted in zip(zip(*parts, strict=True), (whole, *expected), strict=True):
        torch.testing.assert_close(sum(got), wanted.detach())


def test_positives_of_all_labels():
    pool = LabelPool(np.arange(10))
    positives = pool.positives(BATCH, LossConfig(), None)
    assert triples(positives, pool.own) == {
        (0, 1, True),
        (0, 4, True),
        (0, 9, True),
        (1, 4, True),
        # filter pairs are absent
        (0, 5, False),
        (2, 9, False),
    }
    assert positives.per_row.tolist() == [3, 1, 0]
    assert positives.cols.tolist() == sorted(positives.cols.tolist())
    assert set(positives.weights.tolist()) == {1.0}


def test_weights_are_the_relevance_if_asked_for():
    pool = LabelPool(np.arange(10))
    positives = pool.positives(BATCH, LossConfig(weighted=True), None)
    got = {
        (int(r), int(pool.own[c])): w
        for r, c, w, n in zip(
            positives.rows,
            positives.cols,
            positives.weights.tolist(),
            positives.counted,
            strict=True,
        )
        if n
    }
    assert got == {(0, 1): 1.0, (0, 4): 2.0, (0, 9): 1.0, (1, 4): 0.5}


def test_positives_that_were_not_sampled_are_absent():
    sampled = np.array([False, True, False, True])
    pool = LabelPool(np.arange(10))
    positives = pool.positives(BATCH, LossConfig(sample=True), sampled)
    assert (0, 1, False) in triples(positives, pool.own)
    assert (0, 4, True) in triples(positives, pool.own)
    assert positives.per_row.tolist() == [1, 1, 0]


def test_a_pool_in_the_order_of_text_lengths_keeps_its_labels():
    lengths = np.array([5, 3, 9, 1, 4, 2, 8, 7, 6, 3])
    pool = LabelPool(np.array([1, 4, 5, 9]), lengths)
    assert pool.own.tolist() == [5, 1, 9, 4]
    positives = pool.positives(BATCH, LossConfig(), None)
    assert triples(positives, pool.own) == {
        (0, 1, True),
        (0, 4, True),
        (0, 9, True),
        (1, 4, True),
        (0, 5, False),
        (2, 9, False),
    }
    smaller = LabelPool(np.array([0, 9]), lengths)
    assert smaller.positives(BATCH, LossConfig(), None).per_row.tolist() == [1, 0, 0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("ids", [np.arange(10), np.array([1, 4, 5, 9]), np.array([9])])
def test_shards_partition_the_positives_and_include_their_last_label(monkeypatch, processes, ids):
    whole = LabelPool(ids)
    expected = triples(whole.positives(BATCH, LossConfig(), None), whole.own)
    seen, owned = [], []
    for rank in range(processes):
        monkeypatch.setattr(label_pool.distributed, "rank", lambda r=rank: r)
        monkeypatch.setattr(label_pool.distributed, "world_size", lambda: processes)
        pool = LabelPool(ids, np.arange(10)[::-1])
        part = pool.positives(BATCH, LossConfig(), None)
        monkeypatch.undo()
        seen += triples(part, pool.own)
        owned += pool.own.tolist()
        assert part.per_row.tolist() == whole.positives(BATCH, LossConfig(), None).per_row.tolist()
    assert sorted(owned) == ids.tolist()
    assert len(seen) == len(set(seen))
    assert set(seen) == expected


def test_samples_are_positives_without_repetition():
    relevance = BATCH.relevance
    for count, expected in ((1, [1, 1, 0]), (2, [2, 1, 0]), (9, [3, 1, 0])):
        mask = sample_positives(relevance, count, np.random.default_rng(0))
        assert [
            int(mask[a:b].sum())
            for a, b in zip(relevance.indptr[:-1], relevance.indptr[1:], strict=True)
        ] == expected


def test_samples_follow_the_relevance():
    relevance = sp.csr_matrix(np.array([[1.0, 3.0, 0.0]]))
    rng = np.random.default_rng(0)
    draws = np.array([sample_positives(relevance, 1, rng) for _ in range(4000)]).mean(0)
    assert draws == pytest.approx([0.25, 0.75], abs=0.03)


def test_soft_top_k_samples_as_many_as_it_wants_in_the_top():
    assert sample_size(LossConfig(name="soft-topk", k=3), 10) == 3
    assert sample_size(LossConfig(name="soft-topk", k="num_pos"), 10) == 10
    assert sample_size(LossConfig(), 10) == 1
