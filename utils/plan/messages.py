"""What a process sends in a step; an all-reduce of n bytes sends 2 n (G - 1) / G, as in a ring."""

from __future__ import annotations

from losses import LOSSES
from utils.plan.run_sizes import RunSizes

STATISTICS = {  # bytes of a query that processes exchange for a loss
    "softmax": 12,
    "decoupled-softmax": 12,
    "soft-topk": 4 * 128 + 16 + 4 * 40,
}


def loss_messages(
    sizes: RunSizes,
    pool: int,
    encoder_trained: bool = True,
) -> dict[str, float]:
    """Bytes sent for the loss over a pool of K labels.

    Streamed losses have all queries and exchange statistics of their rows; losses of whole rows
    have all labels of the pool.
    """
    row = 4 * sizes.encoder.dim
    if sizes.config.loss.name not in LOSSES:
        labels = _once(sizes) * row * pool
        return {"labels gathered": labels, "labels' gradient, all-reduce": 2 * labels}
    queries = _once(sizes) * row * sizes.batch
    statistics = STATISTICS.get(sizes.config.loss.name, 0) * sizes.batch + 20
    sent = {"queries gathered": queries}
    if encoder_trained:
        sent["queries' gradient, all-reduce"] = 2 * queries
    sent["row statistics of the loss"] = 2 * _once(sizes) * statistics
    return sent


def encoder_messages(sizes: RunSizes, tokens: int) -> dict[str, float]:
    """Bytes sent for the encoder's gradient; `tokens`: of a process's texts of a step, at most."""
    encoder = sizes.encoder
    dense = 2 * _once(sizes) * 4 * encoder.dense
    return {
        "gradients, encoder, dense, all-reduce": dense,
        **table_messages(sizes, "row-sparse table", min(encoder.table, tokens), encoder.width),
    }


def table_messages(
    sizes: RunSizes,
    name: str,
    rows: int,
    width: int,
) -> dict[str, float]:
    """Bytes sent for the rows of a table that a process touches, with their ids."""
    sent = (sizes.processes - 1) * rows * (4 * width + 20)
    return {f"gradients, {name}, at most": sent}


def _once(sizes: RunSizes) -> float:
    """What a process sends of something that all gather, as a share of the whole."""
    return (sizes.processes - 1) / sizes.processes
