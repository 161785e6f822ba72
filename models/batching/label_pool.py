"""The labels that a step's loss sees, this process's share, and the batch's positives among them.

Every process holds the whole batch's relevance, so pools and positives are computed alike on all of
them without a message; each process then encodes and scores only its own half-open range of the
pool.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from losses import LOSSES, Positives
from losses.pool import HostCopy
from utils import distributed
from utils.config.config import LossConfig
from utils.data.batches import Batch, Movable
from utils.sparse import entry_rows


def sample_positives(
    relevance: sp.csr_matrix,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
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


@dataclass(frozen=True)
class StepLabels:
    """The labels that a step's loss sees, and what it is told of them.

    Attributes:
        pool: K labels, k of them this process's.
        positives: of all queries among the own labels, or for a loss that is not streamed of the
            own queries among all labels.
        size: queries of the whole batch, B.
    """

    pool: LabelPool
    positives: Positives
    size: int

    @classmethod
    def of(
        cls,
        pool: LabelPool,
        batch: Batch,
        loss: LossConfig,
        sampled: np.ndarray | None,
    ) -> StepLabels:
        """Look a batch's positives up.

        Args:
            sampled: mask over the batch's relevance entries [nnz]; needed with `loss.sample`.
        """
        positives = pool.positives(batch, loss, sampled, by_rows=loss.name not in LOSSES)
        return cls(pool, positives, len(batch.points))


def pool_loss(
    loss: Callable[..., torch.Tensor],
    queries: torch.Tensor,
    labels: torch.Tensor,
    step: StepLabels,
    *,
    options: LossConfig,
    tau: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of a batch over a pool, alike on all processes; its gradient is this process's part.

    Losses of LOSSES are streamed: they see all queries and the own labels, and exchange row
    statistics. All others see the own queries and all labels of the pool, which are gathered.

    Args:
        queries: embeddings of the own queries [b, D].
        labels: representations of the own labels in the pool's order [k, D].
        options: section `loss`.
        bias: of the own labels [k].
    """
    if options.name in LOSSES:
        queries = distributed.gather_rows(queries, step.size)  # [B, D]
        return loss(
            queries=queries,
            labels=labels,
            positives=step.positives,
            bias=bias,
            tau=tau,
            exchange=distributed.loss_exchange(),
        )
    labels = gather_pool(step.pool, labels)  # [K, D]
    bias = None if bias is None else gather_pool(step.pool, bias)  # [K]
    mean = loss(
        queries=queries,
        labels=labels,
        positives=step.positives,
        bias=bias,
        tau=tau,
    )
    part = mean * (len(queries) / step.size)  # of the batch's mean
    return part + (distributed.loss_exchange().sum(part.detach().clone()) - part.detach())


def gather_pool(pool: LabelPool, rows: torch.Tensor) -> torch.Tensor:
    """Gather rows of every process's own labels [k, ...] into the order of all ids [K, ...]."""
    return distributed.gather_rows(pool.by_id(rows), len(pool.ids), pool.sizes)


class LabelPool(Movable):
    """K distinct labels, of which this process owns a contiguous range.

    Args:
        ids: label ids of the whole pool [K], sorted.
        lengths: text lengths of all labels [L]: the loss sees the own labels shortest text first;
            None = in order.
        num_labels: L, to cut the pool where the processes' shares of all labels end, as their
            classifier rows are owned; None = into equal parts.
    Attributes:
        own: ids of the own labels in the order the loss sees them [k], on the host.
        own_ids: the same, where the step is computed.
        sizes: how many labels of the pool each process owns.
    """

    def __init__(
        self, ids: np.ndarray, lengths: np.ndarray | None = None, num_labels: int | None = None
    ) -> None:
        self.ids = ids
        total = len(ids) if num_labels is None else num_labels
        stops = [distributed.share(total, rank).stop for rank in range(distributed.world_size())]
        edges = np.array([0, *stops])
        if num_labels is not None:
            edges = np.searchsorted(ids, edges)
        self.sizes = np.diff(edges).tolist()
        rank = distributed.rank()
        self.range = range(int(edges[rank]), int(edges[rank + 1]))
        in_range = ids[self.range.start : self.range.stop]
        order = np.arange(len(in_range))
        if lengths is not None:
            order = np.argsort(lengths[in_range], kind="stable")
        self.own = in_range[order]
        self._column = np.empty(len(in_range), np.int64)  # place in the range -> column of the loss
        self._column[order] = np.arange(len(in_range))
        self.own_ids = torch.from_numpy(self.own)
        self._column_on_device = None if lengths is None else torch.from_numpy(self._column)
        self._stays = False

    def on(self, device: torch.device) -> LabelPool:
        """The same pool on a device for good: it does not move with the batches that see it."""
        pool = self.moved(lambda part: part.to(device))
        pool._stays = True
        return pool

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> LabelPool:
        """The same pool with tensors that were moved."""
        if self._stays:
            return self
        pool = copy.copy(self)
        pool.own_ids = move(self.own_ids)
        pool._column_on_device = (
            None if self._column_on_device is None else move(self._column_on_device)
        )
        return pool

    def _find(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(in the pool?, place in the pool) of each label."""
        if len(self.ids) == 0 or len(self.ids) == self.ids[-1] + 1:  # 0..K-1: nothing to look up
            return labels < len(self.ids), labels
        place = np.minimum(np.searchsorted(self.ids, labels), len(self.ids) - 1)
        return self.ids[place] == labels, place

    def by_id(self, rows: torch.Tensor) -> torch.Tensor:
        """Put rows of the own labels [k, ...] into the order of their ids; differentiable."""
        return rows if self._column_on_device is None else rows[self._column_on_device]

    def positives(
        self,
        batch: Batch,
        loss: LossConfig,
        sampled: np.ndarray | None,
        by_rows: bool = False,
    ) -> Positives:
        """The batch's known positives among the own labels, on the host.

        All positives in the pool are counted, or with `loss.sample` the sampled ones, the others
        being absent. Filter pairs (a query's own item) are absent too: their scores are removed
        before ranking, so they are no negatives.

        Args:
            sampled: mask over the batch's relevance entries; needed with `loss.sample`.
            by_rows: of the own queries among all labels of the pool, in the order of their ids,
                instead.
        """
        pairs = KnownPairs.of(batch, loss, sampled)
        rows = pairs.rows
        inside, place = self._find(pairs.labels)
        num_queries = batch.relevance.shape[0]
        per_row = np.bincount(rows[inside & pairs.counted], minlength=num_queries)  # [B]
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
        mine = mine[order]
        columns = columns[order]
        values = pairs.weights[mine] if loss.weighted else np.ones(len(mine))

        def tensor(array: np.ndarray, kind: type) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, kind))

        counted = pairs.counted[mine]
        return Positives(
            tensor(rows[mine], np.int64),
            tensor(columns, np.int64),
            tensor(values, np.float32),
            tensor(counted, np.bool_),
            tensor(per_row, np.float32),
            counted_at=tensor(np.flatnonzero(counted), np.int64),
            on_host=HostCopy(np.ascontiguousarray(columns).data, per_row.data),
        )


@dataclass(frozen=True)
class KnownPairs:
    """Pairs of a batch's queries and labels that are no negatives.

    Attributes:
        rows: query of each pair, its place in the batch [n].
        labels: [n].
        weights: relevance [n].
        counted: whether it is a positive; absent otherwise [n].
    """

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(
        cls,
        batch: Batch,
        loss: LossConfig,
        sampled: np.ndarray | None,
    ) -> KnownPairs:
        """All positives, or with `loss.sample` the sampled ones; the filter pairs behind them."""
        counted = np.ones(batch.relevance.nnz, bool)
        if loss.sample:
            assert sampled is not None, "loss.sample needs a sample"
            counted = sampled
        relevance = batch.relevance
        pairs = cls(entry_rows(relevance), relevance.indices, relevance.data, counted)
        return pairs.with_absent(batch.filters) if batch.filters.nnz else pairs

    def with_absent(self, filters: sp.csr_matrix) -> KnownPairs:
        """Append filter pairs as absent ones; a pair that is also relevant stays relevant."""
        width = filters.shape[1]
        rows = entry_rows(filters)
        keys = rows.astype(np.int64) * width + filters.indices
        new = ~np.isin(keys, self.rows.astype(np.int64) * width + self.labels)
        extra = int(new.sum())
        return KnownPairs(
            np.concatenate([self.rows, rows[new]]),
            np.concatenate([self.labels, filters.indices[new]]),
            np.concatenate([self.weights, np.ones(extra, self.weights.dtype)]),
            np.concatenate([self.counted, np.zeros(extra, bool)]),
        )
