"""Run under `accelerate launch`: compares a search of label shards with one of all labels.

accelerate launch … -m tests.sharding_worker
"""

from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp
import torch

from models.contract import Ranker
from models.evaluation import best_labels, own_best_labels
from models.scores import InnerProducts
from models.sharded import ShardedRanker
from utils import distributed
from utils.search import ExactIndex

DIM = 3
# labels, points, k: fewer labels than processes, k = L, equal scores, points that do not divide
CASES = ((1, 4, 1), (2, 5, 2), (7, 1, 3), (11, 9, 5), (11, 0, 5), (30, 23, 30), (64, 40, 8))


class Numbers:
    """Texts that are rows of queries."""

    def __init__(self, queries: torch.Tensor) -> None:
        self.vectors = queries

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: np.ndarray) -> "Numbers":
        return Numbers(self.vectors[torch.as_tensor(rows)])


class ByVectors(Ranker):
    """Ranks by label vectors."""

    at_once = 7

    def __init__(self, labels: torch.Tensor) -> None:
        super().__init__(SimpleNamespace(eval=SimpleNamespace(batch_size=4)), len(labels))
        self.index = ExactIndex(labels, block=5)

    def queries(self, texts):
        return texts.vectors

    def open(self, texts, given=False):
        return InnerProducts(self.queries(texts), self.index, 4)

    save = load = None


class Shards(ShardedRanker):
    at_once = 7


def random_case(labels: int, points: int) -> tuple[torch.Tensor, torch.Tensor, sp.csr_matrix]:
    """Vectors of small whole numbers, whose products are exact and often equal, and pairs."""
    rng = np.random.default_rng(labels)
    vectors = torch.from_numpy(rng.integers(-2, 3, (labels, DIM)).astype(np.float32))
    queries = torch.from_numpy(rng.integers(-2, 3, (points, DIM)).astype(np.float32))
    pairs = sp.csr_matrix((rng.random((points, labels)) < 0.3).astype(np.float32))
    return vectors, queries, pairs


def check(labels: int, points: int, k: int) -> None:
    vectors, queries, pairs = random_case(labels, points)
    share = distributed.share(labels)
    ranker = Shards(labels, ByVectors(vectors[share.start : share.stop]), lambda: None)
    for removed in (None, pairs, sp.csr_matrix(pairs.shape, dtype=np.float32)):
        # one process's answer, computed by this one alone
        scores = queries @ vectors.T
        if removed is not None:
            scores = torch.where(torch.from_numpy(removed.toarray() > 0), -torch.inf, scores)
        expected, order = scores.sort(dim=1, descending=True, stable=True)
        expected, order = expected[:, :k].numpy(), order[:, :k].numpy()
        order = np.where(np.isneginf(expected), -1, order)
        mine = distributed.share(points)
        values, ids, _ = own_best_labels(ranker, Numbers(queries), k, removed=removed)
        assert np.array_equal(values, expected[mine.start : mine.stop])
        assert np.array_equal(ids, order[mine.start : mine.stop])
        values, ids, _ = best_labels(ranker, Numbers(queries), k, removed=removed)
        if distributed.is_main():
            assert np.array_equal(values, expected)
            assert np.array_equal(ids, order)


def main() -> None:
    distributed.start("no")
    for case in CASES:
        check(*case)
    distributed.stop()


if __name__ == "__main__":
    main()
