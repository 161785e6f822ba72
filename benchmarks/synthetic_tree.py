"""A made sparse problem with the shape of Amazon-670K, or a fraction of it, for measuring trees at
scale.

    # 2 s and 0.4 GB; --fraction 1: 8 s, 1.2 GB
    python -m benchmarks.synthetic_tree FOLDER [--fraction 0.25]

Writes {X,Y}.{trn,tst}.npz. The whole has 490,449 points, 670,091 labels, 135,909 features, 75
features and 5.4 labels a point; a fraction has fewer points and labels, all features. Labels lie
along a line of topics and their frequencies follow a power law; a point has labels that are near
one another. Its features are words of its labels (a seventh is each label's own, the rest its
topics') and words of the language as a whole, weighted as TF-IDF, rows of length 1. So a tree can
learn it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

POINTS, LABELS, FEATURES = 490_449, 670_091, 135_909
FEATURES_PER_POINT, LABELS_PER_POINT = 75, 5.4
TEST_POINTS = 0.1  # of the points of the problem, in addition
WINDOW = 4000  # entries along the line of topics among which a point's labels are drawn
BLOCK = 1 << 14  # points whose features are made at once
# Words: (share of a point's words, labels along the line that have them in common, number of such
# words).
KINDS = ((0.14, 1, 6), (0.25, 50, 30), (0.15, 2500, 200))


def made_problem(
    points: int,
    labels: int,
    seed: int = 0,
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Features [N, F] with rows of length 1, and relevance [N, L], both float32 CSR."""
    rng = np.random.default_rng(seed)
    along = _labels_along(points, labels, rng)
    indptr = along.indptr
    place = along.indices
    blocks = []
    for start in range(0, points, BLOCK):
        edges = indptr[start : start + BLOCK + 1]
        blocks.append(_features(np.diff(edges), place[edges[0] : edges[-1]], seed, rng))
    names = rng.permutation(labels).astype(np.int32)  # ids say nothing about the topic
    relevance = sp.csr_matrix((along.data, names[place], indptr), along.shape)
    relevance.sort_indices()
    order = rng.permutation(points)  # nor does the order of points
    return sp.vstack(blocks, format="csr")[order], relevance[order]


def _labels_along(
    points: int,
    labels: int,
    rng: np.random.Generator,
) -> sp.csr_matrix:
    """Relevance with points and labels in the order of topics: both have a number of entries,
    matched up nearby."""
    wanted = rng.poisson(LABELS_PER_POINT * 1.01 - 1, points) + 1  # some fall together
    popular = (labels * rng.random(max(0, wanted.sum() - labels)) ** 2).astype(np.int64)
    frequency = 1 + np.bincount(popular, minlength=labels)
    frequency = frequency[rng.permutation(labels)]
    of_points = np.repeat(np.arange(points), wanted)
    of_labels = np.repeat(np.arange(labels), frequency)[: len(of_points)]
    shuffled = np.argsort(np.arange(len(of_labels)) + rng.uniform(0, WINDOW, len(of_labels)))
    entries = np.ones(len(of_labels), np.float32)
    matrix = sp.csr_matrix(
        (entries, (of_points[: len(of_labels)], of_labels[shuffled])), (points, labels)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _features(
    counts: np.ndarray, place: np.ndarray, seed: int, rng: np.random.Generator
) -> sp.csr_matrix:
    """Features of some points: `counts` labels each, at these places along the line [sum of
    counts]."""
    points = len(counts)
    words = int(FEATURES_PER_POINT * 1.06)  # some fall together
    first = np.cumsum(counts) - counts
    draws = rng.random((points, words), dtype=np.float32)
    of_label = first[:, None] + (
        rng.random((points, words), dtype=np.float32) * counts[:, None]
    ).astype(np.int64)
    label = place[np.minimum(of_label, len(place) - 1)].astype(np.uint64)
    columns = _column(rng.random((points, words)))  # the language as a whole
    low = 0.0
    for kind, (share, common, number) in enumerate(KINDS):
        chosen = (draws >= low) & (draws < low + share) & (counts > 0)[:, None]
        word = (draws[chosen] - low) / share * number
        key = (label[chosen] // common * 1000 + word.astype(np.uint64)) * 4 + kind + seed * 977
        columns[chosen] = _column(_uniform(key))
        low += share
    weights = rng.lognormal(0, 0.3, columns.size).astype(np.float32)
    weights *= np.log1p(columns.ravel()).astype(np.float32)  # frequent words have the low ids
    matrix = sp.csr_matrix(
        (weights, columns.ravel(), np.arange(points + 1) * words), (points, FEATURES)
    )
    matrix.sum_duplicates()
    lengths = np.sqrt(np.add.reduceat(matrix.data**2, matrix.indptr[:-1]))
    matrix.data /= np.repeat(lengths, np.diff(matrix.indptr))
    return matrix


def _column(uniform: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) to features, of which low ids are frequent; 0 is left out."""
    return (1 + (FEATURES - 1) * uniform**2.5).astype(np.int32)


def _uniform(key: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each whole number (the mixing steps of splitmix64)."""
    key = (key + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((key ^ (key >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def write_problem(
    folder: Path,
    fraction: float,
    seed: int = 0,
) -> None:
    """{X,Y}.{trn,tst}.npz of a problem of `fraction` of the whole; a tenth as many test points as
    training points."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number in (0, 1], got {fraction}")
    points, labels = (max(1, round(size * fraction)) for size in (POINTS, LABELS))
    features, relevance = made_problem(points + round(points * TEST_POINTS), labels, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("trn", slice(points)), ("tst", slice(points, None))):
        sp.save_npz(folder / f"X.{split}.npz", features[rows], compressed=False)
        sp.save_npz(folder / f"Y.{split}.npz", relevance[rows], compressed=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        write_problem(options.folder, options.fraction, options.seed)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{options.folder}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
