"""What report.html shows of an evaluated run; the main process alone gathers it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker
from models.evaluation import Evaluation, explain
from utils import metrics
from utils.data.dataset import Dataset, Split
from utils.report import html as report
from utils.sparse import contains, topk_rows

EXPLAINED = 3  # labels of a member's own
AT_ONCE = 500  # points explained at a time


def report_data(
    folder: Path,
    ranker: Ranker,
    data: Dataset,
    split: str,
    evaluation: Evaluation,
    seconds: float,
) -> report.ReportData:
    """Gather the data of a report.

    Args:
        folder: of the run. evaluation: of the split, with scores. seconds: that it took.
    """
    points = data.splits[split]
    scores = evaluation.scores
    config = ranker.config
    top = min(report.SHOWN, data.num_labels)
    kept = max(int(np.diff(scores.indptr).max(initial=1)), top)
    ids, values = topk_rows(scores, min(kept, 100))  # [n, W]
    shown = ids[:, :top]
    right = contains(points.relevance, np.arange(len(ids))[:, None], shown)
    peers, source = report.peers_of(data.name, split)
    table, names = explained_points(ranker, points, scores)
    trees = ranker.clusters()
    pairs = report.confused_pairs(shown, points.relevance)
    texts = data.label_texts
    facts = {
        "method": config.method.name,
        "run": str(config.run.expname),
        "data set": data.name,
        "split": split,
        "points": len(points),
        "labels": data.num_labels,
        "training points": data.num_train,
        "data hash": data.hash,
        "seed": config.run.seed,
        "seconds of prediction": round(seconds, 2),
        **({"members": ", ".join(names)} if names else {}),
        **evaluation.facts,
    }
    return report.ReportData(
        title=f"{data.name} / {config.run.expname}",
        facts=facts,
        metrics=evaluation.metrics,
        peers=peers,
        peers_source=source,
        curves=report.read_curves(folder),
        deciles=[
            report.by_decile(
                ids,
                points.relevance,
                data.label_counts,
                sorted({k for k in (1, 5, 100) if k <= ids.shape[1]} | {1}),
            )
        ],
        reliability=metrics.reliability(
            ranker.probabilities(values[:, :top].astype(np.float64)[shown >= 0], shown[shown >= 0]),
            right[shown >= 0],
        ),
        confusions=[(texts[true], texts[wrong], times) for true, wrong, times in pairs],
        clusters=[
            {"name": name, **report.cluster_histogram(np.diff(tree.indptr))}
            for name, tree in trees.items()
        ],
        examples=report.cluster_examples(trees, data.label_counts, texts),
        plots=report.read_plots(folder),
        labels={label: texts[label] for label in report.used_labels(table)},
        points=table,
        num_points=len(points),
    )


def explained_points(
    ranker: Ranker,
    split: Split,
    scores: sp.csr_matrix,
) -> tuple[list[dict], Sequence[str]]:
    """(entries of the points in the table, names of the ranker's members)."""
    table, names = [], []
    chosen = report.chosen_points(len(split))
    for some in np.array_split(chosen, max(-(-len(chosen) // AT_ONCE), 1)):
        ids, _ = topk_rows(scores[some], min(report.SHOWN, scores.shape[1]))
        views = [
            report.PointViews(v.name, v.ids, v.contributions)
            for v in explain(
                ranker,
                split.texts[some],
                ids,
                min(EXPLAINED, ranker.num_labels),
                split.filters[some],
            )
        ]
        names = [view.name for view in views]
        texts = split.texts[some].strings()
        table += report.points_table(some, texts, scores[some], split.relevance[some], views)
    return table, names
