"""Classifiers and label embeddings searched together, their scores fused on validation points.

DEXA: Dahiya et al., KDD 2023. The last stage, after `xc`; nothing is trained.

Candidates are the best labels of either member, and both score all of them:

    classifier score  cos(x, w_l) + tau b_l
    embedding score   x . z_l
    final score       beta (p + embedding score) + classifier score

p comes from a decision tree on both scores and the label's inverse propensity; here p and the
embedding score have a weight each. The released code fits the tree on training points with the
filter pairs of the test split; here on the validation split with its own, where a lighter tree
serves few points.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.classifiers.fused_ranker import FusedMembers, FusedModel, FusedRanker
from models.classifiers.linear_ranker import XcRanker
from models.classifiers.xc import XcConfig
from models.contract import Solver, Start, check_encoders, check_labels_match
from models.encoders.reader import Reader, embed_all
from utils import distributed
from utils.config.config import Config, ConfigError, EncoderConfig, MethodConfig, option
from utils.config.sections import LARGEST, MANY_LABELS
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.fusing.score_tree import (
    ScoredCandidates,
    ScoreTreeSettings,
    choose,
    cross_fit,
    fit,
)
from utils.fusing.validation import Validation
from utils.pretrained.source import fill
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.sparse import remove_pairs, topk_csr

log = logging.getLogger(__name__)
TREE_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
EMBEDDING_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class FusedConfig(MethodConfig):
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


class Fused(Solver):
    """Fits the fusion of an xc run's classifier and the label embeddings it began with.

    Attributes:
        reader: of the xc run's encoder.
        members: its classifier and embeddings.
        model: what was fitted; None before `fit`.
    """

    Options = FusedConfig
    Answers = FusedRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        assert start is not None, "checked on paper"
        before = start()
        assert isinstance(before, XcRanker), "checked on paper"
        check_labels_match(config, before, data.num_labels)
        check_same_embeddings(config.encoder, before.reader.encoder.config)
        weight, bias = before.rows.expanded()  # [L, D], [L]
        self.members = FusedMembers.of(
            weight.cpu(),
            bias.cpu() * before.config.method.tau,
            before.rows.embeddings,
            "exact",
            config.eval,
        )
        self.reader = Reader.frozen(before.reader.encoder, config, runtime)
        self.model: FusedModel | None = None
        self._crossed: sp.csr_matrix | None = None  # of the validation points, on the main process

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse a run without an xc run to start from, or without validation points."""
        if not config.run.start_from:
            raise ConfigError(
                "method fused joins the classifiers and label embeddings of an xc run: run it as "
                "a stage after xc, or name such a run by run.start_from"
            )
        if sizes.validation < 2:
            raise ConfigError(
                "method fused is fitted on validation points: expected at least 2 of them, "
                f"data.val_fraction {config.data.val_fraction} gives {sizes.validation}"
            )
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        """Refuse any but an xc run whose encoder stayed as it was."""
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

    def ranker(self) -> FusedRanker:
        assert self.model is not None, "fit comes first"
        return FusedRanker(self.config, self.reader, self.members, self.model)

    def held_out_scores(self) -> sp.csr_matrix | None:
        """Cross-fitted scores of the validation points, which the tree was fitted on."""
        return self._crossed

    # ---- fitting
    def fit(self, folder: Path) -> None:
        """Fit the tree on the validation split, and say what cross-fitting thinks of it."""
        members = self.score_validation()
        model = None
        if distributed.is_main():
            relevance = self.data.splits["val"].relevance
            scored = ScoredCandidates.of(members, self.data.seen_weights()[:, None], relevance)
            weights = self.choose_weights(scored)
            fusion = fit(scored, weights)
            self._crossed = cross_fit(scored, weights)
            validation = Validation(relevance, self.data.label_weights())
            checked = validation.report(
                {
                    "classifier": members[0],
                    "embedding": members[1],
                    "fused, cross-fitted": self._crossed,
                }
            )
            model = FusedModel(fusion, checked)
        self.model = distributed.broadcast(model)

    def choose_weights(self, scored: ScoredCandidates) -> ScoreTreeSettings:
        """Take the configured weights; those left open by cross-fitted nDCG@5.

        With fewer than five labels, nDCG at L.
        """
        options = self.config.method
        trees = TREE_WEIGHTS if options.tree_weight is None else (options.tree_weight,)
        embeddings: tuple[float, ...] = EMBEDDING_WEIGHTS
        if options.embedding_weight is not None:
            embeddings = (options.embedding_weight,)
        choices = [
            ScoreTreeSettings(tree, (1.0, embedding), options.depth, options.min_leaf)
            for tree, embedding in product(trees, embeddings)
        ]
        chosen = choose(scored, choices, f"nDCG@{min(5, self.data.num_labels)}")
        log.info(
            "fusion: weight of the tree %g, of the embedding score %g",
            chosen.tree_weight,
            chosen.member_weights[1],
        )
        return chosen

    def score_validation(self) -> list[sp.csr_matrix]:
        """Score every candidate of the validation points by both members, filter pairs removed.

        Returns:
            CSR [n, L] of each member on the main process, [] on the others.
        """
        split = self.data.splits["val"]
        num_labels = self.data.num_labels
        wanted = min(self.config.method.candidates, num_labels)
        share = distributed.share(len(split))
        queries = embed_all(self.reader, split.texts)[share.start : share.stop]
        labels = np.empty((len(share), 2 * wanted), np.int64)
        scores = np.empty((len(share), 2 * wanted, 2), np.float32)
        for start in range(0, len(share), self.config.eval.batch_size):
            rows = slice(start, start + self.config.eval.batch_size)
            labels[rows], scores[rows] = self.members.candidates(queries[rows], wanted)
        all_labels = distributed.gather_arrays(labels)
        all_scores = distributed.gather_arrays(scores)
        if all_labels is None or all_scores is None:
            return []
        pairs = split.filters.nonzero()
        classifier = topk_csr(all_scores[:, :, 0], all_labels, num_labels)
        embedding = topk_csr(all_scores[:, :, 1], all_labels, num_labels)
        return [remove_pairs(classifier, *pairs), remove_pairs(embedding, *pairs)]


def check_same_embeddings(ours: EncoderConfig, theirs: EncoderConfig) -> None:
    """ConfigError where two encoders of equal weights would embed a text differently."""
    ours = fill(ours)
    theirs = fill(theirs)
    pairs: dict[str, tuple[Any, Any]] = {
        "pooling": (ours.pooling, theirs.pooling),
        "normalize": (ours.normalize, theirs.normalize),
        "prompt": (ours.point_prompt, theirs.point_prompt),
    }
    for key, (wanted, given) in pairs.items():
        if wanted != given:
            raise ConfigError(
                f"run.start_from: its encoder.{key} is {given!r}, this run's {wanted!r}; method "
                "fused reads texts as the xc run does"
            )
