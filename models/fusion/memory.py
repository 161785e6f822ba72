"""A memory of the training queries: nearest neighbours in a member's embedding space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.encoders.reader import Reader
from models.scores import Reached
from utils.data.texts import Texts
from utils.reading.matrices import read_matrix
from utils.reading.matrix_checks import RELEVANCE
from utils.reading.saved import map_rows
from utils.search import ExactIndex
from utils.sparse import topk_csr

MEMORY = "memory"  # a member's name, that of the remembered queries


class QueryMemory:
    """A memory of nearest neighbours.

    A label's score is the summed exp((cos - 1) / tau) of the nearest training queries that have it.

    Args:
        keys: embeddings of the training queries [N, D], of unit length.
        relevance: their labels, CSR [N, L].
        reader: that made the keys, for new queries.
        neighbours: queries that are looked at.
        tau: temperature.
    """

    def __init__(
        self,
        keys: np.ndarray,
        relevance: sp.csr_matrix,
        reader: Reader,
        neighbours: int,
        tau: float,
    ) -> None:
        if len(keys) != relevance.shape[0]:
            raise ValueError(f"memory: {len(keys)} keys but labels of {relevance.shape[0]} queries")
        self.keys = keys
        self.relevance = relevance.astype(np.float32)
        self.reader = reader
        self.tau = tau
        self.neighbours = min(neighbours, len(keys))
        self._index = ExactIndex(keys)

    def open(self, texts: Texts) -> Reached:
        """Scores of some texts."""
        return self.search(texts.embeddings(self.reader))

    def search(self, queries: Tensor) -> Reached:
        """Scores for query embeddings [n, D]."""
        queries = torch.nn.functional.normalize(queries.float(), dim=1)
        similar, rows = self._index.search(queries, self.neighbours)  # [n, neighbours] each
        weights = torch.exp((similar - 1) / self.tau)
        near = topk_csr(weights.cpu().numpy(), rows.cpu().numpy(), len(self.keys))  # [n, N]
        return Reached(near @ self.relevance)

    def save(self, folder: Path) -> None:
        """Write the keys and their labels into a new folder."""
        folder.mkdir()
        np.save(folder / "keys.npy", self.keys)
        sp.save_npz(folder / "labels.npz", self.relevance)

    @classmethod
    def load(
        cls,
        folder: Path,
        reader: Reader,
        neighbours: int,
        tau: float,
    ) -> QueryMemory:
        """What `save` wrote, the keys mapped from disk."""
        relevance = read_matrix(folder / "labels.npz", RELEVANCE)
        keys = map_rows(folder / "keys.npy", (relevance.shape[0], None))
        return cls(keys, relevance, reader, neighbours, tau)
