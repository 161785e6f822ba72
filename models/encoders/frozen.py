"""Embeddings by encoders that no longer change, kept for the process: stages of a recipe, members
of a fusion and a report ask for those of the same texts again and again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from models.encoders.encoder import TextEncoder
from models.method import encode_all
from utils.tokenization_utils import Ragged

# bytes of all that is kept; a text file whose embeddings are larger is encoded every time
LIMIT = 1 << 30


@dataclass
class Kept:
    """embeddings [lines of the text file, D] float32; known [lines]: which of them have been
    made."""

    embeddings: np.ndarray
    known: np.ndarray


_kept: OrderedDict[tuple, Kept] = OrderedDict()
_fingerprints: WeakKeyDictionary[TextEncoder, tuple[tuple, bytes]] = WeakKeyDictionary()


def forget() -> None:
    """Drop all that is kept."""
    _kept.clear()


@torch.no_grad()
def encode_frozen(
    encoder: TextEncoder,
    tokens: Ragged,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    name: str,
) -> Tensor:
    """`encode_all` [n, D], each row of a token file encoded once by encoders with equal weights."""
    size = len(tokens) * encoder.dim * 4
    if not isinstance(tokens.ids, np.memmap) or size > LIMIT:
        return encode_all(encoder, tokens, rows, batch_size, accelerator, name)
    path = Path(tokens.ids.filename)
    key = (
        _fingerprint(encoder),
        accelerator.mixed_precision,
        str(path),
        path.stat().st_mtime_ns,
        len(tokens),
    )
    if key not in _kept:
        while _kept and size + sum(kept.embeddings.nbytes for kept in _kept.values()) > LIMIT:
            _kept.popitem(last=False)
        _kept[key] = Kept(
            np.empty((len(tokens), encoder.dim), np.float32), np.zeros(len(tokens), bool)
        )
    _kept.move_to_end(key)
    kept = _kept[key]
    missing = np.unique(rows)
    missing = missing[~kept.known[missing]]
    if len(missing):
        kept.embeddings[missing] = (
            encode_all(encoder, tokens, missing, batch_size, accelerator, name).cpu().numpy()
        )
        kept.known[missing] = True
    return torch.from_numpy(kept.embeddings[rows]).to(accelerator.device)


def _fingerprint(encoder: TextEncoder) -> bytes:
    """Equal for encoders that give every text the same embedding; made anew when a weight was
    written to."""
    state = encoder.state_dict(keep_vars=True)
    versions = tuple((value.data_ptr(), value._version) for value in state.values())
    known, digest = _fingerprints.get(encoder, (None, b""))
    if known != versions:
        digest = _digest(encoder, state)
        _fingerprints[encoder] = versions, digest
    return digest


def _digest(encoder: TextEncoder, state: Mapping[str, Tensor]) -> bytes:
    """Of an encoder's modules, their plain settings and its weights."""
    digest = hashlib.blake2b(f"{encoder!r} {encoder.config}".encode())
    for name, module in encoder.named_modules():
        plain = sorted(
            (key, value)
            for key, value in vars(module).items()
            if key != "training" and isinstance(value, (str, int, float, bool, type(None)))
        )
        digest.update(repr((name, plain)).encode())
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
