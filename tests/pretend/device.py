"""The pretended GPU, switched on and off."""

import contextlib
import os
import threading
from collections.abc import Iterator
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.pretend.functions import Functions
from tests.pretend.marks import GPU, DeviceError, marked
from tests.pretend.operations import Operations
from tests.pretend.waits import Waits, place
from utils import cards, distributed

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_single",
    "all_to_all_single",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "send",
    "recv",
)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Inside, Runtime.start chooses a GPU, and what NCCL could not send is refused.

    Yields:
        where the host waits for it, counted from here on.
    """
    waits = Waits()
    functions = Functions(waits)
    run_backward = torch.autograd._engine_run_backward

    def backward(*args, **kwargs):
        with functions:  # backward of a Function in Python: torch has left the mode
            return run_backward(*args, **kwargs)

    with contextlib.ExitStack() as stack:

        def replaced(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        replaced(Tensor, "device", property(_device))
        replaced(Tensor, "is_cuda", property(marked))
        replaced(Tensor, "is_cpu", property(lambda tensor: not marked(tensor)))
        replaced(Tensor, "get_device", lambda tensor: 0 if marked(tensor) else -1)
        replaced(torch.autograd, "_engine_run_backward", backward)
        replaced(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
        replaced(torch.cuda, "set_rng_state", lambda state, *_: torch.set_rng_state(state))
        replaced(torch.cuda, "max_memory_allocated", lambda *_: 0)
        replaced(torch.cuda, "set_device", _joined)
        replaced(torch.cuda, "current_device", lambda: GPU.index)
        replaced(distributed, "start", _started(distributed.start))
        replaced(dist, "get_backend", lambda *_: "nccl")
        stack.enter_context(mock.patch.dict(os.environ))
        os.environ.pop(cards.USE_CPU, None)  # accelerate asks for it time and again
        stack.callback(_on_host_again)
        for name in COLLECTIVES:
            replaced(dist, name, _checked(getattr(dist, name)))
        stack.enter_context(functions)
        stack.enter_context(Operations(waits))
        yield waits


_real_device = torch._C.TensorBase.device


def _device(tensor):
    return GPU if marked(tensor) else _real_device.__get__(tensor)


def _joined(device):
    """Let a thread that says which GPU is its own see this one, until it ends.

    What it waits for is not counted: others go on.
    """
    torch._utils._get_device_index(device)  # as torch does: it refuses one without a number
    if threading.current_thread() is not threading.main_thread():
        waits = Waits()
        Functions(waits).__enter__()
        Operations(waits).__enter__()


def _started(start):
    """`distributed.start`, which then says that a GPU computes."""

    def pretending(mixed_precision=None):
        _on_host_again()
        accelerator = start(mixed_precision)
        # one process has no number of its card
        device = GPU if distributed.world_size() > 1 else torch.device("cuda")
        PartialState._shared_state["device"] = accelerator.state.device = device
        return accelerator

    return pretending


def _on_host_again():
    """accelerate refuses to start anew for another device."""
    if PartialState._shared_state:
        PartialState._shared_state["device"] = torch.device("cpu")


def _checked(collective):
    """A collective that takes tensors on the GPU alone."""

    def checking(*args, **kwargs):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not all(map(marked, tensors)):
            raise DeviceError(f"NCCL: {collective.__name__} of a tensor on the host, in {place()}")
        return collective(*args, **kwargs)

    return checking
