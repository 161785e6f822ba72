"""A reader: an encoder and how texts enter it.

    reader = Reader.of(encoder, config, runtime)      # of one in training
    reader = Reader.frozen(encoder, config, runtime)  # of one that stays

Embeddings by frozen readers are kept for the process: stages of a recipe, members of a fusion and a
report ask for those of the same texts again and again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.encoders.text_encoder import TextEncoder
from utils import distributed
from utils.config.config import Config
from utils.data.batches import sequential_batches
from utils.data.texts import Texts
from utils.ragged import Ragged
from utils.runtime import Runtime, progress
from utils.tokenization_utils import Tokenizer

LIMIT = 1 << 30  # bytes of all that is kept; of a larger text file nothing is


@dataclass(frozen=True, eq=False)
class Reader:
    """An encoder with what its texts need.

    Attributes:
        tokenizer: of queries.
        batch_size: texts encoded at once.
        is_frozen: the encoder never changes again, so that embeddings may be remembered.
    """

    encoder: TextEncoder
    tokenizer: Tokenizer
    batch_size: int
    runtime: Runtime
    is_frozen: bool = False

    @classmethod
    def of(
        cls,
        encoder: TextEncoder,
        config: Config,
        runtime: Runtime,
    ) -> Reader:
        """Of an encoder that may change: read it, step, read it again."""
        tokenizer = encoder.point_tokenizer(config.data.max_len)
        return cls(encoder, tokenizer, config.eval.batch_size, runtime)

    @classmethod
    def frozen(
        cls,
        encoder: TextEncoder,
        config: Config,
        runtime: Runtime,
    ) -> Reader:
        """Of an encoder that is never trained again, which is seen to here."""
        encoder = encoder.to(runtime.device).requires_grad_(False).eval()
        tokenizer = encoder.point_tokenizer(config.data.max_len)
        return cls(encoder, tokenizer, config.eval.batch_size, runtime, is_frozen=True)

    @property
    def dim(self) -> int:
        """D of the embeddings."""
        return self.encoder.dim

    @cached_property
    def _digest(self) -> bytes:
        return digest_of(self.encoder) + self.tokenizer.fingerprint().encode()

    @property
    def key(self) -> bytes | None:
        """Equal for frozen readers that give every text the same embedding; None of others."""
        return self._digest if self.is_frozen else None

    def encode(
        self,
        tokens: Ragged,
        rows: np.ndarray,
        name: str = "embed texts",
    ) -> Tensor:
        """Embeddings [n, D] of the texts at `rows` [n], by this process alone.

        Of a frozen reader each row of a file is encoded once in the life of the process.
        """
        if self.is_frozen and _may_be_kept(tokens, self.dim):
            return _kept_embeddings(self, tokens, rows, name)
        return self._encode(tokens, rows, name)

    @torch.no_grad()
    def batches(
        self, tokens: Ragged, rows: np.ndarray, name: str
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Embeddings in batches of texts of similar length: (positions in `rows`, [b, D])."""
        training = self.encoder.training
        if not self.is_frozen:
            self.encoder.eval()
        is_one = len(rows) <= self.batch_size  # a bar would take longer than a text
        with nullcontext() if is_one else progress(len(rows), name, "texts") as bar:
            for positions, texts in sequential_batches(tokens, rows, self.batch_size):
                with self.runtime.autocast():
                    yield positions, self.encoder(texts.to(self.runtime.device)).float()
                if bar is not None:
                    bar.update(len(positions))
        if not self.is_frozen:
            self.encoder.train(training)

    @torch.no_grad()
    def _encode(
        self,
        tokens: Ragged,
        rows: np.ndarray,
        name: str,
    ) -> Tensor:
        embeddings = torch.empty(len(rows), self.dim, device=self.runtime.device)
        for positions, block in self.batches(tokens, rows, name):
            embeddings[torch.from_numpy(positions).to(embeddings.device)] = block
        return embeddings


@torch.no_grad()
def embed_together(
    reader: Reader,
    tokens: Ragged,
    rows: np.ndarray,
    name: str,
) -> Tensor:
    """Embeddings [n, D] of the texts at `rows` [n] on every process; a collective.

    Each process encodes its share.
    """
    return distributed.gather_rows(embed_share(reader, tokens, rows, name), len(rows))


def embed_share(
    reader: Reader,
    tokens: Ragged,
    rows: np.ndarray,
    name: str,
) -> Tensor:
    """Embeddings [m, D] of this process's share of the texts at `rows` [n]."""
    share = distributed.share(len(rows))
    return reader.encode(tokens, rows[share.start : share.stop], name)


def embed_all(
    reader: Reader,
    texts: Texts,
    name: str = "embed texts",
) -> Tensor:
    """`embed_together` of all of some texts."""
    with distributed.main_first():  # tokens may be made now, and kept on disk
        tokens, rows = texts.tokens(reader.tokenizer)
    return embed_together(reader, tokens, rows, name)


# -------------------------------- what is kept for the process


@dataclass
class _Kept:
    """Embeddings of a text file.

    Attributes:
        embeddings: of its lines [lines, D] float32.
        known: which of them have been made [lines].
    """

    embeddings: np.ndarray
    known: np.ndarray


_kept: OrderedDict[tuple, _Kept] = OrderedDict()


def forget() -> None:
    """Drop all embeddings that are kept."""
    _kept.clear()


def _bytes(tokens: Ragged, dim: int) -> int:
    return len(tokens) * dim * 4


def _may_be_kept(tokens: Ragged, dim: int) -> bool:
    return isinstance(tokens.ids, np.memmap) and _bytes(tokens, dim) <= LIMIT


def _place_for(reader: Reader, tokens: Ragged) -> _Kept:
    """Where a reader's embeddings of a token file are kept.

    What was used longest ago makes room.
    """
    assert isinstance(tokens.ids, np.memmap), "only rows of a file are kept"
    assert tokens.ids.filename is not None, "it is mapped from one"
    path = Path(tokens.ids.filename)
    precision = reader.runtime.accelerator.mixed_precision
    key = (reader.key, precision, str(path), path.stat().st_mtime_ns, len(tokens))
    if key not in _kept:
        size = _bytes(tokens, reader.dim)
        while _kept and size + sum(kept.embeddings.nbytes for kept in _kept.values()) > LIMIT:
            _kept.popitem(last=False)
        embeddings = np.empty((len(tokens), reader.dim), np.float32)
        _kept[key] = _Kept(embeddings, np.zeros(len(tokens), bool))
    _kept.move_to_end(key)
    return _kept[key]


def _kept_embeddings(
    reader: Reader,
    tokens: Ragged,
    rows: np.ndarray,
    name: str,
) -> Tensor:
    kept = _place_for(reader, tokens)
    missing = np.unique(rows)
    missing = missing[~kept.known[missing]]
    if len(missing):
        kept.embeddings[missing] = reader._encode(tokens, missing, name).cpu().numpy()
        kept.known[missing] = True
    return torch.from_numpy(kept.embeddings[rows]).to(reader.runtime.device)


def digest_of(encoder: TextEncoder) -> bytes:
    """A hash of an encoder's modules, their plain settings and its weights."""
    digest = hashlib.blake2b(f"{encoder!r} {encoder.config}".encode())
    for name, module in encoder.named_modules():
        plain = sorted(
            (key, value)
            for key, value in vars(module).items()
            if key != "training" and isinstance(value, (str, int, float, bool, type(None)))
        )
        digest.update(repr((name, plain)).encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
