"""What a report reads of a run's folder: curves of its metrics, plots; and what others reached."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.report.published import PUBLISHED, SOURCE

MAX_CURVE = 500  # points of a curve
CURVES = ("loss", "P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
PLOT_TEXTS = {
    "graph": "Four histograms of the learned graph: entropy of each cluster's edge weights, "
    "labels of a cluster, clusters that a label lives in, and recall of the shortlists by "
    "training points of the label."
}


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """Read the curves of metrics.jsonl, of the run and of its stages.

    Each is {stage, kind, name, points: [[step, value], ...]}.
    """
    curves: dict[tuple[str, str, str], dict[int, float]] = {}
    for path in (*sorted(folder.glob("stages/*/metrics.jsonl")), folder / "metrics.jsonl"):
        stage = "" if path.parent == folder else path.parent.name
        for entry in _entries(path):
            for name in CURVES:
                if isinstance(entry.get(name), (int, float)):
                    curve = curves.setdefault((stage, entry["kind"], name), {})
                    curve[entry["step"]] = entry[name]
    return [
        {"stage": stage, "kind": kind, "name": name, "points": _thinned(sorted(values.items()))}
        for (stage, kind, name), values in curves.items()
        if len(values) > 1
    ]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, but for a last one that was cut off."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _thinned(points: list) -> list:
    """At most MAX_CURVE of them, first and last included."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), MAX_CURVE)).astype(np.int64)
    return [list(points[i]) for i in chosen]


def read_plots(folder: Path) -> list[dict[str, str]]:
    """Read plots/*.png of a run and of its stages: {name, data, alt}."""
    paths = [*sorted(folder.glob("plots/*.png")), *sorted(folder.glob("stages/*/plots/*.png"))]
    return [
        {
            "name": str(path.relative_to(folder).with_suffix("")),
            "alt": PLOT_TEXTS.get(path.stem, f"plot {path.stem}"),
            "data": base64.b64encode(path.read_bytes()).decode("ascii"),
        }
        for path in paths
    ]


def peers_of(data: str, split: str) -> tuple[dict[str, dict[str, float]], str]:
    """Return test metrics of other systems on a data set, and their source.

    ({}, "") where none are known.
    """
    if split == "tst" and data in PUBLISHED:
        return PUBLISHED[data], SOURCE
    return {}, ""
