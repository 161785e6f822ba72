"""What report.html shows of an evaluated run; the main process alone gathers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker
from models.evaluation import Evaluation, explain
from utils import metrics
from utils.data.dataset import Dataset, Split
from utils.report import history, html, measured, pictures, point_table
from utils.sparse import topk_csr, topk_rows

EXPLAINED = 3  # labels of a member's own
AT_ONCE = 500  # points explained at a time
MOST_RANKS = 100  # of a point's labels that deciles look at
DECILE_KS = (1, 5, 100)
MEMBER_KS = (1, 3, 5, 10, 100)


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated: a split, what was found, with scores, and how many seconds it took.

    Attributes:
        ids: of new rows, their own; None where they have none, or are of a data set's split.
    """

    split: str
    evaluation: Evaluation
    seconds: float
    ids: Sequence[str] | None = None


def report_data(
    folder: Path, ranker: Ranker, data: Dataset, evaluated: Evaluated
) -> html.ReportData:
    """Gather the data of a report of a run's folder."""
    evaluation = evaluated.evaluation
    split = evaluated.split
    assert evaluation.scores is not None, "the main process gathers a report"
    points = data.splits[split]
    scores = evaluation.scores
    shown_labels = min(point_table.SHOWN, data.num_labels)
    kept = max(int(np.diff(scores.indptr).max(initial=1)), shown_labels)
    ids, _ = topk_rows(scores, min(kept, MOST_RANKS))  # [n, W]
    top = ids[:, :shown_labels]
    peers, source = pictures.peers_of(data.name, split)
    table, members = explained_points(ranker, points, scores)
    table = point_table.with_own_ids(table, points, evaluated.ids)
    stages = history.read_stages(folder)
    trees = ranker.clusters()
    texts = data.label_texts
    facts = {
        "method": ranker.config.method.name,
        "data set": data.name,
        "split": split,
        "points": len(points),
        "labels": data.num_labels,
        "training points": data.num_train,
        **({"members": ", ".join(members)} if members else {}),
    }
    made = {
        "run": str(ranker.config.run.expname),
        "seed": ranker.config.run.seed,
        "data hash": data.hash,
        **history.read_origin(folder, stages),
        "seconds of prediction": round(evaluated.seconds, 2),
        "milliseconds a point": round(1000 * evaluated.seconds / max(len(points), 1), 3),
        **evaluation.facts,
    }
    pairs = measured.confused_pairs(top, points.relevance)
    ks = sorted({1, *(k for k in DECILE_KS if k <= ids.shape[1])})
    shown = point_table.chosen_points(len(points))
    labels = point_table.used_labels(table)
    return html.ReportData(
        title=f"{data.name} / {ranker.config.run.expname}",
        facts=facts,
        metrics=evaluation.metrics,
        made=made,
        configs=history.read_configs(folder),
        peers=peers,
        peers_source=source,
        members=member_metrics(members, data, split),
        members_fused=metrics_of(scores[shown], data, split) if members else {},
        members_points=len(shown),
        stages=stages,
        deciles=[measured.by_decile(ids, points.relevance, data.label_counts, ks)],
        groups=measured.by_volume(ids, points.relevance, data.label_counts, ks),
        confusions=[(texts[true], texts[wrong], times) for true, wrong, times in pairs],
        clusters=[
            {"name": name, **measured.cluster_histogram(np.diff(tree.indptr))}
            for name, tree in trees.items()
        ],
        examples=measured.cluster_examples(trees, data.label_counts, texts),
        plots=pictures.read_plots(folder),
        labels={label: texts[label] for label in labels},
        label_counts={label: int(data.label_counts[label]) for label in labels},
        points=table,
        num_points=len(points),
    )


def explained_points(
    ranker: Ranker, split: Split, scores: sp.csr_matrix
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Entries of the points in the table, and the ranker's members by name.

    Of each member its own best labels of the same points [n, k], -1 = no more.
    """
    table: list[dict[str, Any]] = []
    members: dict[str, list[np.ndarray]] = {}
    chosen = point_table.chosen_points(len(split))
    own_labels = min(MOST_RANKS, ranker.num_labels)
    for block in np.array_split(chosen, max(-(-len(chosen) // AT_ONCE), 1)):
        ids, _ = topk_rows(scores[block], min(point_table.SHOWN, scores.shape[1]))
        texts = split.texts[block]
        shown = []
        for view in explain(ranker, texts, ids, own_labels, split.filters[block]):
            members.setdefault(view.name, []).append(view.ids)
            first = view.ids[:, :EXPLAINED]
            shown.append(point_table.PointViews(view.name, first, view.contributions))
        table += point_table.points_table(
            block, texts.strings(), scores[block], split.relevance[block], shown
        )
    return table, {name: np.concatenate(blocks) for name, blocks in members.items()}


def member_metrics(
    members: Mapping[str, np.ndarray], data: Dataset, split: str
) -> list[dict[str, Any]]:
    """Metrics of a fusion's members alone, {name, metrics}, on the points of the table.

    Args:
        members: by name their best labels of these points [n, k], -1 = no more.
    """
    told = []
    for name, ids in members.items():
        ranks = np.broadcast_to(-np.arange(ids.shape[1], dtype=np.float32), ids.shape)
        scores = topk_csr(ranks, ids, data.num_labels)
        told.append({"name": name, "metrics": metrics_of(scores, data, split)})
    return told


def metrics_of(scores: sp.csr_matrix, data: Dataset, split: str) -> dict[str, float]:
    """Metrics at MEMBER_KS of scores of the table's points."""
    points = data.splits[split]
    chosen = point_table.chosen_points(len(points))
    ks = [k for k in MEMBER_KS if k <= data.num_labels]
    weights = data.inverse_propensity()
    return metrics.evaluate(scores, points.relevance[chosen], weights, ks)
