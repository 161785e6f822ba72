"""Every operation of ATen: its tensors' devices, its waits, and where its results lie."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretend.marks import GPU, DeviceError, mark, marked, to_host
from tests.pretend.waits import READ, UPLOAD, Waits, place

# the size of what they give, or what they give, is known on the host only after waiting
SYNCS = {
    "_coalesce",
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPIES = {"copy_", "_copy_from"}
# of both devices never, not even with a number on the host
STRICT = {
    "_fused_adam_",
    "_fused_adamw_",
    "addmm",
    "bmm",
    "cat",
    "gather",
    "index_add_",
    "index_copy_",
    "index_select",
    "mm",
    "scatter_add_",
    "set_",
    "stack",
}


class Operations(TorchDispatchMode):
    """Sees every operation below autograd."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [marked(tensor) for tensor in tensors]
        if any(on_gpu):
            if not all(on_gpu):
                self._of_both(name, args, tensors, on_gpu)
            self._count(name, args, kwargs)
        wanted = kwargs.get("device")
        if wanted is not None and wanted.type == "cuda":
            kwargs["device"] = torch.device("cpu")
        elif name == "_to_copy" and wanted is not None and any(on_gpu):
            self.waits.add(READ, name)
            return to_host(func(*args, **kwargs))
        out = func(*args, **kwargs)
        if any(on_gpu) or (wanted is not None and wanted.type == "cuda"):
            changed = args[0] if args else None  # in place it stays where it lies
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and leaf is not changed:
                    mark(leaf)
        return out

    def _of_both(self, name, args, tensors, on_gpu):
        """Count an operation on tensors of both devices, or raise as CUDA does."""
        hosts = [tensor for tensor, gpu in zip(tensors, on_gpu, strict=True) if not gpu]
        if name in COPIES:
            self.waits.add(READ if marked(args[1]) else UPLOAD, name)
        elif name in INDEXED and on_gpu[0]:
            if any(not tensor.dtype.is_floating_point and tensor.dim() for tensor in hosts):
                self.waits.add(UPLOAD, f"{name} by an index of the host")
        elif name in STRICT or any(tensor.dim() for tensor in hosts):
            shapes = ", ".join(
                f"{list(tensor.shape)} on {'cuda' if gpu else 'cpu'}"
                for tensor, gpu in zip(tensors, on_gpu, strict=True)
            )
            raise DeviceError(f"{name}: tensors of two devices: {shapes}, in {place()}")

    def _count(self, name, args, kwargs):
        """Count an operation on the GPU if the host waits for it."""
        by_mask = name in INDEXED and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if by_mask and len(args) > 2 and args[2].numel() == 1 and not marked(args[2]):
            return  # a number put where a mask is true
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in SYNCS or by_mask or repeats:
            self.waits.add(READ, f"{name} by a mask" if by_mask else name)


def is_gpu(device) -> bool:
    """Whether a device, however it is named, is the pretended one."""
    return device is not None and torch.device(device).type == GPU.type
