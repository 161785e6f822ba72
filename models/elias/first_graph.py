"""The graph of an ELIAS run: clusters of labels, or what the clusters of an earlier run attract."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.elias.beginning import Beginning
from models.elias.graph import Graph, approximate_graph, check_graph, cluster_graph
from models.elias.made_graphs import POINTS_LABELS, point_features, told
from models.elias.model import EliasModel
from models.elias.options import EliasConfig, Limits
from models.elias.search import forced_clusters
from models.encoders.reader import Reader, embed_all
from utils import distributed
from utils.config.config import Config
from utils.data.dataset import Dataset, Split
from utils.linear.layer import Features
from utils.linear.tree_training import pifa
from utils.sparse import entry_rows

log = logging.getLogger(__name__)


def make_graph(
    beginning: Beginning, config: Config, data: Dataset, model: EliasModel, reader: Reader
) -> Graph:
    """Make the graph that `method.graph` asks for, or read the one made for this run; a collective.

    Args:
        reader: the run's own.
    Raises:
        InputError: it does not fit the options.
    """
    options = config.method
    made = beginning.made
    where = f"method.graph '{options.graph}'"
    if made and made.difference:
        log.warning("graph: %s was made %s, so the run makes its own", made.path, made.difference)
    graph = beginning.given
    if made and not made.difference:
        log.info("graph: %s, %s", made.path, told(made.path))
        where = str(made.path)
    elif options.graph == "approx":
        log.info("graph: the labels that each cluster attracts")
        assert beginning.before is not None, "an ELIAS run whose clusters stay, checked on paper"
        scores_of = model.log_cluster_scores
        split = data.splits["trn"]
        graph = approximate(reader, scores_of, split, beginning.before, model.limits)
    elif options.graph == "cluster":
        points = None
        kinds = "sparse"
        if config.run.start_from is not None:
            points = point_embeddings(beginning.clusterer or reader, data)
            kinds = "dense and sparse"
        log.info("graph: balanced clusters of %s features", kinds)
        graph = cluster(data, options, points)
    elif Graph.origin(options.graph).get(POINTS_LABELS, data.hash) != data.hash:
        log.warning("method.graph: %s was made of the labels of other points", options.graph)
    assert graph is not None, "one that is not made here is given"
    return check_graph(graph, len(model.clusters), model.limits.kappa, where)


def cluster(
    data: Dataset,
    options: EliasConfig,
    points: np.ndarray | None = None,
) -> Graph:
    """Balanced clusters of the labels' centroids, made by the main process, on every process.

    Args:
        points: [n, D] embeddings of the training points, beside their TF-IDF features.
    """
    graph: Graph | None = None
    if distributed.is_main():
        features = Features.build(point_features(data), points)
        graph = cluster_graph(
            pifa(data.splits["trn"].relevance, features),
            options.max_leaf,
            options.cluster_seed,
            torch.get_num_threads(),
        )
    graph = distributed.broadcast(graph)
    assert graph is not None, "the main process has made it"
    return graph


def point_embeddings(reader: Reader, data: Dataset) -> np.ndarray:
    """Embeddings of the training points [n, D], on every process; a collective."""
    return embed_all(reader, data.splits["trn"].texts, "embed points").cpu().numpy()


@torch.no_grad()
def approximate(
    reader: Reader,
    scores_of: Callable[[Tensor], Tensor],
    split: Split,
    before: Graph,
    limits: Limits,
) -> Graph:
    """A' of the clusters that training points visit, on every process; a collective.

    Each point visits its top clusters and, as in training, the parents of its positives.

    Args:
        scores_of: embeddings [B, D] -> log s_c of all clusters [B, C].
        before: the graph whose clusters they are.
    """
    share = distributed.share(len(split))
    rows = np.arange(share.start, share.stop)
    parents = before.parents()
    most_positives = int(np.diff(split.relevance.indptr).max(initial=0))
    size = min(limits.beam + most_positives, before.num_clusters)
    clusters = np.full((len(share), size), -1, np.int64)
    scores = np.zeros((len(share), size), np.float32)
    tokens, places = split.texts[rows].tokens(reader.tokenizer)
    for positions, block in reader.batches(tokens, places, "match"):
        log_scores = scores_of(block)
        forced = positive_parents(split.relevance[rows[positions]], parents)
        visited = top_and_forced(log_scores, limits.beam, forced, size)  # [b, size]
        clusters[positions] = visited.cpu().numpy()
        scores[positions] = log_scores.gather(1, visited.clamp(min=0)).exp().cpu().numpy()
    all_clusters = distributed.gather_arrays(clusters)
    all_scores = distributed.gather_arrays(scores)
    graph: Graph | None = None
    if all_clusters is not None and all_scores is not None:
        points, slots = np.nonzero((all_clusters >= 0) & (all_scores > 0))
        entries = (all_scores[points, slots], (points, all_clusters[points, slots]))
        matching = sp.csr_matrix(entries, (len(split), before.num_clusters))  # M [N, C]
        graph = approximate_graph(split.relevance, matching, before, limits.kappa)
    graph = distributed.broadcast(graph)
    assert graph is not None, "the main process has made it"
    return graph


def positive_parents(relevance: sp.csr_matrix, parents: np.ndarray) -> np.ndarray:
    """The parent clusters of each point's positives [B, P].

    -1 behind the last, and for labels without one.
    """
    counts = np.diff(relevance.indptr)
    clusters = np.full((relevance.shape[0], counts.max(initial=0)), -1, np.int64)
    places = np.arange(relevance.nnz) - np.repeat(relevance.indptr[:-1], counts)
    clusters[entry_rows(relevance), places] = parents[relevance.indices]
    return clusters


def top_and_forced(
    log_scores: Tensor,
    beam: int,
    parents: np.ndarray,
    size: int,
) -> Tensor:
    """Top clusters and parents of the positives, each once [B, size]; -1 behind the last."""
    forced = torch.from_numpy(parents).to(log_scores.device)
    nothing = torch.full((len(parents), size), -1, device=log_scores.device)
    no_noise = log_scores.new_zeros(len(parents), beam + forced.shape[1] + size)
    return forced_clusters(log_scores, beam, forced, nothing, no_noise)
