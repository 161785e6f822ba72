"""Rank arithmetic and collectives, in one place.

With one process every function is a plain identity. What becomes of gradients is in
utils/training/gradients.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor

from losses import Exchange
from utils.cards import check_cards, chosen_precision, gpu_computes, idle_accelerator, is_on
from utils.errors import InputError

T = TypeVar("T")
log = logging.getLogger(__name__)
THREADS_A_CORE = 8  # of a process, at the most
AT_ONCE_BYTES = 1 << 24  # what is larger is received where it is to lie, process by process
PIECE_BYTES = 1 << 26  # of a process, of numpy rows that a GPU must hold to send them

# What accelerate's launcher, or its config file, asks for by environment variables, and this
# project does not do.
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_TP": "tensor parallelism",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
PRECISIONS = ("no", "fp16", "bf16")
# A process that a launcher of several has started knows its number by one of these.
OWN_RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
CPU_LAUNCH = (
    "accelerate launch --config_file configs/accelerate_cpu.yaml --num_processes N train.py CONFIG"
)


# -------------------------------- launching


def start(mixed_precision: str | None = None) -> Accelerator:
    """The Accelerator of this process; without a GPU the processes of a launcher talk over gloo.

    accelerate would otherwise run each of them alone: it takes processes for CPU processes only if
    told so.

    Args:
        mixed_precision: no, fp16, bf16 or auto; None = what accelerate is set to.
    Raises:
        InputError: accelerate is set to something that this project does not do, the GPUs cannot
            do, or the processes cannot reach each other.
    """
    mixed_precision = chosen_precision(mixed_precision)
    check_launcher(mixed_precision)
    # A process may run several configs: the precision is not its fate.
    AcceleratorState._reset_state()
    # The others wait while the main process trains trees or clusters labels, which may take hours;
    # a process that dies ends the run through the launcher, not through this limit.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=2))
    with _connecting():
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            cpu=not gpu_computes(),
            kwargs_handlers=[patience],
            gradient_accumulation_plugin=GradientAccumulationPlugin(1),
        )
    if accelerator.device.type not in ("cpu", "cuda"):
        raise InputError(
            f"accelerate is set to compute on {accelerator.device.type}, expected cuda or cpu"
        )
    if (idle := idle_accelerator()) and is_main():
        log.warning("%s is not used here: everything is computed on the CPU", idle)
    if precision(accelerator) != accelerator.mixed_precision and is_main():
        log.warning(
            "mixed precision %s needs a GPU: here everything is computed in float32 "
            "(train.mixed_precision no; bf16 works on a CPU too)",
            accelerator.mixed_precision,
        )
    return accelerator


def launched_processes() -> int:
    """Return how many processes a launcher has started, this one among them; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def _connecting() -> Iterator[None]:
    """Around what connects the processes, once: InputError where they do not reach each other.

    NCCL starts with the first message, which is sent here.
    """
    if dist.is_available() and dist.is_initialized():
        yield
        return
    try:
        yield
        barrier()
    except RuntimeError as error:
        if launched_processes() == 1 or isinstance(error, torch.OutOfMemoryError):
            raise
        over = "NCCL" if gpu_computes() else "gloo"
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the processes cannot reach each other over {over}: {first.rstrip('.')}"
            + ("; NCCL_DEBUG=INFO tells more" if over == "NCCL" else "")
        ) from error


def precision(accelerator: Accelerator) -> Literal["no", "fp16", "bf16"]:
    """Return what is computed in: no (float32), fp16 or bf16.

    accelerate keeps the name of one that a CPU does not have.
    """
    return accelerator.mixed_precision if accelerator.native_amp else "no"


def check_launcher(mixed_precision: str | None) -> None:
    """Raise InputError for what accelerate is set to and is not supported, here or anywhere.

    It names the variable, or what the GPUs lack.
    """
    for name, meaning in PLUGINS.items():
        if is_on(name):
            raise InputError(
                f"{name} is {os.environ[name]}: accelerate is set to {meaning}, which is not "
                "supported; use a config without it, such as configs/accelerate.yaml"
            )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "")
    if backend.upper() not in ("", "NO"):
        raise InputError(
            f"ACCELERATE_DYNAMO_BACKEND is {backend}: models are compiled by train.compile; "
            "expected NO"
        )
    wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed_precision is None and wanted not in PRECISIONS:
        raise InputError(
            f"ACCELERATE_MIXED_PRECISION is {wanted}, expected one of {', '.join(PRECISIONS)}; or "
            "set train.mixed_precision"
        )
    check_cards(wanted if mixed_precision is None else mixed_precision)


def check_training_launch() -> None:
    """InputError where a launcher asks for more than a training run would do.

    Without GPUs `accelerate launch` starts a single process, whatever --num_processes says, unless
    its config names a distributed type; all that is left of the number are the address and port for
    more than one.
    """
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if steps not in ("", "1"):
        raise InputError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps}: gradients are not accumulated "
            "over steps, expected 1. train.batch_size is that of a whole step, and "
            "method.gc_batch_size bounds its memory"
        )
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in OWN_RANKS):
        raise InputError(
            "accelerate launch was asked for several processes and started one (without a GPU, "
            f"or with --cpu, it does). Several CPU processes: {CPU_LAUNCH}; one: python train.py "
            "CONFIG"
        )


# -------------------------------- processes


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block first, the others after it: for files made on first use."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(
    total: int,
    part: int | None = None,
    parts: int | None = None,
) -> range:
    """Return the half-open range of `total` items that process `part` of `parts` owns.

    Sizes differ by at most one.
    """
    part = rank() if part is None else part
    parts = parts or world_size()
    return range(total * part // parts, total * (part + 1) // parts)


def separate_random_states(seed: int) -> None:
    """Let each process but the first draw its own dropout masks, once all built the same model."""
    if rank():
        words = np.random.SeedSequence((seed, rank())).generate_state(1, np.uint64)
        torch.manual_seed(words[0].item() >> 1)


def stop() -> None:
    """The end of a command that succeeded: let go of the other processes together.

    Left to the interpreter's end, a gloo thread that is still running may abort the process. After
    an error nobody calls this: the others may be waiting in a collective, and the launcher ends
    them.
    """
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


# -------------------------------- collectives


def sum_tensor(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors of one shape, on every process; may overwrite its input."""
    return _all_reduce(tensor, dist.ReduceOp.SUM) if world_size() > 1 else tensor


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    tensor = tensor.contiguous()
    dist.all_reduce(tensor, operation)
    return tensor


class ProcessExchange(Exchange):
    """Row statistics of losses whose labels are sharded: all-reduced over the processes."""

    def sum(self, tensor: Tensor) -> Tensor:
        return sum_tensor(tensor)

    def max(self, tensor: Tensor) -> Tensor:
        return _all_reduce(tensor, dist.ReduceOp.MAX)


def loss_exchange() -> Exchange:
    """What joins the shards of a loss's labels."""
    return ProcessExchange() if world_size() > 1 else Exchange()


class _GatherRows(torch.autograd.Function):
    """[b_r, D] of every process -> [B, D]; backward sums every process's gradient of own rows."""

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        sizes: list[int],
    ) -> Tensor:
        ctx.sizes = sizes
        return _gathered(own, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = sum_tensor(gradient.clone())
        return summed.split(ctx.sizes)[rank()], None


def gather_parts(own: Tensor, sizes: list[int]) -> list[Tensor]:
    """Every process's rows, sizes[r] of process r, on every process; not differentiable."""
    if world_size() == 1:
        return [own]
    return list(_gathered(own.detach(), sizes).split(sizes))


def _gathered(own: Tensor, sizes: list[int]) -> Tensor:
    """Every process's rows one after the other.

    Nothing else of that size is made, unless it is small.
    """
    whole = own.new_empty(sum(sizes), *own.shape[1:])
    longest = max(sizes)
    if longest == 0:
        return whole
    if whole.nbytes > AT_ONCE_BYTES:
        _receive_in_place(whole.split(sizes), own)
    elif min(sizes) == longest:
        _gather_into(whole, own.contiguous())
    else:  # one message takes less time than one of each process, and wants equal shapes
        padded = own.new_zeros(longest, *own.shape[1:])
        padded[: len(own)] = own
        received = own.new_empty(len(sizes), *padded.shape)
        _gather_into(received.flatten(0, 1), padded)
        torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)], out=whole)
    return whole


def _gather_into(whole: Tensor, own: Tensor) -> None:
    """Every process's rows one after the other, as many of each."""
    newer = getattr(dist, "all_gather_single", None)  # of torch 2.13
    if newer is not None:
        newer(whole, own)
    else:
        dist.all_gather_into_tensor(whole, own)


def _receive_in_place(parts: Sequence[Tensor], own: Tensor) -> None:
    """Every process sends its rows to their place on the others."""
    parts[rank()].copy_(own)
    sent = [
        dist.broadcast(part, source, async_op=True)
        for source, part in enumerate(parts)
        if len(part)
    ]
    for message in sent:
        message.wait()


def gather_rows(
    own: Tensor,
    total: int,
    sizes: list[int] | None = None,
) -> Tensor:
    """The processes' shares of `total` rows, put together on every process; differentiable.

    Args:
        sizes: rows of each process, where they are not `share(total)`.
    """
    if world_size() == 1:
        return own
    return _GatherRows.apply(own, sizes or [len(share(total, r)) for r in range(world_size())])


def gather_on_main(
    own: Tensor,
    total: int,
    sizes: list[int] | None = None,
) -> Tensor | None:
    """Every process's rows -> all rows on the main process's host, None on the others.

    They travel as they are, piece by piece; not differentiable. Of one process they stay where
    they are.

    Args:
        sizes: rows of each process, where they are not `share(total)`.
    """
    if world_size() == 1:
        return own
    own = own.detach()
    rows = _rows_of_piece(own)
    if not is_main():
        for piece in own.split(rows):
            dist.send(piece.to(_device_of_messages()).contiguous(), 0)
        return None
    whole = torch.empty(total, *own.shape[1:], dtype=own.dtype)
    sizes = sizes or [len(share(total, process)) for process in range(world_size())]
    for process, place in enumerate(whole.split(sizes)):
        if process == 0:
            place.copy_(own)
            continue
        for part in place.split(rows):
            received = torch.empty_like(part, device=_device_of_messages())
            dist.recv(received, process)
            part.copy_(received)
    return whole


def _rows_of_piece(rows: Tensor) -> int:
    """How many rows travel together."""
    return max(1, PIECE_BYTES // max(rows.element_size() * math.prod(rows.shape[1:]), 1))


def gather_arrays(own: np.ndarray) -> np.ndarray | None:
    """Every process's numpy rows, however many -> all on the main process, None on the others."""
    rows = torch.from_numpy(own)
    size = torch.tensor([len(own)], device=_device_of_messages())
    sizes = [int(each) for each in gather_parts(size, [1] * world_size())]
    whole = gather_on_main(rows, sum(sizes), sizes)
    return None if whole is None else whole.numpy()


def exchange_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Every process's rows for this process; a collective, and not differentiable.

    Args:
        rows: for each process in turn, `sizes[r]` for process r [B, ...].
        sizes: the same on all processes.
    Returns:
        [G, b, ...] on the host.
    """
    processes = world_size()
    own = sizes[rank()]
    if processes == 1:
        return rows[None]
    sent = rows.to(_device_of_messages()).contiguous()
    received = sent.new_empty(processes * own, *rows.shape[1:])
    dist.all_to_all_single(received, sent, [own] * processes, list(sizes))
    return received.view(processes, own, *rows.shape[1:]).cpu()


def share_arrays(own: np.ndarray, total: int) -> np.ndarray:
    """Numpy rows owned by `share(total)` -> all rows on every process.

    They travel as they are, piece by piece.
    """
    if world_size() == 1:
        return own
    shares = [share(total, process) for process in range(world_size())]
    whole = np.empty((total, *own.shape[1:]), own.dtype)
    rows = _rows_of_piece(torch.from_numpy(own))
    for start in range(0, max(map(len, shares)), rows):
        piece = torch.from_numpy(own[start : start + rows]).to(_device_of_messages())
        places = [each[start : start + rows] for each in shares]
        parts = gather_parts(piece, [len(place) for place in places])
        for place, part in zip(places, parts, strict=True):
            whole[place.start : place.stop] = part.cpu().numpy()
    return whole


def broadcast(value: T) -> T:
    """A small picklable value of the main process, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def agree(value: int) -> int:
    """The largest of the processes' numbers, on every process."""
    if world_size() == 1:
        return value
    number = torch.tensor([value], dtype=torch.long, device=_device_of_messages())
    return int(_all_reduce(number, dist.ReduceOp.MAX).item())


def total(value: float) -> float:
    """The sum of the processes' numbers, on every process."""
    if world_size() == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=_device_of_messages())
    return float(sum_tensor(number).item())


def _device_of_messages() -> str:
    return "cuda" if world_size() > 1 and dist.get_backend() == "nccl" else "cpu"


# -------------------------------- threads

_forked = False  # is this process a child that was forked, without an exec?


def _one_thread_after_fork() -> None:
    """Let a forked child work alone.

    It would wait for ever for the threads that OpenMP keeps in its parent.
    """
    global _forked
    _forked = True
    torch.set_num_threads(1)  # faiss and scikit-learn are told the same number at every use


os.register_at_fork(after_in_child=_one_thread_after_fork)


def cpu_threads(wanted: int | None) -> int:
    """Return the threads for this process: `wanted`, or its share of the host's usable cores.

    One in a forked child, whatever is wanted. More than a machine can start would end the process:
    of so many that no core has any use for them, as many as are of use.
    """
    if _forked:
        return 1
    cores = os.cpu_count() or 1
    most = THREADS_A_CORE * cores
    if wanted is not None and wanted > most:
        log.warning(
            "run.threads is %d; %d are used, %d for each core", wanted, most, THREADS_A_CORE
        )
        return most
    # Linux may leave a process some of the cores alone
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else cores
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return wanted or max(1, usable // local)
