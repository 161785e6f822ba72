"""ELIAS++: a sparse linear ranker that re-ranks what ELIAS found.

Gupta et al., NeurIPS 2022, arXiv 2210.08410, section 4, after PECOS; the formula stands in
sparse_scores.py. Each label's ranker learns to tell its positives from the training points whose
ELIAS top 100 holds it. The tree is fitted on the validation split. A stage of its own, after
`elias-2`: nothing is trained by gradient.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker, Solver, Start, write_facts
from models.elias.options import EliasConfig
from models.elias.ranker import GraphRanker
from models.elias.sparse_scores import EliasRankerConfig, Formula, RankedScores
from models.encoders.reader import Reader
from models.evaluation import make_tokens
from models.known_labels import check_same_labels
from models.trees.features import TreeFeatures, check_sources
from models.trees.options import solver
from utils import distributed
from utils.arrays import save_arrays
from utils.config.config import Config, ConfigError, load_config, to_yaml
from utils.data.dataset import Dataset, Split
from utils.data.sizes import DataSizes
from utils.data.texts import Texts
from utils.errors import InputError
from utils.files import write_text
from utils.fusing.score_tree import ScoredCandidates, ScoreTree, ScoreTreeSettings, cross_fit, fit
from utils.linear.layer import Layer, fit_layer, load_layer
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.sparse import remove_pairs, topk_csr

Best = tuple[np.ndarray, np.ndarray]  # ELIAS's scores and ids [n, k], best first


class SparseRanker(Ranker):
    """Ranks anew what ELIAS finds.

    Attributes:
        elias: whose labels are ranked.
        features: that the rankers read.
        formula: of the scores.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"precision"})
    at_once: ClassVar[int] = GraphRanker.at_once

    def __init__(
        self,
        config: Config,
        elias: GraphRanker,
        features: TreeFeatures,
        formula: Formula,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, elias.num_labels, folder)
        self.elias = elias
        self.features = features
        self.formula = formula

    @property
    def score_is(self) -> str:
        return "weighted sum of a ranker's score, ELIAS's and a tree's probability"

    def open(self, texts: Texts, given: bool = False) -> RankedScores:
        elias = self.elias.open(texts, given)
        return RankedScores(elias, self.features.of(texts), self.formula)

    def readers(self) -> list[Reader]:
        return [*self.elias.readers(), *self.features.readers()]

    def clusters(self) -> dict[str, sp.csr_matrix]:
        return self.elias.clusters()

    def save(self, folder: Path) -> None:
        """The rankers, the tree, and ELIAS's model, so that nothing else is needed."""
        self.features.save(folder)
        save_arrays(folder / "rankers.npz", self.formula.layer.arrays())
        if self.formula.tree is not None:
            self.formula.tree.save(folder / "fusion.npz")
        self.elias.reader.encoder.tokenizer.save_pretrained(folder)
        (folder / "elias").mkdir()
        self.elias.save(folder / "elias")
        write_text(folder / "elias" / "config.yaml", to_yaml(self.elias.config))
        write_facts(folder, self.config.method.name, self.num_labels, **self.features.facts())

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> SparseRanker:
        """Read what `save` wrote, ELIAS's model inside among it."""
        elias = load_elias(config, folder / "elias", num_labels, runtime)
        features = TreeFeatures.load(folder, runtime)
        layer = load_layer(folder / "rankers.npz")
        layer.check(num_labels, sum(features.shape), str(folder / "rankers.npz"))
        if (np.diff(layer.child_ptr) != 1).any():
            raise InputError(f"{folder / 'rankers.npz'}: expected a ranker for each label")
        tree = ScoreTree.load(folder / "fusion.npz") if config.method.calibrate else None
        formula = formula_of(config, elias, layer, runtime, tree)
        return cls(config, elias, features, formula, folder)


def load_elias(
    config: Config,
    folder: Path,
    num_labels: int,
    runtime: Runtime,
) -> GraphRanker:
    """The ELIAS model inside a ranker's, in the precision that the ranker is asked for in."""
    fixed: dict[str, dict[str, Any]] = {
        "encoder": {"trust_remote_code": False},
        "eval": {"precision": config.eval.precision},
    }
    before = load_config(folder / "config.yaml", fixed)
    if not isinstance(before.method, EliasConfig):
        raise InputError(
            f"{folder / 'config.yaml'}: expected an elias run, got one of {before.method.name}"
        )
    return GraphRanker.load(before, folder, num_labels, runtime)


def formula_of(
    config: Config,
    elias: GraphRanker,
    layer: Layer,
    runtime: Runtime,
    tree: ScoreTree | None = None,
) -> Formula:
    """The formula of a run's options over the scores of an ELIAS model."""
    by_share = elias.config.loss.name == "decoupled-softmax"
    return Formula(layer, config.method, by_share, runtime.threads, tree)


class EliasRanker(Solver):
    """Fits a ranker for each label on ELIAS's own shortlists, and the tree on validation points."""

    Options = EliasRankerConfig
    Answers = SparseRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        assert start is not None, "`check` refuses a run that starts from none"
        elias = start()
        assert isinstance(elias, GraphRanker), "`check_start` refuses a run of another method"
        check_same_labels(elias, data, "its shortlists")
        self.elias = elias
        self.features = TreeFeatures.build(config, elias, runtime)
        self.formula: Formula | None = None  # once it is fitted
        self._crossed: sp.csr_matrix | None = None  # of the validation points, on the main process

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse a run without an elias run to start from, or a tree without validation points."""
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

    def fit(self, folder: Path) -> None:
        """Fit the rankers on ELIAS's own shortlists of the training points, then the tree.

        The tree is fitted on validation points. A point's filter pairs are absent, as in the
        losses: no negatives.
        """
        split = self.data.splits["trn"]
        best = self._best(split, self.config.method.negatives)
        arrays = None
        if best is not None:
            arrays = self._fit_layer(split, best).arrays()
        arrays = distributed.broadcast(arrays)
        assert arrays is not None, "the main process has fitted them"
        self.formula = formula_of(self.config, self.elias, Layer(**arrays), self.runtime)
        if self.config.method.calibrate:
            self.formula = dataclasses.replace(self.formula, tree=self._fit_tree(self.formula))

    def _best(self, split: Split, count: int) -> Best | None:
        """Ask ELIAS for its best labels of a split's points, each process for those of its share.

        Returns:
            None on other processes than the main one.
        """
        make_tokens(self.elias, split.texts)
        k = min(count, self.data.num_labels)
        share = distributed.share(len(split))
        values = np.empty((len(share), k), np.float32)
        ids = np.empty((len(share), k), np.int64)
        for start in range(0, len(share), self.elias.at_once):
            block = slice(start, min(start + self.elias.at_once, len(share)))
            rows = np.arange(share.start, share.stop)[block]
            values[block], ids[block] = self.elias.open(split.texts[rows]).best(k)
        all_values = distributed.gather_arrays(values)
        all_ids = distributed.gather_arrays(ids)
        if all_values is None or all_ids is None:
            return None
        return all_values, all_ids

    def _fit_layer(self, split: Split, best: Best) -> Layer:
        """Fit a ranker for each label, on its positives and the points whose shortlists hold it.

        The main process alone calls it.
        """
        shortlists = topk_csr(*best, self.data.num_labels)
        shortlists = remove_pairs(shortlists, *split.filters.nonzero())
        return fit_layer(
            self.features.of(split.texts[:]),
            np.arange(self.data.num_labels + 1),
            by_column(split.relevance),
            by_column(split.relevance + shortlists),
            solver(self.config),
            threads=self.runtime.threads,
            name="rankers",
        )

    def _fit_tree(self, formula: Formula) -> ScoreTree:
        """Fit the tree over both scores and the labels' frequencies; a collective."""
        split = self.data.splits["val"]
        options = self.config.method
        best = self._best(split, options.candidates)
        tree: ScoreTree | None = None
        if best is not None:
            values, ids = best
            features = self.features.of(split.texts[:])
            scored = formula.members(features, values, ids, formula.sums(values))
            pairs = split.filters.nonzero()
            members = [remove_pairs(scores, *pairs) for scores in scored]
            settings = ScoreTreeSettings(
                options.tree_weight,
                (options.ranker_weight, options.elias_weight),
                options.depth,
                options.min_leaf,
            )
            counts = self.data.seen_counts[:, None]
            candidates = ScoredCandidates.of(members, counts, split.relevance)
            tree = fit(candidates, settings)
            if len(split) > 1:
                self._crossed = cross_fit(candidates, settings)
        tree = distributed.broadcast(tree)
        assert tree is not None, "the main process has fitted it"
        return tree

    def held_out_scores(self) -> sp.csr_matrix | None:
        """Cross-fitted scores of the validation points, which the tree was fitted on."""
        return self._crossed

    def ranker(self) -> SparseRanker:
        assert self.formula is not None, "it is fitted before it answers"
        return SparseRanker(self.config, self.elias, self.features, self.formula)


def by_column(matrix: sp.csr_matrix) -> sp.csc_matrix:
    """A matrix column by column, rows ascending in each."""
    columns = matrix.tocsc()
    columns.sort_indices()
    return columns
