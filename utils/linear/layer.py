"""Linear rankers of many clusters at once: squared hinge, L2-regularised.

    layer = fit_layer(features, child_ptr, positives, reach, Solver(), threads=2)
    margins = score_candidates(layer, features, candidates, threads=2)

numpy, scipy and numba alone; the kernels and the layout of the weights are in
utils/linear/kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import scipy.sparse as sp

from utils.arrays import map_arrays
from utils.errors import InputError
from utils.linear.kernels import fit_chunk, score_pairs
from utils.progress import ProgressBar
from utils.reading.saved import Shape, check_arrays
from utils.sparse import canonical, entry_rows

FEWEST = 32  # points that are worth a thread
BLOCK = 256  # points scored at once by a thread: more hold more candidates, and are no faster
BARE_POINTS = 16384  # so few have no progress bar


@dataclass(frozen=True)
class Features:
    """Sparse and dense features of n points side by side.

    sparse: CSR [n, F] float32; dense: [n, D] float32, D >= 0.
    """

    sparse: sp.csr_matrix
    dense: np.ndarray

    @classmethod
    def build(cls, sparse: sp.spmatrix, dense: np.ndarray | None = None) -> Features:
        """Bring the arrays into the types that the kernels are compiled for."""
        sparse = canonical(sparse).astype(np.float32, copy=False)
        if sparse.indices.dtype != np.int32 or sparse.indptr.dtype != np.int64:
            if sparse.nnz == 0:
                sparse = sp.csr_matrix(sparse.shape, dtype=np.float32)
            else:
                sparse = sparse.copy()
            sparse.indices = sparse.indices.astype(np.int32)
            sparse.indptr = sparse.indptr.astype(np.int64)
        if dense is None:
            dense = np.zeros((sparse.shape[0], 0), np.float32)
        dense = np.ascontiguousarray(dense, np.float32)
        if len(dense) != sparse.shape[0]:
            raise ValueError(
                f"{sparse.shape[0]:,} rows of sparse features but {len(dense):,} of dense ones"
            )
        return cls(sparse, dense)

    def __len__(self) -> int:
        return self.sparse.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> Features:
        # One text is searched whole.
        if isinstance(rows, slice) and rows.indices(len(self)) == (0, len(self), 1):
            return self
        return Features.build(self.sparse[rows], self.dense[rows])

    @property
    def shape(self) -> tuple[int, int]:
        """(F, D): sparse and dense columns."""
        return self.sparse.shape[1], self.dense.shape[1]

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the kernels take: indptr, indices, data."""
        return self.sparse.indptr, self.sparse.indices, self.sparse.data

    @property
    def empty(self) -> np.ndarray:
        """Mask of the points without a single feature [n]."""
        return (np.diff(self.sparse.indptr) == 0) & ~self.dense.any(axis=1)


@dataclass(frozen=True)
class Solver:
    """How rankers are fitted: L2-regularised squared hinge, dual coordinate descent."""

    cost: float = 1.0  # C of the points
    bias: float = 1.0  # value of the constant feature
    eps: float = 0.1  # a problem stops when its projected gradients lie within eps
    passes: int = 100  # or after so many passes
    threshold: float = 0.1  # smaller weights are dropped
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """Rankers of one level, a chunk per parent cluster, laid out as in utils.linear.kernels."""

    # [parents + 1] children of parent c are the nodes child_ptr[c]:child_ptr[c + 1]
    child_ptr: np.ndarray
    chunk_ptr: np.ndarray  # [parents + 1] rows of chunk c in `features`
    features: np.ndarray  # [rows] feature ids, ascending in a chunk
    ptr: np.ndarray  # [rows + 1] entries of a row
    children: np.ndarray  # [entries] child, counted from the chunk's first
    values: np.ndarray  # [entries] weights

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """What `score_pairs` takes."""
        return self.chunk_ptr, self.features, self.ptr, self.children, self.values

    def check(
        self,
        parents: int,
        columns: int,
        where: str,
    ) -> None:
        """ValueError unless every index lies inside its array: the kernels do not look.

        Args:
            parents: clusters of the level above. columns: F + D of the features.
        """
        sizes = np.diff(self.child_ptr)
        pointers = (
            (self.child_ptr, parents, None),
            (self.chunk_ptr, parents, len(self.features)),
            (self.ptr, len(self.features), len(self.values)),
        )
        good = all(
            p.shape == (n + 1,) and p[0] == 0 and (np.diff(p) >= 0).all() and end in (None, p[-1])
            for p, n, end in pointers
        )
        good = good and len(self.children) == len(self.values)
        if good and len(self.values):
            of_row = np.repeat(np.arange(parents), np.diff(self.chunk_ptr))
            limit = np.repeat(sizes[of_row], np.diff(self.ptr))
            ascending = np.diff(self.features)[np.diff(of_row) == 0]
            good = bool(
                (self.children >= 0).all()
                and (self.children < limit).all()
                and (ascending > 0).all()
                and self.features.min() >= 0
                and self.features.max() <= columns
            )
        if not good:
            raise InputError(
                f"{where}: the weights are damaged or of another tree: an index points outside of "
                "its array"
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields by name; Layer(**arrays) is the layer again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


LAYER: dict[str, tuple[Shape, type]] = {  # of a saved layer
    "child_ptr": ((None,), np.int64),
    "chunk_ptr": ((None,), np.int64),
    "features": ((None,), np.int32),
    "ptr": ((None,), np.int64),
    "children": ((None,), np.int32),
    "values": ((None,), np.float32),
}


def load_layer(path: Path) -> Layer:
    """A layer whose arrays are mapped from `path`; ValueError if it is not the file of one."""
    arrays = map_arrays(path)
    check_arrays(path, arrays, LAYER)
    return Layer(**arrays)


def fit_layer(
    features: Features,
    child_ptr: np.ndarray,
    positives: sp.csc_matrix,
    reach: sp.csc_matrix,
    solver: Solver,
    *,
    threads: int = 1,
    name: str = "fit",
) -> Layer:
    """Fit the rankers of one level.

    Args:
        features: of the N training points.
        child_ptr: [parents + 1].
        positives: [N, nodes] points that are positive for a node, > 0, or absent for it, a stored
            0; others that reach its cluster are its negatives.
        reach: [N, parents] which points a cluster's rankers are trained on.
        name: of the progress bar.
    """
    shape = features.shape
    scratch: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(threads):
        scratch.put(np.full(shape[0], -1, np.int32))

    def fit(parent: int) -> tuple[np.ndarray, ...]:
        first = child_ptr[parent]
        stop = child_ptr[parent + 1]
        begin = positives.indptr[first]
        end = positives.indptr[stop]
        points = reach.indices[reach.indptr[parent] : reach.indptr[parent + 1]]
        where = scratch.get()
        try:
            return fit_chunk(
                *features.arrays,
                shape[0],
                features.dense,
                points.astype(np.int32, copy=False),
                positives.indptr[first : stop + 1].astype(np.int64) - begin,
                positives.indices[begin:end].astype(np.int32, copy=False),
                positives.data[begin:end],
                solver.cost,
                solver.bias,
                solver.eps,
                solver.passes,
                solver.threshold,
                solver.seed + 1_000_003 * parent,
                where,
            )
        finally:
            scratch.put(where)

    parents = len(child_ptr) - 1
    sizes = np.diff(reach.indptr) * np.diff(child_ptr)
    chunks: list = [None] * parents
    with ThreadPoolExecutor(threads) as pool, ProgressBar(parents, name, "clusters") as bar:
        largest_first = np.argsort(-sizes, kind="stable").tolist()
        for parent, chunk in zip(largest_first, pool.map(fit, largest_first), strict=True):
            chunks[parent] = chunk
            bar.update()
    return _join(child_ptr, chunks)


def _join(child_ptr: np.ndarray, chunks: list[tuple[np.ndarray, ...]]) -> Layer:
    """One layer of the chunks of all parents."""
    rows = np.concatenate([[0], np.cumsum([len(c[0]) for c in chunks])])
    ends = np.concatenate([[0], np.cumsum([c[1][-1] for c in chunks])])
    pointers = [chunk[1][:-1] + start for chunk, start in zip(chunks, ends[:-1], strict=True)]
    ptr = np.concatenate([*pointers, ends[-1:]])
    return Layer(
        child_ptr.astype(np.int64),
        rows.astype(np.int64),
        np.concatenate([c[0] for c in chunks]),
        ptr,
        np.concatenate([c[2] for c in chunks]),
        np.concatenate([c[3] for c in chunks]),
    )


# -------------------------------- scoring


def in_blocks(
    work: Callable[[slice, np.ndarray], object],
    points: int,
    columns: int,
    threads: int,
    name: str,
) -> Iterator:
    """Results of work(rows, scratch) for blocks of points, in order, on a pool of threads.

    scratch: [columns] int32 of -1 for `score_pairs`, each for one call at a time.

    Args:
        name: of the progress bar.
    """
    scratch: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(threads):
        scratch.put(np.full(columns, -1, np.int32))

    size = min(BLOCK, max(-(-points // threads), FEWEST))

    def run(start: int) -> object:
        where = scratch.get()
        try:
            return work(slice(start, min(start + size, points)), where)
        finally:
            scratch.put(where)

    starts = range(0, points, size)
    with ThreadPoolExecutor(threads) as pool, _bar_of_blocks(points, name) as bar:
        for result in map(run, starts) if threads == 1 else pool.map(run, starts):
            yield result
            bar.update(min(size, points - int(bar.n)))


def _bar_of_blocks(points: int, name: str) -> ProgressBar:
    """A bar where there are many points: answers to a few texts have no time for one."""
    return ProgressBar(points, name, "points", hidden=points <= BARE_POINTS)


def score_candidates(
    layer: Layer,
    features: Features,
    candidates: sp.csr_matrix,
    bias: float = 1.0,
    threads: int = 1,
) -> sp.csr_matrix:
    """Margins of a layer whose every cluster has one child: rankers by label.

    Args:
        candidates: [n, L] labels to score for each point; its values do not matter.
    Returns:
        CSR [n, L] with `candidates`' pattern
    """
    candidates = canonical(candidates)
    expected = len(features), len(layer.child_ptr) - 1
    if (np.diff(layer.child_ptr) != 1).any() or candidates.shape != expected:
        raise ValueError(
            "score_candidates: expected one child a cluster and candidates of shape "
            f"{expected}, got {candidates.shape}"
        )

    def score(rows: slice, scratch: np.ndarray) -> np.ndarray:
        part = features[rows]
        wanted = candidates[rows]
        out = np.zeros(wanted.nnz, np.float32)
        order = np.argsort(wanted.indices, kind="stable")
        score_pairs(
            *part.arrays,
            part.dense,
            np.float32(bias),
            entry_rows(wanted)[order],
            wanted.indices[order].astype(np.int64),
            order,
            *layer.weights,
            features.shape[0],
            scratch,
            out,
        )
        return out

    blocks = list(in_blocks(score, len(features), features.shape[0], threads, "rankers"))
    values = np.concatenate([np.zeros(0, np.float32), *blocks])
    return sp.csr_matrix((values, candidates.indices, candidates.indptr), shape=candidates.shape)
