"""What batches hold beside a step, and the labels that they draw."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import numpy as np

from utils.plan.parts import EVALUATION, RUNNING, Part
from utils.plan.run_sizes import RunSizes


def expected_distinct(labels: int, draws: float) -> int:
    """Distinct labels among so many draws from all."""
    return max(1, ceil(labels * -np.expm1(-draws / labels)))


def query_bank(sizes: RunSizes, recorded: bool = True) -> Iterator[Part]:
    """The memory bank of query embeddings [n, D], and what the main process clusters.

    Unsure: only epochs before a clustering fill the bank, only the main process clusters.

    Args:
        recorded: whether training fills a bank; else the embeddings are kept elsewhere.
    """
    method = sizes.config.method
    if method.batches != "clustered" or method.curr_epochs[0] >= sizes.config.train.epochs:
        return
    row = 4 * sizes.encoder.dim
    own = row * sizes.share(sizes.training) if recorded else 0
    fewer = "method.batches: random"
    yield Part("query embeddings", own, RUNNING, smaller=fewer, on_host=True, sure=False)
    clustered = 3 * row * sizes.training
    name = "query embeddings: clustering"
    yield Part(name, clustered, (EVALUATION,), smaller=fewer, on_host=True, sure=False)
