"""A pretrained transformer whose token states are pooled."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders.masks import square_mask, takes_square_masks
from models.encoders.packing import Packing, learn_to_pack, packed_states
from models.encoders.text_encoder import TextEncoder, check_vocabulary
from utils.cards import gpu_computes
from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.errors import InputError
from utils.pretrained.location import from_pretrained, load_tokenizer
from utils.pretrained.settings import (
    empty_transformer,
    longest_input,
    transformer_class,
    transformer_settings,
    without_pooler,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformerEncoder(TextEncoder):
    """A Hugging Face transformer with cls or mean pooling.

    Args:
        config: section `encoder`.
        source: name, folder or hub id to load the weights from.
        tokenizer: where its tokenizer is; None = there too.
        state: its weights by the names of the model, where transformers cannot read them; `source`
            gives its config then.
        loading: passed on to AutoModel.from_pretrained.
    """

    transformer: PreTrainedModel

    def __init__(
        self,
        config: EncoderConfig,
        source: str,
        tokenizer: str | None = None,
        state: dict[str, Tensor] | None = None,
        **loading: Any,
    ) -> None:
        settings = transformer_settings(config, source)
        if state is None:
            model, report = from_pretrained(
                transformer_class(settings),
                source,
                config=settings,
                output_loading_info=True,
                trust_remote_code=config.trust_remote_code,
                **loading,
                **without_pooler(settings),
            )
            missing = report["missing_keys"]
        else:
            model = empty_transformer(settings, config.trust_remote_code)
            missing = model.load_state_dict(state, strict=False).missing_keys
        lacking = sorted(name for name in missing if "pooler." not in name)
        if lacking:  # else they would be random
            raise InputError(
                f"encoder '{source}': its weights lack {len(lacking)} of the model's tensors, "
                f"such as {lacking[0]}"
            )
        super().__init__(
            config,
            load_tokenizer(tokenizer or source, config.trust_remote_code),
            settings.hidden_size,
        )
        check_vocabulary(self.tokenizer, settings.vocab_size, tokenizer or source, source)
        self.transformer = model.float()
        if config.gradient_checkpointing:
            if not self.transformer.supports_gradient_checkpointing:
                raise InputError(
                    f"encoder.gradient_checkpointing is true, but encoder '{config.name}', a "
                    f"model of type {settings.model_type}, cannot do it; set it to false"
                )
            self.transformer.gradient_checkpointing_enable()
        self._pad_id = self.tokenizer.pad_token_id or 0
        self._longest = longest_input(settings)
        self._can_pack = self._may_pack()

    def _may_pack(self) -> bool:
        """Ready the transformer for packed texts where `encoder.packing` may come to ask for them.

        Raises:
            InputError: they are asked for, but it would not encode them as padded ones.
        """
        packing = self.config.packing
        if packing is False or (packing == "auto" and not gpu_computes()):
            return False
        trouble = learn_to_pack(self.transformer, self._pad_id)
        if trouble and packing is True:
            kind = self.transformer.config.model_type
            raise InputError(
                f"encoder.packing is true, but encoder '{self.config.name}', a model of type "
                f"{kind}, {trouble}; set it to auto or false"
            )
        return not trouble

    def packs(self, device: torch.device) -> bool:
        """Whether texts on a device are encoded without padding; auto: on a GPU.

        On a CPU auto keeps the random numbers of dropout that it always drew.
        """
        return self._can_pack and (self.config.packing is True or device.type == "cuda")

    def pads(self, device: torch.device) -> bool:
        return not self.packs(device)

    def compile_parts(self) -> None:
        self.transformer.compile(dynamic=True)

    def pool(self, texts: TextBatch) -> Tensor:
        """Pool the token states of texts [B, width]."""
        self._check_length(texts.longest)
        if self.packs(texts.ids.device) and len(texts) and texts.host_lengths.min():
            return self._pool_packed(texts)
        return self._pool_with_padding(texts)

    def _pool_packed(self, texts: TextBatch) -> Tensor:
        packing = Packing.of(texts)
        states = packed_states(self.transformer, texts, packing)  # [tokens, width]
        if self.config.pooling == "cls":
            return states[texts.offsets[:-1]]
        lengths = texts.offsets.diff()[:, None]
        return packing.pad(states).sum(1) / lengths.to(states.dtype)

    def _pool_with_padding(self, texts: TextBatch) -> Tensor:
        if len(texts) == 0:  # a batch smaller than the processes: attention cannot shape nothing
            one = torch.full((1, 1), self._pad_id, device=texts.ids.device)
            return self.pool_padded(one, torch.ones_like(one))[:0]
        ids, mask = texts.padded(self._pad_id)  # [B, T]
        if texts.longest == 0:
            ids = F.pad(ids, (0, 1), value=self._pad_id)
            mask = F.pad(mask, (0, 1), value=1)
        return self.pool_padded(ids, mask)

    def _check_length(self, tokens: int) -> None:
        if self._longest is not None and tokens > self._longest:
            raise InputError(
                f"a text has {tokens} tokens but encoder '{self.config.name}' takes at most "
                f"{self._longest}; lower data.max_len"
            )

    @cached_property
    def _takes_square_masks(self) -> bool:
        return takes_square_masks(self.transformer, self._pad_id)

    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = square_mask(mask) if mask.is_cuda and self._takes_square_masks else mask
        output = self.transformer(input_ids=ids, attention_mask=seen)
        states = output.last_hidden_state  # [B, T, width]
        if self.config.pooling == "cls":
            return states[:, 0]
        weights = mask.to(states.dtype)[..., None]  # [B, T, 1]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()
    def check(self) -> None:
        """Encode two texts that differ in their last token.

        Raises:
            InputError: the model cannot encode texts, or `cls` would give all texts one embedding.
        """
        kind = f"encoder '{self.config.name}': a model of type {self.transformer.config.model_type}"
        first, second, third, last = [i for i in range(5) if i != self._pad_id][:4]
        ids = torch.tensor([[first, second, third], [first, second, last]])
        training = self.transformer.training
        self.transformer.eval()
        try:
            output = self.transformer(input_ids=ids, attention_mask=torch.ones_like(ids))
            states = output.last_hidden_state  # [2, 3, width]
        except Exception as error:  # each architecture has its own for what it wants beside ids
            raise InputError(
                f"{kind} cannot encode texts: {' '.join(str(error).split())[:200]}"
            ) from error
        finally:
            self.transformer.train(training)
        if self.config.pooling == "cls" and torch.equal(states[0, 0], states[1, 0]):
            raise InputError(
                f"{kind} is causal: the state of its first token never sees the rest of a text, "
                "so that with encoder.pooling: cls all texts would have one embedding; it needs "
                "mean, or last, which is not supported yet"
            )

    def save(self, folder: Path) -> None:
        self.transformer.save_pretrained(folder)
        super().save(folder)
