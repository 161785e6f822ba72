"""A trained ELIAS index, ready to search: classifiers in three precisions, mapped from disk.

    index = GraphIndex.load(folder, settings, precision="int8")
    scores, ids = index.search(queries, k=10)   # [B, k] each; -inf and -1 where fewer are reached

A query costs C inner products, its b clusters' edges, and K rows of the label classifiers: only
their pages are read, so the index may be larger than the memory. One thread takes whole queries;
one query is one thread's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.elias.formulas import best_labels, raised_shares, top_clusters
from models.elias.kernels import given_paths
from models.elias.label_scores import pool_scores
from models.elias.options import SearchSettings
from models.elias.search import select_labels
from utils.errors import InputError
from utils.files import written_whole
from utils.reading.saved import check_answers, map_rows
from utils.row_store import RowStore
from utils.threads import over_threads

SCORES_AT_ONCE = 1 << 23  # cluster scores held at a time
FEW = 8  # queries: fewer are one thread's, as threads that wait for each other cost milliseconds
CHECKED_ROWS = 8192  # clusters whose edges are checked at once on load


@dataclass
class GraphIndex:
    """Cluster and label classifiers, and the edges between them.

    Attributes:
        clusters: W_C [C, D].
        labels: W_L [L, D'].
        bias: [L].
        edges: label ids of each cluster [C, W] int32, -1 behind the last.
        log_edges: log s_cl [C, W].
        on_device: the same five where queries on a GPU are searched; None = copied there at the
            first search.
    """

    clusters: RowStore
    labels: RowStore
    bias: np.ndarray
    edges: np.ndarray
    log_edges: np.ndarray
    settings: SearchSettings
    on_device: list[Tensor] | None = field(default=None, repr=False)

    def search(
        self, queries: Tensor, k: int, projected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the k best labels of each query, best first, equal scores by lower id.

            score = sigmoid(w_l . x / tau + bias_l) s_c s_cl

        Args:
            queries: [B, D] for the clusters.
            projected: [B, D'] for the labels, where they have a projection.
        Returns:
            scores [B, k] and ids [B, k]; -inf and -1 where fewer labels are reached.
        """
        labels, log_scores = self.scored(queries, queries if projected is None else projected)
        return best_labels(labels, log_scores, k)

    def scored(self, queries: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        """The labels that are scored for each query, ascending, and their log scores: [B, K] each.

        -1 and -inf behind the last.
        """
        if queries.is_cuda:
            return self._on_gpu(queries, projected)
        return self._on_cpu(queries, projected)

    def _on_cpu(self, queries: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        step = max(1, SCORES_AT_ONCE // len(self.clusters))
        labels = []
        log_scores = []
        for start in range(0, max(len(queries), 1), step):
            part = slice(start, start + step)
            part_labels, part_scores = self._few(
                queries[part].float().contiguous(), projected[part].float().contiguous()
            )
            labels.append(part_labels)
            log_scores.append(part_scores)
        return torch.cat(labels), torch.cat(log_scores)

    def _few(self, queries: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        with threads(1 if len(queries) < FEW else torch.get_num_threads()):
            return self._search(queries, projected)

    def _search(self, queries: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        products = torch.from_numpy(self.clusters.products(queries.numpy()))  # [B, C]
        clusters, log_scores = top_clusters(
            products.div_(settings.cluster_tau), settings.alpha, settings.beam
        )  # [B, S]
        check_answers(log_scores, "scores of clusters")
        shortlist = select_labels(
            clusters,
            log_scores,
            torch.from_numpy(self.edges),
            torch.from_numpy(self.log_edges),
            clusters,
            size=settings.size,
        )
        ids = shortlist.labels.numpy()  # [B, K]
        dots = self.labels.dots(projected.numpy(), ids, over_threads)
        logits = dots / settings.tau + self.bias[ids]
        check_answers(logits, "scores of labels")
        return shortlist.labels, F.logsigmoid(torch.from_numpy(logits)) + shortlist.log_paths

    def score_labels(
        self, queries: Tensor, ids: np.ndarray, projected: Tensor | None = None
    ) -> np.ndarray:
        """Score given labels [B, n] as `search` does; -inf for id -1 and labels without a cluster.

        A label that none of a query's top clusters reaches counts by its best path through any
        cluster: the same formula without the beam.
        """
        projected = queries if projected is None else projected
        ids = np.asarray(ids, np.int64)
        step = max(1, SCORES_AT_ONCE // len(self.clusters))
        scores = np.empty(ids.shape, np.float32)
        for i in range(0, len(ids), step):
            part = slice(i, i + step)
            log_scores = self.log_cluster_scores(queries[part]).cpu()
            check_answers(log_scores, "scores of clusters")
            top = log_scores.topk(self.settings.beam, dim=1).indices.numpy()
            paths = given_paths(
                ids[part], log_scores.numpy(), top, np.asarray(self.log_edges), *self.incoming
            )
            dots = self.labels.dots(
                projected[part].float().contiguous().cpu().numpy(), ids[part], over_threads
            )
            logits = torch.from_numpy(dots / self.settings.tau + self.bias[ids[part]])
            check_answers(logits, "scores of labels")
            scores[part] = (F.logsigmoid(logits) + torch.from_numpy(paths)).exp().numpy()
            scores[part][np.isneginf(paths)] = -np.inf
        return scores

    @cached_property
    def incoming(self) -> tuple[np.ndarray, np.ndarray]:
        """The edges of each label; all edges are read.

        Returns:
            starts: of each label's edges among the places [L + 1].
            places: in the flat edges, label by label.
        """
        flat = np.asarray(self.edges).ravel()
        places = np.flatnonzero(flat >= 0)
        order = places[np.argsort(flat[places], kind="stable")]
        counts = np.bincount(flat[places], minlength=len(self.labels))
        return np.concatenate([[0], np.cumsum(counts)]), order

    def log_cluster_scores(self, queries: Tensor) -> Tensor:
        """log s_c of all clusters [B, C]."""
        settings = self.settings
        queries = queries.float()
        if queries.is_cuda:
            products = queries @ self._tensors(queries.device)[0].T
        else:
            products = torch.from_numpy(self.clusters.products(queries.contiguous().numpy()))
        return raised_shares(products / settings.cluster_tau, settings.alpha).clamp_(max=0)

    def _tensors(self, device: torch.device) -> list[Tensor]:
        """clusters, labels, bias, edges and log_edges on a GPU."""
        if self.on_device is None:
            arrays = [
                self.clusters.floats(slice(None)),
                self.labels.floats(slice(None)),
                self.bias,
                self.edges,
                self.log_edges,
            ]
            self.on_device = [
                torch.as_tensor(np.ascontiguousarray(array)).to(device) for array in arrays
            ]
        return self.on_device

    def _on_gpu(self, queries: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        weights, labels, bias, edges, log_edges = self._tensors(queries.device)
        clusters, log_scores = top_clusters(
            queries.float() @ weights.T / settings.cluster_tau, settings.alpha, settings.beam
        )  # [B, S]
        check_answers(log_scores, "scores of clusters")
        shortlist = select_labels(
            clusters, log_scores, edges, log_edges, clusters, size=settings.size
        )
        ids = shortlist.labels.clamp(min=0)  # [B, K]
        logits = pool_scores(projected, labels, ids) / settings.tau + bias[ids]
        check_answers(logits, "scores of labels")
        return shortlist.labels, F.logsigmoid(logits) + shortlist.log_paths

    def save(self, folder: Path) -> None:
        """Write the rows of both classifiers, the biases and the edges."""
        self.clusters.save(folder, "clusters")
        self.labels.save(folder, "labels")
        arrays = {"bias": self.bias, "edges": self.edges, "log_edges": self.log_edges}
        for name, array in arrays.items():
            path = folder / f"{name}.npy"
            with written_whole(path) as partial, open(partial, "wb") as file:
                np.save(file, array)

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: SearchSettings,
        precision: str = "float32",
        sizes: tuple[int | None, int | None] = (None, None),
    ) -> GraphIndex:
        """Map what `save` wrote.

        Args:
            sizes: clusters and labels that there must be; None = any number.
        Raises:
            InputError: naming the file which does not fit.
        """
        clusters = RowStore.load(folder, "clusters", precision, sizes[0])
        labels = RowStore.load(folder, "labels", precision, sizes[1])
        bias = map_rows(folder / "bias.npy", (len(labels),))
        edges = map_rows(folder / "edges.npy", (len(clusters), None), np.int32)
        log_edges = map_rows(folder / "log_edges.npy", edges.shape, low=-np.inf)
        check_edges(folder, edges, log_edges, len(labels))
        return cls(clusters, labels, bias, edges, log_edges, settings)


def check_edges(
    folder: Path,
    edges: np.ndarray,
    log_edges: np.ndarray,
    num_labels: int,
) -> None:
    """InputError for edges [C, W] to labels that there are not: kernels do not look."""
    for start in range(0, len(edges), CHECKED_ROWS):
        block = edges[start : start + CHECKED_ROWS]
        if block.size and not -1 <= block.min() <= block.max() < num_labels:
            raise InputError(
                f"{folder / 'edges.npy'}: an edge leads to label {block.max()} or {block.min()}, "
                f"there are {num_labels} labels"
            )
        if block.size and not log_edges[start : start + CHECKED_ROWS].max() < np.inf:
            raise InputError(
                f"{folder / 'log_edges.npy'}: expected logarithms of weights, got NaN or infinity"
            )


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch in the block."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
