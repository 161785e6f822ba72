"""What an ELIAS graph has learned, in numbers and as plots: edge entropy, labels per cluster,
clusters per label, and how much of the truth the shortlists hold, by label frequency.

    python elias_utils.py report RUN      # draws RUN/plots/graph.png again
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator

from models.elias.index import GraphIndex
from models.method import encode_rows
from utils import distributed
from utils.data.dataset import Split
from utils.errors import InputError
from utils.files import written_whole
from utils.reading.matrices import read_arrays
from utils.reading.saved import read_facts
from utils.sparse import contains

if TYPE_CHECKING:
    from models.elias.learner import Elias

BINS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 30), (31, None))  # training points of a label
# a label lives in the clusters whose edge has at least this share of its strongest edge's weight
SHARE = 0.1


def bin_name(first: int, last: int | None) -> str:
    return f"{first}+" if last is None else f"{first}" if first == last else f"{first}-{last}"


def graph_arrays(index: GraphIndex, num_labels: int) -> dict[str, np.ndarray]:
    """entropy [C] in nats, of each cluster's edge weights as a distribution; labels [C] of each
    cluster; clusters [L] that a label lives in."""
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
    labels, clusters = arrays["labels"], arrays["clusters"]
    return {
        "edge_entropy": round(float(arrays["entropy"].mean()), 4),
        "labels_per_cluster": round(float(labels.mean()), 2),
        "labels_per_cluster_max": int(labels.max()),
        "clusters_per_label": round(float(clusters.mean()), 3),
        "labels_in_several_clusters": int((clusters > 1).sum()),
        "labels_unreachable": int((clusters == 0).sum()),
    }


def shortlist_recall(method: Elias, split: Split, accelerator: Accelerator) -> dict[str, float]:
    """Share of a split's positives that the K labels scored for each point hold, in all and by
    label frequency, in percent; `recall_ceiling`: of those that any search can find. Every process
    calls it."""
    own = distributed.share(len(split))
    relevance = split.relevance
    counts = np.bincount(method.data.splits["trn"].relevance.indices, minlength=method.num_labels)
    # bin of each label
    number = np.searchsorted([first for first, _ in BINS], counts, side="right") - 1
    found, total = np.zeros(len(BINS)), np.zeros(len(BINS))
    rows = np.arange(own.start, own.stop)
    for positions, block in encode_rows(
        method.scored.encoder,
        split.tokens,
        split.rows[rows],
        method.config.eval.batch_size,
        accelerator,
        "shortlists",
    ):
        with torch.no_grad():
            labels = method.index.shortlist(block, method.scored.project(block)).cpu().numpy()
        hit = contains(relevance[rows[positions]], np.arange(len(positions))[:, None], labels)
        found += np.bincount(number[labels[hit]], minlength=len(BINS))
        total += np.bincount(number[relevance[rows[positions]].indices], minlength=len(BINS))
    found, total = (np.array([distributed.total(x) for x in array]) for array in (found, total))
    reachable = method.graph.parents() >= 0
    facts = {
        "shortlist_recall": 100 * found.sum() / max(total.sum(), 1),
        "recall_ceiling": 100 * reachable[relevance.indices].mean() if relevance.nnz else 0.0,
    }
    facts |= {
        f"shortlist_recall[{bin_name(*BINS[i])}]": 100 * found[i] / total[i]
        for i in range(len(BINS))
        if total[i]
    }
    return {name: round(float(value), 2) for name, value in facts.items()}


def save_report(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, float]) -> None:
    """learned.npz and learned.json, for `draw`."""
    np.savez(folder / "learned.npz", **arrays)
    (folder / "learned.json").write_text(json.dumps(facts, indent=1) + "\n")


def draw(run: Path) -> Path:
    """plots/graph.png of a run whose model holds what `save_report` wrote; ValueError if it holds
    none."""
    if not (run / "model" / "learned.npz").is_file():
        raise InputError(
            f"{run / 'model' / 'learned.npz'}: no such file; the run is no finished elias run"
        )
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    facts = read_facts(run / "model" / "learned.json")
    arrays = read_arrays(run / "model" / "learned.npz", ("entropy", "labels", "clusters"))
    panels = [
        (arrays["entropy"], "clusters", "entropy of the edge weights (nats)"),
        (arrays["labels"], "clusters", "labels of a cluster"),
        (arrays["clusters"], "labels", "clusters that a label lives in"),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (values, what, title) in zip(axes.flat, panels, strict=False):
        whole = values.dtype.kind in "iu" and values.max(initial=0) < 50
        axis.hist(values, bins=np.arange(values.max() + 2) - 0.5 if whole else 40)
        axis.set(title=title, ylabel=what, yscale="log" if what == "labels" else "linear")
    names = [n for n in facts if n.startswith("shortlist_recall[")]
    axes[1, 1].bar([n[len("shortlist_recall[") : -1] for n in names], [facts[n] for n in names])
    axes[1, 1].set(
        title="recall of the shortlists (%)", xlabel="training points of the label", ylim=(0, 100)
    )
    path = run / "plots" / "graph.png"
    path.parent.mkdir(exist_ok=True)
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)
    return path
