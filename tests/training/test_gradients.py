"""Clipping, by hand and against torch. Sums over processes are in tests/test_distributed.py."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from losses import Exchange
from utils import distributed
from utils.parameters import DeclaredParameter, Gradient, Kind, sparse_rows
from utils.training.gradients import _square, _square_of_norms, clip_gradients


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


class Launches(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_all_gradients_are_scaled_at_once():
    """Without asking the device for a number: `_local_scalar_dense` is what waits."""
    parameters = [nn.Parameter(torch.randn(size, 2)) for size in range(1, 9)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with Launches() as launches:
        clip_gradients(parameters, 0.1)
    assert launches.names["aten::_foreach_mul_"] == 1
    assert launches.names["aten::mul_"] == 0
    assert launches.names["aten::_local_scalar_dense"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpus_sum_of_squares_is_the_same(dtype):
    """300 is in half precision, its square is not; a process may own none of few labels."""
    torch.manual_seed(0)
    values = [300 * torch.rand(5, 3), torch.zeros(0, 3), torch.randn(7)]
    gradients = [value.to(dtype) for value in values]
    with Launches() as launches:
        found = _square_of_norms(gradients)
    assert launches.names["aten::_foreach_norm"] == 1
    torch.testing.assert_close(found, _square(gradients, torch.device("cpu")), rtol=1e-6, atol=0)
