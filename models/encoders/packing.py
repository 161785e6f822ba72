"""Texts side by side in one row, without padding: `encoder.packing`.

All that a transformer computes token by token - linear layers, norms, activations, most of its cost
for short texts - it then computes on real tokens alone. Its attention, by transformers' attention
interface, pads queries, keys and values of the texts:

    [1, tokens, heads, head] -> [B, T, heads, head] -> attention -> [1, tokens, heads, head]

Without a graph the padded ones live for one layer's attention. In training attention keeps its
queries, keys, values and output until backward: four tensors of B T places a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.data.batches import TextBatch
from utils.pretrained.settings import BEHIND_PADDING, padding_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from typing_extensions import Self

ATTENTION = "packed_or_sdpa"  # its name among transformers' attention functions
TOLERANCE = 1e-4  # between packed and padded states, as a share of the largest
TRIED = (5, 2, 3)  # tokens of the texts that are compared
WINDOWS = ("sliding_window", "local_attention", "attention_window")  # of attention, in configs


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed texts are in texts padded to the longest.

    Attributes:
        places: of each token among the B T of padded texts [tokens] int64.
        mask: places that hold a token [B, 1, 1, T].
    """

    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, texts: TextBatch) -> Self:
        """Of texts on their device; no host sync."""
        device = texts.ids.device
        lengths = texts.offsets.diff()  # [B]
        numbers = torch.arange(len(texts), device=device)
        total = int(texts.host_lengths.sum())
        text = torch.repeat_interleave(numbers, lengths, output_size=total)
        inside = torch.arange(total, device=device) - texts.offsets[text]
        positions = torch.arange(texts.longest, device=device)
        mask = positions[None] < lengths[:, None]  # [B, T]
        return cls(text * texts.longest + inside, mask[:, None, None])

    def pad(self, packed: Tensor) -> Tensor:
        """[tokens, *] -> [B, T, *], zeros behind the end of a text."""
        count, _, _, longest = self.mask.shape
        padded = packed.new_zeros(count * longest, *packed.shape[1:])
        return padded.index_copy_(0, self.places, packed).unflatten(0, (count, longest))

    def pack(self, padded: Tensor) -> Tensor:
        """[B, T, *] -> [tokens, *]."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def position_ids(self, ids: Tensor, padding: int | None) -> Tensor:
        """Positions of tokens as the padded texts have them [tokens].

        Args:
            ids: of the tokens.
            padding: id of the padding token of a transformer whose positions begin behind it,
                padding tokens not counted; None: they begin at 0.
        """
        inside = self.places % self.mask.shape[-1]
        if padding is None:
            return inside
        counted = ids != padding
        until = counted.cumsum(0)  # of all texts, this token included
        before = (until - counted.long())[torch.arange(len(ids), device=ids.device) - inside]
        return torch.where(counted, until - before, 0) + padding


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' sdpa; inside each text alone where texts are packed.

    Args:
        query, key, value: [B, heads, T, head]; B = 1 of packed texts.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if attention_mask is not None:
        raise ValueError("its attention is masked by more than the ends of texts")
    padded = [packing.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value)]
    output, _ = sdpa_attention_forward(module, *padded, packing.mask, **more)  # [B, T, heads, head]
    return packing.pack(output)[None], None


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let a transformer's attention know packed texts; False where it has no such interface.

    Without packed texts it computes what it did.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return bool(model.config._attn_implementation == ATTENTION)


def packed_states(model: PreTrainedModel, texts: TextBatch, packing: Packing) -> Tensor:
    """Token states of texts of one token at least [tokens, width]."""
    ids = texts.ids.long()
    settings = model.config
    padding = padding_position(settings) if settings.model_type in BEHIND_PADDING else None
    positions = packing.position_ids(ids, padding)
    output = model(input_ids=ids[None], position_ids=positions[None], packing=packing)
    return output.last_hidden_state[0]


@torch.no_grad()
def learn_to_pack(model: PreTrainedModel, pad_id: int) -> str:
    """Give a transformer attention that knows packed texts, if its states are then right.

    Returns:
        why it cannot; empty where it can.
    """
    if any(getattr(model.config, name, None) for name in WINDOWS):  # short texts would not show it
        return "has attention within a window of neighbours"
    if not use_packed_attention(model):
        return "has no attention that can be told where texts end"
    training = model.training
    model.eval()
    try:
        error = _difference(model, pad_id)
    except Exception as problem:  # each architecture has its own for arguments that it lacks
        error = " ".join(str(problem).split())[:200]
    finally:
        model.train(training)
    if error:
        model.set_attn_implementation("sdpa")
    return error


@dataclass(frozen=True)
class _Counted(Packing):
    """One that knows how often attention was computed by it."""

    calls: list[None] = field(default_factory=list)

    def pack(self, padded: Tensor) -> Tensor:
        self.calls.append(None)
        return super().pack(padded)


def _difference(model: PreTrainedModel, pad_id: int) -> str:
    """How the states of a few made texts, packed, differ from those of the texts padded."""
    several = min(model.config.vocab_size, 2 * sum(TRIED))
    known = [i for i in range(several) if i != pad_id]
    ids = torch.tensor([known[i % len(known)] for i in range(sum(TRIED))], dtype=torch.int32)
    texts = TextBatch(ids, np.array(TRIED))
    packing = _Counted.of(texts)
    packed = packed_states(model, texts, packing)
    if len(packing.calls) < model.config.num_hidden_layers:
        return "has attention that cannot be told where texts end"
    padded_ids, mask = texts.padded(pad_id)
    padded = model(input_ids=padded_ids, attention_mask=mask).last_hidden_state
    expected = packing.pack(padded)
    error = float((packed - expected).abs().max() / expected.abs().max())
    return "" if error <= TOLERANCE else f"has other states without padding, by {error:.1g}"
