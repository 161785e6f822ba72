"""Floating-point operations of a step: products of matrices, of real tokens, as they are computed.

A second forward of gradient caching or of a streamed loss counts, padding does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.sizes import EncoderSize

FORWARD = 1
BACKWARD = 2  # a product for each of its two arguments


def encoder_forward(size: EncoderSize, tokens: int) -> float:
    """Encode a text of so many tokens."""
    projections = 4 * size.width**2
    feed_forward = 2 * size.width * size.inner
    attention = 2 * tokens * size.width
    return 2.0 * size.layers * tokens * (projections + feed_forward + attention)


@dataclass(frozen=True)
class Texts:
    """Texts of equal length in a step.

    Attributes:
        count, tokens: how many, and the length of each.
        cached: they are encoded in several micro-batches, so that their forward is computed twice.
    """

    count: int
    tokens: int
    cached: bool

    def flops(self, size: EncoderSize) -> float:
        passes = FORWARD + BACKWARD + (FORWARD if self.cached else 0)
        return passes * self.count * encoder_forward(size, self.tokens)


def streamed_loss(queries: int, labels: int, dim: int) -> float:
    """Scores of all labels, once more in backward, and both gradients."""
    return (2 * FORWARD + BACKWARD) * 2.0 * queries * labels * dim
