"""Which optimizer takes which parameters, and learning rates."""

import pytest
import torch
from torch import nn

from utils.config.config import OptimConfig
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.training.optim import (
    build_optimizers,
    decay_groups,
    learning_rate_factor,
    set_learning_rates,
)
from utils.training.row_optimizers import FactoredAdamW, RowSparseAdamW


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = DeclaredParameter(torch.zeros(4, 2), Kind(Gradient.ROWS))
        self.linear = nn.Linear(2, 3)
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_groups_by_decay_and_kind():
    net = Net()
    groups = decay_groups(net, "encoder", 0.01)
    found = {(g["name"], g["weight_decay"]): g["params"] for g in groups}
    assert found == {
        ("table", 0.0): [net.table],
        ("encoder", 0.01): [net.linear.weight],
        ("encoder", 0.0): [net.linear.bias],
    }
    optimizers = build_optimizers(groups, OptimConfig(lr=0.1, group_lr={"table": 0.5}))
    assert [type(o) for o in optimizers] == [torch.optim.AdamW, RowSparseAdamW]
    assert optimizers[0].defaults["fused"]  # one pass over memory
    assert [g["lr"] for o in optimizers for g in o.param_groups] == [0.1, 0.1, 0.5]
    set_learning_rates(optimizers, 0.5)
    assert [g["lr"] for o in optimizers for g in o.param_groups] == [0.05, 0.05, 0.25]
    with pytest.raises(ValueError, match=r"group_lr names \['tabel'\].*'encoder', 'table'"):
        build_optimizers(groups, OptimConfig(group_lr={"tabel": 1.0}))


def test_learning_rate_warms_up_and_decays_to_zero():
    linear = [learning_rate_factor(s, 100, OptimConfig(warmup=0.1)) for s in range(101)]
    assert linear[0] == pytest.approx(1 / 11)
    assert max(linear) == linear[10] == 1.0
    assert linear[55] == pytest.approx(0.5)
    assert linear[100] == 0.0
    assert learning_rate_factor(150, 100, OptimConfig()) == 0.0
    assert learning_rate_factor(3, 100, OptimConfig(warmup=7)) == 0.5
    assert learning_rate_factor(99, 100, OptimConfig(warmup=7, schedule="constant")) == 1.0
    assert learning_rate_factor(0, 10, OptimConfig(warmup=0)) == 1.0


def test_the_form_of_the_gradient_decides_the_optimizer():
    parameters = {
        gradient: DeclaredParameter(torch.zeros(3, 2), Kind(gradient, sharded=True))
        for gradient in reversed(Gradient)
    }
    groups = [{"name": gradient.value, "params": [p]} for gradient, p in parameters.items()]
    optimizers = build_optimizers(groups, OptimConfig())
    assert [type(o) for o in optimizers] == [torch.optim.AdamW, RowSparseAdamW, FactoredAdamW]
    held = [group["params"] for o in optimizers for group in o.param_groups]
    assert held == [[parameters[gradient]] for gradient in Gradient]
    mixed = {"name": "both", "params": [nn.Parameter(torch.zeros(1)), *parameters.values()]}
    with pytest.raises(ValueError, match="group both mixes gradients: dense, factored, row-sparse"):
        build_optimizers([mixed], OptimConfig())
