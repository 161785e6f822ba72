"""XR-Linear on a made problem of a part of Amazon-670K's shape: time and memory of every step.

    # a quarter: 122,612 points, 167,523 labels
    python -m benchmarks.tree_scale
    python -m benchmarks.tree_scale --fraction 0.02 --threads 1

The whole has 490,449 points, 670,091 labels, 135,909 features, 75 features and 5.4 labels a point.
Peak memory is that of the process, the problem included. P@k tells only that something was learned:
the problem is made.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.synthetic_tree import write_problem
from utils.linear.layer import Features, Solver
from utils.linear.partition_tree import COMBINERS
from utils.linear.tree_training import Ranking, fit_tree, grow, label_centroids
from utils.metrics import evaluate
from utils.sparse import topk_csr


class Clock:
    """Prints a row of the table at the end of each step."""

    def __init__(self) -> None:
        self.rows = []
        self._start = self._now()
        print("| step | wall s | cpu s | peak MB so far |\n| --- | --- | --- | --- |")

    @staticmethod
    def _now() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime

    def done(self, step: str) -> None:
        now = self._now()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.rows.append((step, *(b - a for a, b in zip(self._start, now, strict=True)), peak))
        print("| {} | {:.1f} | {:.1f} | {:.0f} |".format(*self.rows[-1]), flush=True)
        self._start = self._now()


def run(
    folder: Path,
    threads: int,
    max_leaf: int,
) -> tuple[list, dict[str, float]]:
    """Train and predict on X and Y of a folder: (rows of the table, metrics in percent)."""
    clock = Clock()
    load = {
        f"{kind}.{split}": sp.load_npz(folder / f"{kind}.{split}.npz").astype(np.float32)
        for kind in "XY"
        for split in ("trn", "tst")
    }
    features = Features.build(load["X.trn"])
    relevance = load["Y.trn"]
    clock.done("read")
    embeddings = label_centroids(relevance, features.sparse)
    clock.done("label centroids")
    labels = np.unique(relevance.indices)
    skeleton = grow(
        embeddings,
        labels,
        max_leaf=max_leaf,
        splits=32,
        seed=0,
        threads=threads,
    )
    del embeddings
    clock.done(f"clusters: {' x '.join(str(len(ptr) - 1) for ptr in skeleton.child_ptrs)}")
    combiner = COMBINERS["l3-hinge"]
    tree = fit_tree(
        features, relevance, skeleton, Ranking(Solver(), "positives", 10, combiner, threads)
    )
    clock.done(f"rankers: {sum(len(layer.values) for layer in tree.layers):,} weights")
    tests = Features.build(load["X.tst"])
    ids, values, _ = tree.search(tests, 100, beam=10, combiner=combiner, threads=threads)
    clock.done(f"ranking {len(tests):,} points")
    metrics = evaluate(topk_csr(values, ids, relevance.shape[1]), load["Y.tst"], None, (1, 5, 100))
    return clock.rows, {name: round(metrics[name], 2) for name in ("P@1", "P@5", "R@100")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fraction", type=float, default=0.25, help="of Amazon-670K's points and labels"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-leaf", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_problem(Path(folder), options.fraction)
        _, metrics = run(Path(folder), options.threads, options.max_leaf)
    print(metrics)


if __name__ == "__main__":
    main()
