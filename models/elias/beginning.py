"""What an ELIAS run takes from others before it has a folder: a graph, and an earlier model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.contract import Ranker, Start, label_vectors_of, take_encoder
from models.elias.graph import Graph
from models.elias.made_graphs import MadeGraph, graph_made_before
from models.elias.model import EliasModel
from models.elias.ranker import GraphRanker
from models.encoders.reader import Reader
from models.known_labels import check_same_labels
from utils.config.config import Config
from utils.data.dataset import Dataset
from utils.errors import InputError


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


def begin(
    config: Config,
    data: Dataset,
    model: EliasModel,
    start: Start | None,
) -> Beginning:
    """Read a graph made before, and take what is trained on from the earlier run; a collective.

    Raises:
        InputError: what is wrong with either; there is no run folder yet.
    """
    options = config.method
    made = graph_made_before(config, data, model.limits.kappa, model.limits.beam)
    given = given_graph(config, data.num_labels, made)
    if start is None:
        return Beginning(made, given)
    earlier = start()
    if not options.fresh_encoder:
        take_encoder(model.encoder, earlier)
    vectors = None
    if options.init == "vectors":
        check_same_labels(earlier, data, "its label vectors")
        vectors = checked_vectors(earlier, (data.num_labels, model.encoder.dim))
    before = None
    if isinstance(earlier, GraphRanker):
        check_same_labels(earlier, data, "its graph")
        before = take_graph(model, earlier)
    clusterer = earlier.reader if options.fresh_encoder else None
    return Beginning(made, given, before, vectors, clusterer)


def given_graph(
    config: Config,
    num_labels: int,
    made: MadeGraph | None,
) -> Graph | None:
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
        assert earlier.projection is not None, "of the same method.wl_dim, checked on paper"
        model.projection.load_state_dict(earlier.projection.state_dict())
