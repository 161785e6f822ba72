"""Time and peak memory of `utils.metrics.evaluate` on random predictions; prints a Markdown table.

    # 10^5 points, 10^6 labels, top 100: half a minute
    python -m benchmarks.metrics
    python -m benchmarks.metrics --points 1000 --json metrics.json

Run from the root of the repository. data_mb is the size of the inputs, peak_mb what the step
allocates on top of them at its peak, results included, measured on a second call.
"""

import argparse
import time
import tracemalloc

import numpy as np
from scipy import sparse

from benchmarks.table import show
from utils.metrics import evaluate, inverse_propensity
from utils.sparse import topk_rows


def random_matrix(points, labels, per_point, rng):
    """CSR [N, L] with `per_point` distinct random labels per row and values in (0, 1], float32."""
    # ids distinct and sorted
    gaps = rng.integers(1, max(2, labels // per_point), size=(points, per_point))
    indices = (np.cumsum(gaps, axis=1) - 1).astype(np.int32).ravel()
    values = 1 - rng.random(points * per_point, dtype=np.float32)
    indptr = np.arange(0, points * per_point + 1, per_point)
    return sparse.csr_matrix((values, indices, indptr), shape=(points, labels))


def measure(function):
    """(seconds, peak MB) of a call: processor time of this process, and the peak of what numpy
    allocates."""
    start = time.process_time()
    function()
    seconds = time.process_time() - start
    tracemalloc.start()  # slows allocation down, hence the second call
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(seconds, 2), round(peak / 1e6)


def run(points, labels, top, positives):
    """The measurements, a list of dicts with one per step."""
    rng = np.random.default_rng(0)
    scores, relevance = (
        random_matrix(points, labels, top, rng),
        random_matrix(points, labels, positives, rng),
    )
    pairs = np.stack([rng.integers(points, size=points), rng.integers(labels, size=points)], axis=1)
    weights = inverse_propensity(rng.integers(0, 100, size=labels), points, a=0.55, b=1.5)
    ks = tuple(range(1, top + 1))
    arrays = [array for m in (scores, relevance) for array in (m.data, m.indices, m.indptr)]
    data = sum(array.nbytes for array in (*arrays, weights, pairs)) / 1e6
    steps = {
        "evaluate, ks = 1 3 5 10 100": lambda: evaluate(scores, relevance, weights),
        "the same, filter pairs": lambda: evaluate(scores, relevance, weights, filter_pairs=pairs),
        "topk_rows alone": lambda: topk_rows(scores, top),
        f"evaluate, ks = 1..{top}": lambda: evaluate(scores, relevance, weights, ks),
    }
    rows = []
    for name, step in steps.items():
        seconds, peak = measure(step)
        rows.append(
            {
                "step": name,
                "points": points,
                "labels": labels,
                "top": top,
                "seconds": seconds,
                "data_mb": round(data),
                "peak_mb": peak,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--top", type=int, default=100, help="predictions per point")
    parser.add_argument("--positives", type=int, default=5, help="relevant labels per point")
    parser.add_argument("--json", metavar="FILE", help="also write the measurements here")
    arguments = parser.parse_args()
    rows = run(arguments.points, arguments.labels, arguments.top, arguments.positives)
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
