"""Search for the labels with the largest inner product: exact, or approximate by a graph.

    index = build_index("hnsw", labels, bias, settings=config.eval)
    scores, ids = index.search(queries, k)      # [B, k] each, best first

Of equal scores the lower label comes first.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.candidate_kernels import dot_given
from utils.config.config import EvalConfig
from utils.errors import InputError
from utils.reading.saved import check_answers, check_finite
from utils.threads import over_threads

log = logging.getLogger(__name__)
ONE_THREAD = 1 << 22  # numbers that one thread reads in a millisecond or two
NEAR = 1e-5  # share of a query's best score by which equal ones may differ, computed in two ways
# Labels added to a graph at once: memory-mapped ones are read piece by piece.
ROWS_AT_ONCE = 65536
POINTS_AT_ONCE = 64  # whose candidates' rows are gathered together


class ExactIndex:
    """Scores every label, a block at a time: the memory of a search is B x block.

    Args:
        labels: [L, D], a tensor or a (memory-mapped) array, which stays on disk as long as queries
            are on the CPU. For queries on another device everything moves there at the first
            search.
        bias: [L] or None, added to a label's inner products.
        scale: [L] or None, by which they are multiplied before.
        block: labels scored at once.
    """

    def __init__(
        self,
        labels: Tensor | np.ndarray,
        bias: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        block: int = 65536,
    ) -> None:
        self.labels = labels
        self.bias = bias
        self.scale = scale
        self.block = block

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `exact_topk`; NotFiniteError where a best score is none."""
        device = queries.device
        if device.type != "cpu":
            self.labels = torch.as_tensor(self.labels).to(device)
            self.bias = None if self.bias is None else self.bias.to(device)
            self.scale = None if self.scale is None else self.scale.to(device)
        scores, ids = exact_topk(
            queries, self.labels, k, bias=self.bias, scale=self.scale, block=self.block
        )
        check_answers(scores[:, :1], "scores")  # NaN is above all others
        return scores, ids

    def of(self, queries: Tensor, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] of given labels."""
        return inner_products(queries, self.labels, labels, bias=self.bias, scale=self.scale)


class ClusterIndex:
    """Labels that share the rows of their clusters: x . w_C(l) + b_l, exactly, without a copy.

    Args:
        rows: w [C, D]. All moves to the queries' device at the first search.
        clusters: C(l) of each label [L] int64.
        bias: b [L].
        block: labels ranked at once: the memory of a search is B x (C + block).
    """

    def __init__(
        self,
        rows: Tensor,
        clusters: Tensor,
        bias: Tensor,
        *,
        block: int = 65536,
    ) -> None:
        self.rows = rows
        self.clusters = clusters
        self.bias = bias
        self.block = block

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `ExactIndex.search`."""
        _check_k(k, len(self.clusters))
        self.rows = self.rows.to(queries.device)
        self.clusters = self.clusters.to(queries.device)
        self.bias = self.bias.to(queries.device)
        products = _inner_products(queries.float(), self.rows)  # [B, C]

        def scores_of(part: slice) -> Tensor:
            return products[:, self.clusters[part]] + self.bias[part]

        scores, ids = best_of_blocks(scores_of, len(self.clusters), k, self.block)
        check_answers(scores[:, :1], "scores")
        return scores, ids

    def of(self, queries: Tensor, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] of given labels."""
        known = np.maximum(labels, 0)
        clusters = self.clusters.cpu().numpy()[known]
        return inner_products(queries, self.rows, clusters) + self.bias.cpu().numpy()[known]


class HnswIndex:
    """Approximate search on a hierarchical small-world graph, by faiss.

    Malkov & Yashunin, arXiv 1603.09320. On the CPU, whatever the queries' device. The graph is made
    at the first search, by every process for itself, and holds a float32 copy of the labels; with
    more than one thread two builds differ slightly. A bias becomes one more dimension of the
    labels, in which every query is 1. Equal labels stand in it once: a hundred copies would be each
    other's neighbours and nobody else's.

    Args:
        labels, bias: as for ExactIndex.
        m: neighbours a label keeps (2 m in the lowest layer).
        ef_construction: candidates looked at when a label is added.
        ef: candidates looked at in a search; at least k.
    Raises:
        ValueError: faiss is not installed.
    """

    def __init__(
        self,
        labels: Tensor | np.ndarray,
        bias: Tensor | None = None,
        *,
        m: int = 100,
        ef_construction: int = 300,
        ef: int = 300,
    ) -> None:
        self.labels = labels
        self.bias = bias
        self.m = m
        self.ef_construction = ef_construction
        self.ef = ef
        self.build_seconds = 0.0
        self._faiss = import_faiss("eval.index: hnsw")

    @cached_property
    def _built(self) -> tuple[Any, Copies]:
        """The graph over the distinct labels, and which labels stand at each of its places."""
        started = time.perf_counter()
        faiss = self._faiss
        faiss.omp_set_num_threads(torch.get_num_threads())
        width = self.labels.shape[1] + (self.bias is not None)
        graph = faiss.IndexHNSWFlat(width, self.m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.ef_construction
        copies = Copies.find(self.labels, self.bias)
        for rows in row_blocks(self.labels, self.bias, copies.first):
            check_finite(rows, "label vectors")
            graph.add(rows)
        self.build_seconds = time.perf_counter() - started
        log.info(
            "hnsw: graph over %d labels, %d distinct, in %.1f s",
            len(self.labels),
            graph.ntotal,
            self.build_seconds,
        )
        return graph, copies

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `exact_topk`, approximately.

        Where fewer than k labels are found, id -1 and score -inf fill the row.
        """
        _check_k(k, len(self.labels))
        graph, copies = self._built
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        graph.hnsw.efSearch = max(self.ef, k)
        ones = None if self.bias is None else torch.ones(len(queries))
        wanted = min(k, graph.ntotal)
        rows = index_rows(queries, ones)
        check_finite(rows, "query embeddings")
        scores, ids = (torch.from_numpy(a) for a in graph.search(rows, wanted))
        scores, ids = _best_first(scores.masked_fill(ids < 0, -torch.inf), ids)
        scores, ids = copies.expand(scores, ids, k)
        return scores.to(queries.device), ids.to(queries.device)

    def of(self, queries: Tensor, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] of given labels, exactly."""
        return inner_products(queries, self.labels, labels, bias=self.bias)


class Copies:
    """Which labels have equal rows: an index holds each distinct row once, at a place of its own.

    Attributes:
        first: [U] the lowest label of each place, ascending.
        members: [L] labels place by place, each place's ascending.
        starts: [U + 1] where each place's begin.
    """

    def __init__(self, place: np.ndarray) -> None:
        """Group labels by `place` [L], that of each label's row, numbered by first appearance."""
        self.members = np.argsort(place, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(place))])
        self.first = self.members[self.starts[:-1]]

    @classmethod
    def find(cls, labels: Tensor | np.ndarray, bias: Tensor | None) -> Copies:
        """Compare labels [L, D], and bias [L] or None, by digests of 128 bits.

        16 bytes a label, never L x D.
        """
        digests = []
        for block in row_blocks(labels, bias, np.arange(len(labels))):
            rows = block + 0.0  # -0.0 is 0.0
            of_rows = [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
            digests.append(np.array(of_rows, "S16"))
        _, first, group = np.unique(np.concatenate(digests), return_index=True, return_inverse=True)
        by_appearance = np.empty(len(first), np.int64)
        by_appearance[np.argsort(first)] = np.arange(len(first))
        return cls(by_appearance[group.ravel()])

    def expand(
        self,
        scores: Tensor,
        places: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """The labels that stand at the best places of each query [B, u], best first, -1 = none.

        Returns:
            (scores, label ids) [B, k], best first, equal scores by lower label id, -inf and -1
            where there are no more
        """
        place = places.numpy()
        known = place >= 0
        if len(self.first) == len(self.members):
            return scores, torch.from_numpy(np.where(known, self.members[place], -1))
        count = np.where(known, np.diff(self.starts)[place], 0).clip(max=k)
        values = scores.numpy()
        # What stands behind k better labels cannot be among the best k; of equal scores the label
        # ids decide.
        before = np.cumsum(count, 1) - count
        begins = np.ones(before.shape, bool)
        begins[:, 1:] = values[:, 1:] != values[:, :-1]
        count[np.maximum.accumulate(np.where(begins, before, 0), 1) >= k] = 0
        entry = np.repeat(np.arange(count.size), count.ravel())
        nth = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count.ravel(), count.ravel())
        standing = self.members[self.starts[place.ravel()[entry]] + nth]
        rows = entry // max(place.shape[1], 1)
        order = np.lexsort((standing, -values.ravel()[entry], rows))
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = rank < k
        order = order[kept]
        at = rows[kept], rank[kept]
        best = np.full((len(place), k), -np.inf, np.float32)
        labels = np.full((len(place), k), -1, np.int64)
        best[at] = values.ravel()[entry[order]]
        labels[at] = standing[order]
        return torch.from_numpy(best), torch.from_numpy(labels)


def row_blocks(
    labels: Tensor | np.ndarray, bias: Tensor | None, ids: np.ndarray
) -> Iterator[np.ndarray]:
    """The float32 rows of some labels, ids ascending [n], a block at a time."""
    for start in range(0, len(ids), ROWS_AT_ONCE):
        block = ids[start : start + ROWS_AT_ONCE]
        part: np.ndarray | slice = block
        if block[-1] - block[0] == len(block) - 1:
            part = slice(int(block[0]), int(block[-1]) + 1)  # a view: for tensors it costs nothing
        yield index_rows(labels[part], None if bias is None else bias[part])


def import_faiss(what: str) -> Any:
    """The module faiss; ValueError that `what` needs it."""
    # It reports the processor that it was loaded for.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            f"{what} needs the package faiss-cpu, which is not installed: `pip install faiss-cpu`"
        ) from error
    return faiss


def index_rows(vectors: Tensor | np.ndarray, last: Tensor | None) -> np.ndarray:
    """Vectors [n, D] on any device as float32 rows, with one more dimension [n] unless None."""
    rows = torch.as_tensor(vectors).detach().float().cpu()
    if last is not None:
        rows = torch.cat([rows, last.detach().float().cpu()[:, None]], 1)
    return rows.contiguous().numpy()


def flat_index(
    labels: Tensor | np.ndarray,
    bias: Tensor | None,
    path: Path,
) -> None:
    """Write faiss' exact inner product index over labels [L, D].

    A bias [L] becomes one more dimension.

    Raises:
        ValueError: faiss is not installed.
    """
    faiss = import_faiss("a faiss index")
    index = faiss.IndexFlatIP(labels.shape[1] + (bias is not None))
    for rows in row_blocks(labels, bias, np.arange(len(labels))):
        index.add(rows)
    faiss.write_index(index, str(path))


INDEXES: dict[str, Callable[..., ExactIndex | HnswIndex]] = {
    "exact": lambda labels, bias, settings: ExactIndex(labels, bias, block=settings.label_block),
    "hnsw": lambda labels, bias, settings: HnswIndex(
        labels,
        bias,
        m=settings.hnsw_m,
        ef=settings.hnsw_ef,
        ef_construction=settings.hnsw_ef_construction,
    ),
}


def build_index(
    name: str, labels: Tensor | np.ndarray, bias: Tensor | None = None, *, settings: EvalConfig
) -> ExactIndex | HnswIndex:
    """The index `name` over labels [L, D] with the parameters of the section `eval`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in INDEXES:
        raise ValueError(f"unknown index '{name}'; known: {', '.join(INDEXES)}")
    return INDEXES[name](labels, bias, settings)


class Comparison:
    """Answers from an approximate index, and searches the exact one to tell how well it does."""

    def __init__(self, approximate: HnswIndex, exact: ExactIndex) -> None:
        self._approximate = approximate
        self._exact = exact
        self._points = self._first = self._found = self._k = 0
        self._seconds = [0.0, 0.0]  # approximate, exact

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The approximate result; the first search of both is not timed."""
        if self._points == 0:
            for index in (self._approximate, self._exact):
                index.search(queries[:1], k)
        scores, ids = self._timed(self._approximate, queries, k, 0)
        exact_scores, _ = self._timed(self._exact, queries, k, 1)
        self._points = self._points + len(queries)
        self._k = k
        # Which of equal labels comes first is the rounding's choice: a label counts by its score.
        # [B, k]
        least = exact_scores - NEAR * exact_scores.abs().amax(1, keepdim=True)
        self._first += int((scores[:, 0] >= least[:, 0]).sum())
        self._found += int((scores >= least[:, -1:]).sum())
        return scores, ids

    def _timed(
        self, index: ExactIndex | HnswIndex, queries: Tensor, k: int, which: int
    ) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        scores, ids = index.search(queries, k)
        ids = ids.cpu()  # waits for a GPU
        self._seconds[which] += time.perf_counter() - started
        return scores, ids

    def report(self) -> dict[str, float]:
        """Shares of the exact best label and k best that were found, and milliseconds per point.

        A label whose score equals that of the last of the exact ones is as good as it.
        """
        points = max(self._points, 1)
        return {
            "recall@1": round(self._first / points, 4),
            "k": self._k,
            "recall@k": round(self._found / (points * max(self._k, 1)), 4),
            "points": self._points,
            "build_seconds": round(self._approximate.build_seconds, 2),
            "search_ms": round(self._seconds[0] / points * 1000, 4),
            "exact_ms": round(self._seconds[1] / points * 1000, 4),
        }


def exact_topk(
    queries: Tensor,
    labels: Tensor | np.ndarray,
    k: int,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    block: int = 65536,
) -> tuple[Tensor, Tensor]:
    """The k labels with the largest score for each query, best first; equal ones by lower id.

    Never in half precision: scores rounded to 8 bits would make ties of different labels.

    Args:
        queries: [B, D].
        labels: [L, D], a tensor or a (memory-mapped) array; read block by block, so that memory is
            B x block.
        bias, scale: [L] or None; a label's score is its inner product times scale, plus bias.
        k: 1 to L.
        block: labels scored at once.
    Returns:
        (scores [B, k] float32, label ids [B, k] int64)
    Raises:
        ValueError: k is larger than L.
    """
    _check_k(k, len(labels))
    queries = queries.float()

    def scores_of(part: slice) -> Tensor:
        rows = labels[part]
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(np.ascontiguousarray(rows))
        scores = _inner_products(queries, rows.to(queries.device, queries.dtype))
        if scale is not None:
            scores *= scale[part]
        if bias is not None:
            scores += bias[part]
        return scores

    return best_of_blocks(scores_of, len(labels), k, block)


def best_of_blocks(
    scores_of: Callable[[slice], Tensor], total: int, k: int, block: int
) -> tuple[Tensor, Tensor]:
    """The k best of `total` labels, scored a block at a time; as `exact_topk` returns them.

    Args:
        scores_of: gives the scores [B, b] of some labels.
    """
    best_scores, best_ids = _topk(scores_of(slice(0, block)), k)
    for start in range(block, total, block):
        scores, ids = _topk(scores_of(slice(start, start + block)), k)
        best_scores, kept = _topk(torch.cat([best_scores, scores], 1), k)
        best_ids = torch.cat([best_ids, ids + start], 1).gather(1, kept)
    return best_scores, best_ids


def _inner_products(queries: Tensor, rows: Tensor) -> Tensor:
    """x_i . w_l in float32: [B, n] of queries [B, D] and rows [n, D]."""
    if len(queries) == 1 and queries.device.type == "cpu" and rows.numel() <= ONE_THREAD:
        # BLAS takes twice the time that memory needs where there is one query
        scores = np.empty((1, len(rows)), np.float32)
        dot_given(
            queries.detach().numpy(), rows.detach().numpy(), np.arange(len(rows))[None], scores
        )
        return torch.from_numpy(scores)
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ rows.T


def inner_products(
    queries: Tensor,
    rows: Tensor | np.ndarray,
    labels: np.ndarray,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> np.ndarray:
    """x_i . w_l of given labels [n, c], times scale_l, plus b_l: [n, c] float32."""
    rows = torch.as_tensor(rows)  # shares the memory of an array, a mapped one too
    if queries.device.type != "cpu" or rows.dtype != torch.float32:
        products = _gathered(queries, rows, labels)
    else:
        products = np.empty(labels.shape, np.float32)
        x = queries.float().contiguous().numpy()
        w = rows.detach().numpy()
        over_threads(lambda i, j: dot_given(x[i:j], w, labels[i:j], products[i:j]), len(labels))
    known = np.maximum(labels, 0)
    if scale is not None:
        products *= scale.cpu().numpy()[known]
    if bias is not None:
        products += bias.cpu().numpy()[known]
    return products


def _gathered(
    queries: Tensor,
    rows: Tensor,
    labels: np.ndarray,
) -> np.ndarray:
    """x_i . w_l for any device and precision, by copies of the rows."""
    products = np.empty(labels.shape, np.float32)
    for start in range(0, len(labels), POINTS_AT_ONCE):
        block = slice(start, start + POINTS_AT_ONCE)
        wanted = np.maximum(labels[block], 0)
        given = rows[wanted].to(queries.device, torch.float32)  # [b, c, D]
        products[block] = torch.einsum("bd,bcd->bc", queries[block], given).cpu().numpy()
    return products


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [B, n] and their columns, best first; equal scores by lower column.

    torch.topk takes any of the entries equal to the k-th; where there are more of them than places,
    the first win.
    """
    k = min(k, scores.shape[1])
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    if values.shape[1] > k:
        tied = values[:, k - 1] == values[:, -1]
    else:
        tied = scores.new_zeros(len(scores)).bool()
    values = values[:, :k]
    columns = columns[:, :k]
    if tied.any():
        rows = scores[tied]
        last = values[tied, k - 1 : k]
        rank = -torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
        rank = torch.where(rows == last, rank, torch.iinfo(torch.int32).min)
        rank = rank.masked_fill(rows > last, 1)
        columns[tied] = rank.topk(k).indices
        values[tied] = rows.gather(1, columns[tied])
    return _best_first(values, columns)


def _best_first(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Both [B, k], by descending score, equal scores by lower id."""
    by_id = ids.argsort(dim=1)
    scores = scores.gather(1, by_id)
    ids = ids.gather(1, by_id)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, order), ids.gather(1, order)


def _check_k(k: int, total: int) -> None:
    if not 1 <= k <= total:
        raise InputError(f"k must be from 1 to the number of labels, {total}; got {k}")
