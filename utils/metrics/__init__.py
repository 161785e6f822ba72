"""Metrics of extreme classification at k: P, nDCG, PSP, PSnDCG, R and MRR, as in xclib 0.97.

For one point let y [L] in {0, 1} be its relevance (> 0), l_1, l_2, ... its labels by descending
score (ties by lower id), p_l the propensity of label l, d_r = 1 / log2(r + 1) and D(m) = d_1 + ...
+ d_m. With r = 1..k:

    P@k    = (1 / k) sum_r y_{l_r}              nDCG@k   = sum_r d_r y_{l_r} / D(min(k, |y|))
    psp@k  = (1 / k) sum_r y_{l_r} / p_{l_r}
    psndcg@k = sum_r d_r (y_{l_r} / p_{l_r}) / D(min(k, |y|))
    R@k    = sum_r y_{l_r} / |y|
    MRR@k  = 1 / rank of the first relevant label, 0 if > k

P, nDCG, R and MRR are means over all N points; a point without relevant labels counts as 0. PSP and
PSnDCG are ratios of sums over points, PSP@k = sum_i psp_i@k / sum_i best_i@k, where `best` is the
same gain for the relevant labels ranked by 1 / p: the normalisation by the best attainable value
(Jain et al., KDD 2016). The denominator D of psndcg counts labels and does not weigh them, as in
xclib. A rank without a prediction gains nothing. MRR is not part of xclib.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from utils.sparse import check_relevance, contains, refuse, remove_pairs, topk_rows

NAMES = ("P", "nDCG", "PSP", "PSnDCG", "R", "MRR")
KS = (1, 3, 5, 10, 100)
CELLS = 1 << 19  # ranked entries held at a time: bounds the working memory

Columns = dict[str, np.ndarray]  # values of points [n] by metric, such as "P@1"
Rows = slice | np.ndarray


def inverse_propensity(
    label_counts: npt.ArrayLike, num_points: int, a: float, b: float
) -> npt.NDArray[np.float64]:
    """1 / p_l = 1 + C (N_l + b)^-a with C = (log N - 1)(b + 1)^a (Jain et al., KDD 2016): [L].

    Args:
        label_counts: N_l [L], training points of each label.
        num_points: N, training points.
        a, b: set per data set.
    """
    counts = np.asarray(label_counts, dtype=np.float64).reshape(-1)  # a row of a matrix sum will do
    if num_points < 3:
        raise ValueError(
            f"inverse_propensity: expected num_points >= 3, for log N > 1, got {num_points}"
        )
    if not (a > 0 and b > 0):
        raise ValueError(f"inverse_propensity: expected a > 0 and b > 0, got a = {a}, b = {b}")
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(
            "inverse_propensity: expected finite label counts >= 0, got NaN, infinite or < 0"
        )
    return 1 + (np.log(num_points) - 1) * (b + 1) ** a * (counts + b) ** -a


@dataclass(frozen=True)
class PointMetrics:
    """Values per point, as fractions, in arrays [N] by key ("P@1"): what a bootstrap resamples.

    values: each metric before averaging; PSP and PSnDCG before normalisation, so these may exceed
    1.
    best: for the keys of PSP and PSnDCG alone, the value the best ranking attains.
    """

    values: Columns
    best: Columns

    def mean(self, rows: Rows = slice(None)) -> dict[str, float]:
        """Metrics in percent over the points `rows`: slice, mask or ids, repeats allowed."""
        count = len(next(iter(self.values.values()))[rows])
        if count == 0:
            raise ValueError("mean: expected at least one point, got none")
        totals = {key: values[rows].sum() for key, values in self.values.items()}
        best = {key: values[rows].sum() for key, values in self.best.items()}
        return _floats(_percent(totals, best, count))

    def resampled(self, counts: npt.NDArray[np.float64]) -> Columns:
        """Metrics in percent of R samples of the points: arrays [R].

        counts: [R, N], how often each point is in each sample, floats.
        """
        totals = {key: counts @ values for key, values in self.values.items()}
        best = {key: counts @ values for key, values in self.best.items()}
        return _percent(totals, best, counts.sum(axis=1))

    def only(self, keys: Sequence[str]) -> PointMetrics:
        """The same without other keys."""
        values = {key: self.values[key] for key in keys if key in self.values}
        best = {key: self.best[key] for key in keys if key in self.best}
        return PointMetrics(values, best)


def evaluate(
    scores: sparse.csr_matrix,
    relevance: sparse.csr_matrix,
    inv_propensity: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    filter_pairs: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Every metric at every k, in percent, by keys like "nDCG@5".

    Args:
        scores: CSR [N, L], every stored entry a prediction; rows may hold fewer than k, or none.
        relevance: CSR [N, L], relevant where > 0.
        inv_propensity: [L] from `inverse_propensity`, or None to leave out PSP and PSnDCG.
        filter_pairs: int [F, 2] of (row, label) whose scores are removed before ranking; relevance
            is left alone.
    """
    totals: dict[str, float] = {}  # sums over points
    best: dict[str, float] = {}
    for chunk in _chunks(scores, relevance, inv_propensity, ks, filter_pairs):
        _add_sums(totals, chunk.values)
        _add_sums(best, chunk.best)
    return _floats(_percent(totals, best, scores.shape[0]))


def _add_sums(totals: dict[str, float], columns: Columns) -> None:
    for key, values in columns.items():
        totals[key] = totals.get(key, 0.0) + values.sum()


def per_point(
    scores: sparse.csr_matrix,
    relevance: sparse.csr_matrix,
    inv_propensity: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    filter_pairs: npt.ArrayLike | None = None,
) -> PointMetrics:
    """The metrics of each point; their `mean()` equals `evaluate` of the same arguments."""
    chunks = list(_chunks(scores, relevance, inv_propensity, ks, filter_pairs))
    return PointMetrics(
        _joined([chunk.values for chunk in chunks]), _joined([chunk.best for chunk in chunks])
    )


def _joined(parts: Sequence[Columns]) -> Columns:
    """Columns of the points of all parts, one after the other."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def paired_bootstrap(
    points: Sequence[PointMetrics], resamples: int = 10_000, seed: int = 0
) -> list[Columns]:
    """Metrics of several systems over the same samples with replacement of their N points.

    Args:
        points: of each system, of the same points.
    Returns:
        for each system arrays [resamples] in percent; differences within a sample are those of the
        paired bootstrap
    """
    count = len(next(iter(points[0].values.values())))
    rng = np.random.default_rng(seed)
    parts: list[list[Columns]] = [[] for _ in points]  # of each system
    step = max(1, CELLS // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        for system, samples in zip(points, parts, strict=True):
            samples.append(system.resampled(counts.astype(np.float64)))
    return [_joined(samples) for samples in parts]


def _percent(
    totals: Mapping[str, Any],
    best: Mapping[str, Any],
    count: Any,
) -> dict[str, Any]:
    """Sums over `count` points to metrics in percent: the mean, or the ratio to the best there is.

    All are numbers, or arrays of one shape.
    """
    metrics = {}
    for key, total in totals.items():
        norm = count
        if key in best:
            # Where no label at all is relevant even the best is 0: the metric is 0 like the others,
            # not NaN.
            norm = np.where(best[key] == 0, 1.0, best[key])
        metrics[key] = 100 * total / norm
    return metrics


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _chunks(
    scores: sparse.csr_matrix,
    relevance: sparse.csr_matrix,
    inv_propensity: np.ndarray | None,
    ks: Sequence[int],
    filter_pairs: npt.ArrayLike | None,
) -> Iterator[PointMetrics]:
    """Metrics of some points after the other: the rankings [N, K] never exist as a whole."""
    scores, relevance, pairs = _check_matrices(scores, relevance, filter_pairs)
    inv_propensity, ks = _check_options(inv_propensity, ks, scores.shape[1])
    step = max(1, CELLS // ks[-1])
    for start in range(0, scores.shape[0], step):
        chunk = scores[start : start + step]
        truth = relevance[start : start + step]
        low, high = np.searchsorted(pairs[:, 0], [start, start + step])
        if high > low:
            chunk = remove_pairs(chunk, pairs[low:high, 0] - start, pairs[low:high, 1])
        yield _rank_chunk(chunk, truth, inv_propensity, ks)


def _rank_chunk(
    scores: sparse.csr_matrix,
    relevance: sparse.csr_matrix,
    inv_propensity: np.ndarray | None,
    ks: Sequence[int],
) -> PointMetrics:
    """Rank n points, and measure each."""
    ids, _ = topk_rows(scores, ks[-1])  # [n, K], K the largest k
    hits = contains(relevance, np.arange(len(ids))[:, None], ids)  # [n, K]
    positives = np.diff(relevance.indptr)  # [n], |y|
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), ks[-1])
    values = _gain_metrics(hits, positives, ks, ("P", "nDCG"))
    count = np.cumsum(hits, axis=1)
    for k in ks:
        values[f"R@{k}"] = count[:, k - 1] / np.maximum(positives, 1)
        values[f"MRR@{k}"] = np.where(first < k, 1 / (first + 1), 0.0)
    if inv_propensity is None:
        return PointMetrics(values, {})
    gains = np.where(hits, inv_propensity[ids], 0)
    values |= _gain_metrics(gains, positives, ks, ("PSP", "PSnDCG"))
    weights = inv_propensity[relevance.indices]  # [nnz], the scores of the best ranking
    best = sparse.csr_matrix((weights, relevance.indices, relevance.indptr), scores.shape)
    ids, _ = topk_rows(best, ks[-1])
    gains = np.where(ids < 0, 0, inv_propensity[ids])
    return PointMetrics(values, _gain_metrics(gains, positives, ks, ("PSP", "PSnDCG")))


def _gain_metrics(
    gains: np.ndarray, positives: np.ndarray, ks: Sequence[int], names: tuple[str, str]
) -> Columns:
    """sum_r gain_r / k and sum_r d_r gain_r / D(min(k, |y|)) for gains [n, K], under two names."""
    mean, discounted = names
    discount = 1 / np.log2(np.arange(gains.shape[1]) + 2)  # [K], d_r
    ideal = np.cumsum(discount)  # [K], D
    total = np.cumsum(gains, axis=1)  # [n, K]
    dcg = np.cumsum(gains * discount, axis=1)  # [n, K]
    result = {}
    for k in ks:
        result[f"{mean}@{k}"] = total[:, k - 1] / k
        # |y| = 0: 0 / D(1)
        result[f"{discounted}@{k}"] = dcg[:, k - 1] / ideal[np.clip(positives, 1, k) - 1]
    return result


def _check_matrices(
    scores: sparse.spmatrix, relevance: sparse.spmatrix, filter_pairs: npt.ArrayLike | None
) -> tuple[sparse.csr_matrix, sparse.csr_matrix, npt.NDArray[np.int64]]:
    """Scores and relevance as CSR, the pairs sorted by row [F, 2]; ValueError on what cannot be."""
    if not sparse.issparse(scores):
        raise ValueError(f"scores: expected a scipy sparse matrix, got {type(scores).__name__}")
    scores = sparse.csr_matrix(scores)
    relevance = check_relevance(relevance, "relevance")
    if relevance.shape != scores.shape:
        raise ValueError(
            f"relevance: expected the shape of scores {scores.shape}, got {relevance.shape}"
        )
    if 0 in scores.shape:
        raise ValueError(
            f"scores: expected at least one point (row) and one label, got shape {scores.shape}"
        )
    refuse(np.isnan(scores.data), scores, "scores", "values other than NaN")
    pairs = np.zeros((0, 2), dtype=np.int64) if filter_pairs is None else np.asarray(filter_pairs)
    if pairs.size == 0:  # an empty file reads as shape [0]
        return scores, relevance, np.zeros((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"filter_pairs: expected integers [F, 2], got {pairs.dtype} {pairs.shape}")
    if (pairs < 0).any() or (pairs >= scores.shape).any():
        raise ValueError(
            f"filter_pairs: expected (row, label) within {scores.shape}, got {pairs.min(axis=0)} "
            f"to {pairs.max(axis=0)}"
        )
    return scores, relevance, pairs[np.argsort(pairs[:, 0])].astype(np.int64)


def _check_options(
    inv_propensity: np.ndarray | None, ks: Sequence[int], num_labels: int
) -> tuple[np.ndarray | None, list[int]]:
    """inv_propensity as float64 [L] or None, and ks ascending without repeats."""
    ascending = sorted(set(ks))
    if not ascending or ascending[0] < 1:
        raise ValueError(f"ks: expected one or more integers >= 1, got {ascending}")
    if inv_propensity is not None:
        inv_propensity = np.asarray(inv_propensity, dtype=np.float64)
        if inv_propensity.shape != (num_labels,):
            raise ValueError(
                f"inv_propensity: expected shape ({num_labels},), got {inv_propensity.shape}"
            )
        if not (np.isfinite(inv_propensity) & (inv_propensity > 0)).all():
            raise ValueError(
                "inv_propensity: expected finite values > 0, got NaN, infinite or <= 0"
            )
    return inv_propensity, ascending


def reliability(
    scores: np.ndarray, right: np.ndarray, bins: int = 10
) -> dict[str, list[float]] | None:
    """Mean score, share of right ones and number of predictions in bins of equal width.

    scores, right: of some predictions [m]; None where a score lies outside [0, 1], so that it is no
    probability.
    """
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    which = np.minimum((scores * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    divisor = np.maximum(count, 1)
    mean = np.bincount(which, weights=scores, minlength=bins) / divisor
    share = np.bincount(which, weights=right, minlength=bins) / divisor
    return {"score": mean.tolist(), "right": share.tolist(), "count": count.tolist()}


def expected_calibration_error(bins: Mapping[str, Sequence[float]]) -> float:
    """Mean distance of probability and share of right ones over `reliability` bins, in percent.

    Each bin counts by its predictions (Guo et al., ICML 2017); 0 of no prediction.
    """
    count = np.asarray(bins["count"], np.float64)
    distance = np.abs(np.asarray(bins["score"]) - np.asarray(bins["right"]))
    return float(100 * (count * distance).sum() / max(count.sum(), 1))


def describe(metrics: Mapping[str, float]) -> str:
    """`metrics` of `evaluate` as an aligned text table: a row per metric, a column per k."""
    cells = {}
    for key, value in metrics.items():
        name, at, k = key.partition("@")
        if not (at and k.isdigit()):
            raise ValueError(f"describe: expected keys like 'P@1', got {key!r}")
        cells[name, int(k)] = f"{value:.2f}"
    ks = sorted({k for _, k in cells})
    present = dict.fromkeys(name for name, _ in cells)
    names = sorted(present, key=lambda name: (*NAMES, name).index(name))
    width = max(map(len, [*NAMES, *names]))
    lines = ["@k".ljust(width) + "".join(str(k).rjust(8) for k in ks)]
    for name in names:
        values = [cells.get((name, k), "") for k in ks]
        lines.append(name.ljust(width) + "".join(value.rjust(8) for value in values))
    return "\n".join(line.rstrip() for line in lines)
