"""report.html of a run: one file that needs no network, written from plain data.

    write_report(folder / "report.html", ReportData(...))

The page is report_template.html beside this file with the data as JSON inside; its script sets
texts through textContent alone.
Letters: n points, L labels, W kept predictions of a point (-1 = no more).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.files import write_text
from utils.report.published import PUBLISHED, SOURCE
from utils.sparse import contains, topk_rows

TEMPLATE = Path(__file__).with_name("report_template.html")
MARK = "__PAYLOAD__"
SHOWN = 5  # predictions of a point
MAX_POINTS = 5000  # of the table, evenly spaced over the split
MAX_TEXT = 500  # characters of a text
MAX_TRUE = 50  # true labels of a point
MAX_CURVE = 500  # points of a curve
MAX_PAIRS = 40  # confusions
EXAMPLES = 8  # clusters of a tree
IN_CLUSTER = 6  # labels of each
MAX_NAME = 60  # characters of each
PLOT_TEXTS = {
    "graph": "Four histograms of the learned graph: entropy of each cluster's edge weights, "
    "labels of a cluster, clusters that a label lives in, and recall of the shortlists by "
    "training points of the label."
}
CURVES = ("loss", "P@1", "P@5", "nDCG@5", "PSP@5", "R@100")


@dataclass
class ReportData:
    """What a report shows; every value is plain (JSON).

    See `points_table` and the functions below for their keys.
    """

    title: str
    facts: Mapping[str, Any]  # of the header
    metrics: Mapping[str, float]  # "P@1" -> percent
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peers_source: str = ""
    curves: Sequence[Mapping[str, Any]] = ()
    deciles: Sequence[Mapping[str, Any]] = ()  # `by_decile` of the run, or of each run
    reliability: Mapping[str, list[float]] | None = None
    confusions: Sequence[Sequence[Any]] = ()  # [true text, wrong text, times]
    clusters: Sequence[Mapping[str, Any]] = ()  # {name, clusters, counts, edges}
    examples: Sequence[Mapping[str, Any]] = ()  # see `cluster_examples`
    plots: Sequence[Mapping[str, str]] = ()  # {name, data, alt}: PNG in base64
    labels: Mapping[int, str] = field(default_factory=dict)  # texts of those in `points`
    points: Sequence[Mapping[str, Any]] = ()
    num_points: int = 0  # of the split, or that differ
    runs: Sequence[str] = ()  # compared ones: `top` of a point then holds a list for each
    comparison: Mapping[str, Any] | None = None  # see utils/report/compare.py


def report_path(folder: Path, split: str) -> Path:
    """Where the report of a split lies in a run folder."""
    return folder / ("report.html" if split == "tst" else f"{split}_report.html")


def write_report(path: Path, data: ReportData) -> None:
    """The page with its data, written whole."""
    template = TEMPLATE.read_text(encoding="utf-8")
    assert template.count(MARK) == 1, "the template must name the place of the data once"
    write_text(path, template.replace(MARK, to_payload(asdict(data))))


def to_payload(value: Any) -> str:
    """Return JSON that may stand in a <script>: no `<`, so that no text can end it.

    NaN and infinities become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a pair of surrogates cannot be written as UTF-8.
    return text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    """Numpy scalars and mappings as plain values."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------- what is measured


def by_decile(
    ids: np.ndarray,
    relevance: sp.csr_matrix,
    label_counts: np.ndarray,
    ks: Sequence[int],
    groups: int = 10,
) -> dict[str, Any]:
    """Metrics of labels of like frequency.

    Labels are ordered by training points (equal ones by id) and cut into `groups` runs of nearly
    equal numbers of labels, the rarest first. With H_g(k) the true labels of group g among the
    first k predictions of all n points:

        P@k of g = H_g(k) / (k n), which sums to P@k over the groups
        recall@k of g = H_g(k) / true pairs of g

    ids: [n, W] predictions, best first, -1 = no more; relevance: CSR [n, L]; label_counts: [L].
    Returns lists of one value a group, in percent: labels, fewest and most training points, pairs,
    and "P@k" and "recall@k" of every k. ValueError if a k is larger than W.
    """
    if max(ks) > ids.shape[1]:
        raise ValueError(
            f"ks: expected at most the {ids.shape[1]} predictions kept of a point, got {max(ks)}"
        )
    order = np.argsort(label_counts, kind="stable")
    counts = np.asarray(label_counts)
    parts = [part for part in np.array_split(order, groups) if len(part)]
    group = np.empty(len(order), np.int64)  # [L]
    for number, part in enumerate(parts):
        group[part] = number
    pairs = np.bincount(group[relevance.indices], minlength=len(parts))
    found = {
        "labels": [len(part) for part in parts],
        "fewest": [int(counts[part[0]]) for part in parts],
        "most": [int(counts[part[-1]]) for part in parts],
        "pairs": pairs.tolist(),
    }
    hits = contains(relevance, np.arange(len(ids))[:, None], ids)  # [n, W]
    for k in ks:
        right = np.bincount(group[ids[:, :k][hits[:, :k]]], minlength=len(parts))
        found[f"P@{k}"] = (100 * right / max(k * len(ids), 1)).tolist()
        found[f"recall@{k}"] = [
            100 * r / p if p else None for r, p in zip(right.tolist(), pairs.tolist(), strict=True)
        ]
    return found


def confused_pairs(
    ids: np.ndarray, relevance: sp.csr_matrix, limit: int = MAX_PAIRS
) -> list[tuple[int, int, int]]:
    """Return (true label, wrong label, times), the most frequent first.

    Counted are points whose first prediction is the wrong label and that miss the true one among
    their predictions ids [n, W].
    """
    first = ids[:, 0]
    wrong = np.flatnonzero((first >= 0) & ~contains(relevance, np.arange(len(ids)), first))
    truth = relevance[wrong]
    rows = np.repeat(np.arange(len(wrong)), np.diff(truth.indptr))
    missed = ~(ids[wrong[rows]] == truth.indices[:, None]).any(axis=1)
    pairs, times = np.unique(
        truth.indices[missed].astype(np.int64) * relevance.shape[1] + first[wrong[rows[missed]]],
        return_counts=True,
    )
    best = np.argsort(-times, kind="stable")[:limit]
    return [
        (int(p // relevance.shape[1]), int(p % relevance.shape[1]), int(t))
        for p, t in zip(pairs[best], times[best], strict=True)
    ]


def cluster_histogram(sizes: np.ndarray, bins: int = 20) -> dict[str, Any]:
    """How many clusters have which size: counts [bins] and edges [bins + 1]."""
    counts, edges = np.histogram(sizes, bins=min(bins, max(int(np.ptp(sizes)), 1)))
    return {
        "clusters": len(sizes),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "counts": counts.tolist(),
        "edges": edges.tolist(),
    }


def cluster_examples(
    trees: Mapping[str, sp.csr_matrix],
    counts: np.ndarray,
    texts: Sequence[str],
) -> list[dict[str, Any]]:
    """What is in the clusters that the most training pairs fall into: {name, labels, pairs, texts}.

    trees: by name, labels of each cluster of a tree or graph, CSR [C, L] with an entry, an edge's
    weight or 1, where a label is in a cluster; counts: [L] training points of each label. EXAMPLES
    clusters of each, each with the IN_CLUSTER labels of the strongest edges, of equal ones the most
    frequent.
    """
    found = []
    for name, clusters in trees.items():
        pairs = (clusters != 0) @ counts  # [C]
        for cluster in np.argsort(-pairs, kind="stable")[:EXAMPLES]:
            inside = slice(clusters.indptr[cluster], clusters.indptr[cluster + 1])
            labels = clusters.indices[inside]
            best = labels[
                np.lexsort((labels, -counts[labels], -clusters.data[inside]))[:IN_CLUSTER]
            ]
            found.append(
                {
                    "name": f"{cluster}, {name}",
                    "labels": len(labels),
                    "pairs": int(pairs[cluster]),
                    "texts": [texts[label][:MAX_NAME] for label in best],
                }
            )
    return found


# -------------------------------- what is read from the folder


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """Read the curves of metrics.jsonl, of the run and of its stages.

    Each is {stage, kind, name, points: [[step, value], ...]}.
    """
    curves: dict[tuple[str, str, str], dict[int, float]] = {}
    for path in (*sorted(folder.glob("stages/*/metrics.jsonl")), folder / "metrics.jsonl"):
        stage = "" if path.parent == folder else path.parent.name
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a last line that was cut off
                continue
            for name in (n for n in CURVES if isinstance(entry.get(n), (int, float))):
                curves.setdefault((stage, entry["kind"], name), {})[entry["step"]] = entry[name]
    return [
        {"stage": stage, "kind": kind, "name": name, "points": _thinned(sorted(values.items()))}
        for (stage, kind, name), values in curves.items()
        if len(values) > 1
    ]


def _thinned(points: list) -> list:
    """At most MAX_CURVE of them, first and last included."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), MAX_CURVE)).astype(np.int64)
    return [list(points[i]) for i in chosen]


def read_plots(folder: Path) -> list[dict[str, str]]:
    """plots/*.png of a run and of its stages: {name, data, alt}."""
    return [
        {
            "name": str(path.relative_to(folder).with_suffix("")),
            "alt": PLOT_TEXTS.get(path.stem, f"plot {path.stem}"),
            "data": base64.b64encode(path.read_bytes()).decode("ascii"),
        }
        for path in (
            *sorted(folder.glob("plots/*.png")),
            *sorted(folder.glob("stages/*/plots/*.png")),
        )
    ]


def peers_of(data: str, split: str) -> tuple[dict[str, dict[str, float]], str]:
    """Return test metrics of other systems on a data set, and their source.

    ({}, "") where none are known.
    """
    return (PUBLISHED[data], SOURCE) if split == "tst" and data in PUBLISHED else ({}, "")


# -------------------------------- points


def chosen_points(count: int, limit: int = MAX_POINTS) -> np.ndarray:
    """Positions of the points in the table, evenly spaced over the split [min(count, limit)]."""
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
    """One entry a point, with ids of labels.

    points: [n] positions in the split; texts, scores, relevance (CSR [n, L]) and views are of these
    points.
    Keys: id; text; more, whether the text was cut; true, labels; hidden, how many more true ones
    there are; top, of predictions [label, score, right]; views, of members [own labels with right,
    shares].
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


def _view(view: PointViews, point: int, hits: np.ndarray, shown: int) -> list[list[Any]]:
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
    """Ids of all labels that stand in a `points_table`, ascending."""
    used: set[int] = set()
    for entry in table:
        used.update(entry["true"], (top[0] for top in entry["top"]))
        for labels, _ in entry.get("views", ()):
            used.update(label for label, _ in labels)
    return sorted(used)
