"""Which optimizer takes which parameters, at which learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from utils.config.config import OptimConfig
from utils.errors import InputError
from utils.parameters import Gradient, kind_of
from utils.training.row_optimizers import FactoredAdamW, RowSparseAdamW

OPTIMIZERS: dict[Gradient, Callable[..., torch.optim.Optimizer]] = {
    Gradient.DENSE: partial(torch.optim.AdamW, fused=True),
    Gradient.ROWS: RowSparseAdamW,
    Gradient.FACTORS: FactoredAdamW,
}


def decay_groups(
    module: nn.Module,
    name: str,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return named parameter groups of a module: `name`, and its tables as `table`.

    Biases and norms (tensors of one dimension) and tables are not decayed.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            table = kind_of(parameter).is_table
            decay = 0.0 if table or parameter.dim() < 2 else weight_decay
            groups.setdefault(("table" if table else name, decay), []).append(parameter)
    return [
        {"name": group, "params": parameters, "weight_decay": decay}
        for (group, decay), parameters in groups.items()
    ]


def build_optimizers(
    groups: list[dict[str, Any]], config: OptimConfig
) -> list[torch.optim.Optimizer]:
    """Build an optimizer for each form of gradient that there is.

    Each group gets the rate `group_lr[name]`, or `lr`.

    Raises:
        ValueError: `group_lr` names a group that there is not; or parameters of one group have
            gradients of several forms.
    """
    rates = config.group_lr or {}
    names = {group["name"] for group in groups}
    if unknown := set(rates) - names:
        raise InputError(
            f"optim.group_lr names {sorted(unknown)}; this method's parameter groups are "
            f"{sorted(names)}"
        )
    by_gradient: dict[Gradient, list[dict[str, Any]]] = {gradient: [] for gradient in OPTIMIZERS}
    for group in groups:
        rate = rates.get(group["name"], config.lr)
        by_gradient[_gradient_of(group)].append({**group, "lr": rate, "base_lr": rate})
    settings = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": 0.0,
    }
    return [
        OPTIMIZERS[gradient](chosen, **settings)
        for gradient, chosen in by_gradient.items()
        if chosen
    ]


def _gradient_of(group: dict[str, Any]) -> Gradient:
    """The form of the gradients of a group's parameters, which they must share."""
    first, *others = {kind_of(parameter).gradient for parameter in group["params"]}
    if others:
        forms = sorted(gradient.value for gradient in (first, *others))
        raise ValueError(f"parameter group {group['name']} mixes gradients: {', '.join(forms)}")
    return first


def learning_rate_factor(
    step: int,
    total: int,
    config: OptimConfig,
) -> float:
    """Return the share of the learning rate at `step` (from 0) of `total`.

    The rate warms up linearly; then it decays linearly to 0, or stays.
    """
    warmup = config.warmup * total if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return max(0.0, (total - step) / max(total - warmup, 1.0))


def learning_rates(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
    """The rates as they are set: {"lr": rate}, where groups differ {"lr_NAME": rate} of each."""
    rates = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rates[f"lr_{group['name']}"] = float(group["lr"])
    if len(set(rates.values())) == 1:
        return {"lr": next(iter(rates.values()))}
    return rates


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set each group's rate to this share of its own."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
