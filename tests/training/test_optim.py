import pytest
import torch
from torch import nn

from utils.config.config import OptimConfig
from utils.training import optim
from utils.training.optim import (
    RowSparseAdamW,
    build_optimizers,
    clip_gradients,
    decay_groups,
    learning_rate_factor,
    set_learning_rates,
)


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
    monkeypatch.setattr(optim, "ONE_THREAD", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    start = torch.randn(9, 2, 3)
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.2}
    tables = [nn.Parameter(start.to(dtype).clone()) for dtype in (torch.float32, torch.float64)]
    optimizers = [RowSparseAdamW([table], **settings) for table in tables]
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


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 2))
        self.table.row_sparse = True
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


def test_clipping_equals_torch_and_leaves_tables_alone():
    net = Net()
    net.table.grad = sparse([1], torch.full((1, 2), 100.0), (4, 2))
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
