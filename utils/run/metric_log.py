"""The metrics of a run while it trains: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import distributed
from utils.config.config import Config, ConfigError, to_mapping
from utils.files import write_text
from utils.run.folder import WANDB_ID


class MetricLog:
    """metrics.jsonl, TensorBoard and, if asked for, Weights & Biases, from the main process.

    Args:
        step, epoch: the steps done and the epochs finished where the run goes on from; what a
            killed run logged beyond them is forgotten, for it comes again.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        step: int = 0,
        epoch: int = 0,
    ) -> None:
        self._path = folder / "metrics.jsonl"
        self._board: Any = None
        self._wandb: Any = None
        if not distributed.is_main():
            return
        _forget_after(self._path, step, epoch)
        if config.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if config.run.wandb:
            try:
                import wandb
            except ImportError:
                raise ConfigError(
                    "run.wandb is true but the package is missing: pip install wandb"
                ) from None
            self._wandb = wandb.init(
                project=config.run.project,
                name=f"{config.data.name}/{config.run.expname}",
                id=_wandb_id(folder, is_new=step == 0),
                resume="allow",
                dir=str(folder),
                config=to_mapping(config),
            )

    def write(
        self,
        kind: str,
        step: int,
        values: Mapping[str, float],
    ) -> None:
        """Write one line of metrics.jsonl: {"kind": ..., "step": ..., **values}.

        Args:
            kind: `train` and `val` of an epoch, `step` of the steps since the last such record.
            values: by name, among them `epoch`, from 1.
        """
        if not distributed.is_main():
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Close what is written to elsewhere."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _wandb_id(folder: Path, is_new: bool) -> str:
    """The id of a run there: one that goes on is the same run, its steps are not told twice."""
    path = folder / WANDB_ID
    if is_new or not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()


def _forget_after(
    path: Path,
    step: int,
    epoch: int,
) -> None:
    """Drop lines of later steps, those of unfinished epochs, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            is_past = record["epoch"] <= epoch
            if record["kind"] == "step":
                is_past = record["step"] <= step
            if is_past:
                kept.append(line + "\n")
    write_text(path, "".join(kept))
