"""What a ranker says of a data set: predictions, metrics, explanations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker
from models.scores import MemberView, Scores, best_without
from models.sharded import ShardedRanker, sharded_best_labels
from utils import distributed, metrics
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.data.texts import Texts
from utils.progress import ProgressBar
from utils.reading.saved import check_answers
from utils.search import Comparison, ExactIndex, HnswIndex
from utils.sparse import contains, topk_csr

log = logging.getLogger(__name__)
USUAL_KS = (1, 3, 5, 10, 100)
USUAL_TOP_K = 100
LEAST_RECALL = 0.95  # of the exact result; an index that finds less is warned of
# ranges of a label's training points, by which the recall of shortlists is told
FREQUENCIES = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 30), (31, None))


# -------------------------------- what is measured


def metric_ks(config: Config, data: Dataset | DataSizes) -> tuple[int, ...]:
    """The k of the metrics: `eval.ks`, or the usual ones that the labels allow."""
    return config.eval.ks or tuple(k for k in USUAL_KS if k <= data.num_labels)


def kept_labels(config: Config, data: Dataset) -> int:
    """Labels predicted per point: `eval.top_k`, and as many as the metrics need."""
    ks = metric_ks(config, data)
    usual = min(max(USUAL_TOP_K, *ks), data.num_labels)
    return max(config.eval.top_k or usual, *ks)


def check_ks(config: Config, data: Dataset | DataSizes) -> None:
    """ConfigError for a k that is larger than the number of labels."""
    asked = {"eval.ks": config.eval.ks or (), "eval.top_k": (config.eval.top_k or 1,)}
    for key, values in asked.items():
        if max(values, default=1) > data.num_labels:
            raise ConfigError(
                f"{key} is {max(values)}, larger than the number of labels of {data.name}, "
                f"{data.num_labels}"
            )


# -------------------------------- predictions


def predict(
    ranker: Ranker,
    texts: Texts,
    k: int,
    filters: sp.csr_matrix,
    look: Callable[[np.ndarray, Scores], None] | None = None,
) -> tuple[sp.csr_matrix | None, dict[str, float]]:
    """The k best labels of every text, filter pairs removed first; a collective.

    Every process scores its share of the texts.

    Args:
        filters: pairs that are not counted [n, L].
        look: is shown the texts' numbers and scores of each block.
    Returns:
        scores: CSR [n, L] on the main process, None on the others; and the sums of
            `Scores.sums` over all texts.
    """
    make_tokens(ranker, texts)
    values, ids, sums = best_labels(ranker, texts, k, look, filters)
    if values is None or ids is None:
        return None, sums
    return topk_csr(values, ids, ranker.num_labels), sums


def best_labels(
    ranker: Ranker,
    texts: Texts,
    k: int,
    look: Callable[[np.ndarray, Scores], None] | None = None,
    removed: sp.csr_matrix | None = None,
    *,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, float]]:
    """The k best labels of every text, block by block; a collective.

    Every process scores its share of the texts.

    Args:
        look: as of `predict`.
        removed: pairs that are not counted [n, L].
        among: ids of the labels that are ranked [c], ascending; None = all of them. It does not go
            with `removed`.
    Returns:
        scores [n, k] and ids [n, k] on the main process, None on the others; and the sums of
            `Scores.sums` over all texts.
    """
    values, ids, sums = own_best_labels(ranker, texts, k, look, removed, among=among)
    totals = {name: distributed.total(value) for name, value in sorted(sums.items())}
    all_values = distributed.gather_arrays(values)
    all_ids = distributed.gather_arrays(ids)
    return all_values, all_ids, totals


def own_best_labels(
    ranker: Ranker,
    texts: Texts,
    k: int,
    look: Callable[[np.ndarray, Scores], None] | None = None,
    removed: sp.csr_matrix | None = None,
    *,
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """The k best labels of this process's share of some texts, as `best_labels`.

    A collective where labels are sharded.

    Returns:
        scores [m, k] float32, ids [m, k] int32, -inf and -1 where there are no more; and the sums
            of `Scores.sums` over these texts.
    """
    k = min(k, ranker.num_labels)
    if isinstance(ranker, ShardedRanker):
        assert among is None, "in training all labels are asked for"
        return *sharded_best_labels(ranker, texts, k, removed), Counter()
    share = distributed.share(len(texts))
    values = np.empty((len(share), k), np.float32)
    ids = np.empty((len(share), k), np.int32)
    sums: Counter[str] = Counter()
    # once at least, so that `sums` has its names
    starts = range(0, max(len(share), 1), ranker.at_once)
    hidden = len(starts) == 1 or not distributed.is_main()
    with ProgressBar(len(share), "rank labels", "texts", hidden=hidden) as bar:
        for start in starts:
            block = slice(start, min(start + ranker.at_once, len(share)))
            rows = np.arange(share.start, share.stop)[block]
            opened = ranker.open(texts[rows])
            if among is None:
                without = None if removed is None else removed[rows]
                values[block], ids[block] = best_without(opened, k, without, ranker.num_labels)
            else:
                labels = np.ascontiguousarray(np.broadcast_to(among, (len(rows), len(among))))
                values[block], ids[block] = opened.among(labels, k)
                check_answers(values[block], "scores")
            sums.update(opened.sums)
            if look is not None:
                look(rows, opened)
            bar.update(len(rows))
    return values, ids, sums


def make_tokens(ranker: Ranker, texts: Texts) -> None:
    """Cut texts into tokens; a collective.

    The main process does it first where they are kept on disk.
    """
    with distributed.main_first():
        for reader in ranker.readers():
            texts.tokens(reader.tokenizer)


@dataclass(frozen=True)
class Evaluation:
    """What a ranker says of a split.

    Attributes:
        metrics: in percent; empty on other processes than the main one.
        scores: of the best labels of each point, CSR [n, L]; None on other processes.
        facts: of the model and of the prediction.
    """

    metrics: dict[str, float]
    scores: sp.csr_matrix | None
    facts: dict[str, float] = field(default_factory=dict)


def evaluate(
    ranker: Ranker,
    data: Dataset,
    split: str,
) -> Evaluation:
    """Metrics of a split of a data set; a collective."""
    points = data.splits[split]
    recall = ShortlistRecall(data, split)
    kept = kept_labels(ranker.config, data)
    scores, sums = predict(ranker, points.texts, kept, points.filters, recall.add)
    facts = {**ranker.facts(sums), **recall.facts(ranker)}
    if scores is None:
        return Evaluation({}, None, facts)
    ks = metric_ks(ranker.config, data)
    values = metrics.evaluate(scores, points.relevance, data.inverse_propensity(), ks)
    return Evaluation(values, scores, facts)


class ShortlistRecall:
    """Share of a split's positives that the labels scored for each point hold.

    In all and by label frequency; nothing for rankers that score all labels.
    """

    def __init__(self, data: Dataset, split: str) -> None:
        self._relevance = data.splits[split].relevance
        firsts = [first for first, _ in FREQUENCIES]
        self._bins = np.searchsorted(firsts, data.seen_counts, side="right") - 1  # [L]
        self._found = np.zeros(len(FREQUENCIES))
        self._total = np.zeros(len(FREQUENCIES))
        self._is_asked = False

    def add(self, rows: np.ndarray, scores: Scores) -> None:
        """Count the positives of some points [b] among the labels that were scored for them."""
        labels = scores.reached()
        if labels is None:
            return
        self._is_asked = True
        positives = self._relevance[rows]
        hit = contains(positives, np.arange(len(rows))[:, None], labels)
        self._found += np.bincount(self._bins[labels[hit]], minlength=len(FREQUENCIES))
        self._total += np.bincount(self._bins[positives.indices], minlength=len(FREQUENCIES))

    def facts(self, ranker: Ranker) -> dict[str, float]:
        """Tell the recall in percent; a collective.

        `recall_ceiling` is of the positives that any search can find.
        """
        if not self._is_asked:
            return {}
        found = np.array([distributed.total(count) for count in self._found])
        total = np.array([distributed.total(count) for count in self._total])
        facts = {
            "shortlist_recall": 100 * found.sum() / max(total.sum(), 1),
            "recall_ceiling": self._ceiling(ranker),
        }
        for number, (first, last) in enumerate(FREQUENCIES):
            if total[number]:
                name = f"shortlist_recall[{bin_name(first, last)}]"
                facts[name] = 100 * found[number] / total[number]
        return {name: round(float(value), 2) for name, value in facts.items()}

    def _ceiling(self, ranker: Ranker) -> float:
        if not self._relevance.nnz:
            return 0.0
        reachable = np.zeros(ranker.num_labels, bool)
        for clusters in ranker.clusters().values():
            reachable[clusters.indices] = True
        return 100 * reachable[self._relevance.indices].mean()


def bin_name(first: int, last: int | None) -> str:
    """A range of frequencies as text: 3-5, or 31+."""
    if last is None:
        return f"{first}+"
    return f"{first}" if first == last else f"{first}-{last}"


def explain(
    ranker: Ranker, texts: Texts, labels: np.ndarray, k: int, filters: sp.csr_matrix
) -> list[MemberView]:
    """What each member of a fusion says of some texts, and adds to the scores of `labels` [n, c].

    The main process alone calls it.

    Returns:
        [] for rankers without members.
    """
    if "without" not in ranker.takes:  # what has members can leave one out
        return []
    return ranker.open(texts, given=True).views(labels, k, filters)


# -------------------------------- approximate search


def compare_index(
    ranker: Ranker,
    texts: Texts,
    k: int,
) -> dict[str, Any]:
    """Measure how much of the exact result a ranker's approximate index finds; log it.

    Warns where it is little.

    Returns:
        what `Comparison.report` says, and the index's name.
    """
    options = ranker.config.eval
    index = ranker.index
    assert isinstance(index, HnswIndex), "exact search is not compared with itself"
    exact = ExactIndex(index.labels, index.bias, block=options.label_block)
    both = Comparison(index, exact)
    for queries in ranker.queries(texts).split(options.batch_size):
        both.search(queries, k)
    report = both.report()
    log.info(
        "approximate index: recall@1 %.4f, recall@%d %.4f of the exact result, %d points, build "
        "%.1f s, search %.3f ms/point vs exact %.3f ms/point",
        report["recall@1"],
        report["k"],
        report["recall@k"],
        report["points"],
        report["build_seconds"],
        report["search_ms"],
        report["exact_ms"],
    )
    if min(report["recall@1"], report["recall@k"]) < LEAST_RECALL:
        log.warning(
            "eval.index %s finds %.0f %% of the exact best %d labels of %d points; larger "
            "eval.%s_ef or eval.%s_m find more, eval.index: exact all",
            options.index,
            100 * report["recall@k"],
            report["k"],
            report["points"],
            options.index,
            options.index,
        )
    return {"name": options.index, **report}


def spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` things, evenly spread [m]."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def headline(values: dict[str, float], names: Sequence[str]) -> str:
    """Some metrics on one line."""
    return ", ".join(f"{name} {values[name]:.2f}" for name in names if name in values)
