"""Where the classifiers and edges of an ELIAS run start, once there is a graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.elias.graph import Graph
from models.elias.model import EliasModel
from utils.clustering.clustering import centroids

LEAST_SHARE = 1e-2  # of an edge at the start: a smaller one would hardly get a gradient


@torch.no_grad()
def start_edges(model: EliasModel, graph: Graph) -> None:
    """`edge_init`: the edges' logits where they do not start random."""
    name = model.options.edge_init
    if model.edges is None or name == "random":
        return
    model.edges.zero_()
    if name == "shares":
        inside = graph.labels >= 0
        labels = graph.labels[inside]
        values = graph.values[inside]
        largest = np.zeros(graph.num_labels, np.float32)
        np.maximum.at(largest, labels, values)
        shares = np.ones_like(graph.values)
        shares[inside] = values / largest[labels]
        logits = np.log(np.maximum(shares, LEAST_SHARE))
        model.edges[:, : shares.shape[1]] = torch.from_numpy(logits)


@torch.no_grad()
def start_labels(model: EliasModel, rows: Tensor) -> None:
    """W_L = embeddings or vectors of the labels [L, D]."""
    model.labels.copy_(model.project(rows.to(model.labels.device)))


@torch.no_grad()
def start_clusters(
    model: EliasModel,
    rows: Tensor,
    graph: Graph,
) -> None:
    """W_C = means of the vectors [L, D] of each cluster's labels, of unit length."""
    parents = graph.parents()
    known = np.flatnonzero(parents >= 0)
    means = centroids(rows.cpu().numpy()[known], parents[known], graph.num_clusters)
    model.clusters.copy_(torch.from_numpy(means))
