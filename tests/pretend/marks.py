"""Which tensors lie on the pretended GPU: storages that are marked."""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

GPU = torch.device("cuda", 0)
_marked: dict[int, StorageWeakRef] = {}  # by the address of the storage


class DeviceError(RuntimeError):
    """What CUDA refuses."""


def storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    if tensor.layout != torch.sparse_coo:
        return [tensor.untyped_storage()]
    return [*storages(tensor._indices()), *storages(tensor._values())]


def marked(tensor: Tensor) -> bool:
    """Whether it lies on the GPU."""
    return not tensor.is_meta and all(map(_is_marked, storages(tensor)))


def _is_marked(storage: torch.UntypedStorage) -> bool:
    reference = _marked.get(storage._cdata)
    if reference is None:
        return False
    if reference.expired():  # another storage has taken the address
        del _marked[storage._cdata]
        return False
    return True


def mark(tensor: Tensor) -> Tensor:
    """Say that it lies on the GPU."""
    for storage in storages(tensor):
        _marked[storage._cdata] = StorageWeakRef(storage)
    return tensor


def to_gpu(tensor: Tensor) -> Tensor:
    """A copy on the GPU; differentiable."""
    return mark(tensor.clone())


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host; differentiable."""
    copied = tensor.clone()
    for storage in storages(copied):
        _marked.pop(storage._cdata, None)
    return copied
