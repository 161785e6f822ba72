"""What an ELIAS graph has learned, in numbers and as plots.

Edge entropy, labels per cluster, clusters per label, and how much of the truth the shortlists hold,
by label frequency.

    python elias_utils.py report RUN      # draws RUN/plots/graph.png again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.elias.index import GraphIndex
from utils.arrays import save_arrays
from utils.errors import InputError
from utils.files import written_whole
from utils.reading.arrays import read_arrays
from utils.reading.saved import read_facts

RECALL = "shortlist_recall["  # begins the names of facts by label frequency, as models/evaluation
SHARE = 0.1  # of a label's strongest edge: it lives in the clusters whose edges have as much


def graph_arrays(index: GraphIndex, num_labels: int) -> dict[str, np.ndarray]:
    """Measure what the edges have become.

    Returns:
        entropy: of each cluster's edge weights as a distribution [C], in nats.
        labels: of each cluster [C].
        clusters: that each label lives in [L].
    """
    inside = np.asarray(index.edges) >= 0
    weights = np.where(inside, np.exp(np.where(inside, index.log_edges, 0)), 0)
    shares = weights / weights.sum(1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    largest = np.zeros(num_labels, weights.dtype)
    np.maximum.at(largest, index.edges[inside], weights[inside])
    strong = weights[inside] >= SHARE * largest[index.edges[inside]]
    return {
        "entropy": entropy.astype(np.float32),
        "labels": inside.sum(1),
        "clusters": np.bincount(index.edges[inside][strong], minlength=num_labels),
    }


def graph_facts(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Summarise what `graph_arrays` found."""
    labels = arrays["labels"]
    clusters = arrays["clusters"]
    return {
        "edge_entropy": round(float(arrays["entropy"].mean()), 4),
        "labels_per_cluster": round(float(labels.mean()), 2),
        "labels_per_cluster_max": int(labels.max()),
        "clusters_per_label": round(float(clusters.mean()), 3),
        "labels_in_several_clusters": int((clusters > 1).sum()),
        "labels_unreachable": int((clusters == 0).sum()),
    }


def save_report(
    folder: Path,
    arrays: dict[str, np.ndarray],
    facts: dict[str, float],
) -> None:
    """learned.npz and learned.json, for `draw`."""
    save_arrays(folder / "learned.npz", arrays)
    (folder / "learned.json").write_text(json.dumps(facts, indent=1) + "\n")


def recall_of(run: Path) -> dict[str, float]:
    """Recall of the shortlists of validation points by label frequency, in percent.

    That of older runs stands in the model's folder.
    """
    facts = read_facts(run / "model" / "learned.json")
    validation = run / "val_metrics.json"
    if validation.is_file():
        facts |= read_facts(validation)
    return {
        name.removeprefix(RECALL).removesuffix("]"): value
        for name, value in facts.items()
        if name.startswith(RECALL)
    }


def draw(run: Path) -> Path:
    """Draw plots/graph.png of a run whose model holds what `save_report` wrote.

    Raises:
        InputError: it holds none.
    """
    learned = run / "model" / "learned.npz"
    if not learned.is_file():
        raise InputError(f"{learned}: no such file; the run is no finished elias run")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arrays = read_arrays(learned, ("entropy", "labels", "clusters"))
    panels = (
        ("entropy", "clusters", "entropy of the edge weights (nats)"),
        ("labels", "clusters", "labels of a cluster"),
        ("clusters", "labels", "clusters that a label lives in"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (name, what, title) in zip(axes.flat, panels, strict=False):
        _histogram(axis, arrays[name])
        axis.set(title=title, ylabel=what, yscale="log" if what == "labels" else "linear")
    recall = recall_of(run)
    axes[1, 1].bar([*recall], [*recall.values()])
    axes[1, 1].set(
        title="recall of the shortlists (%)", xlabel="training points of the label", ylim=(0, 100)
    )
    path = run / "plots" / "graph.png"
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)
    return path


def _histogram(axis: Any, values: np.ndarray) -> None:
    """Of whole numbers with a bar each where these are few."""
    few = values.dtype.kind in "iu" and values.max(initial=0) < 50
    axis.hist(values, bins=np.arange(values.max() + 2) - 0.5 if few else 40)
