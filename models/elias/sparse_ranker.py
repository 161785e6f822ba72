"""ELIAS++: a sparse linear ranker that re-ranks what ELIAS found (Gupta et al., NeurIPS 2022, arXiv
2210.08410, section 4, after PECOS).

    score = exp(-max(0, 1 - w_l . [norm(E(x)) ; tfidf(x)])^3), the l3-hinge of a ranker per label
    final = 0.3 tree(ranker score, ELIAS score, label frequency) + 0.7 ranker score

Each label's ranker learns to tell its positives from the training points whose ELIAS top 100 holds
it. The tree is fitted on the validation split. A stage of its own, after `elias-2`: nothing is
trained by gradient.

Beyond the paper, `method.logs: true` adds logarithms of both scores: a product of experts, each of
which can veto. ELIAS scores trained by decoupled softmax have no absolute scale; they become shares
of the candidates' sum.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from accelerate import Accelerator

from models.adapter import MethodRanker
from models.elias.learner import Elias, ask_points, ask_texts
from models.elias.options import EliasConfig
from models.method import Method, write_method
from models.scores import Scores
from models.trees.features import TreeFeatures, check_sources, read_columns
from models.trees.options import LinearConfig, solver
from utils import distributed
from utils.arrays import save_arrays
from utils.config.config import Config, ConfigError, load_config, option, to_yaml
from utils.config.methods import method_class
from utils.config.sections import LARGEST, MANY_LABELS
from utils.data.dataset import Dataset, Split
from utils.data.sizes import DataSizes
from utils.data.texts import ListTexts
from utils.files import write_text
from utils.fusing.score_tree import ScoredCandidates, ScoreTree, ScoreTreeSettings, fit
from utils.linear.layer import Features, Layer, fit_layer, load_layer, score_candidates
from utils.linear.partition_tree import COMBINERS
from utils.run.finding import find_run
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.sparse import lookup, remove_pairs, topk_csr, topk_rows

log = logging.getLogger(__name__)
HINGE = COMBINERS["l3-hinge"]
HINGE_FLOOR, SHARE_FLOOR, TINY = 1e-4, 1e-6, 1e-30  # below these a logarithm says no more


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


class EliasRanker(Method):
    """Attributes: elias, the method whose labels are ranked; features; layer, the rankers;
    fusion."""

    Options = EliasRankerConfig

    def __init__(self, config: Config, num_labels: int, data: Dataset | None) -> None:
        super().__init__(config, num_labels, data)
        self.elias: Elias | None = None
        self.features: TreeFeatures | None = None
        self.layer: Layer | None = None
        self.fusion: ScoreTree | None = None

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        if not config.run.start_from:
            raise ConfigError(
                "method elias-ranker ranks the labels that an elias run finds: run it as a stage "
                "after one, or name one by run.start_from"
            )
        if config.method.calibrate and sizes.validation == 0:
            raise ConfigError(
                "method.calibrate fits a tree on validation points and there are none "
                f"(data.val_fraction is {config.data.val_fraction})"
            )
        check_sources(config, runs)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        if not isinstance(before.method, EliasConfig):
            raise ConfigError(
                "run.start_from: method elias-ranker starts from an elias run, not from one of "
                f"{before.method.name}"
            )

    @classmethod
    def build(cls, config: Config, data: Dataset) -> EliasRanker:
        return cls(config, data.num_labels, data)

    @property
    def epochs(self) -> int:
        return 0

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return frozenset()

    def parameter_groups(self) -> list[dict]:
        return []

    def start_from(self, other: Elias) -> None:
        self._use(other)
        runtime = Runtime(Accelerator())
        self.features = TreeFeatures.build(self.config, MethodRanker(other, runtime), runtime)

    def _use(self, elias: Elias) -> None:
        self.elias = elias.requires_grad_(False).eval()

    # ---- training
    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Fit the rankers on ELIAS's own shortlists of the training points, then the tree on
        validation points.

        A point's filter pairs are absent, as in the losses: no negatives.
        """
        split = self.data.splits["trn"]
        settings = self.config.method
        threads = self._threads
        found = topk_csr(*self._found(split, settings.negatives, accelerator), self.num_labels)
        features = self.features.of(split.texts[:])
        layer = None
        if distributed.is_main():
            relevance = split.relevance.tocsc()
            relevance.sort_indices()
            reach = (split.relevance + remove_pairs(found, *split.filters.nonzero())).tocsc()
            reach.sort_indices()
            layer = fit_layer(
                features,
                np.arange(self.num_labels + 1),
                relevance,
                reach,
                solver(self.config),
                threads,
                "rankers",
            )
        self.layer = Layer(**distributed.broadcast(None if layer is None else layer.arrays()))
        if settings.calibrate:
            self._calibrate(accelerator)

    def _calibrate(self, accelerator: Accelerator) -> None:
        split = self.data.splits["val"]
        settings = self.config.method
        # values and ids
        found = self._found(split, settings.candidates, accelerator)
        fusion = None
        features = self.features.of(split.texts[:])
        if distributed.is_main():
            members = [
                remove_pairs(m, *split.filters.nonzero()) for m in self._members(features, *found)
            ]
            weights = ScoreTreeSettings(
                settings.tree_weight,
                (settings.ranker_weight, settings.elias_weight),
                settings.depth,
                settings.min_leaf,
            )
            scored = ScoredCandidates.of(members, self.data.seen_counts[:, None], split.relevance)
            fusion = fit(scored, weights)
        self.fusion = distributed.broadcast(fusion)

    @property
    def _threads(self) -> int:
        return distributed.cpu_threads(self.config.run.threads)

    def _found(
        self, split: Split, count: int, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        """ELIAS's scores and ids of the best labels of a split's points [n, count], on every
        process."""
        k = min(count, self.num_labels)
        own = distributed.share(len(split))
        found = self.elias.score_points(split, np.arange(own.start, own.stop), k, accelerator)
        return tuple(distributed.broadcast(distributed.gather_arrays(a, len(split))) for a in found)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """What ELIAS's scores of each point are shares of [n]: the sum of its best [n, k], however
        many there are; 1 where they have a scale of their own."""
        if self.elias.config.loss.name != "decoupled-softmax":
            return np.ones(len(values), np.float32)
        best = values[:, : self.config.method.candidates]
        return np.maximum(np.where(np.isneginf(best), 0, best).sum(1), TINY)

    def _members(
        self,
        features: Features,
        values: np.ndarray,
        ids: np.ndarray,
        sums: np.ndarray | None = None,
    ) -> list[sp.csr_matrix]:
        """The rankers' scores of labels [n, c], the l3-hinge of their margins, and ELIAS's own: [n,
        L] each.

        Args:
            values: ELIAS's scores of the labels `ids`; sums: default those of `values`, best first.
        """
        found = topk_csr(
            values / (self._sums(values) if sums is None else sums)[:, None], ids, self.num_labels
        )
        ranked = score_candidates(
            self.layer, features, found, self.config.method.bias, self._threads
        )
        HINGE.transform(ranked.data)
        if self.config.method.logs:
            for member, floor in ((ranked, HINGE_FLOOR), (found, SHARE_FLOOR)):
                member.data = np.log(np.maximum(member.data, floor))
        return [ranked, found]

    # ---- scoring
    def score_points(
        self,
        split: Split,
        points: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.elias.score_points(split, points, self._wanted(k), accelerator)
        return self._best(self.features.of(split.texts[points]), *found, k)

    def score_texts(
        self, texts: Sequence[str], k: int, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.elias.score_texts(texts, self._wanted(k), accelerator)
        return self._best(self.features.of(ListTexts(texts)), *found, k)

    def _wanted(self, k: int) -> int:
        return min(max(k, self.config.method.candidates), self.num_labels)

    def _best(
        self, features: Features, values: np.ndarray, ids: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        ids, values = topk_rows(self._fused(self._members(features, values, ids)), k)
        return values, ids

    def _fused(self, members: list[sp.csr_matrix]) -> sp.csr_matrix:
        if self.fusion is not None:
            return self.fusion.fuse(members)
        settings = self.config.method
        (ranked, found) = members
        ranked.data = settings.ranker_weight * ranked.data + settings.elias_weight * found.data
        return ranked

    def open_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Scores:
        return ask_points(self, self.elias.tokenizer, split, points, accelerator)

    def open_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Scores:
        return ask_texts(self, texts, accelerator)

    def score_labels(
        self,
        split: Split,
        points: np.ndarray,
        labels: np.ndarray,
        accelerator: Accelerator,
    ) -> np.ndarray:
        """Scores of given labels [n, c] of points of a split [n], as `score_points` gives them: [n,
        c] float32.

        Id -1 and labels that no cluster has: -inf. Others that are not among ELIAS's candidates
        have the same formula.
        """
        given = self.elias.score_labels(split, points, labels, accelerator)
        best, _ = self.elias.score_points(split, points, self._wanted(0), accelerator)
        return self._given(self.features.of(split.texts[points]), given, labels, best)

    def score_labels_of_texts(
        self, texts: Sequence[str], labels: np.ndarray, accelerator: Accelerator
    ) -> np.ndarray:
        """Scores of given labels [n, c] of new texts, as `score_labels`."""
        given = self.elias.score_labels_of_texts(texts, labels, accelerator)
        best, _ = self.elias.score_texts(texts, self._wanted(0), accelerator)
        return self._given(self.features.of(ListTexts(texts)), given, labels, best)

    def _given(
        self, features: Features, values: np.ndarray, labels: np.ndarray, best: np.ndarray
    ) -> np.ndarray:
        """Args: values, ELIAS's scores of the given labels [n, c]; best, those of its candidates
        [n, k]."""
        rows = np.arange(len(labels))[:, None]
        reached = np.isfinite(values)
        scores = self._fused(
            self._members(features, values, np.where(reached, labels, -1), self._sums(best))
        )
        return np.where(reached, lookup(scores, rows, labels), -np.inf).astype(np.float32)

    # ---- saving
    def label_clusters(self) -> dict[str, sp.csr_matrix]:
        return self.elias.label_clusters()

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """The rankers, the tree, and ELIAS's model, so that nothing else is needed."""

        # on every process: it is a collective
        before, _ = find_run(self.config.run.start_from)
        if not distributed.is_main():
            return
        self.features.save(folder)
        save_arrays(folder / "rankers.npz", self.layer.arrays())
        if self.fusion is not None:
            self.fusion.save(folder / "fusion.npz")
        self.elias.encoder.tokenizer.save_pretrained(folder)
        shutil.copytree(before / "model", folder / "elias")
        write_text(folder / "elias" / "config.yaml", to_yaml(self.elias.config))
        write_method(folder, self.config.method.name, self.num_labels, columns=self.features.shape)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> EliasRanker:
        method = cls(config, num_labels, None)
        columns = read_columns(folder)
        fixed = {
            "encoder": {"trust_remote_code": False},
            "eval": {"precision": config.eval.precision},
        }
        before = load_config(folder / "elias" / "config.yaml", fixed)
        method._use(method_class(before.method.name).load(before, folder / "elias", num_labels))
        method.features = TreeFeatures.load(folder, Runtime(Accelerator()))
        method.layer = load_layer(folder / "rankers.npz")
        method.layer.check(num_labels, sum(columns), str(folder / "rankers.npz"))
        if (np.diff(method.layer.child_ptr) != 1).any():
            raise ValueError(
                f"{folder}: expected a ranker for each label on {list(columns)} columns"
            )
        if config.method.calibrate:
            method.fusion = ScoreTree.load(folder / "fusion.npz")
        return method
