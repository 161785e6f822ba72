"""A bag of tokens: a weighted mean of rows of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.text_encoder import TextEncoder, UnitLength
from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.parameters import (
    DeclaredParameter,
    Gradient,
    Kind,
    padded_runs,
    row_gradient,
    sparse_rows,
)
from utils.pretrained.location import (
    from_pretrained,
    load_tokenizer,
    resolve,
    word_embedding_names,
)
from utils.pretrained.settings import text_settings
from utils.reading.saved import open_tensors


class _WeightedBag(torch.autograd.Function):
    """sum_t w_t e_t per text, with gradients that hold only the rows of tokens that occur.

        G_v = sum of the output's gradients over the occurrences of token v
        d e_v = w_v G_v
        d w_v = G_v . e_v

    G is a bag over the transposed index, so forward and backward are each one fused kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        weights: Tensor,
        index: BagIndex,
    ) -> Tensor:
        ctx.save_for_backward(table, weights)
        ctx.index = index
        return F.embedding_bag(
            index.ids,
            table,
            index.offsets,
            mode="sum",
            include_last_offset=True,
            per_sample_weights=weights[index.ids.long(), 0],
        )  # [B, D]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        table, weights = ctx.saved_tensors
        tokens, texts, offsets = ctx.index.transposed
        summed = F.embedding_bag(
            texts, gradient.contiguous(), offsets, mode="sum", include_last_offset=True
        )  # [U, D]
        rows = table[tokens]  # [U, D]
        to_weights = (summed * rows).sum(1, keepdim=True)  # [U, 1]
        summed *= weights[tokens]
        make = row_gradient if ctx.index.is_padded else sparse_rows
        return make(tokens, summed, table.shape), make(tokens, to_weights, weights.shape), None


class BagIndex:
    """Token ids and offsets of some texts, and the same occurrences grouped by token.

    The groups are made on the first backward.

    Attributes:
        is_padded: tokens without occurrences follow behind the others, so that the host need not
            wait for a GPU to count them.
    """

    def __init__(self, texts: TextBatch) -> None:
        self.ids = texts.ids
        self.is_padded = texts.ids.is_cuda
        self.offsets = texts.offsets.to(texts.ids.dtype)
        self._lengths = texts.offsets.diff()
        self._transposed: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The occurrences by token.

        Returns:
            tokens: that occur [U] int64; padded ones with the last of them.
            texts: of each occurrence, sorted by token.
            offsets: of each token's occurrences [U + 1].
        """
        if self._transposed is None:
            order = torch.argsort(self.ids, stable=True)
            find = padded_runs if self.is_padded else runs
            tokens, counts = find(self.ids[order])
            text_of = torch.repeat_interleave(
                torch.arange(len(self._lengths), device=self.ids.device),
                self._lengths,
                output_size=len(self.ids),
            )
            offsets = F.pad(counts.cumsum(0), (1, 0)).to(self.ids.dtype)
            self._transposed = (tokens.long(), text_of[order].to(self.ids.dtype), offsets)
        return self._transposed


def runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of an ordered tensor [n], and how often each stands there [U] int64."""
    return torch.unique_consecutive(ordered, return_counts=True)


class BagEncoder(TextEncoder):
    """x = s + gelu(s / |s|) R, where s = sum_t w_t e_t over the text's tokens.

    Learned are the table e [V, D], the weights w [V] and R [D, D].

    Args:
        config: section `encoder`.
        source: encoder whose tokenizer, and token embeddings if `table` is None, it starts from.
        weights: token weights at the start [V]; None = equal.
        table: token embeddings [V, D]; None = those of `source`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        source: str,
        weights: np.ndarray | None = None,
        table: Tensor | None = None,
    ) -> None:
        table = token_embeddings(source, config.trust_remote_code) if table is None else table
        super().__init__(config, load_tokenizer(source, config.trust_remote_code), table.shape[1])
        kind = Kind(Gradient.ROWS)
        self.table = DeclaredParameter(table.float(), kind)  # [V, D]
        start = torch.ones(len(table))
        if weights is not None:
            start = torch.as_tensor(weights, dtype=torch.float32)
        self.token_weights = DeclaredParameter(start[:, None].clone(), kind)  # [V, 1]
        self.dropout = nn.Dropout(config.dropout or 0.0)
        self.residual = None
        if config.residual:
            self.residual = nn.Linear(table.shape[1], table.shape[1], bias=False)
            nn.init.zeros_(self.residual.weight)  # the plain bag; gelu keeps its gradient alive

    def pool(self, texts: TextBatch) -> Tensor:
        if texts.bag_index is None:
            texts.bag_index = BagIndex(texts)  # fixed label batches keep theirs between steps
        with torch.autocast(self.table.device.type, enabled=False):
            bags = _WeightedBag.apply(self.table, self.token_weights, texts.bag_index)  # [B, D]
        return self._finish(bags)

    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = self.token_weights[ids] * mask[..., None]  # [B, T, 1]
        return self._finish((self.table[ids] * weights).sum(1))  # [B, D]

    def _finish(self, summed: Tensor) -> Tensor:
        """x of the sums s [B, D]."""
        if self.residual is not None:
            unit = UnitLength.apply(summed) if self.config.normalize else summed
            summed = unit + self.residual(F.gelu(unit))
        return self.dropout(summed)

    def save(self, folder: Path) -> None:
        super().save(folder)
        tokens, width = self.table.shape
        (folder / "bag.json").write_text(json.dumps({"tokens": tokens, "width": width}) + "\n")


def token_embeddings(source: str, trust_remote_code: bool = False) -> Tensor:
    """Token embeddings [V, width] of a pretrained encoder.

    Read straight from its weights where that is possible.
    """
    weights = Path(resolve(source)) / "model.safetensors"
    if weights.is_file():
        with open_tensors(weights) as file:
            names = word_embedding_names(file.keys())
            if len(names) == 1:
                return file.get_tensor(names[0])
    from transformers import AutoModel

    settings = text_settings(source, trust_remote_code)
    model = from_pretrained(AutoModel, source, config=settings, trust_remote_code=trust_remote_code)
    return model.get_input_embeddings().weight.detach()


def inverse_document_frequency(counts: np.ndarray, texts: int) -> np.ndarray:
    """log((1 + n) / (1 + n_t)) of each token [V]: 0 for a token of every text.

    Special tokens are in every text.
    """
    return np.log((1.0 + texts) / (1.0 + counts)).astype(np.float32)
