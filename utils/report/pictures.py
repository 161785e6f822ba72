"""Plots that lie in a run's folder, and what other systems reached on its data set."""

from __future__ import annotations

import base64
from pathlib import Path

from utils.report.published import PUBLISHED, SOURCE

PLOT_TEXTS = {
    "graph": "Four histograms of the learned graph: entropy of each cluster's edge weights, "
    "labels of a cluster, clusters that a label lives in, and recall of the shortlists by "
    "training points of the label."
}


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
