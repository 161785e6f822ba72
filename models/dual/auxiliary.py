"""Auxiliary vectors: what a label's text does not say, learned by labels together.

    w_l = norm(E(z_l) + a_C(l))

DEXA: Dahiya et al., KDD 2023. a: table of K vectors; C: hard assignment of labels to them. The most
frequent labels have a vector each (head label partitioning), the others share theirs with labels of
similar texts. K = L is a free vector per label, the residual of SiameseXML (Dahiya et al., ICML
2021).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.clustering.clustering import balanced_hierarchy
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.parameters import DeclaredParameter, Gradient, Kind, take_rows


class AuxiliaryVectors(nn.Module):
    """The table [K, D] and the assignment of labels to its rows.

    Attributes:
        table: a [K, D], row-sparse: a step costs the rows of its labels.
        clusters: C(l) [L] int64, a buffer; -1 before `assign`.
    Args:
        init: xavier, or zeros: labels then start as their texts' embeddings.
    """

    table: DeclaredParameter
    clusters: Tensor

    def __init__(
        self,
        count: int,
        dim: int,
        num_labels: int,
        init: str,
    ) -> None:
        super().__init__()
        self.table = DeclaredParameter(torch.zeros(count, dim), Kind(Gradient.ROWS))
        if init == "xavier":
            nn.init.xavier_uniform_(self.table)
        self.register_buffer("clusters", torch.full((num_labels,), -1))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        normalize: bool,
    ) -> Tensor:
        """Embeddings of the texts of labels [k] -> representations of these labels [k, D]."""
        rows = self.clusters[labels]  # [k]
        summed = embeddings + take_rows(self.table, rows).to(embeddings.dtype)  # [k, D]
        return F.normalize(summed, dim=-1) if normalize else summed

    def nearest(
        self,
        embeddings: Tensor,
        centroids: Tensor,
        normalize: bool,
    ) -> Tensor:
        """Represent labels never seen by the vector of the nearest cluster [k, D].

        Args:
            embeddings: of the new labels' texts [k, D].
            centroids: of the clusters [K, D]; a zero row where one is empty.
        """
        is_empty = ~centroids.any(1)  # [K]
        near = (embeddings @ centroids.T).masked_fill(is_empty, -torch.inf)  # [k, K]
        vectors = self.table.detach()[near.argmax(1)]  # [k, D]
        return F.normalize(embeddings + vectors, dim=-1) if normalize else embeddings + vectors


def assign(
    embeddings: np.ndarray, counts: np.ndarray, vectors: int, head: int, *, seed: int, threads: int
) -> np.ndarray:
    """Assign a vector to each label [L] int64.

    The vectors 0..head-1 go to the most frequent labels, one each, the others to clusters of the
    rest.

    Args:
        embeddings: of the labels' texts by the initial encoder [L, D].
        counts: training points of each label [L].
        vectors: K.
        head: labels that have a vector of their own.
    """
    clusters = np.arange(len(counts))
    if vectors == len(counts):
        return clusters
    order = np.argsort(-counts, kind="stable")
    clusters[order[:head]] = np.arange(head)
    rest = np.sort(order[head:])
    if len(rest):
        hierarchy = balanced_hierarchy(
            np.ascontiguousarray(embeddings[rest]),
            [vectors - head],
            seed=seed,
            threads=threads,
            name="cluster labels",
        )
        clusters[rest] = head + hierarchy.clusters()
    return clusters


def number_of_vectors(config: Config, data: Dataset | DataSizes) -> int:
    """K, checked against the data.

    Raises:
        ConfigError: neither K nor what K has beyond the head labels is a power of two, or there are
            more vectors or more head labels than labels.
    """
    options = config.method
    labels = data.num_labels
    count = options.num_vectors
    head = options.num_head_vectors
    if head and count in ("labels", labels, 0):
        raise ConfigError(
            f"method.num_head_vectors is {head}, but with method.num_vectors {count} no labels "
            "share a vector; leave it 0"
        )
    if count in ("labels", labels):
        return labels
    if count > labels:
        raise ConfigError(
            f"method.num_vectors is {count}, more than the labels of {data.name}, {labels}; "
            "`labels` gives each its own"
        )
    if count and head > labels:
        raise ConfigError(
            f"method.num_head_vectors is {head}, more than the labels of {data.name}, {labels}"
        )
    if count and head >= count:
        raise ConfigError(
            f"method.num_head_vectors is {head}, which leaves none of method.num_vectors, "
            f"{count}, for the other labels"
        )
    if count and not (_is_power_of_two(count) or _is_power_of_two(count - head)):
        below = 1 << int(math.log2(count - head))
        near = f"{below}, {2 * below}"
        if head:
            near = f"{below + head} or {2 * below + head} with the {head} head vectors"
        raise ConfigError(
            f"method.num_vectors is {count}, expected a power of two, or one beyond "
            f"method.num_head_vectors (near: {near}), 0 for none, or `labels` for one a label"
        )
    return count


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
