"""What an ELIAS run does before its first step: its graph, and where its classifiers start."""
from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator

from models.elias_graph import Graph, approximate_graph, cluster_graph, label_features
from models.elias_search import forced_clusters
from models.method import encode_rows
from utils import distributed
from utils.clustering import centroids
from utils.data import Dataset
from utils.sparse import entry_rows

if TYPE_CHECKING:
    from models.elias import Elias

log = logging.getLogger(__name__)


def make_graph(method: Elias, accelerator: Accelerator) -> Graph:
    """The graph that `method.graph` asks for, on every process."""
    name = method.config.method.graph
    if name == "approx":
        if method.before is None:
            raise ValueError("method.graph is 'approx', but the run has no graph to start from (run.start_from)")
        log.info("graph: the labels that each cluster attracts")
        return approximate(method, method.before, accelerator)
    if name == "cluster":
        dense = point_embeddings(method, accelerator) if method.config.run.start_from else None
        log.info("graph: balanced clusters of %s features", "sparse" if dense is None else "dense and sparse")
        return cluster(method.data, method.config.method, dense)
    return Graph.load(name, method.num_labels)


def cluster(data: Dataset, settings, points: np.ndarray | None = None) -> Graph:
    """`gen_cluster_A`: balanced clusters of the labels' centroids, made by the main process.

    Args:
        points: [n, D] embeddings of the training points, beside their TF-IDF features.
    """
    graph = None
    if distributed.is_main():
        dense = None if points is None else data.splits["trn"].relevance.T @ points
        graph = cluster_graph(label_features(data, dense), settings.max_leaf, settings.cluster_seed,
                              torch.get_num_threads())
    return distributed.broadcast(graph)


def approximate(method: Elias, before: Graph, accelerator: Accelerator) -> Graph:
    """`gen_approx_A`: A' from M [N, C], each training point's top clusters with teacher forcing."""
    split, settings = method.data.splits["trn"], method.model
    own = distributed.share(len(split))
    beam, parents = settings.limits.beam, before.parents()
    size = min(beam + int(np.diff(split.relevance.indptr).max(initial=0)), before.num_clusters)
    clusters, scores = np.full((len(own), size), -1, np.int64), np.zeros((len(own), size), np.float32)
    rows = np.arange(own.start, own.stop)
    for positions, block in encode_rows(method.encoder, split.tokens, split.rows[rows],
                                        method.config.eval.batch_size, accelerator, "match"):
        with torch.no_grad():
            log_scores = settings.log_cluster_scores(block)
            relevance = split.relevance[rows[positions]]
            counts = np.diff(relevance.indptr)
            forced = np.full((len(positions), counts.max(initial=0)), -1, np.int64)
            forced[entry_rows(relevance), np.arange(relevance.nnz) - np.repeat(relevance.indptr[:-1], counts)] = \
                parents[relevance.indices]
            forced = torch.from_numpy(forced).to(block.device)
            nothing = torch.full((len(positions), size), -1, device=block.device)
            still = torch.zeros(len(positions), beam + forced.shape[1] + size, device=block.device)
            found = forced_clusters(log_scores, beam, forced, nothing, still)
            clusters[positions] = found.cpu().numpy()
            scores[positions] = log_scores.gather(1, found.clamp(min=0)).exp().cpu().numpy()
    clusters, scores = (distributed.gather_arrays(a, len(split)) for a in (clusters, scores))
    graph = None
    if distributed.is_main():
        rows, places = np.nonzero((clusters >= 0) & (scores > 0))
        matching = sp.csr_matrix((scores[rows, places], (rows, clusters[rows, places])),
                                 (len(split), before.num_clusters))
        graph = approximate_graph(split.relevance, matching, before, settings.limits.kappa)
    return distributed.broadcast(graph)


def point_embeddings(method: Elias, accelerator: Accelerator) -> np.ndarray | None:
    """Embeddings of the training points [n, D] on the main process, None on the others."""
    split = method.data.splits["trn"]
    return _embed(method, split.tokens, split.rows, accelerator)


def _embed(method: Elias, tokens, rows: np.ndarray, accelerator: Accelerator) -> np.ndarray | None:
    own = distributed.share(len(rows))
    part = np.empty((len(own), method.encoder.dim), np.float32)
    for positions, block in encode_rows(method.encoder, tokens, rows[own.start:own.stop],
                                        method.config.eval.batch_size, accelerator, "embed"):
        part[positions] = block.cpu().numpy()
    return distributed.gather_arrays(part, len(rows))


def start_classifiers(method: Elias, accelerator: Accelerator) -> None:
    """W_L from the labels' texts, and W_C of new clusters from the means of their labels' rows.

    `init: random`: W_L stays random, and so does W_C.
    """
    settings, model, data = method.config.method, method.model, method.data
    if settings.init == "random":
        return
    if settings.init == "labels":
        rows = distributed.broadcast(_embed(method, data.label_tokens, np.arange(method.num_labels), accelerator))
        embedded = torch.from_numpy(rows).to(model.labels.device)
        with torch.no_grad():
            model.labels.copy_(model.project(embedded))
        if method.before is None:      # new clusters
            parents = method.graph.parents()
            known = np.flatnonzero(parents >= 0)
            model.clusters.data.copy_(torch.from_numpy(
                centroids(rows[known], parents[known], method.graph.num_clusters)))
