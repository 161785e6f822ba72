"""What an ELIAS run does before its first step: its graph, and where its classifiers start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from torch import Tensor

from models.elias.graph import Graph, approximate_graph, cluster_graph
from models.elias.made_graphs import POINTS_LABELS, MadeGraph, point_features, told
from models.elias.search import forced_clusters
from models.method import Method, embed_rows, encode_rows
from utils import distributed
from utils.clustering.clustering import centroids
from utils.data.dataset import Dataset
from utils.errors import InputError
from utils.linear.layer import Features
from utils.linear.tree_training import pifa
from utils.sparse import entry_rows

if TYPE_CHECKING:
    from models.elias.learner import Elias
    from models.elias.options import EliasConfig
    from utils.config.config import Config

log = logging.getLogger(__name__)
LEAST_SHARE = 1e-2  # of an edge at the start: a smaller one would hardly get a gradient


def given_graph(config: Config, num_labels: int, made: MadeGraph | None) -> Graph | None:
    """The graph of a file, whichever names it; None where the run makes its own."""
    if made and not made.difference:
        return Graph.load(made.path, num_labels)
    name = config.method.graph
    return None if name in ("approx", "cluster") else Graph.load(name, num_labels)


def make_graph(method: Elias, accelerator: Accelerator) -> Graph:
    """The graph that `method.graph` asks for, or that a step made for this run before, on every
    process."""
    name = method.config.method.graph
    made = method.made_graph
    if made and made.difference:
        log.warning("graph: %s was made %s, so the run makes its own", made.path, made.difference)
    elif made:
        log.info("graph: %s, %s", made.path, told(made.path))
        return method.given
    if name == "approx":
        log.info("graph: the labels that each cluster attracts")
        return approximate(
            method, method.data, method.before, method.model.limits.kappa, accelerator
        )
    if name == "cluster":
        by = method.clusterer[0] if method.clusterer else method
        dense = (
            point_embeddings(by, method.data, accelerator) if method.config.run.start_from else None
        )
        log.info(
            "graph: balanced clusters of %s features",
            "dense and sparse" if method.config.run.start_from else "sparse",
        )
        return cluster(method.data, method.config.method, dense)
    if Graph.origin(name).get(POINTS_LABELS, method.data.hash) != method.data.hash:
        log.warning("method.graph: %s was made of the labels of other points", name)
    return method.given


def cluster(data: Dataset, settings: EliasConfig, points: np.ndarray | None = None) -> Graph:
    """Balanced clusters of the labels' centroids, made by the main process, on every process.

    Args:
        points: [n, D] embeddings of the training points, beside their TF-IDF features.
    """
    graph = None
    split = data.splits["trn"]
    if distributed.is_main():
        features = Features.build(point_features(data), points)
        graph = cluster_graph(
            pifa(split.relevance, features),
            settings.max_leaf,
            settings.cluster_seed,
            torch.get_num_threads(),
        )
    return distributed.broadcast(graph)


@torch.no_grad()
def approximate(
    method: Elias, data: Dataset, before: Graph, kappa: int, accelerator: Accelerator
) -> Graph:
    """A' from M [N, C], each training point's top clusters with teacher forcing, on every
    process."""
    split = data.splits["trn"]
    own = distributed.share(len(data.splits["trn"]))
    parents = before.parents()
    size = min(
        method.model.limits.beam + int(np.diff(split.relevance.indptr).max(initial=0)),
        before.num_clusters,
    )
    clusters = np.full((len(own), size), -1, np.int64)
    scores = np.zeros((len(own), size), np.float32)
    rows = np.arange(own.start, own.stop)
    for positions, block in encode_rows(
        method.encoder,
        split.tokens,
        split.rows[rows],
        method.config.eval.batch_size,
        accelerator,
        "match",
    ):
        log_scores = method.log_cluster_scores(block)
        found = top_and_forced(
            log_scores,
            method.model.limits.beam,
            positive_parents(split.relevance[rows[positions]], parents),
            size,
        )
        clusters[positions] = found.cpu().numpy()
        scores[positions] = log_scores.gather(1, found.clamp(min=0)).exp().cpu().numpy()
    clusters, scores = (distributed.gather_arrays(a, len(split)) for a in (clusters, scores))
    graph = None
    if distributed.is_main():
        points, places = np.nonzero((clusters >= 0) & (scores > 0))
        matching = sp.csr_matrix(
            (scores[points, places], (points, clusters[points, places])),
            (len(split), before.num_clusters),
        )
        graph = approximate_graph(split.relevance, matching, before, kappa)
    return distributed.broadcast(graph)


def positive_parents(relevance: sp.csr_matrix, parents: np.ndarray) -> np.ndarray:
    """The parent clusters of each point's positives [B, P], -1 behind the last and for labels
    without one."""
    counts = np.diff(relevance.indptr)
    found = np.full((relevance.shape[0], counts.max(initial=0)), -1, np.int64)
    found[
        entry_rows(relevance), np.arange(relevance.nnz) - np.repeat(relevance.indptr[:-1], counts)
    ] = parents[relevance.indices]
    return found


def top_and_forced(log_scores: Tensor, beam: int, parents: np.ndarray, size: int) -> Tensor:
    """The top clusters and the parents of the positives, each once: [B, size], -1 behind the
    last."""
    forced = torch.from_numpy(parents).to(log_scores.device)
    nothing = torch.full((len(parents), size), -1, device=log_scores.device)
    return forced_clusters(
        log_scores,
        beam,
        forced,
        nothing,
        log_scores.new_zeros(len(parents), beam + forced.shape[1] + size),
    )


def point_embeddings(method: Method, data: Dataset, accelerator: Accelerator) -> np.ndarray:
    """Embeddings of the training points [n, D], on every process."""
    if method.text_encoder is None:
        raise InputError(
            f"a {method.config.method.name} run has no encoder whose embeddings could be features"
        )
    split = data.splits["trn"]
    return (
        embed_rows(
            method.text_encoder,
            split.tokens,
            split.rows,
            method.config.eval.batch_size,
            accelerator,
            "embed points",
        )
        .cpu()
        .numpy()
    )


@torch.no_grad()
def start_edges(method: Elias) -> None:
    """`edge_init`: the edges' logits where they do not start random."""
    edges = method.model.edges
    name = method.config.method.edge_init
    graph = method.graph
    if edges is None or name == "random":
        return
    edges.zero_()
    if name == "shares":
        inside = graph.labels >= 0
        largest = np.zeros(graph.num_labels, np.float32)
        np.maximum.at(largest, graph.labels[inside], graph.values[inside])
        shares = np.ones_like(graph.values)
        shares[inside] = graph.values[inside] / largest[graph.labels[inside]]
        edges[:, : shares.shape[1]] = torch.from_numpy(np.log(np.maximum(shares, LEAST_SHARE)))


def start_classifiers(method: Elias, accelerator: Accelerator) -> None:
    """`init: labels` and `init: vectors`: W_L from the labels' texts or vectors, W_C of new
    clusters from their means."""
    model = method.model
    data = method.data
    init = method.config.method.init
    if init not in ("labels", "vectors"):
        return
    rows = (
        method.vectors
        if init == "vectors"
        else embed_rows(
            method.encoder,
            data.label_tokens,
            np.arange(method.num_labels),
            method.config.eval.batch_size,
            accelerator,
            "embed labels",
        )
    )
    method.vectors = None
    with torch.no_grad():
        model.labels.copy_(model.project(rows.to(model.labels.device)))
    if method.before is None:  # new clusters
        parents = method.graph.parents()
        known = np.flatnonzero(parents >= 0)
        means = centroids(rows.cpu().numpy()[known], parents[known], method.graph.num_clusters)
        model.clusters.data.copy_(torch.from_numpy(means))
