"""Masks of padded texts that a transformer need not look into before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.encoders.packing import WINDOWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def square_mask(mask: Tensor) -> Tensor:
    """Whether each token of a text sees each other: [B, T] -> [B, 1, T, T] bool, not copied.

    Of a mask [B, T] transformers asks whether all is text, which makes the host wait for a GPU.
    """
    return mask.bool()[:, None, None].expand(-1, 1, mask.shape[1], -1)


@torch.no_grad()
def takes_square_masks(model: PreTrainedModel, pad_id: int) -> bool:
    """Whether a transformer's states of a few made texts are the same to the bit by such a mask."""
    if any(getattr(model.config, name, None) for name in WINDOWS):  # short texts would not show it
        return False
    first, second, third = [i for i in range(4) if i != pad_id][:3]
    rows = [[first, second, third, first], [second, third, pad_id, pad_id]]
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=model.device)
    training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        found = model(input_ids=ids, attention_mask=square_mask(mask)).last_hidden_state
        return torch.equal(found[mask.bool()], expected)
    except Exception:  # each architecture has its own for a mask that it does not take
        return False
    finally:
        model.train(training)
