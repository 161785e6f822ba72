"""Where and in which precision a process computes: its device, threads, autocast and scaler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from utils import distributed
from utils.config.config import Config
from utils.loss_scale import LossScale
from utils.progress import ProgressBar


@dataclass(frozen=True)
class Runtime:
    """What computes.

    Attributes:
        accelerator: of this process.
        threads: that compiled work of this process may use.
        loss_scale: of fp16; None in other precisions.
    """

    accelerator: Accelerator
    threads: int = 1
    loss_scale: LossScale | None = None

    @classmethod
    def start(cls, config: Config) -> Runtime:
        """Make this process ready for what a config asks for; every process calls it."""
        accelerator = distributed.start(config.train.mixed_precision)
        threads = distributed.cpu_threads(config.run.threads)
        torch.set_num_threads(threads)
        choose_algorithms(accelerator.device, config.train.deterministic)
        scale = LossScale() if distributed.precision(accelerator) == "fp16" else None
        return cls(accelerator, threads, scale)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precision(self) -> Literal["no", "fp16", "bf16"]:
        """The mixed precision in effect: no, fp16 or bf16."""
        return distributed.precision(self.accelerator)

    def autocast(self) -> AbstractContextManager[None]:
        """A block that computes in the run's mixed precision."""
        if self.precision == "no":
            return contextlib.nullcontext()
        return self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to the parameters, scaled where the precision needs it."""
        if self.loss_scale is not None:
            loss = loss.float() * self.loss_scale.value
        loss.backward()

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Undo the scale of all gradients, once a step; a collective.

        Returns:
            whether the step can be taken; not where fp16 made a gradient that is not finite.
        """
        return self.loss_scale is None or self.loss_scale.unscale(parameters)


@contextlib.contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Let a GPU round products of float32 matrices to TF32 inside, or not.

    TF32 keeps 10 bits of the mantissa and is several times faster. It is for training alone: a
    search is exact.
    """
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32 = before


def choose_algorithms(device: torch.device, deterministic: bool) -> None:
    """Let a GPU compute by algorithms whose results are the same at every run, or by any.

    Most others add up in the order in which threads come. cuBLAS wants a workspace of a fixed size
    for each stream, which must be said before its first product.
    """
    on_gpu = device.type == "cuda"
    if deterministic and on_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # a process may run several configs: what an earlier one asked for does not hold
    wanted = deterministic and on_gpu
    if torch.are_deterministic_algorithms_enabled() != wanted:  # the setter imports a compiler
        torch.use_deterministic_algorithms(wanted)


def progress(
    total: int,
    name: str,
    unit: str,
    *,
    done: int = 0,
    note: Callable[[], str] | None = None,
) -> ProgressBar:
    """A progress bar that only the main process shows.

    Args:
        done, note: as of `ProgressBar`.
    """
    return ProgressBar(total, name, unit, done=done, note=note, hidden=not distributed.is_main())
