"""The card: whether there is one, what it is, its memory and the waits of the host for it."""

from __future__ import annotations

import gc
import platform
import shutil
import subprocess
import warnings
from contextlib import ExitStack
from typing import Any

import torch

from utils.cards import gpu_computes

SYNCHRONISED = "called a synchronizing CUDA operation"  # torch's words


def device() -> torch.device:
    """What computes."""
    return torch.device("cuda" if gpu_computes() else "cpu")


def wait() -> None:
    """Wait for the card; nothing without one."""
    if gpu_computes():
        torch.cuda.synchronize()


def release() -> None:
    """Give memory back that nothing uses."""
    gc.collect()
    if gpu_computes():
        torch.cuda.empty_cache()


def peak_mib(since_now: bool = False) -> float | None:
    """The most memory that tensors had, in MiB; None without a card.

    Args:
        since_now: begin anew: what they have now.
    """
    if not gpu_computes():
        return None
    if since_now:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


class Waits:
    """Counts how often the host waits for the card.

    waits = Waits()
    waits.start()
    ...
    waits.stop()     # -> 3; None without a card
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._heard: list[warnings.WarningMessage] = []

    def start(self) -> None:
        """Begin to listen."""
        if gpu_computes():
            self._heard = self._stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> int | None:
        """How many there were since `start`."""
        if not gpu_computes():
            return None
        torch.cuda.set_sync_debug_mode("default")
        self._stack.close()
        return sum(SYNCHRONISED in str(warning.message) for warning in self._heard)


# -------------------------------- what a report says of the machine


def described() -> dict[str, Any]:
    """Card, driver and versions."""
    import accelerate
    import transformers

    facts = {
        "card": "none: a dry run on the CPU",
        "driver": driver(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }
    if gpu_computes():
        properties = torch.cuda.get_device_properties(0)
        facts["card"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return facts


def driver() -> str:
    """Version of NVIDIA's driver, as its own tool says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = told.stdout.split()
    return lines[0] if told.returncode == 0 and lines else "unknown"


def is_broken(error: Exception) -> bool:
    """Whether an error leaves the process unable to use the card, as a fault of a kernel does."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
