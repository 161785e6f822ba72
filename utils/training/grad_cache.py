"""Gradient caching (Gao et al., RepL4NLP 2021): large batches with the memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.data.batches import TextBatch
from utils.data.micro_batches import MicroBatches


class GradCache:
    """Embeddings of many micro-batches, whose graphs are rebuilt when their gradient is known.

        cache = GradCache(encode, micro_batches)
        embeddings = cache.embed()          # [n, D]; forward without graph, random state recorded
        loss(embeddings).backward()         # fills embeddings.grad
        backward_all([cache])               # forward again, with graph, and backward

    One micro-batch at a time has a graph, under the random state recorded. The parameter gradients
    equal those of plain autograd, dropout included. A single micro-batch keeps its graph and is
    never computed twice. A micro-batch whose gradient is exactly zero is skipped.
    """

    def __init__(
        self,
        encode: Callable[[TextBatch], Tensor],
        micro_batches: MicroBatches,
    ) -> None:
        parts = micro_batches.parts
        assert micro_batches.place is None or len(parts) > 1, "a single micro-batch is in order"
        self.encode = encode
        self.micro_batches = parts
        self.place = micro_batches.place
        self._states: list[RandomState] = []
        self._leaf: Tensor | None = None

    def embed(self) -> Tensor:
        """Embed all texts in order [n, D]."""
        if len(self.micro_batches) == 1:
            return self.encode(self.micro_batches[0])
        parts = []
        with torch.no_grad():
            for texts in self.micro_batches:
                self._states.append(_random_state(texts))
                parts.append(self.encode(texts))
        rows = torch.cat(parts)
        if self.place is not None:
            rows = rows[self.place]
        self._leaf = rows.requires_grad_()
        return self._leaf

    def gradients(self) -> list[Tensor]:
        """Of each micro-batch's embeddings [b, D]; none where its graph was kept."""
        if self._leaf is None or self._leaf.grad is None:
            return []
        gradient = self._leaf.grad
        if self.place is not None:
            gradient = torch.empty_like(gradient).index_copy_(0, self.place, gradient)
        return [*gradient.split([len(texts) for texts in self.micro_batches])]

    def carry_on(self, gradients: Sequence[Tensor], nonzero: Sequence[bool]) -> None:
        """Run the micro-batches again that have a gradient, now with a graph."""
        if not gradients:
            return
        after = _random_state(self.micro_batches[-1])
        for i, texts in enumerate(self.micro_batches):
            if nonzero[i]:
                _set_random_state(self._states[i])
                self.encode(texts).backward(gradients[i])
        _set_random_state(after)


def backward_all(caches: Sequence[GradCache]) -> None:
    """Carry embeddings' gradients on to the encoder's parameters; one host sync for all of them."""
    parts = [cache.gradients() for cache in caches]
    counts = [gradient.count_nonzero() for gradients in parts for gradient in gradients]
    if not counts:
        return
    nonzero = iter(torch.stack(counts).bool().tolist())
    for cache, gradients in zip(caches, parts, strict=True):
        cache.carry_on(gradients, [next(nonzero) for _ in gradients])


@dataclass(frozen=True)
class RandomState:
    """Of the host, and of the texts' device where that is a GPU."""

    device: torch.device
    host: Tensor
    gpu: Tensor | None


def _random_state(texts: TextBatch) -> RandomState:
    device = texts.ids.device
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return RandomState(device, torch.get_rng_state(), gpu)


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state.host)
    if state.gpu is not None:
        torch.cuda.set_rng_state(state.gpu, state.device)
