"""XR-Linear: a partition tree of linear rankers (Yu et al., PECOS, JMLR 2022, arXiv 2010.05878).

Labels are clustered by the centroids of their points' features, and a linear ranker scores every
child of a cluster that the beam reaches. Nothing is trained by gradient: `fit` makes the trees
level by level, each level a file in the run's `levels/`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from models.contract import Solver, Start
from models.trees.features import TreeFeatures, check_sources
from models.trees.forest import Forest, Prior, tree_name
from models.trees.levels import Levels
from models.trees.options import XrLinearConfig
from models.trees.ranker import TreeRanker
from models.trees.training import TreeTraining
from utils import distributed
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.linear.partition_tree import COMBINERS, PartitionTree
from utils.run.stages import Runs
from utils.runtime import Runtime

log = logging.getLogger(__name__)


class XrLinear(Solver):
    """Trees of linear rankers.

    Attributes:
        features: what texts are known by.
        trees: those that are fitted.
    """

    Options = XrLinearConfig
    Answers = TreeRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        before = None if start is None else start()
        self.features = TreeFeatures.build(config, before, runtime)
        self.prior = Prior.of(data)
        self.trees: list[PartitionTree] = []
        self._files: list[Path] = []

    # ---- on paper
    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse options that do not go together, and features that cannot be read."""
        options = config.method
        if options.label_embedding == "pifa+text":
            sizes.check_label_texts("method.label_embedding: pifa+text reads them")
            if "tfidf" not in options.features:
                raise ConfigError(
                    "method.label_embedding: pifa+text needs tfidf among method.features"
                )
        if options.trees > 1 and COMBINERS[options.combiner].start != 1.0:
            raise ConfigError(
                f"method.trees is {options.trees}: scores of several trees are averaged, those "
                f"of method.combiner {options.combiner} cannot be, as a label that a tree does "
                "not reach has none; use l1-hinge to l5-hinge or sigmoid"
            )
        check_sources(config, runs)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        if "start" not in config.method.features:
            raise ConfigError(
                f"run.start_from: method {config.method.name} takes from another run only its "
                "embeddings: name `start` among method.features"
            )

    # ---- training
    def fit(self, folder: Path) -> None:
        """Train all trees; levels that an interrupted run has finished are not trained again."""
        if missing := self.data.num_labels - len(self.prior.ids):
            log.info(
                "%d of %d labels have no training points and are never predicted",
                missing,
                self.data.num_labels,
            )
        levels = Levels(folder / "levels")
        # the main process trains, with all its threads; the others read
        with distributed.main_first():
            if distributed.is_main():
                file = self.data.splits["trn"].file
                levels.begin(self.features.fingerprint(file), self.data.folder)
            training = TreeTraining(
                self.config, self.data, self.features, levels, self.runtime.threads
            )
            for number in range(self.config.method.trees):
                tree = self.fit_tree(training, number)
                self.trees.append(tree)
                self._files += levels.files(tree_name(number), len(tree.layers))

    def fit_tree(self, training: TreeTraining, number: int) -> PartitionTree:
        """Train the tree of this number."""
        name = tree_name(number)
        skeleton = training.grown(name, number)
        return training.trained(name, skeleton)

    def ranker(self) -> TreeRanker:
        forest = Forest(tuple(self.trees), self.prior, tuple(self._files))
        return TreeRanker(self.config, self.features, forest, self.runtime)
