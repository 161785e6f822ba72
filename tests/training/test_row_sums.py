"""Row-sparse gradients of many backwards, against what autograd makes of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.trainer import fit
from utils.parameters import DeclaredParameter, Gradient, Kind, take_rows
from utils.training import row_optimizers
from utils.training.row_optimizers import RowSparseAdamW
from utils.training.row_sums import RowSums, _true_rows

ROWS = Kind(Gradient.ROWS)
BACKWARDS = ([0, 3, 8], [8, 1, 3], [], [5, 2, 5])


def table_of(kind=ROWS):
    torch.manual_seed(0)
    return DeclaredParameter(torch.randn(9, 3), kind)


def run_backwards(table, several=BACKWARDS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for rows in several:
        weights = torch.randn(len(rows), 3, generator=generator)
        (take_rows(table, torch.tensor(rows, dtype=torch.long)) * weights).sum().backward()


def test_the_sum_is_that_of_autograd_to_the_bit():
    ours = table_of()
    sums = RowSums([ours, table_of(Kind())])
    for seed in (1, 2):  # nothing of a step is left for the next
        reference = table_of()
        run_backwards(reference, seed=seed)
        expected = reference.grad.coalesce()
        ours.grad = None
        with sums:
            run_backwards(ours, seed=seed)
        assert ours.grad.is_coalesced()
        assert torch.equal(ours.grad.indices(), expected.indices())
        assert torch.equal(ours.grad.values(), expected.values())


@pytest.mark.parametrize("rows", [[5, 2, 5], []])
def test_one_gradient_needs_no_buffer(rows):
    ours = table_of()
    reference = table_of()
    sums = RowSums([ours])
    with sums:
        run_backwards(ours, [rows])
    run_backwards(reference, [rows])
    assert torch.equal(ours.grad._indices(), reference.grad._indices())
    assert torch.equal(ours.grad.to_dense(), reference.grad.to_dense())
    assert sums._tables[0].sums is None


def test_a_step_without_gradient_leaves_none():
    ours = table_of()
    with RowSums([ours]):
        pass
    assert ours.grad is None


def test_a_step_that_fails_leaves_nothing_behind():
    ours = table_of()
    reference = table_of()
    sums = RowSums([ours])
    with pytest.raises(KeyboardInterrupt), sums:
        run_backwards(ours)
        raise KeyboardInterrupt
    ours.grad = None
    with sums:
        run_backwards(ours, [[1, 2], [2, 4]])
    run_backwards(reference, [[1, 2], [2, 4]])
    assert torch.equal(ours.grad.to_dense(), reference.grad.to_dense())
    assert ours.grad.indices()[0].tolist() == [1, 2, 4]
    run_backwards(ours, [[7]])  # outside of the block autograd adds up again
    assert 7 in ours.grad.coalesce().indices()[0].tolist()


def test_a_dense_gradient_stays_to_be_refused():
    ours = table_of()
    with RowSums([ours]):
        run_backwards(ours, [[1]])
        ours.sum().backward()
    optimizer = RowSparseAdamW([ours], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    with pytest.raises(ValueError, match="expected a sparse gradient"):
        optimizer.step()


def test_what_was_added_up_is_not_sorted_again(monkeypatch):
    """On a GPU that would make the host wait."""

    def refused(rows):
        raise AssertionError("rows known to ascend were looked at")

    monkeypatch.setattr(row_optimizers, "_ascend", refused)
    ours = table_of()
    before = ours.detach().clone()
    with RowSums([ours]):
        run_backwards(ours)
    optimizer = RowSparseAdamW([ours], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    optimizer.step()
    moved = (ours != before).any(1).nonzero()[:, 0]
    assert moved.tolist() == [0, 1, 2, 3, 5, 8]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_of_a_mask_are_those_of_nonzero(share):
    torch.manual_seed(0)
    mask = torch.rand(50) < share
    expected = mask.nonzero()[:, 0]
    assert torch.equal(_true_rows(mask, len(expected)), expected)


class SparseAdditions(TorchDispatchMode):
    """Counts the rows of sparse tensors that are added to others."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.startswith("aten::add") and args[0].is_sparse:
            self.rows += args[0]._nnz() + args[1]._nnz()
        return func(*args, **(kwargs or {}))


def test_training_merges_no_gradients(make_config):
    """20 labels in micro-batches of 2: a step gives the table ten gradients, and the queries'."""
    config = make_config(
        encoder={"name": "bag"},
        method={"name": "dexml", "gc_batch_size": 2},
        train={"epochs": 1},
        run={"threads": 1},
    )
    with SparseAdditions() as additions:
        fit(config)
    assert additions.rows == 0
