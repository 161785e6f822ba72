"""The graph A of ELIAS: which labels hang on which cluster, and how strongly.

    graph = cluster_graph(features, max_leaf=100, seed=0)           # stage 1: clusters of labels
    graph = approximate_graph(relevance, matching, graph, kappa)    # stage 2: what points visit
    graph.save("graph.npz")
    graph = Graph.load("graph.npz", num_labels)

Gupta et al., NeurIPS 2022, arXiv 2210.08410.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.clustering.clustering import balanced_hierarchy
from utils.clustering.matching import count_matrix, top_assignment
from utils.errors import InputError
from utils.files import written_whole
from utils.reading.arrays import array_names, read_arrays
from utils.reading.input_files import present
from utils.reading.matrices import matrix_header, read_matrix
from utils.sparse import canonical, entry_rows, lookup, topk_csr, topk_rows

log = logging.getLogger(__name__)
ORIGIN = "made_of"  # member of a graph file


@dataclass(frozen=True)
class Graph:
    """A [C, L].

    Attributes:
        labels: of each cluster [C, W] int32, ascending, -1 behind the last.
        values: of the edges [C, W] float32, in (0, 1].
        num_labels: L.
    """

    labels: np.ndarray
    values: np.ndarray
    num_labels: int

    @classmethod
    def from_csr(cls, matrix: sp.csr_matrix, where: str = "A") -> Graph:
        """Take a matrix [C, L].

        Raises:
            InputError: a cluster without labels, or values outside (0, 1].
        """
        matrix = canonical(matrix)
        if not matrix.data.all():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        counts = np.diff(matrix.indptr)
        if len(counts) == 0 or (counts == 0).any():
            number = "all of none"
            if len(counts):
                number = f"cluster {np.argmin(counts)} ({(counts == 0).sum():,} in all)"
            raise InputError(
                f"{where}: expected at least one label in each of {len(counts):,} clusters; "
                f"{number} has none"
            )
        if not ((matrix.data > 0) & (matrix.data <= 1)).all():
            raise InputError(
                f"{where}: expected edge values in (0, 1], got {matrix.data.min()} to "
                f"{matrix.data.max()}"
            )
        labels = np.full((len(counts), counts.max()), -1, np.int32)
        values = np.zeros(labels.shape, np.float32)
        inside = np.arange(labels.shape[1]) < counts[:, None]
        labels[inside] = matrix.indices
        values[inside] = matrix.data
        return cls(labels, values, matrix.shape[1])

    def to_csr(self) -> sp.csr_matrix:
        inside = self.labels >= 0
        indptr = np.concatenate([[0], np.cumsum(inside.sum(1))])
        entries = (self.values[inside], self.labels[inside], indptr)
        return sp.csr_matrix(entries, (len(self.labels), self.num_labels))

    @property
    def num_clusters(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Labels of each cluster [C]."""
        return (self.labels >= 0).sum(1)

    def parents(self, values: np.ndarray | None = None) -> np.ndarray:
        """parent(l) = argmax_c A_cl [L] int64; -1 without any.

        The lower cluster where values are equal.

        Args:
            values: of the edges, instead of A's own [C, W].
        """
        inside = self.labels >= 0
        clusters = np.nonzero(inside)[0]
        labels = self.labels[inside]
        values = (self.values if values is None else values)[inside]
        order = np.lexsort((-clusters, values))  # the last one to write wins
        parents = np.full(self.num_labels, -1, np.int64)
        parents[labels[order]] = clusters[order]
        return parents

    def unreachable(self) -> int:
        """Labels that no cluster has: no search ever finds them."""
        return self.num_labels - len(np.unique(self.labels[self.labels >= 0]))

    def save(self, path: Path, origin: Mapping[str, Any] | None = None) -> None:
        """Write a scipy matrix [C, L] that says what it was made of.

        As JSON, in a member of the archive that scipy does not look at.
        """
        with written_whole(Path(path)) as partial:
            with open(partial, "wb") as file:  # by its name, scipy would give it a suffix
                sp.save_npz(file, self.to_csr())
            with (
                zipfile.ZipFile(partial, "a") as archive,
                archive.open(f"{ORIGIN}.npy", "w") as member,
            ):
                said = json.dumps(dict(origin or {})).encode()
                np.lib.format.write_array(member, np.frombuffer(said, np.uint8))

    @staticmethod
    def origin(path: str | Path) -> dict[str, Any]:
        """What a graph file says that it was made of; nothing where another program wrote it."""
        if ORIGIN not in array_names(path):
            return {}
        try:
            said = json.loads(read_arrays(path, (ORIGIN,))[ORIGIN].tobytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {ORIGIN}: not JSON ({error})") from error
        return said if isinstance(said, dict) else {}

    @staticmethod
    def clusters_of_file(path: str | Path, num_labels: int) -> int:
        """Clusters of a graph that is not read yet; InputError as for `load`."""
        _check_there(path)
        clusters, labels, _ = matrix_header(Path(path))
        _check_labels(path, labels, num_labels)
        return clusters

    @classmethod
    def load(cls, path: str | Path, num_labels: int) -> Graph:
        """Read a graph that `save` wrote, or any scipy matrix [C, L].

        Raises:
            InputError: it is missing or of other labels.
        """
        _check_there(path)
        matrix = read_matrix(path)
        _check_labels(path, matrix.shape[1], num_labels)
        return cls.from_csr(matrix, str(path))


def _check_there(path: str | Path) -> None:
    if not present(path):
        raise InputError(
            f"{path}: no such file; expected a graph A, clusters x labels, as `python "
            "elias_utils.py gen_cluster_A CONFIG` writes it"
        )


def _check_labels(
    path: str | Path,
    labels: int,
    expected: int,
) -> None:
    if labels != expected:
        raise InputError(
            f"{path}: the graph has {labels:,} labels, expected the {expected:,} of the data set"
        )


def cluster_count(num_labels: int, max_leaf: int) -> int:
    """C = 2^ceil(log2(L / max_leaf))."""
    return 1 << max(0, (-(-num_labels // max_leaf) - 1).bit_length())


def cluster_graph(
    features: sp.csr_matrix | np.ndarray, max_leaf: int, seed: int, threads: int = 1
) -> Graph:
    """Make A of stage 1: balanced 2-means, level by level; each label in one cluster.

    Args:
        features: of the labels [L, F].
    """
    clusters = cluster_count(features.shape[0], max_leaf)
    hierarchy = balanced_hierarchy(
        features,
        [2] * (clusters.bit_length() - 1),
        seed=seed,
        threads=threads,
        name="cluster labels",
    )
    return graph_of_clusters(hierarchy.clusters(), clusters)


def graph_of_clusters(clusters: np.ndarray, number: int) -> Graph:
    """The graph in which each label [L] hangs on one cluster, with value 1."""
    labels = np.arange(len(clusters))
    ones = np.ones(len(clusters), np.float32)
    return Graph.from_csr(sp.csr_matrix((ones, (clusters, labels)), (number, len(labels))))


def approximate_graph(
    relevance: sp.csr_matrix, matching: sp.csr_matrix, before: Graph, kappa: int
) -> Graph:
    """Make A' of stage 2: of each cluster the `kappa` labels with the largest (Y^T M)_lc.

    Values are in proportion to the cluster's largest. Each label's best cluster comes before its
    others' claims, so that no label is lost as long as there is room (in the paper rare labels
    are). A label without any count, or a cluster that no point visits, keeps what it has in
    `before`.

    Args:
        relevance: Y [N, L].
        matching: M [N, C], the scores of each training point's top clusters.
    """
    counts = count_matrix(relevance, matching)  # Y^T M [L, C]
    parents = before.parents()  # [L]
    lost = np.flatnonzero((np.diff(counts.indptr) == 0) & (parents >= 0))
    tiny = 1e-6 * (counts.data.min() if counts.nnz else 1)
    traces = np.full(len(lost), tiny, np.float32)  # so that they stay where they are
    counts = canonical(counts + sp.csr_matrix((traces, (lost, parents[lost])), counts.shape))
    anchors = top_assignment(counts, 1, axis="label", binary=True)
    claims = counts + anchors * np.float32(2 * counts.data.max(initial=0))
    ids, _ = topk_rows(claims.T.tocsr(), kappa)  # [C, kappa]
    values = lookup(counts.T, np.arange(len(ids))[:, None], ids)
    kept = topk_csr(values, ids, counts.shape[0])  # [C, L]
    empty = np.diff(kept.indptr) == 0
    if empty.any():
        log.info("%d clusters are never visited; they keep their labels", empty.sum())
        ids, values = topk_rows(before.to_csr(), kappa)
        ids[~empty] = -1
        kept = canonical(kept + topk_csr(values, ids, counts.shape[0]))
    largest = np.maximum.reduceat(kept.data, kept.indptr[:-1])  # [C]
    kept.data /= largest[entry_rows(kept)]
    return Graph.from_csr(kept, "A'")


def check_graph(
    graph: Graph,
    clusters: int | None,
    kappa: int,
    where: str,
) -> Graph:
    """Check that a graph fits the options; warn of labels that no search can find.

    Args:
        clusters: that it must have.
        kappa: labels of a cluster, at most.
        where: of the graph, for the message.
    Raises:
        InputError: it does not.
    """
    if clusters is not None and graph.num_clusters != clusters:
        raise InputError(
            f"{where}: the graph has {graph.num_clusters:,} clusters, expected {clusters:,} "
            "(method.max_leaf)"
        )
    if graph.labels.shape[1] > kappa:
        raise InputError(
            f"{where}: cluster {graph.lengths.argmax()} has {graph.labels.shape[1]:,} labels, at "
            f"most {kappa:,} (method.kappa)"
        )
    if lost := graph.unreachable():
        log.warning(
            "%s: %d of %d labels are in no cluster and can never be found; recall is at most "
            "that of the others",
            where,
            lost,
            graph.num_labels,
        )
    return graph
