"""Micro-batches: cut by texts or by tokens, every text in one of them, in a place that is known."""

import numpy as np
import pytest
import torch

from utils.data.batches import TextBatch
from utils.data.micro_batches import MicroBatches, MicroBatchSize

LENGTHS = np.array([7, 2, 3, 0, 9, 2, 5, 2, 30, 4, 1, 6])


def texts_of(lengths):
    """Texts whose tokens say which text they are of."""
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return TextBatch(torch.from_numpy(ids), np.asarray(lengths))


def costs(parts, padded):
    """(texts, tokens that are encoded) of each micro-batch."""
    return [(len(p), len(p) * p.longest if padded else int(p.host_lengths.sum())) for p in parts]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 10, 23, 70])
def test_a_budget_of_tokens_is_kept_by_all_but_single_long_texts(tokens, padded):
    batches = MicroBatches.of(texts_of(LENGTHS), MicroBatchSize(3, tokens, padded))
    found = costs(batches.parts, padded)
    assert sum(count for count, _ in found) == len(LENGTHS)
    assert all(cost <= tokens or count == 1 for count, cost in found)
    # greedy: the first text of a micro-batch would not have fitted the one before
    for part, after in zip(batches.parts, batches.parts[1:], strict=False):
        longer = np.append(np.maximum(part.host_lengths, 1), max(after.host_lengths[0], 1))
        whole = len(longer) * longer.max() if padded else longer.sum()
        assert whole > tokens


@pytest.mark.parametrize("tokens", [1, 10, 23])
def test_each_text_is_in_its_place(tokens):
    batches = MicroBatches.of(texts_of(LENGTHS), MicroBatchSize(None, tokens))
    rows = [
        part.ids[start:stop].tolist()
        for part in batches.parts
        for start, stop in zip(part.offsets[:-1], part.offsets[1:], strict=True)
    ]
    assert [rows[at] for at in batches.place] == [[i] * n for i, n in enumerate(LENGTHS)]
    lengths = np.concatenate([part.host_lengths for part in batches.parts])
    assert lengths.tolist() == sorted(LENGTHS)


@pytest.mark.parametrize("size", [MicroBatchSize(3), MicroBatchSize(None), MicroBatchSize(99)])
def test_without_a_budget_texts_stay_in_order(size):
    batches = MicroBatches.of(texts_of(LENGTHS), size)
    assert batches.place is None
    assert torch.equal(torch.cat([part.ids for part in batches.parts]), texts_of(LENGTHS).ids)
    assert [len(p) for p in batches.parts] == ([3] * 4 if size.texts == 3 else [12])
    slices = size.cut(LENGTHS)
    assert [part.stop - part.start for part in slices] == [len(p) for p in batches.parts]


@pytest.mark.parametrize("size", [MicroBatchSize(None, 1000), MicroBatchSize(5, 1000, False)])
def test_what_fits_is_one_micro_batch_in_order(size):
    batches = MicroBatches.of(texts_of(LENGTHS), size)
    assert batches.place is None
    assert [part.ids.tolist() for part in batches.parts] == [texts_of(LENGTHS).ids.tolist()]


@pytest.mark.parametrize("size", [MicroBatchSize(4), MicroBatchSize(None), MicroBatchSize(4, 10)])
def test_no_text_is_one_empty_micro_batch(size):
    assert size.cut(np.empty(0, np.int64)) == [slice(0, 0)]
    assert [len(part) for part in MicroBatches.of(texts_of([]), size).parts] == [0]
