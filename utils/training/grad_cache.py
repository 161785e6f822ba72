"""Gradient caching (Gao et al., RepL4NLP 2021): large batches of embeddings with the memory of one
micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.data.batches import TextBatch


class GradCache:
    """Embeddings of many micro-batches whose graph is rebuilt, one micro-batch at a time, when
    their gradient is known.

        cache = GradCache(encode, micro_batches)
        embeddings = cache.embed()          # [n, D]; forward without graph, random state recorded
        loss(embeddings).backward()         # fills embeddings.grad
        # forward again under the same random state, with graph, and backward
        cache.backward()

    The parameter gradients equal those of plain autograd, dropout included. A single micro-batch
    keeps its graph and is never computed twice. A micro-batch whose gradient is exactly zero is
    skipped.
    """

    def __init__(
        self, encode: Callable[[TextBatch], Tensor], micro_batches: Sequence[TextBatch]
    ) -> None:
        self.encode, self.micro_batches = encode, micro_batches
        self._states: list[Any] = []
        self._leaf: Tensor | None = None

    def embed(self) -> Tensor:
        """Embeddings of all micro-batches in order [n, D]."""
        if len(self.micro_batches) == 1:
            return self.encode(self.micro_batches[0])
        parts = []
        with torch.no_grad():
            for texts in self.micro_batches:
                self._states.append(_random_state(texts))
                parts.append(self.encode(texts))
        self._leaf = torch.cat(parts).requires_grad_()
        return self._leaf

    def backward(self) -> None:
        """Carry the embeddings' gradient on to the encoder's parameters."""
        if self._leaf is None or self._leaf.grad is None:
            return
        gradients = self._leaf.grad.split([len(texts) for texts in self.micro_batches])
        # one host sync for all
        needed = torch.stack([g.count_nonzero() for g in gradients]).tolist()
        after = _random_state(self.micro_batches[-1])
        for texts, state, gradient, nonzero in zip(
            self.micro_batches, self._states, gradients, needed, strict=True
        ):
            if nonzero:
                _set_random_state(state, texts.ids.device)
                self.encode(texts).backward(gradient)
        _set_random_state(after, self.micro_batches[-1].ids.device)


def _random_state(texts: TextBatch) -> tuple[Tensor, Tensor | None]:
    device = texts.ids.device
    return torch.get_rng_state(), torch.cuda.get_rng_state(
        device
    ) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
