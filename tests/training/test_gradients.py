"""Clipping, by hand and against torch. Sums over processes are in tests/test_distributed.py."""

import pytest
import torch
from torch import nn

from losses import Exchange
from utils import distributed
from utils.parameters import DeclaredParameter, Gradient, Kind, sparse_rows
from utils.training.gradients import clip_gradients


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = DeclaredParameter(torch.zeros(4, 2), Kind(Gradient.ROWS))
        self.linear = nn.Linear(2, 3)
        self.unused = nn.Parameter(torch.zeros(1))


def test_clipping_equals_torch_and_leaves_tables_alone():
    net = Net()
    net.table.grad = sparse_rows(torch.tensor([1]), torch.full((1, 2), 100.0), (4, 2))
    for p in (net.linear.weight, net.linear.bias):
        p.grad = torch.randn_like(p) * 10
    reference = [p.grad.clone() for p in (net.linear.weight, net.linear.bias)]
    norm = clip_gradients(net.parameters(), 1.0)
    expected = torch.cat([g.reshape(-1) for g in reference]).norm()
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(net.linear.weight.grad, reference[0] / (expected + 1e-6))
    assert net.table.grad.to_dense().max() == 100
    small = clip_gradients(net.parameters(), 5.0)  # below the limit: unchanged
    assert small.item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(net.linear.bias.grad, reference[1] / (expected + 1e-6))
    assert clip_gradients([], 1.0).item() == 0.0


def test_a_sharded_gradient_counts_with_the_shards_of_others(monkeypatch):
    """|g|^2 = 3^2 of what all hold + 2 x 4^2 of what two processes hold a shard of each."""

    class Twice(Exchange):
        def sum(self, value):
            return 2 * value

    monkeypatch.setattr(distributed, "loss_exchange", Twice)
    whole = nn.Parameter(torch.zeros(1))
    shard = DeclaredParameter(torch.zeros(1), Kind(sharded=True))
    whole.grad = torch.tensor([3.0])
    shard.grad = torch.tensor([4.0])
    assert clip_gradients([whole, shard], 1.0).item() == pytest.approx(41**0.5)
    assert shard.grad.item() == pytest.approx(4 / 41**0.5)
