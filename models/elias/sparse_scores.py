"""The scores of ELIAS++ (Gupta et al., NeurIPS 2022, arXiv 2210.08410, section 4, after PECOS).

    score = exp(-max(0, 1 - w_l . [norm(E(x)) ; tfidf(x)])^3), the l3-hinge of a ranker per label
    final = 0.3 tree(ranker score, ELIAS score, label frequency) + 0.7 ranker score

Beyond the paper, `method.logs: true` adds logarithms of both scores: a product of experts, each of
which can veto. ELIAS scores trained by decoupled softmax have no absolute scale; they become shares
of the candidates' sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.elias.ranker import GraphScores
from models.scores import Scores, lowest_where_unreached
from models.trees.options import LinearConfig
from utils.config.config import option
from utils.config.sections import LARGEST, MANY_LABELS
from utils.fusing.score_tree import ScoreTree
from utils.linear.layer import Features, Layer, score_candidates
from utils.linear.partition_tree import COMBINERS
from utils.sparse import lookup, topk_csr, topk_rows

HINGE = COMBINERS["l3-hinge"]
HINGE_FLOOR = 1e-4  # below these a logarithm says no more
SHARE_FLOOR = 1e-6
TINY = 1e-30


@dataclass(frozen=True)
class EliasRankerConfig(LinearConfig):
    features: tuple[str, ...] = option(
        ("tfidf", "start"),
        "what is read: tfidf, run folders (their embeddings), start = the embeddings of the run "
        "that is ranked, and .npy files, as for xr-linear",
    )
    candidates: int = option(100, "labels of ELIAS that are ranked anew", ge=1, le=MANY_LABELS)
    negatives: int = option(
        100,
        "labels of ELIAS for each training point; where they are wrong, it is their negative",
        ge=1,
        le=MANY_LABELS,
    )
    logs: bool = option(False, "the final score adds logarithms of the ranker's and ELIAS's scores")
    calibrate: bool = option(
        True, "a tree fitted on the validation split takes part in the final score"
    )
    tree_weight: float = option(0.3, "weight of the tree's probability", ge=0, le=LARGEST)
    ranker_weight: float = option(0.7, "weight of the ranker's score", ge=0, le=LARGEST)
    elias_weight: float = option(0.0, "weight of ELIAS's score", ge=0, le=LARGEST)
    depth: int = option(5, "levels of the tree", ge=1, le=1000)
    min_leaf: int = option(
        20, "fewest candidates of validation points in a leaf of the tree", ge=1, le=10**9
    )


@dataclass(frozen=True)
class Formula:
    """The final score of a label that ELIAS has found.

    Attributes:
        layer: a ranker for each label.
        options: of the run.
        by_share: ELIAS's scores have no absolute scale; they count as shares.
        threads: that scoring may use.
        tree: fitted on validation points; None where none takes part.
    """

    layer: Layer
    options: EliasRankerConfig
    by_share: bool
    threads: int
    tree: ScoreTree | None = None

    @property
    def num_labels(self) -> int:
        return len(self.layer.child_ptr) - 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """What ELIAS's scores of each point are shares of [n].

        The sum of its best, however many there are; 1 where scores have a scale of their own.

        Args:
            values: ELIAS's scores of each point's best labels [n, k].
        """
        if not self.by_share:
            return np.ones(len(values), np.float32)
        best = values[:, : self.options.candidates]
        return np.maximum(np.where(np.isneginf(best), 0, best).sum(1), TINY)

    def members(
        self, features: Features, values: np.ndarray, ids: np.ndarray, sums: np.ndarray
    ) -> list[sp.csr_matrix]:
        """Score labels by the rankers, the l3-hinge of their margins, and by ELIAS: [n, L] each.

        Args:
            values: ELIAS's scores of the labels `ids` [n, c].
            sums: [n].
        """
        shares = topk_csr(values / sums[:, None], ids, self.num_labels)
        ranked = score_candidates(self.layer, features, shares, self.options.bias, self.threads)
        HINGE.transform(ranked.data)
        if self.options.logs:
            ranked.data = np.log(np.maximum(ranked.data, HINGE_FLOOR))
            shares.data = np.log(np.maximum(shares.data, SHARE_FLOOR))
        return [ranked, shares]

    def final(self, members: list[sp.csr_matrix]) -> sp.csr_matrix:
        """Scores [n, L] from those of the members."""
        if self.tree is not None:
            return self.tree.fuse(members)
        ranked, shares = members
        weights = self.options
        ranked.data = weights.ranker_weight * ranked.data + weights.elias_weight * shares.data
        return ranked


class RankedScores(Scores):
    """Of ELIAS's candidates, ranked anew, and of any labels by the same formula.

    Args:
        elias: its scores of the texts.
        features: of the texts.
    """

    def __init__(
        self,
        elias: GraphScores,
        features: Features,
        formula: Formula,
    ) -> None:
        self.elias = elias
        self.features = features
        self.formula = formula

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        values, ids = self._candidates(k)
        sums = self.formula.sums(values)
        members = self.formula.members(self.features, values, ids, sums)
        best, scores = topk_rows(self.formula.final(members), k)
        return scores, best

    def of(self, labels: np.ndarray) -> np.ndarray:
        return lowest_where_unreached(self.given(labels))

    def reached(self) -> np.ndarray:
        """The candidates."""
        return self._candidates(0)[1]

    def given(self, labels: np.ndarray) -> np.ndarray:
        """Score given labels [n, c] float32; -inf for id -1 and labels that no cluster has.

        Those that are not among the candidates have the same formula.
        """
        values = self.elias.given(labels)
        reached = np.isfinite(values)
        ids = np.where(reached, labels, -1)
        sums = self.formula.sums(self._candidates(0)[0])
        scores = self.formula.final(self.formula.members(self.features, values, ids, sums))
        given = lookup(scores, np.arange(len(labels))[:, None], labels)
        return np.where(reached, given, -np.inf).astype(np.float32)

    def _candidates(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """ELIAS's scores and ids of the labels that are ranked where k are asked for."""
        wanted = max(k, self.formula.options.candidates)
        return self.elias.best(min(wanted, self.formula.num_labels))
