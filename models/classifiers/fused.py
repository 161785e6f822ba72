"""Classifiers and label embeddings searched together, their scores fused on validation points
(DEXA: Dahiya et al., KDD 2023). The last stage, after `xc`; nothing is trained.

Candidates are the best labels of either member, both score all of them: cos(x, w_l) + tau b_l and x
. z_l. The final score is beta (p + embedding score) + classifier score, p from a decision tree on
both scores and the label's inverse propensity; here p and the embedding score have a weight each.
The released code fits the tree on training points with the filter pairs of the test split; here on
the validation split with its own, where a lighter tree serves few points.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from models.classifiers.xc import Xc, XcConfig
from models.encoders.encoder import TextEncoder, build_encoder, load_encoder
from models.method import Asked, Method, check_encoders, load_label_embeddings, write_method
from models.scores import Scores
from utils import distributed
from utils.config.config import Config, ConfigError, MethodConfig, option
from utils.config.sections import LARGEST, MANY_LABELS
from utils.data.batches import TextBatch
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.fusing.score_tree import (
    ScoredCandidates,
    ScoreTree,
    ScoreTreeSettings,
    choose,
    cross_fit,
    fit,
)
from utils.fusing.validation import Validation
from utils.reading.saved import read_tensors
from utils.run.stages import Runs
from utils.search import build_index
from utils.sparse import remove_pairs, topk_csr

log = logging.getLogger(__name__)
QUERIES_AT_ONCE = 64  # whose candidates' rows are gathered together
TREE_WEIGHTS, EMBEDDING_WEIGHTS = (0.0, 0.1, 0.3, 1.0), (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class FusedConfig(MethodConfig):
    has_epochs: ClassVar[bool] = False
    embedding_weight: float | None = option(
        None,
        "weight of the embedding score, that of the classifier's being 1; null = the best of 0, "
        "0.25, 0.5, 1, 2 by cross-fitting",
        ge=0,
        le=LARGEST,
    )
    tree_weight: float | None = option(
        None,
        "weight of the tree's probability; null = the best of 0, 0.1, 0.3, 1 by cross-fitting",
        ge=0,
        le=LARGEST,
    )
    depth: int = option(7, "levels of the decision tree", ge=1, le=1000)
    min_leaf: int = option(
        100, "fewest candidates of validation points in a leaf of the tree", ge=1, le=10**9
    )
    candidates: int = option(
        100, "labels that each member proposes for a query", ge=1, le=MANY_LABELS
    )


class Fused(Method):
    """Two members over one encoder. Attributes: encoder; members, two (vectors [L, D], bias [L] or
    None) in the order classifier, embedding; fusion, None before `prepare`."""

    Options = FusedConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder
    ) -> None:
        super().__init__(config, num_labels, data)
        self.encoder = encoder.requires_grad_(False)
        self.members: list[tuple[Tensor | np.ndarray, Tensor | None]] = []
        self.fusion: ScoreTree | None = None
        self.checked: dict[str, dict[str, float]] = {}

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        if not config.run.start_from:
            raise ConfigError(
                "method fused joins the classifiers and label embeddings of an xc run: run it as "
                "a stage after xc, or name such a run by run.start_from"
            )
        if config.train.epochs:
            raise ConfigError(
                "method fused is fitted, not trained: expected train.epochs 0, got "
                f"{config.train.epochs}"
            )
        if sizes.validation < 2:
            raise ConfigError(
                "method fused is fitted on validation points: expected at least 2 of them, "
                f"data.val_fraction {config.data.val_fraction} gives {sizes.validation}"
            )
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        if not isinstance(before.method, XcConfig):
            raise ConfigError(
                "run.start_from: method fused starts from an xc run, not from one of "
                f"{before.method.name}"
            )
        if not before.method.freeze:
            raise ConfigError(
                "run.start_from: the xc run trained its encoder (method.freeze: false), so that "
                "the label embeddings it began with no longer fit"
            )
        check_encoders(config, before)

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Fused:
        return cls(config, data.num_labels, data, build_encoder(config.encoder, data))

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return frozenset()

    def start_from(self, other: Xc) -> None:
        self.start_from_encoder(other)
        weight, bias = other.label_rows(other.weight.detach(), other.bias.detach())
        self.members = [
            (weight.cpu(), bias.cpu() * other.config.method.tau),
            (other.label_embeddings, None),
        ]
        self._index()

    def _index(self, name: str = "exact") -> None:
        self.index, self.embedding_index = (
            build_index(name, *member, settings=self.config.eval) for member in self.members
        )

    # ---- fitting
    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Fit the tree on the validation split, and say what cross-fitting thinks of it."""
        members = self._score_validation(accelerator)
        split = self.data.splits["val"]
        fusion = None
        if distributed.is_main():
            scored = ScoredCandidates.of(
                members, self.data.seen_weights()[:, None], split.relevance
            )
            weights = self._choose_weights(scored)
            fusion = fit(scored, weights)
            validation = Validation(split.relevance, self.data.label_weights())
            self.checked = validation.report(
                {
                    "classifier": members[0],
                    "embedding": members[1],
                    "fused, cross-fitted": cross_fit(scored, weights),
                }
            )
        self.fusion = distributed.broadcast(fusion)

    def _choose_weights(self, scored: ScoredCandidates) -> ScoreTreeSettings:
        """The configured weights; those left open by cross-fitted nDCG@5 (nDCG at L if there are
        fewer labels)."""
        settings = self.config.method
        trees, embeddings = (
            choices if value is None else (value,)
            for value, choices in (
                (settings.tree_weight, TREE_WEIGHTS),
                (settings.embedding_weight, EMBEDDING_WEIGHTS),
            )
        )
        choices = [
            ScoreTreeSettings(tree, (1.0, embedding), settings.depth, settings.min_leaf)
            for tree in trees
            for embedding in embeddings
        ]
        chosen = choose(scored, choices, f"nDCG@{min(5, self.num_labels)}")
        log.info(
            "fusion: weight of the tree %g, of the embedding score %g",
            chosen.tree_weight,
            chosen.member_weights[1],
        )
        return chosen

    @torch.no_grad()
    def _score_validation(self, accelerator: Accelerator) -> list[sp.csr_matrix]:
        """Both members' scores of every candidate of the validation points, filter pairs removed,
        on the main process; [] on the others."""
        split = self.data.splits["val"]
        wanted = min(self.config.method.candidates, self.num_labels)
        own = distributed.share(len(split))
        self.eval()
        parts = []
        for start in range(own.start, own.stop, self.config.eval.batch_size):
            rows = split.rows[start : min(start + self.config.eval.batch_size, own.stop)]
            queries = self.encoder(
                TextBatch.take(split.tokens, rows).to(accelerator.device)
            ).float()
            ids, scores = self._candidates(queries, wanted)
            parts.append((ids.cpu().numpy(), scores.cpu().numpy()))
        width = 2 * wanted
        ids = np.concatenate([np.zeros((0, width), np.int64), *(p[0] for p in parts)])
        scores = np.concatenate([np.zeros((0, width, 2), np.float32), *(p[1] for p in parts)])
        ids, scores = (distributed.gather_arrays(a, len(split)) for a in (ids, scores))
        if ids is None:
            return []
        pairs = split.filters.nonzero()
        return [
            remove_pairs(topk_csr(scores[:, :, m], ids, self.num_labels), *pairs) for m in range(2)
        ]

    # ---- scoring
    def _candidates(self, queries: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """(candidate labels [B, 2 wanted], -1 where one stands twice; both members' scores [B, 2
        wanted, 2])."""
        found = [index.search(queries, wanted)[1] for index in (self.index, self.embedding_index)]
        ids = torch.cat(found, 1).sort(1).values
        ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
        return ids, self._member_scores(queries, ids)

    def _member_scores(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Both members' scores of given labels [B, n]: [B, n, 2], whatever where a label is -1."""
        scores = queries.new_empty(*labels.shape, 2)
        for start in range(0, len(labels), QUERIES_AT_ONCE):
            some = queries[start : start + QUERIES_AT_ONCE]
            own = labels[start : start + QUERIES_AT_ONCE].clamp(min=0)
            for member, (vectors, bias) in enumerate(self.members):
                # [b, n, D]
                rows = torch.as_tensor(vectors[own.cpu()]).to(queries.device)
                part = torch.einsum("bd,bnd->bn", some, rows)
                scores[start : start + len(own), :, member] = (
                    part if bias is None else part + bias.to(part.device)[own]
                )
        return scores

    def _fused(self, scores: Tensor, labels: np.ndarray) -> np.ndarray:
        """Fused scores [B, n] of both members' [B, n, 2]; -inf where a label is -1."""
        known = labels >= 0
        fused = np.full(labels.shape, -np.inf, np.float32)
        fused[known] = self.fusion(scores.cpu().numpy()[known], labels[known])
        return fused

    def _best(self, embeddings: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = self._candidates(
            embeddings, min(max(k, self.config.method.candidates), self.num_labels)
        )
        ids = ids.cpu().numpy()
        fused = self._fused(scores, ids)
        best = np.lexsort((ids, -fused))[:, :k]
        return np.take_along_axis(fused, best, 1), np.take_along_axis(ids, best, 1)

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        embeddings = self.encoder(queries).float()
        return tuple(torch.from_numpy(a).to(embeddings.device) for a in self._best(embeddings, k))

    def open_embeddings(self, embeddings: Tensor) -> Scores:
        return Asked(
            lambda k: self._best(embeddings, k),
            lambda labels: self._fused(
                self._member_scores(embeddings, torch.from_numpy(labels).to(embeddings.device)),
                labels,
            ),
        )

    def search_vectors(self) -> dict[str, tuple[Tensor | np.ndarray, Tensor | None]]:
        return dict(zip(("classifier", "embeddings"), self.members, strict=True))

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if distributed.is_main():
            (weight, bias), (embeddings, _) = self.members
            self.encoder.save(folder)
            save_file(
                {"weight": weight.contiguous(), "bias": bias.contiguous()},
                folder / "classifier.safetensors",
            )
            np.save(folder / "label_embeddings.npy", embeddings)
            self.fusion.save(folder / "fusion.npz")
            (folder / "fusion.json").write_text(json.dumps(self.checked, indent=1) + "\n")
            write_method(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Fused:
        method = cls(config, num_labels, None, load_encoder(config.encoder, folder))
        shape = (num_labels, method.encoder.dim)
        rows = read_tensors(
            folder / "classifier.safetensors", {"weight": shape, "bias": (num_labels,)}
        )
        embeddings = load_label_embeddings(folder, *shape)
        method.members = [(rows["weight"], rows["bias"]), (embeddings, None)]
        method.fusion = ScoreTree.load(folder / "fusion.npz")
        if method.fusion.statistics.shape != (num_labels, 1):
            raise InputError(
                f"{folder / 'fusion.npz'}: expected statistics of shape ({num_labels}, 1), got "
                f"{method.fusion.statistics.shape}"
            )
        method._index(config.eval.index)
        return method
