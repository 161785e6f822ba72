"""AdamW for dense parameters, row-sparse AdamW for tables, the learning-rate schedule, and gradient
clipping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils import distributed
from utils.config.config import OptimConfig
from utils.parameters import OuterGradient
from utils.threads import over_threads
from utils.training.row_kernels import adamw_rows

CPU_FLOATS, GPU_FLOATS = 1 << 19, 1 << 25  # of a factored gradient, put together at once
ONE_THREAD = 1 << 18  # numbers that a thread updates before others would have started


class RowSparseAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019) on the rows that a step touched; the others cost and change
    nothing.

    Moments of a row move only when the row has a gradient (lazy Adam); the bias correction counts
    the row's own updates, so that a rare row's first step is as large as a frequent row's. Takes
    row-sparse gradients.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if (
                    parameter.grad is not None
                    or getattr(parameter, "outer_gradient", None) is not None
                ):
                    self._update(parameter, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if getattr(parameter, "factored", False):
                parameter.outer_gradient = None

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
            )
            state["row_steps"] = torch.zeros(len(parameter), device=parameter.device)
        outer = getattr(parameter, "outer_gradient", None)
        if outer is not None and group.get("accumulate", 1) > 1:
            outer = self._accumulated(state, outer, group["accumulate"])
            if outer is None:
                return
        for rows, values in _gradient_blocks(parameter, outer):
            if len(rows):  # a process may own none of few labels
                self._update_rows(parameter, state, group, rows, values)

    @staticmethod
    def _accumulated(
        state: dict[str, Tensor], outer: OuterGradient, every: int
    ) -> OuterGradient | None:
        """The mean of the last `every` factored gradients, or None if they are not complete; kept
        as optimizer state, so that a checkpoint has them too."""
        names = ("rows", "points", "values", "vectors")
        if "held_rows" in state:
            outer = OuterGradient.join(
                [OuterGradient(*(state[f"held_{name}"] for name in names)), outer]
            )
        steps = int(state.get("held_steps", 0)) + 1
        state["held_steps"] = torch.tensor(steps % every)
        if steps == every:
            for name in names:
                state.pop(f"held_{name}", None)
            return outer.scaled(1 / every)
        # labels and bias share
        state.update({f"held_{name}": getattr(outer, name).clone() for name in names})
        return None

    @staticmethod
    def _update_rows(
        parameter: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        rows: Tensor,
        values: Tensor,
    ) -> None:
        if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
            _compiled_update(parameter, state, group, rows, values)
            return
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        names = ("row_steps", "exp_avg", "exp_avg_sq")
        # whole rows: not [rows],
        steps, first, second = (state[name].index_select(0, rows) for name in names)
        # which goes by numbers
        steps += 1
        first.lerp_(values, 1 - beta1)
        second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
        for name, new in zip(names, (steps, first, second), strict=True):
            state[name].index_copy_(0, rows, new)
        steps = steps.view(-1, *[1] * (values.dim() - 1))
        scale = second.div_(1 - beta2**steps).sqrt_().add_(group["eps"])
        update = first.div_(1 - beta1**steps).div_(scale)
        if decay:
            update.add_(parameter.index_select(0, rows), alpha=decay)
        parameter.index_add_(0, rows, update, alpha=-group["lr"])


def _compiled_update(
    parameter: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    rows: Tensor,
    values: Tensor,
) -> None:
    """`_update_rows` in one pass over memory instead of a dozen."""
    tables = [
        t.detach().view(len(parameter), -1).numpy()
        for t in (parameter, state["exp_avg"], state["exp_avg_sq"])
    ]
    steps = state["row_steps"].numpy()
    lr = np.float32(group["lr"])
    betas = tuple(map(np.float32, group["betas"]))
    eps = np.float32(group["eps"])
    decay = np.float32(group["weight_decay"])
    rows, values = rows.numpy(), values.contiguous().view(len(rows), tables[0].shape[1]).numpy()

    def update(start: int, stop: int) -> None:
        adamw_rows(rows[start:stop], values[start:stop], *tables, steps, lr, betas, eps, decay)

    if values.size < ONE_THREAD:
        update(0, len(rows))
    else:
        over_threads(update, len(rows))


def _gradient_blocks(
    parameter: Tensor, outer: OuterGradient | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows [u], their gradients [u, ...]), distinct rows; of a factored gradient block by
    block."""
    if outer is not None:
        size = CPU_FLOATS if parameter.device.type == "cpu" else GPU_FLOATS
        yield from outer.blocks(max(1, size // max(parameter[:1].numel(), 1)))
        return
    if not parameter.grad.is_sparse:
        raise ValueError(
            f"row-sparse optimizer: expected a sparse gradient, got a dense one {parameter.shape}"
        )
    rows = parameter.grad._indices()[0]
    values = parameter.grad._values()
    # autograd does not keep the mark of a coalesced gradient
    if rows.is_cuda or not (rows[1:] > rows[:-1]).all():
        grad = parameter.grad.coalesce()
        rows = grad.indices()[0]
        values = grad.values()
    yield rows, values


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = parameter.shape
        return parameter[rows]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(
            rows[None], gradient, ctx.shape, check_invariants=False
        ), None


def take_rows(parameter: nn.Parameter, rows: Tensor) -> Tensor:
    """parameter[rows], [k, ...], whose gradient holds those rows only; for parameters marked
    `row_sparse`."""
    return _TakeRows.apply(parameter, rows)


def decay_groups(module: nn.Module, name: str, weight_decay: float) -> list[dict[str, Any]]:
    """Named parameter groups of a module: `name` with decay, the same without for vectors, and its
    row-sparse tables.

    Biases and norms (tensors of one dimension) are not decayed.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            table = getattr(parameter, "row_sparse", False)
            decay = 0.0 if table or parameter.dim() < 2 else weight_decay
            groups.setdefault(("table" if table else name, decay), []).append(parameter)
    return [{"name": n, "params": p, "weight_decay": decay} for (n, decay), p in groups.items()]


def build_optimizers(
    groups: list[dict[str, Any]], config: OptimConfig
) -> list[torch.optim.Optimizer]:
    """AdamW for the dense groups, RowSparseAdamW for the tables; each group gets `group_lr[name]`
    or `lr`."""
    rates = config.group_lr or {}
    if unknown := set(rates) - {g["name"] for g in groups}:
        raise ValueError(
            f"optim.group_lr names {sorted(unknown)}; this method's parameter groups are "
            f"{sorted({g['name'] for g in groups})}"
        )
    split: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for group in groups:
        sparse = [p for p in group["params"] if getattr(p, "row_sparse", False)]
        if sparse and len(sparse) < len(group["params"]):
            raise ValueError(
                f"parameter group {group['name']} mixes row-sparse and dense parameters"
            )
        rate = rates.get(group["name"], config.lr)
        split[bool(sparse)].append({**group, "lr": rate, "base_lr": rate})
    settings = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": 0.0,
    }
    kinds = (partial(torch.optim.AdamW, fused=True), split[False]), (RowSparseAdamW, split[True])
    return [kind(chosen, **settings) for kind, chosen in kinds if chosen]


def learning_rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Share of the learning rate at `step` (from 0) of `total`: linear warm-up, then linear decay
    to 0 or constant."""
    warmup = config.warmup * total if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return max(0.0, (total - step) / max(total - warmup, 1.0))


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale dense gradients so that their global norm is at most `max_norm`; returns the norm. No
    host sync.

    Row-sparse tables are left out: their Adam step does not depend on the gradient's scale, and a
    batch that touches many rows is no reason to slow the other parameters down. Sharded parameters
    count with all their shards.
    """
    chosen = [p for p in parameters if p.grad is not None and not p.grad.is_sparse]
    if not chosen:
        return torch.zeros(())
    exchange = distributed.loss_exchange()
    squares = {
        flag: [
            p.grad.float().square().sum() for p in chosen if getattr(p, "sharded", False) is flag
        ]
        for flag in (False, True)
    }
    zero = torch.zeros((), device=chosen[0].grad.device)
    norm = (sum(squares[False], zero) + exchange.sum(sum(squares[True], zero))).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for p in chosen:
        p.grad.mul_(factor.to(p.grad.dtype))
    return norm
