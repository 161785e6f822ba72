"""The table of points in a report: their texts, labels and predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.data.dataset import Split
from utils.data.point_ids import ids_beside
from utils.errors import InputError
from utils.sparse import contains, topk_rows

log = logging.getLogger(__name__)
SHOWN = 5  # predictions of a point
MAX_POINTS = 5000  # of the table, evenly spaced over the split
MAX_TEXT = 500  # characters of a text
MAX_TRUE = 50  # true labels of a point


def chosen_points(count: int, limit: int = MAX_POINTS) -> np.ndarray:
    """Return positions of the table's points, evenly spaced over the split [min(count, limit)]."""
    if not count:
        return np.empty(0, np.int64)
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int64)


@dataclass
class PointViews:
    """Members' own labels and their shares of the fused scores."""

    name: str
    ids: np.ndarray  # [n, k]
    shares: np.ndarray  # [n, SHOWN]


def points_table(
    points: np.ndarray,
    texts: Sequence[str],
    scores: sp.csr_matrix,
    relevance: sp.csr_matrix,
    views: Sequence[PointViews] = (),
) -> list[dict[str, Any]]:
    """Make one entry a point, with ids of labels.

    Keys: id; text; more, whether the text was cut; true, labels; hidden, how many more true ones
    there are; top, of predictions [label, score, right]; views, of members [own labels with right,
    shares].

    Args:
        points: [n] positions in the split, of which all others are.
        scores: CSR [n, L].
        relevance: CSR [n, L].
    """
    ids, values = topk_rows(scores, min(SHOWN, scores.shape[1]))
    rows = np.arange(len(ids))[:, None]
    right = contains(relevance, rows, ids)
    right_of_views = [contains(relevance, rows, view.ids) for view in views]
    table = []
    for i, text in enumerate(texts):
        true = relevance.indices[relevance.indptr[i] : relevance.indptr[i + 1]].tolist()
        entry: dict[str, Any] = {
            "id": int(points[i]),
            "text": text[:MAX_TEXT],
            "more": len(text) > MAX_TEXT,
            "true": true[:MAX_TRUE],
            "hidden": max(len(true) - MAX_TRUE, 0),
            "top": [
                [int(label), _short(value), int(hit)]
                for label, value, hit in zip(ids[i], values[i], right[i], strict=True)
                if label >= 0
            ],
        }
        if views:
            entry["views"] = [
                _view(view, i, hits[i], len(entry["top"]))
                for view, hits in zip(views, right_of_views, strict=True)
            ]
        table.append(entry)
    return table


def with_own_ids(
    table: Sequence[Mapping[str, Any]],
    split: Split,
    ids: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the entries of a `points_table` with the ids that the user's rows have of their own.

    They stand under `own_id`, which is absent where there are none.

    Args:
        split: the rows are of its text file.
        ids: of the rows; None = those beside that file, if there are any.
    """
    entries = [dict(entry) for entry in table]
    try:
        ids = ids_beside(split.file.path) if ids is None else ids
    except InputError as error:  # the numbers are right all the same
        log.warning("the report shows no ids of rows: %s", error)
    if ids is not None:
        for entry in entries:
            entry["own_id"] = ids[int(split.rows[entry["id"]])]
    return entries


def _view(
    view: PointViews,
    point: int,
    hits: np.ndarray,
    shown: int,
) -> list[list[Any]]:
    """A member's labels of a point, each with whether it is right, and its shares of the scores."""
    labels = [
        [int(label), int(hit)]
        for label, hit in zip(view.ids[point], hits, strict=True)
        if label >= 0
    ]
    return [labels, [_short(share) for share in view.shares[point][:shown]]]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def used_labels(table: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of all labels that stand in a `points_table`, ascending."""
    used: set[int] = set()
    for entry in table:
        used.update(entry["true"], (top[0] for top in entry["top"]))
        for labels, _ in entry.get("views", ()):
            used.update(label for label, _ in labels)
    return sorted(used)
