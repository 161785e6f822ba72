"""What every text encoder is: TextBatch of B texts -> embeddings [B, D]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.data.micro_batches import MicroBatchSize
from utils.errors import InputError
from utils.pretrained.source import fill
from utils.reading.saved import read_tensors
from utils.tokenization_utils import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnitLength(torch.autograd.Function):
    """x / |x| along the last dimension; a zero vector stays zero and gets no gradient.

    As torch's normalize, with one product and one sum in backward instead of a dozen passes over
    the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.where(norm > 1e-12, 1 / norm, 0.0)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, unit)[..., None]
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse)


class TextEncoder(nn.Module, ABC):
    """Base: subclasses compute `pool(texts)` [B, width]; the head is shared.

    Attributes:
        config: section `encoder`, filled.
        tokenizer: of Hugging Face.
        dim: D.
    """

    def __init__(
        self, config: EncoderConfig, tokenizer: PreTrainedTokenizerBase, width: int
    ) -> None:
        super().__init__()
        self.config = fill(config)
        self.tokenizer = tokenizer
        self.dim = config.projection or width
        self.projection = nn.Linear(width, self.dim) if config.projection else None

    def point_tokenizer(self, max_len: int) -> Tokenizer:
        """Of points' texts, cut at so many tokens."""
        return Tokenizer(self.tokenizer, max_len, prompt=self.config.point_prompt)

    def label_tokenizer(self, max_len: int) -> Tokenizer:
        """Of labels' texts, cut at so many tokens."""
        return Tokenizer(self.tokenizer, max_len, prompt=self.config.prompt_of_labels)

    def pads(self, device: torch.device) -> bool:
        """Whether texts on a device are padded to the longest of a batch: padding costs too."""
        return False

    def micro_batch_size(self, options: Any, device: torch.device) -> MicroBatchSize:
        """How much is encoded at once on a device.

        Args:
            options: section `method`; one without `gc_batch_size` counts no texts.
        """
        texts = getattr(options, "gc_batch_size", None)
        return MicroBatchSize(texts, options.micro_batch_tokens, self.pads(device))

    def compile_parts(self) -> None:
        """Have torch.compile compile what gains by it, if anything does."""

    @abstractmethod
    def pool(self, texts: TextBatch) -> Tensor:
        """Texts -> [B, width]."""

    def forward(self, texts: TextBatch) -> Tensor:
        """Texts -> embeddings [B, D], of unit length if `encoder.normalize`.

        An empty text gives a finite row.
        """
        return self._head(self.pool(texts))

    def encode_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, from padded token ids and their mask [B, T].

        Without what only training needs.
        """
        return self._head(self.pool_padded(ids, mask))

    @abstractmethod
    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Padded token ids and their mask [B, T] -> [B, width]."""

    def _head(self, pooled: Tensor) -> Tensor:
        if self.projection is not None:
            pooled = self.projection(pooled)  # [B, D]
        return UnitLength.apply(pooled.float()) if self.config.normalize else pooled

    def save(self, folder: Path) -> None:
        """Weights and tokenizer into `folder`, to be read by `load_encoder`."""
        self.tokenizer.save_pretrained(folder)
        head = {name: tensor.contiguous() for name, tensor in self._head_state().items()}
        if head:
            save_file(head, folder / "head.safetensors")

    def load_head(self, folder: Path) -> None:
        """Take back what `save` wrote beside the transformer; strict."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._head_state().items()}
        if shapes:
            path = folder / "head.safetensors"
            self.take_head(read_tensors(path, shapes), path)

    def _head_state(self) -> dict[str, Tensor]:
        """Tensors beside the transformer, by name."""
        return {
            name: tensor.detach()
            for name, tensor in self.state_dict().items()
            if not name.startswith("transformer.")
        }

    def take_head(self, head: dict[str, Tensor], where: str | Path) -> list[str]:
        """Copy tensors of what is beside the transformer.

        Returns:
            the names that `head` leaves as they were.
        Raises:
            InputError: a tensor that this encoder does not have, or of another shape.
        """
        try:
            missing, extra = self.load_state_dict(head, strict=False)
        except RuntimeError as error:
            raise InputError(f"{where}: {' '.join(str(error).split())}") from error
        if extra:
            raise InputError(f"{where}: unexpected {extra}")
        return [name for name in missing if not name.startswith("transformer.")]


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    name: str,
    source: str,
) -> None:
    """InputError for a tokenizer whose ids go beyond an encoder's table of `rows` embeddings."""
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of '{name}' has {len(tokenizer)} tokens, encoder '{source}' has "
            f"embeddings for {rows}: it is not the one that the encoder was trained with, or "
            "tokens were added to it afterwards; encoder.tokenizer names another"
        )
