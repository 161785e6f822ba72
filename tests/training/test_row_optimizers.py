"""AdamW on some rows of a table, from row-sparse and from factored gradients."""

import pytest
import torch
from torch import nn

from utils.parameters import DeclaredParameter, Gradient, Kind, OuterGradient
from utils.training import row_optimizers
from utils.training.row_optimizers import FactoredAdamW, RowSparseAdamW, with_row_sums

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.2}


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_adamw_when_every_row_has_a_gradient(weight_decay):
    torch.manual_seed(0)
    ours, reference = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.zeros(5, 3))
    reference.data.copy_(ours.data)
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}
    a = RowSparseAdamW([ours], weight_decay=weight_decay, **settings)
    b = torch.optim.AdamW([reference], weight_decay=weight_decay, **settings)
    for _ in range(5):
        gradient = torch.randn(5, 3)
        ours.grad = sparse([4, 1, 0, 2, 3], gradient[[4, 1, 0, 2, 3]], (5, 3))
        reference.grad = gradient
        a.step()
        b.step()
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_rows_without_gradient_do_not_move_and_repeated_rows_add_up():
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = RowSparseAdamW([table], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)
    table.grad = sparse([2, 0, 2], torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]), (4, 2))
    optimizer.step()
    assert torch.equal(table[[1, 3]], torch.ones(2, 2))
    torch.testing.assert_close(table[0], torch.full((2,), 1 - 0.1 - 0.05))
    # 1 and -1 cancel; decay remains
    torch.testing.assert_close(table[2], torch.full((2,), 1 - 0.05))
    assert optimizer.state[table]["row_steps"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_step_equals_tensor_operations(threads, monkeypatch):
    """float64 goes by tensor operations; some rows, in any order, one of them twice."""
    monkeypatch.setattr(row_optimizers, "ONE_THREAD", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    start = torch.randn(9, 2, 3)
    tables = [nn.Parameter(start.to(dtype).clone()) for dtype in (torch.float32, torch.float64)]
    optimizers = [RowSparseAdamW([table], **SETTINGS) for table in tables]
    for rows in ([0, 3, 8], [8, 1, 3, 1], [], [5], list(range(9))):
        gradient = torch.randn(len(rows), 2, 3)
        for table, optimizer in zip(tables, optimizers, strict=True):
            table.grad = sparse(rows, gradient.to(table.dtype), table.shape)
            optimizer.step()
    torch.testing.assert_close(tables[0].double(), tables[1], rtol=1e-5, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq", "row_steps"):
        ours, reference = (
            o.state[t][name].double() for o, t in zip(optimizers, tables, strict=True)
        )
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


def test_a_rows_first_step_does_not_depend_on_when_it_comes():
    table = nn.Parameter(torch.zeros(2, 1))
    optimizer = RowSparseAdamW([table], lr=0.1, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0)
    for _ in range(10):
        table.grad = sparse([0], torch.ones(1, 1), (2, 1))
        optimizer.step()
    table.grad = sparse([1], torch.ones(1, 1), (2, 1))
    optimizer.step()
    assert table[1].item() == pytest.approx(-0.1, rel=1e-5)


def test_dense_gradients_are_refused():
    table = nn.Parameter(torch.zeros(2, 1))
    table.grad = torch.ones(2, 1)
    with pytest.raises(ValueError, match="expected a sparse gradient"):
        RowSparseAdamW([table], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()


# -------------------------------- factored gradients


def factors(entries, rows, width):
    """A gradient of so many entries, which meet in some of the rows."""
    return OuterGradient(
        torch.randint(rows, (entries,)),
        torch.randint(4, (entries,)),
        torch.randn(entries),
        torch.randn(4, width),
    )


def test_factored_steps_equal_row_sparse_ones():
    torch.manual_seed(0)
    start = torch.randn(9, 3)
    factored = DeclaredParameter(start.clone(), Kind(Gradient.FACTORS))
    rows = DeclaredParameter(start.clone(), Kind(Gradient.ROWS))
    ours = FactoredAdamW([factored], **SETTINGS)
    reference = RowSparseAdamW([rows], **SETTINGS)
    for entries in (12, 0, 5):
        factored.factors = factors(entries, rows=9, width=3)
        rows.grad = factored.factors.to_sparse(rows.shape)
        for optimizer in (ours, reference):
            optimizer.step()
            optimizer.zero_grad()
        assert factored.factors is None
    assert not torch.equal(rows, start)
    torch.testing.assert_close(factored, rows)
    before = factored.detach().clone()
    ours.step()  # no gradient, no step
    assert torch.equal(factored, before)


@pytest.mark.parametrize(("width", "expected"), [(3, 2), (4, 1), (6, 1), (7, 1)])
def test_blocks_are_as_large_as_the_device_may_hold(monkeypatch, width, expected):
    """Never less than a row; a table without rows has no width."""
    monkeypatch.setattr(row_optimizers, "CPU_FLOATS", 6)
    monkeypatch.setattr(row_optimizers, "GPU_FLOATS", 1000)
    sizes = []
    monkeypatch.setattr(OuterGradient, "blocks", lambda _, size: sizes.append(size) or [])
    for rows, size in ((9, expected), (0, 6)):
        table = DeclaredParameter(torch.zeros(rows, width), Kind(Gradient.FACTORS))
        table.factors = factors(5, rows=9, width=width)
        FactoredAdamW([table], **SETTINGS).step()
        assert sizes.pop() == size


def test_the_number_of_blocks_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    gradient = factors(30, rows=9, width=3)
    moved = []
    for numbers in (1, 6, 1000):
        monkeypatch.setattr(row_optimizers, "CPU_FLOATS", numbers)
        table = DeclaredParameter(torch.ones(9, 3), Kind(Gradient.FACTORS))
        table.factors = gradient
        FactoredAdamW([table], **SETTINGS).step()
        moved.append(table.detach())
    torch.testing.assert_close(moved[0], moved[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved[1], moved[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [2, 3])
def test_gathered_gradients_make_one_step_with_their_mean(every):
    torch.manual_seed(0)
    table = DeclaredParameter(torch.ones(9, 3), Kind(Gradient.FACTORS))
    optimizer = FactoredAdamW([{"params": [table], "accumulate": every}], **SETTINGS)
    first = torch.zeros(9, 3)
    for _ in range(2):
        before = table.detach().clone()
        total = torch.zeros(9, 3)
        for step in range(1, every + 1):
            assert torch.equal(table, before)
            table.factors = OuterGradient(
                torch.arange(9), torch.arange(9) % 4, torch.randn(9), torch.randn(4, 3)
            )
            total += table.factors.to_sparse(table.shape).to_dense()
            optimizer.step()
            optimizer.zero_grad()
            # kept where a checkpoint finds them
            assert len(optimizer.state[table].get("held_rows", [])) == 9 * (step % every)
        assert not torch.equal(table, before)
        first.lerp_(total / every, 0.1)
        torch.testing.assert_close(optimizer.state[table]["exp_avg"], first)


@pytest.mark.parametrize("rows", [[], [3], [3, 1, 3, 3, 0, 1]])
def test_repeated_rows_have_their_whole_gradient_each_time(rows):
    """So that a GPU is not waited for to say how many different ones there are."""
    rows = torch.tensor(rows, dtype=torch.long)
    values = torch.randn(len(rows), 2)
    ordered, sums = with_row_sums(rows, values)
    whole = torch.zeros(4, 2).index_add_(0, rows, values)
    assert ordered.tolist() == sorted(rows.tolist())
    torch.testing.assert_close(sums, whole[ordered])


def test_entries_of_no_row_count_for_nothing():
    rows = torch.tensor([-1, 2, 0, -1, 2])
    points = torch.tensor([0, 1, 0, 1, 0])
    gradient = OuterGradient(rows, points, torch.arange(1.0, 6.0), torch.eye(2))
    for size in (1, 2, 5):
        blocks = [*gradient.blocks(size)]
        assert torch.cat([part for part, _ in blocks]).tolist() == [0, 2]
        assert torch.cat([found for _, found in blocks]).tolist() == [[3.0, 0.0], [5.0, 2.0]]
    nothing = OuterGradient(torch.tensor([-1, -1]), points[:2], torch.ones(2), torch.eye(2))
    assert [*nothing.blocks(3)] == []
    assert nothing.to_sparse(torch.Size([3, 2])).to_dense().eq(0).all()
