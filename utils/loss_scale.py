"""fp16: losses are multiplied by a large factor, and gradients divided by it, once a step.

Gradients of half precision below 6e-8 are 0; those of a scaled loss are not (Micikevicius et al.,
ICLR 2018). torch's GradScaler does this for one optimizer; a step here has up to three, over
gradients of three forms, and is taken by all of them, on all processes, or by none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from utils import distributed
from utils.parameters import DeclaredParameter, Gradient, kind_of

GROWTH = 2.0  # a power of two: scaling rounds nothing
SMALLEST = 2.0**-24  # gradients that are not finite at this scale are so at every scale


@dataclass
class LossScale:
    """The factor of the losses, equal on all processes.

    It doubles after `growth_interval` steps in a row and halves with each step that is skipped.

    Attributes:
        steps: taken since it last changed.
    """

    value: float = 65536.0
    steps: int = 0
    growth_interval: int = 2000

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide all gradients, after they were summed over processes; a collective.

        Args:
            parameters: all that are trained, of every form of gradient.
        Returns:
            whether to take the step: all gradients are finite, on all processes. One host sync.
        Raises:
            FloatingPointError: they were not at any scale.
        """
        inverse = 1 / self.value
        finite = _all_finite_times(_gradients(parameters), inverse, parameters[0].device)
        self._update(finite)
        return finite

    def _update(self, finite: bool) -> None:
        if not finite:
            self.value /= GROWTH
            self.steps = 0
            if self.value < SMALLEST:
                raise FloatingPointError(
                    "the gradients were not finite at any loss scale, whatever its size; training "
                    "stops. train.mixed_precision bf16 or no may help, or a lower optim.lr"
                )
            return
        self.steps += 1
        if self.steps >= self.growth_interval:
            self.value *= GROWTH
            self.steps = 0


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What holds the gradients, of any form, to be changed in place."""
    found = []
    for parameter in parameters:
        if kind_of(parameter).gradient is Gradient.FACTORS:
            assert isinstance(parameter, DeclaredParameter), "only these have factors"
            if parameter.factors is not None:
                own = parameter.factors.values.clone()  # two parameters may share theirs
                parameter.factors = replace(parameter.factors, values=own)
                found.append(own)
        elif parameter.grad is not None:
            gradient = parameter.grad
            found.append(gradient._values() if gradient.is_sparse else gradient)
    return found


@torch.no_grad()
def _all_finite_times(
    gradients: Iterable[Tensor],
    factor: float,
    device: torch.device,
) -> bool:
    """Multiply gradients in place; whether all were finite on all processes."""
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_type[gradient.dtype].append(gradient)
    infinite = torch.zeros(1, device=device)
    multiplier = torch.full((1,), factor, device=device)
    for same in by_type.values():  # as GradScaler does
        torch._amp_foreach_non_finite_check_and_unscale_(same, infinite, multiplier)
    return not distributed.loss_exchange().max(infinite).item()
