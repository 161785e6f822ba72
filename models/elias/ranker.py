"""What an ELIAS run holds: an encoder and a graph index, by which it answers.

score of label l = sigmoid(w_l . x / tau + bias_l) s_c s_cl      by the best path c to the label
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.contract import Ranker, write_facts
from models.elias.formulas import best_labels
from models.elias.graph import Graph
from models.elias.index import GraphIndex
from models.elias.options import Limits, SearchSettings
from models.elias.report import graph_arrays, graph_facts, save_report
from models.encoders.building import load_encoder
from models.encoders.reader import Reader
from models.scores import Scores, lowest_where_unreached
from utils.config.config import Config
from utils.data.texts import Texts
from utils.errors import InputError
from utils.files import link_or_copy
from utils.reading.saved import read_facts, read_tensors
from utils.runtime import Runtime

PROJECTION = "projection.safetensors"


class GraphRanker(Ranker):
    """Searches a graph of clusters and labels.

    Attributes:
        reader: of the texts.
        projection: of embeddings for the label classifiers; None without one.
        graph: what is searched, which may look at tensors in training.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"precision"})
    at_once: ClassVar[int] = 4096  # texts, of each of which K labels are kept

    reader: Reader

    def __init__(
        self,
        config: Config,
        reader: Reader,
        projection: nn.Linear | None,
        graph: GraphIndex,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, len(graph.labels), folder)
        self.reader = reader
        self.projection = projection
        self.graph = graph

    @property
    def score_is(self) -> str:
        return "product of cluster, edge and label scores along the best path"

    def open(self, texts: Texts, given: bool = False) -> GraphScores:
        queries = texts.embeddings(self.reader)
        projected = self._project(queries)
        return GraphScores(self.graph, queries, projected, self.config.eval.batch_size)

    @torch.no_grad()
    def _project(self, queries: Tensor) -> Tensor:
        """Embeddings [n, D] as the label classifiers take them [n, D']."""
        if self.projection is None:
            return queries
        with self.reader.runtime.autocast():
            parts = [self.projection(part) for part in queries.split(self.reader.batch_size)]
        return torch.cat(parts).float()

    # ---- what others may ask for
    @cached_property
    def _learned(self) -> dict[str, np.ndarray]:
        return graph_arrays(self.graph, self.num_labels)

    def facts(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What the graph has learned."""
        return graph_facts(self._learned)

    def clusters(self) -> dict[str, sp.csr_matrix]:
        return {"graph": self.learned_graph().to_csr()}

    def learned_graph(self) -> Graph:
        """The graph, its edges' weights as values; all of it is read."""
        edges = np.asarray(self.graph.edges)
        inside = edges >= 0
        weights = np.exp(np.where(inside, self.graph.log_edges, 0))
        values = np.where(inside, weights, 0).astype(np.float32)
        return Graph(edges, values, self.num_labels)

    # ---- saving
    def save(self, folder: Path) -> None:
        """Write encoder, index, projection and what was learned; a loaded model is copied."""
        if self.folder is not None:
            shutil.copytree(self.folder, folder, copy_function=link_or_copy, dirs_exist_ok=True)
            return
        self.reader.encoder.save(folder)
        self.graph.save(folder)
        if self.projection is not None:
            weight = self.projection.weight.detach().contiguous()
            save_file({"weight": weight}, folder / PROJECTION)
        name = self.config.method.name
        write_facts(folder, name, self.num_labels, clusters=len(self.graph.clusters))
        save_report(folder, self._learned, graph_facts(self._learned))

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> GraphRanker:
        """Map what `save` wrote; a search reads the classifiers' rows that it needs from disk."""
        options = config.method
        clusters = read_facts(folder / "method.json", clusters=int)["clusters"]
        settings = SearchSettings.of(options, Limits.of(options, clusters, num_labels))
        encoder = load_encoder(config.encoder, folder)
        projection = None
        if options.wl_dim:
            projection = load_projection(folder, encoder.dim, options.wl_dim).to(runtime.device)
        sizes = (clusters, num_labels)
        graph = GraphIndex.load(folder, settings, config.eval.precision, sizes)
        check_widths(folder, graph, encoder.dim, options.wl_dim or encoder.dim)
        return cls(config, Reader.frozen(encoder, config, runtime), projection, graph, folder)


@dataclass(frozen=True)
class FoundLabels:
    """What a search found.

    Attributes:
        values: scores of the k best labels of each text [n, k].
        ids: of these labels [n, k].
        reached: ids of all labels that were scored on the way [n, K] int32.
    """

    values: np.ndarray
    ids: np.ndarray
    reached: np.ndarray


class GraphScores(Scores):
    """Of texts by a search of the graph, and of any labels by the same formula.

    Args:
        queries: [n, D].
        projected: the same as the label classifiers take them [n, D'].
        at_once: queries searched together.
    """

    def __init__(
        self,
        graph: GraphIndex,
        queries: Tensor,
        projected: Tensor,
        at_once: int,
    ) -> None:
        self.graph = graph
        self.queries = queries
        self.projected = projected
        self.at_once = at_once
        self._found: FoundLabels | None = None

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._at_least(k)
        return found.values[:, :k], found.ids[:, :k]

    def reached(self) -> np.ndarray:
        return self._at_least(1).reached.astype(np.int64)

    def _at_least(self, k: int) -> FoundLabels:
        """What was found before, if it is enough."""
        if self._found is None or self._found.ids.shape[1] < k:
            self._found = self._search(k)
        return self._found

    def of(self, labels: np.ndarray) -> np.ndarray:
        return lowest_where_unreached(self.given(labels))

    def given(self, labels: np.ndarray) -> np.ndarray:
        """Score given labels [n, c] float32; -inf for id -1 and labels that no cluster has.

        A label that the beam does not reach has its score without the beam.
        """
        check_given(labels, len(self.queries), len(self.graph.labels))
        scores = np.empty(labels.shape, np.float32)
        for rows in self._blocks():
            scores[rows] = self.graph.score_labels(
                self.queries[rows], labels[rows], self.projected[rows]
            )
        return scores

    def _search(self, k: int) -> FoundLabels:
        values = np.empty((len(self.queries), k), np.float32)
        ids = np.empty((len(self.queries), k), np.int64)
        reached = []
        for rows in self._blocks():
            labels, log_scores = self.graph.scored(self.queries[rows], self.projected[rows])
            best_values, best_ids = best_labels(labels, log_scores, k)
            values[rows] = best_values.cpu().numpy()
            ids[rows] = best_ids.cpu().numpy()
            reached.append(labels.int().cpu().numpy())
        return FoundLabels(values, ids, np.concatenate(reached))

    def _blocks(self) -> Iterator[slice]:
        """Queries searched together; once at least, so that widths are known of no query."""
        for start in range(0, max(len(self.queries), 1), self.at_once):
            yield slice(start, start + self.at_once)


def check_given(
    labels: np.ndarray,
    points: int,
    num_labels: int,
) -> None:
    """ValueError for given labels that are not ids [n, c] of so many points."""
    if labels.ndim != 2 or len(labels) != points:
        raise ValueError(f"expected given labels [{points}, c], got {labels.shape}")
    if labels.size and not -1 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(
            f"expected given labels from -1 to {num_labels - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )


def load_projection(
    folder: Path,
    dim: int,
    width: int,
) -> nn.Linear:
    """The projection of a saved model; InputError if it has another shape."""
    projection = nn.Linear(dim, width, bias=False).requires_grad_(False)
    shapes = {"weight": (width, dim)}
    projection.load_state_dict(read_tensors(folder / PROJECTION, shapes))
    return projection


def check_widths(
    folder: Path,
    graph: GraphIndex,
    dim: int,
    width: int,
) -> None:
    """InputError unless a saved index has these embedding and projected dimensions."""
    widths = (graph.clusters.rows.shape[1], graph.labels.rows.shape[1])
    if widths != (dim, width):
        raise InputError(
            f"{folder / 'clusters.npy'}, labels.npy: expected {dim} and {width} dimensions, got "
            f"{widths[0]} and {widths[1]}"
        )
