"""What a fused method asks of its members: the labels they propose for some points, and their
scores of any others.

scores = method.open_points(split, points, accelerator)      # encodes, or walks the tree, once
values, ids = scores.best(100)
scores.of(labels)      # [n, c], labels that others proposed too
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from utils.candidate_kernels import best_of_rows, dot_given, stored_given
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.reading.matrices import RELEVANCE, read_matrix
from utils.reading.saved import map_rows
from utils.run.environment import check_same_data
from utils.search import ExactIndex
from utils.sparse import canonical, topk_csr
from utils.threads import over_threads

if TYPE_CHECKING:
    from models.method import Method

MEMORY = "memory"  # a member's name, that of the remembered queries
POINTS_AT_ONCE = 64  # whose candidates' rows are gathered together


class Scores(Protocol):
    """Scores of some points [n], opened once."""

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of each point: (scores [n, k] float32, ids [n, k] int64), -inf and -1 =
        no more."""

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Scores [n, c] float32 of given labels [n, c]; what stands where a label is -1 has no
        meaning."""


class InnerProducts:
    """Of embeddings [n, D] with the rows of an index over all labels."""

    def __init__(self, queries: Tensor, index) -> None:
        self.queries, self.index = queries, index

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(a.cpu().numpy() for a in self.index.search(self.queries, k))

    def of(self, labels: np.ndarray) -> np.ndarray:
        return inner_products(self.queries, self.index.labels, self.index.bias, labels)


def inner_products(
    queries: Tensor, rows: Tensor | np.ndarray, bias: Tensor | None, labels: np.ndarray
) -> np.ndarray:
    """x_i . w_l + b_l of given labels: [n, c] float32."""
    rows = torch.as_tensor(rows)  # shares the memory of an array, a mapped one too
    if queries.device.type != "cpu" or rows.dtype != torch.float32:
        out = _gathered(queries, rows, labels)
    else:
        out = np.empty(labels.shape, np.float32)
        x = queries.float().contiguous().numpy()
        w = rows.detach().numpy()
        over_threads(lambda i, j: dot_given(x[i:j], w, labels[i:j], out[i:j]), len(labels))
    return out if bias is None else out + bias.cpu().numpy()[np.maximum(labels, 0)]


def _gathered(queries: Tensor, rows: Tensor, labels: np.ndarray) -> np.ndarray:
    """x_i . w_l for any device and precision, by copies of the rows."""
    out = np.empty(labels.shape, np.float32)
    for start in range(0, len(labels), POINTS_AT_ONCE):
        own = np.maximum(labels[start : start + POINTS_AT_ONCE], 0)
        # [b, c, D]
        part = rows[own].to(queries.device, torch.float32)
        out[start : start + len(own)] = (
            torch.einsum("bd,bcd->bc", queries[start : start + len(own)], part).cpu().numpy()
        )
    return out


class Reached:
    """Scores of the labels that a search reached, CSR [n, L]; every other label has the score 0 or,
    where scores may be negative, the lowest of the point."""

    def __init__(self, scores: sp.csr_matrix, negative: bool = False) -> None:
        self.scores = canonical(scores)
        self.negative = negative

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        shape = self.scores.shape[0], k
        ids, values = np.empty(shape, np.int64), np.empty(shape, np.float32)
        best_of_rows(self.scores.indptr, self.scores.indices, self.scores.data, k, ids, values)
        return values, ids

    def of(self, labels: np.ndarray) -> np.ndarray:
        out = np.empty(labels.shape, np.float32)
        lowest = (
            self.scores.min(axis=1, explicit=True).toarray().ravel()
            if self.negative
            else np.zeros(len(labels), np.float32)
        )
        stored_given(self.scores.indptr, self.scores.indices, self.scores.data, labels, lowest, out)
        return out


class Asked:
    """Of a method that is asked for proposals and for given labels by two calls of its own."""

    def __init__(self, propose: Callable, score: Callable) -> None:
        self._propose, self._score = propose, score

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._propose(k)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """A label that it cannot reach at all has the lowest score of the others of the point."""
        scores = self._score(labels)
        reached = ~np.isneginf(scores)
        lowest = np.where(reached, scores, np.inf).min(1, keepdims=True, initial=np.inf)
        return np.where(reached, scores, np.where(np.isfinite(lowest), lowest, 0.0)).astype(
            np.float32
        )


class QueryMemory:
    """A k-nearest-neighbour memory: a label's score is the summed exp((cos - 1) / tau) of the
    nearest training queries that have it.

    Args:
        keys: embeddings of the training queries [N, D], of unit length. relevance: their labels,
        CSR [N, L].
        neighbours: queries that are looked at. tau: temperature.
    """

    def __init__(
        self, keys: np.ndarray, relevance: sp.csr_matrix, neighbours: int, tau: float
    ) -> None:
        if len(keys) != relevance.shape[0]:
            raise ValueError(f"memory: {len(keys)} keys but labels of {relevance.shape[0]} queries")
        self.keys = keys
        self.relevance = relevance.astype(np.float32)
        self.tau = tau
        self.neighbours = min(neighbours, len(keys))
        self._index = ExactIndex(keys)

    def open(self, queries: Tensor) -> Reached:
        """Scores for query embeddings [n, D]."""
        similar, rows = self._index.search(
            torch.nn.functional.normalize(queries.float(), dim=1), self.neighbours
        )
        weights = torch.exp((similar - 1) / self.tau)
        return Reached(
            topk_csr(weights.cpu().numpy(), rows.cpu().numpy(), len(self.keys)) @ self.relevance
        )

    def save(self, folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "keys.npy", self.keys)
        sp.save_npz(folder / "labels.npz", self.relevance)

    @classmethod
    def load(cls, folder: Path, neighbours: int, tau: float) -> QueryMemory:
        relevance = read_matrix(folder / "labels.npz", RELEVANCE)
        keys = map_rows(folder / "keys.npy", (relevance.shape[0], None))
        return cls(keys, relevance, neighbours, tau)


def proposals(scores: Sequence[Scores], k: int) -> list[np.ndarray]:
    """Each member's k best labels [n, k]."""
    return [s.best(k)[1] for s in scores]


# -------------------------------- members of a fusion


def check_name(name: str) -> None:
    """A member's name becomes a folder's."""
    if (
        not name.replace("-", "").replace("_", "").isalnum()
        or name == MEMORY
        or hasattr(torch.nn.ModuleDict, name)
    ):
        raise ConfigError(
            f"method.members: '{name}' cannot be a member's name: expected letters, digits, - and "
            f"_, not {MEMORY} and no attribute of torch.nn.ModuleDict"
        )


def check_member(name: str, folder: Path, data: Dataset) -> None:
    """ConfigError unless a run was trained on the same data and left the same points for
    validation."""
    try:
        check_same_data(folder, data)
    except ValueError as error:
        raise ConfigError(f"method.members: {name}: {error}") from error


def of_data(own: Config, config: Config) -> Config:
    """A member's config, where the data set lies now and as this run searches."""
    data = dataclasses.replace(
        own.data,
        root=config.data.root,
        feature_cache=config.data.feature_cache,
        token_cache=config.data.token_cache,
    )
    return dataclasses.replace(
        own,
        eval=dataclasses.replace(config.eval, without=None),
        data=data,
        run=dataclasses.replace(own.run, threads=config.run.threads),
    )


def equal_encoders(one: Method, two: Method) -> bool:
    """Do two members turn every text into the same embedding?"""
    ours, theirs = one.encoder.state_dict(), two.encoder.state_dict()
    return (
        type(one.encoder) is type(two.encoder)
        and one.config.encoder == two.config.encoder
        and one.config.data.max_len == two.config.data.max_len
        and ours.keys() == theirs.keys()
        and one.encoder.tokenizer.get_vocab() == two.encoder.tokenizer.get_vocab()
        and all(
            ours[key].shape == theirs[key].shape and torch.equal(ours[key], theirs[key])
            for key in ours
        )
    )
