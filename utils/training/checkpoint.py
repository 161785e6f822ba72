"""`last/`: everything a run needs to go on, in safe formats alone.

    shared.safetensors       parameters, buffers and optimizer state that all processes hold alike
    process-<r>.safetensors  what process r alone has: its label shards with their optimizer state,
                             its random states
    method.npz               the method's own arrays (shortlists, clusters)
    progress.json            where the run stands; versions

A run may go on with another number of processes: shards are put together and cut anew. The order of
the samples does not depend on that number; the random states of processes that were not there
before start from the seed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils import distributed
from utils.errors import InputError
from utils.files import folder_written_whole, settled_folder
from utils.parameters import kind_of
from utils.runtime import Runtime

log = logging.getLogger(__name__)
FORMAT = 1


class Trained(Protocol):
    """What is trained: `models.contract.Learner`."""

    module: nn.Module

    def state(self) -> dict[str, np.ndarray]: ...

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None: ...


@dataclass
class Progress:
    """Where a run stands.

    `step` counts batches; `epoch_step`, `loss_sum` and `loss_sum_noted`, what it was at the last
    record of a step, are of the epoch in progress.

    Attributes:
        skipped_steps: batches without a step, for fp16 made a gradient that is not finite.
        loss_scale: of fp16, and the steps since it last changed; None in other precisions.
    """

    epoch: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    evaluations_without_better: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    loss_scale: float | None = None
    steps_at_scale: int = 0
    loss_sum_noted: float = 0.0
    processes: int = 1
    torch: str = torch.__version__
    format: int = FORMAT


def save_checkpoint(
    folder: Path,
    learner: Trained,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    runtime: Runtime,
) -> None:
    """Replace `folder`/last by the present state.

    The previous one stays until the new one is whole.
    """
    tensors = _tensors(learner.module, optimizers)
    sharded = {name for name in tensors if _is_sharded(name, learner.module)}
    progress.processes = distributed.world_size()
    if runtime.loss_scale is not None:
        progress.loss_scale = runtime.loss_scale.value
        progress.steps_at_scale = runtime.loss_scale.steps
    state: dict[str, Any] = learner.state()
    with folder_written_whole(folder / "last") as last:
        if distributed.is_main():
            shared = {name: tensor for name, tensor in tensors.items() if name not in sharded}
            save_file(shared, last / "shared.safetensors")
            np.savez(last / "method.npz", **state)
            facts = json.dumps(dataclasses.asdict(progress), indent=1)
            (last / "progress.json").write_text(f"{facts}\n")
        own = {name: tensors[name] for name in sharded} | _random_states(runtime.accelerator)
        save_file(own, last / f"process-{distributed.rank()}.safetensors")


def load_checkpoint(
    folder: Path,
    learner: Trained,
    optimizers: list[torch.optim.Optimizer],
    runtime: Runtime,
) -> Progress | None:
    """Restore what `save_checkpoint` wrote; None if there is no checkpoint yet.

    Raises:
        ValueError: a file is damaged, or does not fit the method; nothing is changed on disk.
    """
    last = settled_folder(folder / "last")
    if not (last / "progress.json").is_file():
        return None
    try:
        progress = Progress(**json.loads((last / "progress.json").read_text()))
        shared = load_file(last / "shared.safetensors")
        shards = [load_file(last / f"process-{r}.safetensors") for r in range(progress.processes)]
        with open(last / "method.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = dict(arrays)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        BadZipFile,
        SafetensorError,
    ) as error:
        raise InputError(
            f"{last} is damaged or of another version of this program ({error}); move it away to "
            "start the run anew, the best model so far is in model/"
        ) from error
    if progress.format != FORMAT:
        raise InputError(f"{last} has format {progress.format}, this program reads format {FORMAT}")
    _report_differences(progress)
    own = shards[distributed.rank()] if distributed.rank() < len(shards) else {}
    names = {n for n in shards[0] if not n.startswith("random.")}
    saved = {**shared, **{n: _own_share(n, shards, learner.module) for n in names}}
    _restore(learner.module, optimizers, saved, last)
    _load_random_states(own, runtime.accelerator)
    if runtime.loss_scale is not None and progress.loss_scale is not None:
        runtime.loss_scale.value = progress.loss_scale
        runtime.loss_scale.steps = progress.steps_at_scale
    learner.load_state(state, folder)
    return progress


def _report_differences(progress: Progress) -> None:
    if progress.processes != distributed.world_size():
        log.warning(
            "the checkpoint was written by %d processes, this run has %d: the samples come in "
            "the same order, but dropout draws other numbers",
            progress.processes,
            distributed.world_size(),
        )
    if progress.torch != torch.__version__:
        log.warning(
            "the checkpoint was written with torch %s, this is %s: results may differ in the "
            "last digits",
            progress.torch,
            torch.__version__,
        )


# -------------------------------- parameters and optimizer state by name


def _tensors(method: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Parameters as `parameter|name`, optimizer state as `key|name`.

    Names hold dots, never bars.
    """
    names: dict[Tensor, str] = {p: name for name, p in method.named_parameters()}
    again = _tied(method)
    tensors: dict[str, Tensor] = {}
    for name, value in method.state_dict().items():
        if name not in again:
            tensors[f"parameter|{name}"] = value
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"{key}|{names[p]}"] = torch.as_tensor(value)
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def _tied(method: nn.Module) -> dict[str, str]:
    """The first name of a parameter by its further ones, as BART's embeddings have several."""
    first = {p: name for name, p in method.named_parameters()}
    return {
        name: first[p]
        for name, p in method.named_parameters(remove_duplicate=False)
        if name != first[p]
    }


def _is_sharded(name: str, method: nn.Module) -> bool:
    """Whether each process owns other rows of the tensor."""
    parameter = dict(method.named_parameters()).get(name.partition("|")[2])
    return parameter is not None and kind_of(parameter).sharded


def _own_share(
    name: str,
    shards: list[dict[str, Tensor]],
    method: nn.Module,
) -> Tensor:
    """This process's rows of a tensor that was sharded over `len(shards)` processes."""
    if shards[0][name].dim() == 0:  # a step count, equal on all
        return shards[0][name]
    whole = torch.cat([shard[name] for shard in shards])
    own = distributed.share(len(whole))
    return whole[own.start : own.stop].clone()


def _restore(
    method: nn.Module, optimizers: list[torch.optim.Optimizer], saved: dict[str, Tensor], last: Path
) -> None:
    """Put saved tensors back into the parameters and into the optimizers' state."""
    by_key: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        key, _, parameter = name.partition("|")
        by_key.setdefault(key, {})[parameter] = value
    parameters = by_key.pop("parameter", {})
    parameters |= {
        name: parameters[first] for name, first in _tied(method).items() if first in parameters
    }
    try:
        method.load_state_dict(parameters)
    except RuntimeError as error:
        raise InputError(
            f"{last} does not fit this config: {' '.join(str(error).split())}"
        ) from error
    names = {p: name for name, p in method.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if state := _state_of(names[p], by_key, p.device):
                    optimizer.state[p] = state


def _state_of(
    name: str, by_key: dict[str, dict[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """A parameter's optimizer state, beside the parameter; {} if none was saved.

    Fused AdamW wants its count of steps there, too.
    """
    return {key: values[name].to(device) for key, values in by_key.items() if name in values}


# -------------------------------- random states


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return states


def _load_random_states(saved: dict[str, Tensor], accelerator: Accelerator) -> None:
    if "random.cpu" in saved:
        torch.set_rng_state(saved["random.cpu"])
    if accelerator.device.type == "cuda" and "random.cuda" in saved:
        torch.cuda.set_rng_state(saved["random.cuda"], accelerator.device)
