"""Losses, time and throughput of an epoch."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from utils import distributed
from utils.data.batches import Batch
from utils.run.environment import peak_memory
from utils.training.checkpoint import Progress

log = logging.getLogger("train")
CHECK_EVERY = 20  # steps between two looks at the losses: each look is one host sync


class EpochMeter:
    """What an epoch measures.

    Losses stay on the device and are looked at every few steps, so that the loop does not wait for
    the device.

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
        self._begin = time.perf_counter()
        self._mark = self._begin

    def add(self, loss: Tensor, batch: Batch) -> None:
        """Count a step."""
        self._pending.append(loss)
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
        now = time.perf_counter()
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
        seconds = max(time.perf_counter() - self._begin, 1e-9)
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
            "epoch %d: loss %.5f, %.0f points/s, %.0f tokens/s, %.0f MB%s, %.1f s%s",
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
