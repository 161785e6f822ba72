"""What training ELIAS holds of parameters; every process holds all of them."""

from __future__ import annotations

from models.elias.options import Limits, clusters_of
from utils.plan.parts import RUNNING, Needs, Part
from utils.plan.run_sizes import RunSizes
from utils.plan.weights import Table, Weights, counted, encoder_weights, held


def elias_needs(sizes: RunSizes) -> Needs:
    """Parameters, their training and their average; a step and a search are left out."""
    weights = _weights(sizes)
    parts = [*held(weights, sizes.cuda)]
    if sizes.config.method.swa:
        count = sum(each.whole for each in weights)
        parts.append(Part("average of the weights", 4 * count, RUNNING, smaller="method.swa"))
    left_out = "the graph, activations, the paths that a step and an evaluation score, messages"
    return Needs(counted(weights), parts, left_out=left_out)


def _weights(sizes: RunSizes) -> list[Weights | Table]:
    """The encoder, the clusters' rows, the labels' rows, the edges' logits."""
    method = sizes.config.method
    dim = sizes.encoder.dim
    labels = sizes.data.labels
    count = clusters_of(method, labels)
    edges = Limits.of(method, count, labels).kappa
    projection = dim * (method.wl_dim or 0)
    step_tokens = sizes.queries.of(sizes.own_batch)
    clusters = count * dim
    # a step's gradient of labels and edges is left out: it is of the paths that it scores
    width = method.wl_dim or dim
    rows = Table("classifier", labels, labels, width, labels, 0, smaller="method.wl_dim")
    weights: list[Weights | Table] = [
        *encoder_weights(sizes, sizes.queries.tokens, step_tokens),
        Weights("clusters", clusters, clusters, clusters, "method.max_leaf"),
        Weights("projection", projection, projection, projection, "method.wl_dim"),
        rows,
    ]
    if method.learns_edges:
        logits = Table("edges", count, count, edges, count, 0, biases=0, smaller="method.kappa")
        weights.append(logits)
    return weights
