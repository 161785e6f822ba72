"""Hierarchical balanced spherical k-means over dense or sparse rows, in numpy and numba.

    splits = splits_for(len(rows), max_leaf=100, per_level=32)
    hierarchy = balanced_hierarchy(rows, splits, seed=0, threads=2)
    hierarchy.clusters()      # leaf of each row

Every node is cut in two by 2-means in which the most similar half of the rows goes to the first
centre, as in Parabel (Prabhu et al., WWW 2018); a level of k splits is a cascade of such cuts with
sizes in proportion. Rows are never copied nor made dense, and the result depends on the seed alone,
not on the number of threads.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import scipy.sparse as sp

from utils.clustering.kernels import (
    LONGEST,
    TOLERANCE,
    add,
    add_all,
    cut_nodes,
    halve,
    inverse_norms,
    partition,
    score,
    separate,
)
from utils.errors import InputError
from utils.progress import ProgressBar
from utils.sparse import canonical

# Nodes of more rows are shared by all threads; smaller ones are done by one thread each.
WIDE = 1 << 16
BLOCK = 1 << 13  # rows of a wide node scored at once
# Partial sums of a wide node: a fixed number, so that rounding does not depend on the threads.
PARTS = 8


@dataclass(frozen=True)
class Hierarchy:
    """Balanced clusters of n rows, level by level, coarse to fine.

    Attributes:
        order: row ids [n], leaf by leaf, ascending inside a leaf: every cluster of every level is a
            contiguous run.
        bounds: for each level [clusters + 1]; cluster c of the level owns
            order[bounds[c]:bounds[c + 1]].
    """

    order: np.ndarray
    bounds: tuple[np.ndarray, ...]

    def clusters(self, level: int = -1) -> np.ndarray:
        """Cluster id of each row [n] int64 at a level; without levels all rows are in cluster 0."""
        ids = np.zeros(len(self.order), np.int64)
        if self.bounds:
            sizes = np.diff(self.bounds[level])
            ids[self.order] = np.repeat(np.arange(len(sizes)), sizes)
        return ids

    def parents(self, level: int) -> np.ndarray:
        """For each cluster of a level its cluster in the level above; zeros for the first level.

        Returns:
            [clusters] int64
        """
        level = range(len(self.bounds))[level]
        starts = self.bounds[level][:-1]
        if level == 0:
            return np.zeros(len(starts), np.int64)
        return np.searchsorted(self.bounds[level - 1], starts, side="right") - 1


def splits_for(
    n: int,
    max_leaf: int,
    per_level: int,
) -> list[int]:
    """Splits of each level for leaves of at most `max_leaf` rows.

    They are `per_level`, those of the first level what remains; [] if one leaf is enough. For a
    power of two there are 2^ceil(log2(n / max_leaf)) leaves, as in PECOS and ELIAS. With max_leaf 1
    there may be more leaves than rows, which `balanced_hierarchy` refuses.
    """
    if max_leaf < 1 or per_level < 2:
        raise ValueError(
            f"splits_for: expected max_leaf >= 1 and per_level >= 2, got {max_leaf} and {per_level}"
        )
    leaves = -(-n // max_leaf)
    if leaves <= 1:
        return []
    below = 1  # leaves under a cluster of the first level
    levels = []
    while below * per_level < leaves:
        below *= per_level
        levels.append(per_level)
    first = -(-leaves // below)
    if per_level & (per_level - 1) == 0:
        first = 1 << (first - 1).bit_length()
    return [first, *levels]


def balanced_hierarchy(
    rows: np.ndarray | sp.csr_matrix,
    splits: Sequence[int],
    *,
    seed: int,
    threads: int = 1,
    iterations: int = 20,
    name: str = "cluster",
) -> Hierarchy:
    """Cluster rows [n, F] by direction: a cluster of a level is split into splits[level] children.

    Sizes inside a level differ by at most 1. A cut starts from two random rows as centres, and
    repeats: the rows with the largest x . (c1 - c2) go to c1, equal scores by lower row id, and
    both centres become the normalised means; until the mean similarity gains less than TOLERANCE.
    Rows count by direction; rows of zeros are placed like others.

    Args:
        rows: dense or CSR, best float32, which is used in place; other types are copied.
        iterations: of a cut, at most.
        name: of the progress bar.
    Raises:
        ValueError: more clusters than rows, no rows, a split below 1, or NaN, infinite or huge
            rows.
    """
    if min(splits, default=1) < 1 or threads < 1 or iterations < 1:
        raise ValueError(
            f"{name}: expected splits, threads and iterations of at least 1, got {list(splits)}, "
            f"{threads} and {iterations}"
        )
    n = rows.shape[0]
    totals = [prod(splits[: level + 1]) for level in range(len(splits))]
    if prod(splits) > n:
        raise InputError(f"{name}: {prod(splits):,} clusters cannot be made of {n:,} rows")
    rows = _Rows.of(rows, name)
    # Cluster c of C starts at c * n // C: sizes differ by at most 1, and c * k of C * k starts
    # where c of C does.
    bounds = tuple(np.arange(total + 1, dtype=np.int64) * n // total for total in totals)
    order = np.arange(n, dtype=np.int64)
    bar = ProgressBar(_work(splits, n), name, "rows", scaled=True)
    draws = itertools.count()
    with ThreadPoolExecutor(threads) as pool, bar:
        cutter = _Cutter(
            rows,
            order,
            iterations=iterations,
            threads=threads,
            pool=pool,
            bar=bar,
        )
        for split, total, edges in zip(splits, totals, bounds, strict=True):
            for low, middle, high in _cascade(total, split):
                generator = np.random.default_rng([seed, next(draws)])
                pairs = generator.random((len(low), 2))
                cutter.cut(edges[low], edges[middle], edges[high], pairs)
    return Hierarchy(order, bounds)


def _cascade(total: int, split: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cuts in two that make `split` clusters of each node, `total` of all, round by round.

    A node of a round, clusters [low, high), becomes [low, middle) and [middle, high).
    """
    low = np.arange(0, total, split)
    high = low + split
    while (high - low > 1).any():
        is_open = high - low > 1
        low = low[is_open]
        high = high[is_open]
        middle = (low + high) // 2
        yield low, middle, high
        edges = np.stack([low, middle, high], 1)
        low = edges[:, :2].ravel()
        high = edges[:, 1:].ravel()


def centroids(
    rows: np.ndarray | sp.csr_matrix, clusters: np.ndarray, number: int
) -> np.ndarray | sp.csr_matrix:
    """Directions of clusters: the L2-normalised sums of the L2-normalised rows.

    A cluster without rows, or of zeros, gets zeros.

    Args:
        clusters: [n] ids in [0, number).
    Returns:
        [number, F], dense or CSR as `rows`
    Raises:
        ValueError: a cluster that there is not.
    """
    clusters = np.asarray(clusters)
    n = rows.shape[0]
    if clusters.shape != (n,) or (n and not 0 <= clusters.min() <= clusters.max() < number):
        raise ValueError(
            f"centroids: expected a cluster id in [0, {number}) for each of {n:,} rows, got shape "
            f"{clusters.shape}"
            + (f", {clusters.min()} to {clusters.max()}" if clusters.size else "")
        )
    inverse = _Rows.of(rows, "centroids").inverse
    sums = sp.csr_matrix((inverse, (clusters, np.arange(n))), shape=(number, n)) @ rows
    if sp.issparse(sums):
        sums = canonical(sums).astype(np.float32)
        sums.data *= np.repeat(_Rows.of(sums, "centroids").inverse, np.diff(sums.indptr))
        return sums
    sums = np.ascontiguousarray(sums, np.float32)
    sums *= _Rows.of(sums, "centroids").inverse[:, None]
    return sums


def _work(splits: Sequence[int], n: int) -> int:
    """Rows that all cuts together look at: n for each full round of cuts."""
    return sum(n * max(0, (split - 1).bit_length()) for split in splits)


@dataclass(frozen=True)
class _Rows:
    """Rows as the kernels take them: dense (values [n, F], two empty arrays) or CSR.

    inverse [n]: 1 / norm of each row.
    """

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    inverse: np.ndarray
    width: int

    @classmethod
    def of(cls, rows: np.ndarray | sp.csr_matrix, name: str) -> _Rows:
        """Rows and their norms; ValueError for rows that are NaN, infinite or too long."""
        if sp.issparse(rows):
            rows = canonical(rows)
            arrays = np.ascontiguousarray(rows.data, np.float32), rows.indices, rows.indptr
        else:
            empty = np.zeros(0, np.int32)
            arrays = np.ascontiguousarray(rows, np.float32), empty, empty
        inverse = np.empty(rows.shape[0], np.float32)
        bad = inverse_norms(*arrays, inverse)
        if bad >= 0:
            raise ValueError(
                f"{name}: expected rows shorter than {LONGEST:g}, got NaN, infinity or more in "
                f"row {bad}"
            )
        return cls(*arrays, inverse, rows.shape[1])

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.values, self.indices, self.indptr, self.inverse


class _Scratch(threading.local):
    """Arrays that `cut_nodes` takes, of each thread its own; all zeros between nodes."""

    def __init__(self, width: int) -> None:
        self.width = width

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """direction, left, total, seen and columns, made by the threads that cut small nodes."""
        return (
            np.zeros(self.width, np.float32),
            np.zeros(self.width),
            np.zeros(self.width),
            np.zeros(self.width, np.bool_),
            np.zeros(self.width, np.int32),
        )


class _Cutter:
    """Cuts nodes in two, all nodes of a round at once.

    Small ones a thread each, wide ones by all threads together.
    """

    def __init__(
        self,
        rows: _Rows,
        order: np.ndarray,
        *,
        iterations: int,
        threads: int,
        pool: ThreadPoolExecutor,
        bar: ProgressBar,
    ) -> None:
        self.rows = rows
        self.order = order
        self.iterations = iterations
        self.threads = threads
        self.pool = pool
        self.bar = bar
        self._scratch = _Scratch(rows.width)

    def cut(
        self, starts: np.ndarray, middles: np.ndarray, stops: np.ndarray, pairs: np.ndarray
    ) -> None:
        """Reorder order[start:stop] of every node so that the first side is order[start:middle].

        pairs: [nodes, 2] in [0, 1), the two rows that a node starts from.
        """
        sizes = stops - starts
        first = (pairs[:, 0] * sizes).astype(np.int64)
        second = (pairs[:, 1] * (sizes - 1)).astype(np.int64)
        second += second >= first
        nodes = np.stack([starts, middles, stops, starts + first, starts + second], 1)
        for node in nodes[sizes > WIDE]:
            self._cut_wide(*map(int, node))
            self.bar.update(int(node[2] - node[0]))
        small = nodes[sizes <= WIDE]
        if len(small):
            done = np.cumsum(small[:, 2] - small[:, 0])
            chunks = np.searchsorted(done, np.linspace(0, done[-1], 8 * self.threads + 1)[1:-1])
            for rows_done in self.pool.map(self._cut_small, np.split(small, np.unique(chunks))):
                self.bar.update(rows_done)

    def _cut_small(self, nodes: np.ndarray) -> int:
        """`cut_nodes`, on a thread's own scratch; the rows that were looked at."""
        scratch = self._scratch.arrays
        cut_nodes(*self.rows.arrays, self.order, nodes, self.iterations, *scratch)
        return int((nodes[:, 2] - nodes[:, 0]).sum())

    def _cut_wide(
        self,
        start: int,
        middle: int,
        stop: int,
        first: int,
        second: int,
    ) -> None:
        """`cut_nodes` for one node, its loops over rows shared by the threads."""
        rows = self.rows
        members = self.order[start:stop]
        n = stop - start
        width = self.rows.width
        scores = np.empty(n, np.float32)
        sides = np.zeros(n, np.bool_)
        moves = np.ones(n, np.int8)
        left = np.zeros(width)
        columns = np.arange(width, dtype=np.int32)
        direction = np.zeros(width, np.float32)
        for row, sign in ((self.order[first], 1), (self.order[second], -1)):
            add(*rows.arrays, row, sign, direction)
        total = self._sum(members, moves)

        def score_block(block: slice) -> None:
            score(*rows.arrays, members[block], direction, scores[block])

        best = -np.inf
        for _ in range(self.iterations):
            blocks = [slice(at, at + BLOCK) for at in range(0, n, BLOCK)]
            list(self.pool.map(score_block, blocks))
            if not halve(scores, middle - start, sides, moves):
                break
            left += self._sum(members, moves)
            similarity = separate(columns, left, total, direction)
            if similarity - best < TOLERANCE * n:
                break
            best = similarity
        partition(members, sides)

    def _sum(self, members: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Sum of sign * row over members, part by part [F]."""
        edges = [len(members) * part // PARTS for part in range(PARTS + 1)]

        def part(at: int) -> np.ndarray:
            out = np.zeros(self.rows.width)
            own = slice(edges[at], edges[at + 1])
            add_all(*self.rows.arrays, members[own], signs[own], out)
            return out

        total = np.zeros(self.rows.width)
        for of_part in self.pool.map(part, range(PARTS)):
            total += of_part
        return total
