"""`last/`: everything a run needs to go on. Safe formats only: safetensors, JSON, npz without pickles.

    parameters.safetensors   parameters and buffers that all processes share      progress.json   where the run stands
    process-<r>.safetensors  what process r alone has: label shards, optimizer state, random states
    method.npz               the method's own arrays (shortlists, clusters)
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils import distributed
from utils.run import folder_written_whole, settled_folder


@dataclass
class Progress:
    """Where a run stands. `step` counts optimizer steps; `epoch_step` those of the epoch in progress."""
    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    evaluations_without_better: int = 0
    seconds: float = 0.0
    processes: int = 1


def _sharded(method: nn.Module) -> set[str]:
    return {name for name, p in method.named_parameters() if getattr(p, "sharded", False)}


def save_checkpoint(folder: Path, method: nn.Module, optimizers: list[torch.optim.Optimizer], progress: Progress,
                    accelerator: Accelerator) -> None:
    """Replace `folder`/last by the present state; the previous one stays until the new one is whole."""
    own = _sharded(method)
    state = {name: value.detach().contiguous() for name, value in method.state_dict().items()}
    progress.processes = distributed.world_size()
    with folder_written_whole(folder / "last") as last:
        if distributed.is_main():
            save_file({n: v for n, v in state.items() if n not in own}, last / "parameters.safetensors")
            np.savez(last / "method.npz", **method.training_state())
            (last / "progress.json").write_text(json.dumps(dataclasses.asdict(progress), indent=1) + "\n")
        mine = {f"parameter.{n}": v for n, v in state.items() if n in own}
        mine |= _optimizer_state(method, optimizers) | _random_states(accelerator)
        save_file(mine, last / f"process-{distributed.rank()}.safetensors")


def load_checkpoint(folder: Path, method: nn.Module, optimizers: list[torch.optim.Optimizer],
                    accelerator: Accelerator) -> Progress | None:
    """Restore what `save_checkpoint` wrote; None if there is no checkpoint yet.

    Raises:
        ValueError: it was written by another number of processes, or does not fit the method.
    """
    last = settled_folder(folder / "last")
    if not (last / "progress.json").is_file():
        return None
    progress = Progress(**json.loads((last / "progress.json").read_text()))
    if progress.processes != distributed.world_size():
        raise ValueError(f"{last} was written by {progress.processes} processes, this run has "
                         f"{distributed.world_size()}; go on with --num_processes {progress.processes}")
    mine = load_file(last / f"process-{distributed.rank()}.safetensors")
    shards = {n.removeprefix("parameter."): v for n, v in mine.items() if n.startswith("parameter.")}
    try:
        method.load_state_dict({**load_file(last / "parameters.safetensors"), **shards})
    except RuntimeError as error:
        raise ValueError(f"{last} does not fit this config: {error}") from error
    _load_optimizer_state(method, optimizers, mine)
    _load_random_states(mine, accelerator)
    with np.load(last / "method.npz", allow_pickle=False) as arrays:
        method.load_training_state(dict(arrays))
    return progress


def _optimizer_state(method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names = {p: name for name, p in method.named_parameters()}
    return {f"optimizer.{key}.{names[p]}": torch.as_tensor(value).detach().contiguous()
            for optimizer in optimizers for p, state in optimizer.state.items() for key, value in state.items()}


def _load_optimizer_state(method: nn.Module, optimizers: list[torch.optim.Optimizer], saved: dict[str, Tensor]) -> None:
    names = {p: name for name, p in method.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                suffix = f".{names[p]}"
                state = {key[len("optimizer."):-len(suffix)]: value for key, value in saved.items()
                         if key.startswith("optimizer.") and key.endswith(suffix)
                         and "." not in key[len("optimizer."):-len(suffix)]}
                if state:      # AdamW keeps its step count on the host, the moments beside the parameter
                    optimizer.state[p] = {k: v if v.dim() == 0 else v.to(p.device) for k, v in state.items()}


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.scaler is not None:
        states["random.scaler"] = torch.tensor(accelerator.scaler.get_scale())
    return states


def _load_random_states(saved: dict[str, Tensor], accelerator: Accelerator) -> None:
    torch.set_rng_state(saved["random.cpu"])
    if accelerator.device.type == "cuda" and "random.cuda" in saved:
        torch.cuda.set_rng_state(saved["random.cuda"], accelerator.device)
    if accelerator.scaler is not None and "random.scaler" in saved:
        accelerator.scaler.load_state_dict({**accelerator.scaler.state_dict(), "scale": saved["random.scaler"].item()})
