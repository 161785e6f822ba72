"""Kinds stay with their parameters; gradients of rows and of factors are those of whole tables."""

import copy

import pytest
import torch
from torch import nn

from utils.parameters import (
    DeclaredParameter,
    Gradient,
    Kind,
    OuterGradient,
    kind_of,
    of_gradient,
    sparse_rows,
    take_rows,
)

TABLE = Kind(Gradient.ROWS, sharded=True)


def made():
    module = nn.Module()
    module.plain = nn.Parameter(torch.ones(2))
    module.table = DeclaredParameter(torch.ones(3, 2), TABLE)
    return module


def through_state_dict(module):
    other = made()
    other.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})
    assert other.table[0, 0] == 2
    return other


def through_a_step(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    (module.plain * module.table).sum().backward()
    optimizer.step()
    assert module.table[0, 0] == 0
    return module


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        through_state_dict,
        through_a_step,
        lambda module: module.double(),
        lambda module: module.to("cpu"),
        lambda module: module.requires_grad_(False),
    ],
)
def test_a_kind_stays_with_its_parameter(change):
    changed = change(made())
    assert [kind_of(p) for p in changed.parameters()] == [Kind(), TABLE]
    assert of_gradient(changed.parameters(), Gradient.ROWS) == [changed.table]
    assert isinstance(changed.table, nn.Parameter)


def test_a_copy_is_one_of_its_own():
    module = made()
    module.again = module.table
    module.table.requires_grad_(False)
    other = copy.deepcopy(module)
    assert other.again is other.table
    assert not other.table.requires_grad
    other.table.data.zero_()
    assert torch.equal(module.table, torch.ones(3, 2))


def test_tables_are_those_whose_gradient_is_not_dense():
    assert [g for g in Gradient if Kind(g).is_table] == [Gradient.ROWS, Gradient.FACTORS]
    assert not Kind(sharded=True).is_table


def test_rows_taken_twice_add_their_gradients():
    table = DeclaredParameter(torch.arange(8.0).view(4, 2), Kind(Gradient.ROWS))
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    taken = take_rows(table, torch.tensor([2, 0, 2]))
    assert torch.equal(taken, table[[2, 0, 2]])
    (taken * weights).sum().backward()
    assert table.grad.is_sparse
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]])
    assert torch.equal(table.grad.to_dense(), expected)


def test_sparse_rows():
    found = sparse_rows(torch.tensor([1, 3]), torch.tensor([5.0, 6.0]), (4,))
    assert found.is_coalesced()
    assert found.to_dense().tolist() == [0, 5, 0, 6]


def test_factored_gradients_add_up():
    torch.manual_seed(0)
    parts = [
        OuterGradient(
            torch.randint(9, (n,)), torch.randint(3, (n,)), torch.randn(n), torch.randn(3, 2)
        )
        for n in (11, 0, 5)
    ]
    shape = torch.Size((9, 2))
    whole = OuterGradient.join(parts)
    expected = sum(p.to_sparse(shape).to_dense() for p in parts)
    torch.testing.assert_close(whole.to_sparse(shape).to_dense(), expected)
    torch.testing.assert_close(whole.scaled(3.0).to_sparse(shape).to_dense(), 3 * expected)
    blocks = list(whole.blocks(2))
    assert all(len(rows) <= 2 for rows, _ in blocks)
    torch.testing.assert_close(
        torch.cat([v for _, v in blocks]), expected[torch.cat([r for r, _ in blocks])]
    )
    assert list(parts[1].blocks(4)) == []
