"""Classifiers and label embeddings over one encoder that answer together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from models.classifiers.label_rows import read_rows
from models.contract import Ranker, Vectors, write_facts
from models.encoders.building import load_encoder
from models.encoders.reader import Reader
from models.scores import Index, Scores
from utils.config.config import Config, EvalConfig
from utils.data.texts import Texts
from utils.errors import InputError
from utils.fusing.score_tree import ScoreTree
from utils.reading.saved import map_rows
from utils.runtime import Runtime
from utils.search import build_index


@dataclass(frozen=True)
class FusedMembers:
    """The classifier, x . w_l + tau b_l, and the label embeddings, x . z_l.

    Attributes:
        weight: w [L, D], of unit length.
        bias: tau b [L].
        embeddings: z [L, D].
        indexes: of both, in this order.
    """

    weight: Tensor
    bias: Tensor
    embeddings: np.ndarray
    indexes: tuple[Index, Index]

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor,
        embeddings: np.ndarray,
        index_name: str,
        settings: EvalConfig,
    ) -> FusedMembers:
        """Members that are searched by `index_name`."""
        classifier = build_index(index_name, weight, bias, settings=settings)
        embedding = build_index(index_name, embeddings, settings=settings)
        return cls(weight, bias, embeddings, (classifier, embedding))

    def candidates(self, queries: Tensor, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the best labels of either member, and both members' scores of them.

        Returns:
            labels: [n, 2 wanted], -1 where one stands twice.
            scores: [n, 2 wanted, 2].
        """
        proposals = [index.search(queries, wanted)[1].cpu().numpy() for index in self.indexes]
        labels = np.sort(np.concatenate(proposals, 1), 1)
        is_second = labels[:, 1:] == labels[:, :-1]
        labels[:, 1:][is_second] = -1
        return labels, self.scores(queries, labels)

    def scores(self, queries: Tensor, labels: np.ndarray) -> np.ndarray:
        """Both members' scores of given labels [n, c]: [n, c, 2], whatever where a label is -1."""
        return np.stack([index.of(queries, labels) for index in self.indexes], 2)


class FusedScores(Scores):
    """Fused scores of queries [n, D], of which `eval.batch_size` are searched together."""

    def __init__(
        self, queries: Tensor, members: FusedMembers, fusion: ScoreTree, config: Config
    ) -> None:
        self.queries = queries
        self.members = members
        self.fusion = fusion
        self.proposed = config.method.candidates
        self.at_once = config.eval.batch_size

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k candidates with the best fused scores."""
        values = np.empty((len(self.queries), k), np.float32)
        ids = np.empty((len(self.queries), k), np.int64)
        wanted = min(max(k, self.proposed), len(self.members.weight))
        for start in range(0, len(self.queries), self.at_once):
            rows = slice(start, start + self.at_once)
            labels, scores = self.members.candidates(self.queries[rows], wanted)
            fused = self._fused(scores, labels)
            best = np.lexsort((labels, -fused))[:, :k]
            values[rows] = np.take_along_axis(fused, best, 1)
            ids[rows] = np.take_along_axis(labels, best, 1)
        return values, ids

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self._fused(self.members.scores(self.queries, labels), labels)

    def _fused(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Fused scores [n, c] of both members' [n, c, 2]; -inf where a label is -1."""
        known = labels >= 0
        fused = np.full(labels.shape, -np.inf, np.float32)
        fused[known] = self.fusion(scores[known], labels[known])
        return fused


@dataclass(frozen=True)
class FusedModel:
    """What was fitted, and what cross-fitting thinks of it: metrics by name."""

    fusion: ScoreTree
    checked: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class FusedRanker(Ranker):
    """Ranks the candidates of both members by their fused score.

    Args:
        reader: of the queries.
        members: with the searches that `open` asks.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"index"})

    def __init__(
        self,
        config: Config,
        reader: Reader,
        members: FusedMembers,
        model: FusedModel,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, len(members.weight), folder)
        self.reader: Reader = reader
        self.members = members
        self.model = model
        self.index = members.indexes[0]

    @property
    def score_is(self) -> str:
        return "weighted sum of a classifier's score, a cosine and a tree's probability"

    def open(self, texts: Texts, given: bool = False) -> FusedScores:
        return FusedScores(self.queries(texts), self.members, self.model.fusion, self.config)

    def vectors(self) -> dict[str, Vectors]:
        """What proposes candidates."""
        members = self.members
        classifier = Vectors(members.weight, members.bias)
        return {"classifier": classifier, "embeddings": Vectors(members.embeddings)}

    # ---- files
    def save(self, folder: Path) -> None:
        """Write the encoder, both members and the tree."""
        members = self.members
        tensors = {"weight": members.weight.contiguous(), "bias": members.bias.contiguous()}
        self.reader.encoder.save(folder)
        save_file(tensors, folder / "classifier.safetensors")
        np.save(folder / "label_embeddings.npy", members.embeddings)
        self.model.fusion.save(folder / "fusion.npz")
        (folder / "fusion.json").write_text(json.dumps(self.model.checked, indent=1) + "\n")
        write_facts(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> FusedRanker:
        """Read what `save` wrote; the embeddings are mapped from disk."""
        encoder = load_encoder(config.encoder, folder)
        weight, bias = read_rows(folder, num_labels, encoder.dim)
        embeddings = map_rows(folder / "label_embeddings.npy", (num_labels, encoder.dim))
        fusion = ScoreTree.load(folder / "fusion.npz")
        if fusion.statistics.shape != (num_labels, 1):
            raise InputError(
                f"{folder / 'fusion.npz'}: expected statistics of shape ({num_labels}, 1), got "
                f"{fusion.statistics.shape}"
            )
        members = FusedMembers.of(weight, bias, embeddings, config.eval.index, config.eval)
        reader = Reader.frozen(encoder, config, runtime)
        return cls(config, reader, members, FusedModel(fusion), folder)
