import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.batching import label_pool
from models.batching.label_pool import LabelPool, sample_positives, sample_size
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
CPU = torch.device("cpu")


def triples(positives, own):
    return {
        (int(r), int(own[c]), bool(n))
        for r, c, n in zip(positives.rows, positives.cols, positives.counted, strict=True)
    }


def test_positives_of_all_labels():
    pool = LabelPool(np.arange(10))
    positives = pool.positives(BATCH, LossConfig(), None, CPU)
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
    positives = pool.positives(BATCH, LossConfig(weighted=True), None, CPU)
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
    positives = pool.positives(BATCH, LossConfig(sample=True), sampled, CPU)
    assert (0, 1, False) in triples(positives, pool.own)
    assert (0, 4, True) in triples(positives, pool.own)
    assert positives.per_row.tolist() == [1, 1, 0]


def test_a_pool_in_the_order_of_text_lengths_keeps_its_labels():
    lengths = np.array([5, 3, 9, 1, 4, 2, 8, 7, 6, 3])
    pool = LabelPool(np.array([1, 4, 5, 9]), lengths)
    assert pool.own.tolist() == [5, 1, 9, 4]
    positives = pool.positives(BATCH, LossConfig(), None, CPU)
    assert triples(positives, pool.own) == {
        (0, 1, True),
        (0, 4, True),
        (0, 9, True),
        (1, 4, True),
        (0, 5, False),
        (2, 9, False),
    }
    smaller = LabelPool(np.array([0, 9]), lengths)
    assert smaller.positives(BATCH, LossConfig(), None, CPU).per_row.tolist() == [1, 0, 0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("ids", [np.arange(10), np.array([1, 4, 5, 9]), np.array([9])])
def test_shards_partition_the_positives_and_include_their_last_label(monkeypatch, processes, ids):
    whole = LabelPool(ids)
    expected = triples(whole.positives(BATCH, LossConfig(), None, CPU), whole.own)
    seen, owned = [], []
    for rank in range(processes):
        monkeypatch.setattr(label_pool.distributed, "rank", lambda r=rank: r)
        monkeypatch.setattr(label_pool.distributed, "world_size", lambda: processes)
        pool = LabelPool(ids, np.arange(10)[::-1])
        part = pool.positives(BATCH, LossConfig(), None, CPU)
        monkeypatch.undo()
        seen += triples(part, pool.own)
        owned += pool.own.tolist()
        assert (
            part.per_row.tolist()
            == whole.positives(BATCH, LossConfig(), None, CPU).per_row.tolist()
        )
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
