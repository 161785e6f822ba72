"""Functions of torch that name a device, or give memory of the host."""

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.pretend.marks import GPU, DeviceError, mark, marked, to_gpu, to_host
from tests.pretend.operations import is_gpu
from tests.pretend.waits import READ, UPLOAD, Waits, place

FROM_HOST = {"tensor", "as_tensor", "asarray", "new_tensor"}  # what they are given is copied


class Functions(TorchFunctionMode):
    """Sees every function of torch, above autograd."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        own = getattr(self, f"_{name}", None)
        if own is not None and args and isinstance(args[0], Tensor):
            return own(func, *args, **kwargs)
        if is_gpu(kwargs.get("device")):
            return self._made(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _made(self, func, name, args, kwargs):
        """A tensor that is made on the GPU."""
        del kwargs["device"]
        if name not in FROM_HOST:
            return mark(func(*args, **kwargs))
        given = args[-1] if name == "new_tensor" else args[0]
        out = func(*args, **kwargs)
        if isinstance(given, Tensor) and marked(given):
            return mark(out)
        self.waits.add(UPLOAD, name)
        return to_gpu(out) if isinstance(given, (Tensor, np.ndarray)) else mark(out)

    def _to(self, func, tensor, *args, **kwargs):
        device, dtype, asynchronous = _target(args, kwargs)
        if device is not None and torch.device(device).type == "meta":
            return func(tensor, device)
        out = func(tensor, dtype=dtype or tensor.dtype, **kwargs)
        if device is None or is_gpu(device) == marked(tensor):
            return out
        if not asynchronous:
            self.waits.add(UPLOAD if is_gpu(device) else READ, "to")
        return to_gpu(out) if is_gpu(device) else to_host(out)

    def _cuda(self, func, tensor, *args, **kwargs):
        return self._to(Tensor.to, tensor, GPU)

    def _cpu(self, func, tensor, *args, **kwargs):
        return self._to(Tensor.to, tensor, "cpu")

    def _numpy(self, func, tensor, *args, **kwargs):
        if marked(tensor):
            raise DeviceError(f"numpy() of a tensor on cuda, in {place()}")
        return func(tensor, *args, **kwargs)

    ___array__ = _numpy

    def _pin_memory(self, func, tensor, *args, **kwargs):
        if marked(tensor):
            raise DeviceError(f"pin_memory() of a tensor on cuda, in {place()}")
        return tensor

    def _tolist(self, func, tensor):
        if not marked(tensor):
            return func(tensor)
        self.waits.add(READ, "tolist")
        return func(to_host(tensor))


def _target(args, kwargs):
    """(device, dtype, whether nobody waits) of a call of `to`; they leave its keywords."""
    device = kwargs.pop("device", None)
    dtype = kwargs.pop("dtype", None)
    asynchronous = kwargs.pop("non_blocking", False)
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            asynchronous = value  # nobody says `copy` by position
        elif isinstance(value, Tensor):
            device = GPU if marked(value) else "cpu"
            dtype = value.dtype
        elif value is not None:
            device = value
    return device, dtype, asynchronous
