"""Clustering and assignment at the sizes of the largest published sets; prints a Markdown table.

    python -m benchmarks.clustering              # all cores: two minutes on two, 3.5 GB
    python -m benchmarks.clustering --small      # a fiftieth: seconds

Run from the root of the repository. wall_s and cpu_s are those of the step alone, compiled before;
peak_mb is the largest resident memory of a process that makes the input (input_mb) and does the
step. Each row is a process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import scipy.sparse as sp

from benchmarks.synthetic_tree import LABELS, POINTS, made_problem
from benchmarks.table import show
from utils.clustering.clustering import balanced_hierarchy, splits_for
from utils.clustering.matching import top_assignment


def dense_rows(
    n: int,
    dim: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Noise around random centres, 200 rows each [n, dim] float32."""
    centres = rng.standard_normal((max(1, n // 200), dim), np.float32)
    rows = rng.standard_normal((n, dim), np.float32)
    for start in range(0, n, 10_000):
        part = rows[start : start + 10_000]
        part += centres[rng.integers(len(centres), size=len(part))]
    return rows


def label_centroids(points: int, labels: int) -> sp.csr_matrix:
    """Sums of the features of each label's points, of a made problem [L, F]."""
    features, relevance = made_problem(points, labels)
    return (relevance.T.tocsr() @ features).tocsr()


def random_counts(
    labels: int, clusters: int, entries: int, rng: np.random.Generator
) -> sp.csr_matrix:
    """A count matrix [L, C] in which some labels have far more entries than others."""
    rows = (labels * rng.random(entries) ** 2).astype(np.int64)
    counts = sp.csr_matrix(
        (
            rng.integers(1, 50, entries).astype(np.float32),
            (rows, rng.integers(clusters, size=entries)),
        ),
        (labels, clusters),
    )
    counts.sum_duplicates()
    return counts


def input_mb(matrix: np.ndarray | sp.csr_matrix) -> float:
    arrays = (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,)
    return sum(array.nbytes for array in arrays) / 1e6


def cluster(
    rows: np.ndarray | sp.csr_matrix,
    leaves: int,
    threads: int,
) -> Callable[[], object]:
    balanced_hierarchy(rows[:64], [2], seed=0)  # compiles
    return lambda: balanced_hierarchy(rows, splits_for(leaves, 1, 32), seed=0, threads=threads)


def dense(scale: float, threads: int) -> tuple[str, float, Callable]:
    n = round(1_000_000 * scale)
    leaves = round(65_536 * scale) or 1
    rows = dense_rows(n, 384, np.random.default_rng(0))
    return (
        f"cluster {n:,} x 384 dense rows into {leaves:,}, {threads} threads",
        input_mb(rows),
        cluster(rows, leaves, threads),
    )


def sparse(scale: float, threads: int) -> tuple[str, float, Callable]:
    rows = label_centroids(round(POINTS * scale), round(LABELS * scale))
    leaves = max(1, round(8192 * scale))
    name = (
        f"cluster {rows.shape[0]:,} x {rows.shape[1]:,} sparse rows "
        f"({rows.nnz / rows.shape[0]:.0f} entries each)"
    )
    return (
        f"{name} into {leaves:,}, {threads} threads",
        input_mb(rows),
        cluster(rows, leaves, threads),
    )


def assignment(
    axis: str,
    budget: int,
    scale: float,
) -> tuple[str, float, Callable]:
    labels, clusters, entries = (
        max(1000, round(size * scale)) for size in (LABELS, 8192, 5_000_000)
    )
    counts = random_counts(labels, clusters, entries, np.random.default_rng(0))
    fallback = np.zeros(labels, np.int64) if axis == "label" else None
    name = (
        f"top {budget} of each {axis}, {labels:,} x {clusters:,} counts, {counts.nnz:,} entries, "
        "1 thread"
    )
    return (
        name,
        input_mb(counts),
        lambda: top_assignment(counts, budget, axis=axis, binary=True, fallback=fallback),
    )


STEPS = {
    "dense": (dense, "600 s, 6 GiB"),
    "sparse": (sparse, "minutes"),
    "assign-labels": (lambda scale, threads: assignment("label", 2, scale), "5 s"),
    "assign-clusters": (lambda scale, threads: assignment("cluster", 1000, scale), "5 s"),
}


def measure(
    step: str,
    scale: float,
    threads: int,
) -> dict:
    """The numbers of a step; meant for a process of its own."""
    make, goal = STEPS[step]
    name, size, run = make(scale, threads)
    wall = time.perf_counter()
    cpu = time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "step": name,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "input_mb": round(size),
        "peak_mb": round(peak),
        "goal of the whole": goal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a fiftieth of the sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--json", metavar="FILE", help="also write the measurements here")
    options = parser.parse_args()
    rows = []
    for step in options.steps:
        # its own peak of memory
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows.append(
                pool.submit(measure, step, 0.02 if options.small else 1.0, options.threads).result()
            )
    show(rows, options.json)


if __name__ == "__main__":
    main()
