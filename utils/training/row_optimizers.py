"""AdamW for tables of which a step touches few rows: row-sparse gradients, or factored ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.parameters import DeclaredParameter, OuterGradient, run_numbers
from utils.threads import over_threads
from utils.training.row_kernels import adamw_rows

# Numbers of a factored gradient that are put together at once.
CPU_FLOATS = 1 << 19
GPU_FLOATS = 1 << 25
ONE_THREAD = 1 << 18  # numbers that a thread updates before others would have started
HELD = "held_"  # + the name of a factor: that of the gradients that wait for a step


class RowSparseAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019) on the rows that a step touched.

    The others cost and change nothing. Moments of a row move only when the row has a gradient (lazy
    Adam); the bias correction counts the row's own updates, so that a rare row's first step is as
    large as a frequent row's. For parameters of Gradient.ROWS.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is called
        """Update every row that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if self._has_gradient(parameter):
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["row_steps"] = torch.zeros(len(parameter), device=parameter.device)
        for rows, values in self._gradient_blocks(parameter, state, group):
            if len(rows):  # a process may own none of few labels
                _update_rows(parameter, state, group, rows, values)

    def _has_gradient(self, parameter: Tensor) -> bool:
        return parameter.grad is not None

    def _gradient_blocks(
        self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows [u], their gradients [u, ...]): all in one block.

        A row that is there several times has its whole gradient each time.
        """
        gradient = parameter.grad
        assert gradient is not None, "asked for where there is one"
        if not gradient.is_sparse:
            raise ValueError(
                "row-sparse optimizer: expected a sparse gradient, got a dense one "
                f"{parameter.shape}"
            )
        rows = gradient._indices()[0]
        values = gradient._values()
        if gradient.is_coalesced():
            yield rows, values
        elif rows.is_cuda:
            yield with_row_sums(rows, values)
        else:  # autograd does not keep the mark of a coalesced gradient
            if not _ascend(rows):
                gradient = gradient.coalesce()
            yield gradient._indices()[0], gradient._values()


def with_row_sums(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [u] in ascending order, each as often as before, beside the sum of its values [u, ...].

    `coalesce` would keep one of each, and a GPU be waited for to say how many these are.
    """
    order = rows.argsort(stable=True)
    ordered = rows[order]
    place = run_numbers(ordered)  # [u] of each entry's row among the distinct ones
    sums = torch.zeros_like(values).index_add_(0, place, values[order])
    return ordered, sums.index_select(0, place)


def _ascend(rows: Tensor) -> bool:
    """Whether rows [u] are distinct and ascending."""
    return bool((rows[1:] > rows[:-1]).all())


class FactoredAdamW(RowSparseAdamW):
    """The same for parameters of Gradient.FACTORS.

    Their rows' gradients are put together block by block. A group's `accumulate` is the number of
    gradients whose mean makes a step; 1 unless given.
    """

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the factors, as other optimizers forget `grad`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.factors = None

    def _has_gradient(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DeclaredParameter) and parameter.factors is not None

    def _gradient_blocks(
        self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(distinct rows [u], their gradients [u, D]); none where the step is still gathering."""
        assert isinstance(parameter, DeclaredParameter), "only these have factors"
        gradient = parameter.factors
        every = group.get("accumulate", 1)
        if every > 1 and gradient is not None:
            gradient = _accumulated(state, gradient, every)
        if gradient is not None:
            numbers = CPU_FLOATS if parameter.device.type == "cpu" else GPU_FLOATS
            width = max(parameter[:1].numel(), 1)
            yield from gradient.blocks(max(1, numbers // width))


def _accumulated(
    state: dict[str, Tensor], gradient: OuterGradient, every: int
) -> OuterGradient | None:
    """The mean of the last `every` factored gradients, or None if they are not complete.

    They are kept as optimizer state, so that a checkpoint has them too.
    """
    names = list(gradient.tensors())
    if HELD + "rows" in state:
        rows, points, values, vectors = (state[HELD + name] for name in names)
        held = OuterGradient(rows, points, values, vectors)
        gradient = OuterGradient.join([held, gradient])
    steps = int(state.get("held_steps", 0)) + 1
    state["held_steps"] = torch.tensor(steps % every)
    if steps == every:
        for name in names:
            state.pop(HELD + name, None)
        return gradient.scaled(1 / every)
    # Clones: labels and bias share rows and points, and files want tensors that share nothing.
    for name, tensor in gradient.tensors().items():
        state[HELD + name] = tensor.clone()
    return None


def _update_rows(
    parameter: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    rows: Tensor,
    values: Tensor,
) -> None:
    """AdamW in place on rows [u] of a parameter and its state, by gradients [u, ...].

    On a GPU a row may be there several times, with one gradient: it becomes the same each time.
    """
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        _compiled_update(parameter, state, group, rows, values)
        return
    beta1, beta2 = group["betas"]
    # By index_select: [rows] would go number by number.
    steps = state["row_steps"].index_select(0, rows)
    first = state["exp_avg"].index_select(0, rows)
    second = state["exp_avg_sq"].index_select(0, rows)
    steps += 1
    first.lerp_(values, 1 - beta1)
    second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
    state["row_steps"].index_copy_(0, rows, steps)
    state["exp_avg"].index_copy_(0, rows, first)
    state["exp_avg_sq"].index_copy_(0, rows, second)
    steps = steps.view(-1, *[1] * (values.dim() - 1))
    scale = second.div_(1 - beta2**steps).sqrt_().add_(group["eps"])
    update = first.div_(1 - beta1**steps).div_(scale)
    moved = parameter.index_select(0, rows)
    if group["weight_decay"]:
        update.add_(moved, alpha=group["weight_decay"])
    parameter.index_copy_(0, rows, moved.add_(update, alpha=-group["lr"]))


def _compiled_update(
    parameter: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    rows: Tensor,
    values: Tensor,
) -> None:
    """`_update_rows` in one pass over memory instead of a dozen."""
    tables = [
        tensor.detach().view(len(parameter), -1).numpy()
        for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])
    ]
    steps = state["row_steps"].numpy()
    rate = np.float32(group["lr"])
    betas = tuple(map(np.float32, group["betas"]))
    eps = np.float32(group["eps"])
    decay = np.float32(group["weight_decay"])
    touched = rows.numpy()
    gradients = values.contiguous().view(len(rows), tables[0].shape[1]).numpy()

    def update(start: int, stop: int) -> None:
        part = slice(start, stop)
        adamw_rows(touched[part], gradients[part], *tables, steps, rate, betas, eps, decay)

    if gradients.size < ONE_THREAD:
        update(0, len(touched))
    else:
        over_threads(update, len(touched))
