"""Losses, time and throughput of an epoch."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from utils import distributed
from utils.compiling import working_time
from utils.data.batches import Batch
from utils.run.environment import peak_memory
from utils.training.checkpoint import Progress
from utils.training.pace import Pace

log = logging.getLogger("train")
CHECK_EVERY = 20  # steps between two looks at the losses: each look is one host sync


class EpochMeter:
    """What an epoch measures.

    Losses stay on the device and are looked at every few steps, so that the loop does not wait for
    the device. Time in which kernels are compiled does not count.

    Args:
        state: where the run stands, brought up to date at each look.
        folder: of the run, which a message names.
    """

    def __init__(self, state: Progress, folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._pending: list[Tensor] = []
        self._points = 0
        self._tokens = 0
        self._steps = 0
        self._begin = working_time()
        self._mark = self._begin
        self._points_noted = 0  # at the last record of a step
        self._noted = self._begin

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Count a step."""
        self._pending.append(loss)
        self._steps += 1
        self._points += len(batch.points)
        self._tokens += int(batch.queries.host_lengths.sum())
        if len(self._pending) >= CHECK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Bring the state up to date; FloatingPointError if a loss is not finite."""
        state = self._state
        values = torch.stack(self._pending).tolist() if self._pending else []
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                raise self._not_finite(value, state.step - len(values) + offset + 1)
            state.loss_sum += value
        self._pending = []
        now = working_time()
        state.seconds += now - self._mark
        self._mark = now

    def _not_finite(self, value: float, step: int) -> FloatingPointError:
        kept = "There is no checkpoint yet."
        if self._state.best_epoch is not None:
            kept = f"The last good checkpoint is kept in {self._folder}."
        return FloatingPointError(
            f"the loss became {value} at step {step} (epoch {self._state.epoch + 1}); training "
            f"stops. {kept} A new run with a lower optim.lr or optim.clip_norm may help."
        )

    def note(self, pace: Pace) -> str:
        """Say what a line of progress says beside the steps of the epoch; one host sync.

        The loss is the mean of the epoch so far.
        """
        state = self._state
        total = state.loss_sum + sum(torch.stack(self._pending).tolist() if self._pending else [])
        loss = total / max(state.epoch_step, 1)
        seconds = max(working_time() - self._begin, 1e-9)
        left = pace.left(state.step, seconds / max(self._steps, 1))
        return f"loss {loss:.5f}, {self._points / seconds:.0f} points/s; {left}"

    def step_values(self, every: int) -> dict[str, float]:
        """What is noted of the last steps: {epoch, loss, points_per_second}.

        The loss is the mean of the `every` last steps, or of all since the epoch began where these
        are fewer.
        """
        self.settle()
        state = self._state
        steps = min(every, state.epoch_step)
        loss = (state.loss_sum - state.loss_sum_noted) / max(steps, 1)
        state.loss_sum_noted = state.loss_sum
        now = working_time()
        speed = (self._points - self._points_noted) / max(now - self._noted, 1e-9)
        self._points_noted = self._points
        self._noted = now
        return {"epoch": state.epoch + 1, "loss": loss, "points_per_second": speed}

    def close(
        self, report: dict[str, float], device: torch.device
    ) -> tuple[float, dict[str, float]]:
        """Log the epoch; a collective.

        Args:
            report: what the method measured.
        Returns:
            the mean loss of all steps of the epoch, and what is to be noted of it.
        """
        self.settle()
        state = self._state
        seconds = max(working_time() - self._begin, 1e-9)
        loss = state.loss_sum / max(state.epoch_step, 1)
        values = {
            "epoch": state.epoch + 1,
            "loss": loss,
            "points_per_second": self._points / seconds,
            "tokens_per_second": distributed.total(self._tokens) / seconds,
            "seconds": state.seconds,
            **peak_memory(device),
            **report,
        }
        log.info(
            "epoch %d: loss %.5f, %.0f points/s, %.0f tokens/s, %.0f MB%s, %.1f s in all%s",
            state.epoch + 1,
            loss,
            values["points_per_second"],
            values["tokens_per_second"],
            values["memory_mb"],
            f" + {values['gpu_memory_mb']:.0f} MB of GPU" if "gpu_memory_mb" in values else "",
            state.seconds,
            "".join(f", {name} {value:.4f}" for name, value in report.items()),
        )
        return loss, values
