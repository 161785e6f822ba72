"""The labels that a step's loss sees, this process's share, and the batch's positives among them.

Every process holds the whole batch's relevance, so pools and positives are computed alike on all of
them without a message; each process then encodes and scores only its own half-open range of the
pool.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from losses import LOSSES, Positives
from utils import distributed
from utils.config.config import LossConfig
from utils.data.batches import Batch
from utils.sparse import entry_rows


def sample_positives(relevance: sp.csr_matrix, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw min(count, |P_i|) positives of each row without replacement, in proportion to relevance.

    Returns a mask over the matrix's entries [nnz]. Exponential keys (Efraimidis & Spirakis, 2006):
    the smallest `count` keys of a row are such a draw.
    """
    rows = entry_rows(relevance)
    keys = rng.exponential(size=relevance.nnz) / relevance.data
    order = np.lexsort((keys, rows))
    place = np.empty(relevance.nnz, np.int64)
    place[order] = np.arange(relevance.nnz) - np.repeat(
        relevance.indptr[:-1], np.diff(relevance.indptr)
    )
    return place < count


def sample_size(loss: LossConfig, num_labels: int) -> int:
    """Positives that `loss.sample` draws for a query.

    One; for soft top-k as many as it wants in the top.
    """
    if loss.name != "soft-topk":
        return 1
    return num_labels if loss.k == "num_pos" else loss.k


def pool_loss(
    loss: Callable[..., torch.Tensor],
    queries: torch.Tensor,
    labels: torch.Tensor,
    pool: LabelPool,
    batch: Batch,
    sampled: np.ndarray | None,
    settings: LossConfig,
    *,
    tau: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of a batch over a pool, alike on all processes; its gradient is this process's part.

    Losses of LOSSES are streamed: they see all queries and the own labels, and exchange row
    statistics. All others see the own queries and all labels of the pool, which are gathered.

    Args:
        queries: embeddings of the own queries [b, D].
        labels: representations of the own labels in the pool's order [k, D].
        sampled: mask over the batch's relevance entries [nnz]; needed with `loss.sample`.
        bias: of the own labels [k].
    """
    if settings.name in LOSSES:
        queries = distributed.gather_rows(queries, len(batch.points))  # [B, D]
        positives = pool.positives(batch, settings, sampled, queries.device)
        return loss(
            queries=queries,
            labels=labels,
            positives=positives,
            bias=bias,
            tau=tau,
            exchange=distributed.loss_exchange(),
        )
    labels = gather_pool(pool, labels)
    bias = None if bias is None else gather_pool(pool, bias)
    positives = pool.positives(batch, settings, sampled, queries.device, by_rows=True)
    share = loss(queries=queries, labels=labels, positives=positives, bias=bias, tau=tau)
    share = share * (len(queries) / len(batch.points))
    return share + (distributed.loss_exchange().sum(share.detach().clone()) - share.detach())


def gather_pool(pool: LabelPool, own: torch.Tensor) -> torch.Tensor:
    """Gather rows of every process's own labels [k, ...] into the order of all ids [K, ...]."""
    return distributed.gather_rows(pool.by_id(own), len(pool.ids), pool.sizes)


class LabelPool:
    """K distinct labels, of which this process owns a contiguous range.

    Args:
        ids: label ids of the whole pool [K], sorted.
        lengths: text lengths of all labels [L]: the loss sees the own labels shortest text first;
        None = in order.
        num_labels: L, to cut the pool where the processes' shares of all labels end, as their
            classifier rows are owned; None = into equal parts.
    Attributes:
        own: ids of the own labels in the order the loss sees them [k].
        sizes: how many labels of the pool each process owns.
    """

    def __init__(
        self, ids: np.ndarray, lengths: np.ndarray | None = None, num_labels: int | None = None
    ) -> None:
        self.ids = ids
        total = len(ids) if num_labels is None else num_labels
        edges = np.array(
            [0, *(distributed.share(total, r).stop for r in range(distributed.world_size()))]
        )
        edges = edges if num_labels is None else np.searchsorted(ids, edges)
        self.sizes = np.diff(edges).tolist()
        self.range = range(*edges[distributed.rank() :][:2].tolist())
        own = ids[self.range.start : self.range.stop]
        order = np.arange(len(own)) if lengths is None else np.argsort(lengths[own], kind="stable")
        self.own = own[order]
        self._column = np.empty(len(own), np.int64)  # place in the range -> column of the loss
        self._column[order] = np.arange(len(own))

    def _find(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(in the pool?, place in the pool) of each label."""
        # ids are 0..K-1: nothing to look up
        if len(self.ids) == 0 or (len(self.ids) == self.ids[-1] + 1):
            return labels < len(self.ids), labels
        place = np.minimum(np.searchsorted(self.ids, labels), len(self.ids) - 1)
        return self.ids[place] == labels, place

    def by_id(self, own: torch.Tensor) -> torch.Tensor:
        """Put rows of the own labels [k, ...] into the order of their ids; differentiable."""
        return own[torch.from_numpy(self._column).to(own.device)]

    def positives(
        self,
        batch: Batch,
        loss: LossConfig,
        sampled: np.ndarray | None,
        device: torch.device,
        by_rows: bool = False,
    ) -> Positives:
        """The batch's known positives among the own labels.

        All positives in the pool are counted, or with `loss.sample` the sampled ones, the others
        being absent. Filter pairs (a query's own item) are absent too: their scores are removed
        before ranking, so they are no negatives.

        Args:
            sampled: mask over the batch's relevance entries; needed with `loss.sample`.
            by_rows: of the own queries among all labels of the pool, in the order of their ids,
            instead.
        """
        rows = entry_rows(batch.relevance)
        labels = batch.relevance.indices
        weights = batch.relevance.data
        counted = np.ones(len(rows), bool)
        if loss.sample:
            assert sampled is not None, "loss.sample needs a sample"
            counted = sampled
        if batch.filters.nnz:
            rows, labels, weights, counted = _with_absent(batch, rows, labels, weights, counted)
        inside, place = self._find(labels)
        per_row = np.bincount(rows[inside & counted], minlength=batch.relevance.shape[0]).astype(
            np.float32
        )
        if by_rows:
            share = distributed.share(len(per_row))
            mine = np.flatnonzero(inside & (rows >= share.start) & (rows < share.stop))
            rows = rows - share.start
            columns = place[mine]
            per_row = per_row[share.start : share.stop]
        else:
            mine = np.flatnonzero(inside & (place >= self.range.start) & (place < self.range.stop))
            columns = self._column[place[mine] - self.range.start]
        order = np.argsort(columns, kind="stable")
        mine, columns = mine[order], columns[order]
        values = weights[mine] if loss.weighted else np.ones(len(mine))

        def tensor(array: np.ndarray, kind: type) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, kind)).to(device, non_blocking=True)

        return Positives(
            tensor(rows[mine], np.int64),
            tensor(columns, np.int64),
            tensor(values, np.float32),
            tensor(counted[mine], np.bool_),
            tensor(per_row, np.float32),
        )


def _with_absent(
    batch: Batch,
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    counted: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Append the filter pairs as absent entries; a pair that is also relevant stays relevant."""
    width = batch.relevance.shape[1]
    absent_rows = entry_rows(batch.filters)
    absent = batch.filters.indices
    new = ~np.isin(
        absent_rows.astype(np.int64) * width + absent, rows.astype(np.int64) * width + labels
    )
    extra = int(new.sum())
    return (
        np.concatenate([rows, absent_rows[new]]),
        np.concatenate([labels, absent[new]]),
        np.concatenate([weights, np.ones(extra, weights.dtype)]),
        np.concatenate([counted, np.zeros(extra, bool)]),
    )
