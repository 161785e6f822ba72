"""The GPUs of this machine: whether they compute, and whether they can do what is asked for.

Only CUDA's do (ROCm's call themselves so): gradient caching replays dropout by the random state of
the device, which is kept of the CPU and of these alone.
"""

from __future__ import annotations

import os

import torch

from utils.errors import InputError

USE_CPU = "ACCELERATE_USE_CPU"  # set by `accelerate launch --cpu`, or by hand


def is_on(name: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def gpu_computes() -> bool:
    """Whether a GPU computes here: there is one, and the CPU is not asked for."""
    return torch.cuda.is_available() and not is_on(USE_CPU)


def idle_accelerator() -> str | None:
    """The kind of an accelerator that is here and not used, such as mps; None without one."""
    if torch.cuda.is_available() or is_on(USE_CPU) or not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    return None if device is None else device.type


def chosen_precision(mixed_precision: str | None) -> str | None:
    """What `auto` stands for here, bf16 on a GPU that has it, fp16 on another, no on a CPU.

    Anything else stands for itself.
    """
    if mixed_precision != "auto":
        return mixed_precision
    if not gpu_computes():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def check_cards(mixed_precision: str) -> None:
    """InputError where GPUs compute and there are too few, or they lack a precision.

    Args:
        mixed_precision: no, fp16 or bf16.
    """
    if not gpu_computes():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of a launcher
    cards = torch.cuda.device_count()
    if processes > cards and not _has_own_card():
        raise InputError(
            f"{processes} processes were started on a machine with {cards} "
            f"GPU{'s' if cards > 1 else ''}, expected one for each; start {cards} "
            "(--num_processes), or train on the CPU (--cpu)"
        )
    if mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"train.mixed_precision is bf16, which {torch.cuda.get_device_name()} lacks; expected "
            "fp16 or no"
        )


def _has_own_card() -> bool:
    """Whether this process was given one card by name, as a cluster gives each process its own.

    Where all were given the same one, NCCL refuses it.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return torch.cuda.device_count() == 1 and len(named) == 1 and named != [""]
