"""A model in training whose labels are sharded over the processes: each ranks its own.

    queries     of every process's own texts, gathered                  [B, D]
    search      each process, its own labels for all of them            [B, k], filter pairs removed
    exchange    every process gets its own texts' k best of each shard  [G, b, k]
    merge       the k best of G x k, equal scores by lower label

No process ever holds the vectors of all labels, but the main one on the host while it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.contract import Ranker
from models.scores import InnerProducts, Scores, best_without
from utils import distributed
from utils.config.config import Config
from utils.data.texts import Texts
from utils.runtime import Runtime


class ShardedRanker(Ranker):
    """Ranks all labels by asking every process for its own.

    Args:
        num_labels: L, of all processes.
        own: ranks this process's labels, `distributed.share(num_labels)`, as if there were no
            others.
        whole: makes the ranker of all labels on the main process, None on the others; a collective.
    """

    def __init__(
        self,
        num_labels: int,
        own: Ranker,
        whole: Callable[[], Ranker | None],
    ) -> None:
        super().__init__(own.config, num_labels)
        self.reader = own.reader
        self.own = own
        self.own_labels = distributed.share(num_labels)
        self._whole = whole

    def whole(self) -> Ranker | None:
        return self._whole()

    def queries(self, texts: Texts) -> Tensor:
        return self.own.queries(texts)

    def open(self, texts: Texts, given: bool = False) -> Scores:
        """Refused: a process alone cannot rank all labels."""
        raise AssertionError("labels are sharded over the processes: ask `own_best_labels`")

    def save(self, folder: Path) -> None:
        """Refused: `whole` is what is saved."""
        raise AssertionError("labels are sharded over the processes: save what `whole` makes")

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> Ranker:
        """Refused: a saved model has all labels."""
        raise AssertionError("a model in training is not loaded")


def sharded(
    num_labels: int,
    own: Callable[[], Ranker],
    whole: Callable[[], Ranker | None],
) -> Ranker:
    """What ranks all labels: of one process the whole ranker, of several one of shards.

    Args:
        own: makes the ranker of this process's labels alone.
        whole: as of `ShardedRanker`.
    """
    if distributed.world_size() > 1:
        return ShardedRanker(num_labels, own(), whole)
    ranker = whole()
    assert ranker is not None, "the only process has the whole model"
    return ranker


def sharded_best_labels(
    ranker: ShardedRanker,
    texts: Texts,
    k: int,
    removed: sp.csr_matrix | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best labels of this process's share of some texts; a collective.

    Args:
        removed: pairs that are not counted [n, L]; they are taken out before anything travels.
    Returns:
        scores [m, k] float32 and ids [m, k] int32, -inf and -1 where there are no more.
    """
    processes = range(distributed.world_size())
    shares = [distributed.share(len(texts), process) for process in processes]
    own = shares[distributed.rank()]
    values = np.empty((len(own), k), np.float32)
    ids = np.empty((len(own), k), np.int32)
    at_once = max(1, ranker.at_once // len(shares))  # of each process
    for start in range(0, len(shares[-1]), at_once):  # the last share is as large as any
        block = slice(start, start + at_once)
        rows = [np.arange(share.start, share.stop)[block] for share in shares]
        found = _found_by_all(ranker, texts, rows, k, removed)
        values[block], ids[block] = merged(*found, k)
    return values, ids


def _found_by_all(
    ranker: ShardedRanker,
    texts: Texts,
    rows: list[np.ndarray],
    k: int,
    removed: sp.csr_matrix | None,
) -> tuple[Tensor, Tensor]:
    """What every process finds among its labels for the texts of this one [b].

    Args:
        rows: of each process's texts in this block.
    Returns:
        scores and ids [G, b, k'], k' the most that a shard has.
    """
    sizes = [len(each) for each in rows]
    own = ranker.queries(texts[rows[distributed.rank()]])  # [b, D]
    queries = torch.cat(distributed.gather_parts(own, sizes))  # [B, D]
    without = None if removed is None else removed[np.concatenate(rows)]
    values, ids = _found_here(ranker, queries, k, without)
    return distributed.exchange_rows(values, sizes), distributed.exchange_rows(ids, sizes)


def _found_here(
    ranker: ShardedRanker,
    queries: Tensor,
    k: int,
    removed: sp.csr_matrix | None,
) -> tuple[Tensor, Tensor]:
    """The best of this process's labels for all queries: scores and ids [B, k'] on the host."""
    labels = ranker.own_labels
    most = len(distributed.share(ranker.num_labels, distributed.world_size() - 1))
    values = torch.full((len(queries), min(k, most)), -torch.inf)
    ids = torch.full(values.shape, -1, dtype=torch.int32)
    if not len(queries) or not len(labels):
        return values, ids
    own = ranker.own
    assert own.index is not None, "labels are sharded where they are ranked by inner products"
    scores = InnerProducts(queries, own.index, ranker.config.eval.batch_size)
    without = None if removed is None else removed[:, labels.start : labels.stop]
    found, places = best_without(scores, min(k, len(labels)), without, len(labels))
    width = found.shape[1]
    values[:, :width] = torch.from_numpy(found)
    ids[:, :width] = torch.from_numpy(np.where(places < 0, -1, places + labels.start))
    return values, ids


def merged(values: Tensor, ids: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what the shards found, which are in the order of their labels.

    Args:
        values, ids: of each shard [G, b, k'], best first, -inf and -1 = no more.
    Returns:
        scores [b, k] and ids [b, k]; of equal scores the lower label first, as one search of all
            labels has them.
    """
    side_by_side = values.transpose(0, 1).flatten(1)  # [b, G k']
    order = side_by_side.argsort(dim=1, descending=True, stable=True)[:, :k]
    labels = ids.transpose(0, 1).flatten(1)
    return side_by_side.gather(1, order).numpy(), labels.gather(1, order).numpy()
