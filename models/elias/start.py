"""What an ELIAS run does before its first step: its graph, and where its classifiers start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.contract import Ranker, Start, label_vectors_of, take_encoder
from models.elias.graph import Graph, approximate_graph, check_graph, cluster_graph
from models.elias.made_graphs import (
    POINTS_LABELS,
    MadeGraph,
    graph_made_before,
    point_features,
    told,
)
from models.elias.model import EliasModel
from models.elias.options import EliasConfig, Limits
from models.elias.ranker import GraphRanker
from models.elias.search import forced_clusters
from models.encoders.reader import Reader, embed_all
from utils import distributed
from utils.clustering.clustering import centroids
from utils.config.config import Config
from utils.data.dataset import Dataset, Split
from utils.errors import InputError
from utils.linear.layer import Features
from utils.linear.tree_training import pifa
from utils.sparse import entry_rows

log = logging.getLogger(__name__)
LEAST_SHARE = 1e-2  # of an edge at the start: a smaller one would hardly get a gradient


# -------------------------------- what is known before there is a run folder


@dataclass(frozen=True)
class Beginning:
    """What a run needs until its first step, and no longer.

    Attributes:
        made: a graph that a step of elias_utils.py has left for this run.
        given: the graph of a file, whichever names it; None where the run makes its own.
        before: the graph of the run that this one starts from, where its clusters stay.
        vectors: of the labels [L, D], by the run that this one starts from, with `init: vectors`.
        clusterer: reads the points whose labels are clustered, where that is not the run's own
            encoder.
    """

    made: MadeGraph | None
    given: Graph | None
    before: Graph | None = None
    vectors: Tensor | None = None
    clusterer: Reader | None = None


def begin(config: Config, data: Dataset, model: EliasModel, start: Start | None) -> Beginning:
    """Read a graph made before, and take what is trained on from the earlier run; a collective.

    Raises:
        InputError: what is wrong with either; there is no run folder yet.
    """
    s = config.method
    made = graph_made_before(config, data, model.limits.kappa, model.limits.beam)
    given = given_graph(config, data.num_labels, made)
    if start is None:
        return Beginning(made, given)
    earlier = start()
    if not s.fresh_encoder:
        take_encoder(model.encoder, earlier)
    vectors = None
    if s.init == "vectors":
        vectors = checked_vectors(earlier, (data.num_labels, model.encoder.dim))
    before = take_graph(model, earlier) if isinstance(earlier, GraphRanker) else None
    clusterer = earlier.reader if s.fresh_encoder else None
    return Beginning(made, given, before, vectors, clusterer)


def given_graph(config: Config, num_labels: int, made: MadeGraph | None) -> Graph | None:
    """The graph of a file, whichever names it; None where the run makes its own."""
    if made and not made.difference:
        return Graph.load(made.path, num_labels)
    name = config.method.graph
    return None if name in ("approx", "cluster") else Graph.load(name, num_labels)


def checked_vectors(earlier: Ranker, shape: tuple[int, int]) -> Tensor:
    """Take the label vectors of the run that this one starts from.

    Raises:
        InputError: they have another shape [L, D].
    """
    vectors = torch.as_tensor(label_vectors_of(earlier)).float()
    if vectors.shape != shape:
        raise InputError(
            f"run.start_from: its label vectors are {tuple(vectors.shape)}, expected {shape}"
        )
    return vectors


@torch.no_grad()
def take_graph(model: EliasModel, earlier: GraphRanker) -> Graph | None:
    """Copy W_C of an ELIAS run, if its clusters stay; with `init: keep` W_L, bias and projection.

    Returns:
        its graph, if its clusters stay.
    Raises:
        InputError: they do not fit.
    """
    if earlier.num_labels != len(model.labels):
        raise InputError(
            f"run.start_from: its graph has {earlier.num_labels} labels, this run "
            f"{len(model.labels)}"
        )
    before = None
    if model.options.graph != "cluster":
        clusters = torch.from_numpy(np.array(earlier.graph.clusters.floats(slice(None))))
        if clusters.shape != model.clusters.shape:
            raise InputError(
                f"run.start_from: its cluster classifiers are {tuple(clusters.shape)}, this "
                f"run's {tuple(model.clusters.shape)} (method.max_leaf, method.graph)"
            )
        model.clusters.copy_(clusters)
        before = earlier.learned_graph()
    if model.options.init == "keep":
        keep_labels(model, earlier)
    return before


@torch.no_grad()
def keep_labels(model: EliasModel, earlier: GraphRanker) -> None:
    """Copy W_L, bias and projection of an ELIAS run; InputError if they do not fit."""
    labels = torch.from_numpy(np.array(earlier.graph.labels.floats(slice(None))))
    if labels.shape != model.labels.shape:
        raise InputError(
            "method.init 'keep': the label classifiers to keep are "
            f"{tuple(labels.shape)}, this run's {tuple(model.labels.shape)} (method.wl_dim)"
        )
    model.labels.copy_(labels)
    model.bias.copy_(torch.from_numpy(np.array(earlier.graph.bias))[:, None])
    if model.projection is not None:
        model.projection.load_state_dict(earlier.projection.state_dict())


# -------------------------------- the graph


def make_graph(
    beginning: Beginning, config: Config, data: Dataset, model: EliasModel, reader: Reader
) -> Graph:
    """Make the graph that `method.graph` asks for, or read the one made for this run; a collective.

    Args:
        reader: the run's own.
    Raises:
        InputError: it does not fit the options.
    """
    s = config.method
    made = beginning.made
    where = f"method.graph '{s.graph}'"
    if made and made.difference:
        log.warning("graph: %s was made %s, so the run makes its own", made.path, made.difference)
    if made and not made.difference:
        log.info("graph: %s, %s", made.path, told(made.path))
        where = str(made.path)
        graph = beginning.given
    elif s.graph == "approx":
        log.info("graph: the labels that each cluster attracts")
        scores_of = model.log_cluster_scores
        split = data.splits["trn"]
        graph = approximate(reader, scores_of, split, beginning.before, model.limits)
    elif s.graph == "cluster":
        dense = config.run.start_from is not None
        kinds = "dense and sparse" if dense else "sparse"
        points = point_embeddings(beginning.clusterer or reader, data) if dense else None
        log.info("graph: balanced clusters of %s features", kinds)
        graph = cluster(data, s, points)
    else:
        if Graph.origin(s.graph).get(POINTS_LABELS, data.hash) != data.hash:
            log.warning("method.graph: %s was made of the labels of other points", s.graph)
        graph = beginning.given
    return check_graph(graph, len(model.clusters), model.limits.kappa, where)


def cluster(data: Dataset, settings: EliasConfig, points: np.ndarray | None = None) -> Graph:
    """Balanced clusters of the labels' centroids, made by the main process, on every process.

    Args:
        points: [n, D] embeddings of the training points, beside their TF-IDF features.
    """
    graph = None
    if distributed.is_main():
        features = Features.build(point_features(data), points)
        graph = cluster_graph(
            pifa(data.splits["trn"].relevance, features),
            settings.max_leaf,
            settings.cluster_seed,
            torch.get_num_threads(),
        )
    return distributed.broadcast(graph)


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
    own = distributed.share(len(split))
    rows = np.arange(own.start, own.stop)
    parents = before.parents()
    most_positives = int(np.diff(split.relevance.indptr).max(initial=0))
    size = min(limits.beam + most_positives, before.num_clusters)
    clusters = np.full((len(own), size), -1, np.int64)
    scores = np.zeros((len(own), size), np.float32)
    tokens, places = split.texts[rows].tokens(reader.tokenizer)
    for positions, block in reader.batches(tokens, places, "match"):
        log_scores = scores_of(block)
        forced = positive_parents(split.relevance[rows[positions]], parents)
        found = top_and_forced(log_scores, limits.beam, forced, size)
        clusters[positions] = found.cpu().numpy()
        scores[positions] = log_scores.gather(1, found.clamp(min=0)).exp().cpu().numpy()
    clusters = distributed.gather_arrays(clusters, len(split))
    scores = distributed.gather_arrays(scores, len(split))
    graph = None
    if distributed.is_main():
        points, slots = np.nonzero((clusters >= 0) & (scores > 0))
        entries = scores[points, slots], (points, clusters[points, slots])
        matching = sp.csr_matrix(entries, (len(split), before.num_clusters))  # M [N, C]
        graph = approximate_graph(split.relevance, matching, before, limits.kappa)
    return distributed.broadcast(graph)


def positive_parents(relevance: sp.csr_matrix, parents: np.ndarray) -> np.ndarray:
    """The parent clusters of each point's positives [B, P].

    -1 behind the last, and for labels without one.
    """
    counts = np.diff(relevance.indptr)
    found = np.full((relevance.shape[0], counts.max(initial=0)), -1, np.int64)
    places = np.arange(relevance.nnz) - np.repeat(relevance.indptr[:-1], counts)
    found[entry_rows(relevance), places] = parents[relevance.indices]
    return found


def top_and_forced(log_scores: Tensor, beam: int, parents: np.ndarray, size: int) -> Tensor:
    """Top clusters and parents of the positives, each once [B, size]; -1 behind the last."""
    forced = torch.from_numpy(parents).to(log_scores.device)
    nothing = torch.full((len(parents), size), -1, device=log_scores.device)
    no_noise = log_scores.new_zeros(len(parents), beam + forced.shape[1] + size)
    return forced_clusters(log_scores, beam, forced, nothing, no_noise)


# -------------------------------- the classifiers


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
def start_clusters(model: EliasModel, rows: Tensor, graph: Graph) -> None:
    """W_C = means of the vectors [L, D] of each cluster's labels, of unit length."""
    parents = graph.parents()
    known = np.flatnonzero(parents >= 0)
    means = centroids(rows.cpu().numpy()[known], parents[known], graph.num_clusters)
    model.clusters.copy_(torch.from_numpy(means))
