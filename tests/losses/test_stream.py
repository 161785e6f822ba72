"""How a streamed loss cuts its pool, and its exponential."""

import math

import pytest
import torch

from losses import LOSSES, Positives, stream
from losses.stream import exp_


@pytest.mark.parametrize(
    ("dtype", "kept", "dropped"),
    [(torch.float32, -60.0, -62.0), (torch.float64, -495.0, -497.0)],
)
def test_exponentials_are_exact_or_zero_below_the_seventh_tenth_of_the_exponents(
    dtype, kept, dropped
):
    """The smallest normal number is about exp(-87), or exp(-708)."""
    values = [-math.inf, -1e30, 20 * dropped, dropped, kept, -1.0, 0.0, 3.5]
    slow = [math.exp(x) if x >= kept else 0.0 for x in values]
    assert exp_(torch.tensor(values, dtype=dtype)).tolist() == pytest.approx(slow, rel=1e-5, abs=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("queries", "dtype", "whole", "chunk_bytes", "expected"),
    [
        (6, torch.float32, 6 * 4 * 23, 1, 23),  # just fits
        (6, torch.float32, 6 * 4 * 23 - 1, 6 * 4 * 5 + 1, 5),
        (6, torch.float32, 0, 6 * 4 * 5 - 1, 4),
        (6, torch.float64, 6 * 4 * 23, 6 * 8 * 5, 5),
        (6, torch.float32, 0, 1, 1),  # at least a label
        (6, torch.float32, 0, 10**9, 23),  # at most all
        (1, torch.float32, 4 * 23 - 1, 4 * 7, 7),
    ],
)
def test_a_pool_that_is_larger_than_a_matrix_may_be_is_cut(
    monkeypatch, name, queries, dtype, whole, chunk_bytes, expected
):
    """Into as many labels at a time as `chunk_bytes` hold scores of all queries."""
    widths = []

    def recorded(positives, num_labels, chunk):
        chunks = original(positives, num_labels, chunk)
        widths.extend(part.labels.stop - part.labels.start for part in chunks)
        assert sum(widths) == num_labels
        return chunks

    original = stream.cut
    monkeypatch.setattr(stream, "cut", recorded)
    monkeypatch.setattr(stream, "WHOLE_BYTES", whole)
    monkeypatch.setitem(stream.CHUNK_BYTES, "cpu", chunk_bytes)
    rows = torch.zeros(1, dtype=torch.long)
    LOSSES[name](
        queries=torch.ones(queries, 3, dtype=dtype),
        labels=torch.ones(23, 3, dtype=dtype),
        positives=Positives.build(rows, rows, queries),
    )
    full, rest = divmod(23, expected)
    assert widths == [expected] * full + [rest] * (rest > 0)


@pytest.mark.parametrize(
    "wrong", [{"tau": 0.0}, {"tau": -1.0}, {"chunk": 0}, {"tau": math.nan}], ids=str
)
def test_temperatures_and_chunks_are_positive(wrong):
    rows = torch.zeros(1, dtype=torch.long)
    given = {"queries": torch.ones(2, 3), "labels": torch.ones(4, 3)}
    positives = Positives.build(rows, rows, 2)
    for name, loss in LOSSES.items():
        loss(**given, positives=positives, tau=0.5, chunk=1)
        with pytest.raises(ValueError, match="expected tau > 0, alpha > 0 and chunk >= 1"):
            loss(**given, positives=positives, **wrong)
        if name == "soft-topk":
            with pytest.raises(ValueError, match="expected tau > 0, alpha > 0 and chunk >= 1"):
                loss(**given, positives=positives, alpha=0.0)
