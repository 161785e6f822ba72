"""Training of one tree after the other into `levels/`: what is there already is read."""

from __future__ import annotations

import logging
from functools import cached_property, partial

import numpy as np
import scipy.sparse as sp

from models.trees.features import TreeFeatures
from models.trees.levels import Levels
from models.trees.options import ranking
from utils.config.config import Config
from utils.data.dataset import Dataset
from utils.data.label_texts import labels_without_text, stand_ins
from utils.linear.layer import Features
from utils.linear.partition_tree import PartitionTree
from utils.linear.tree_training import Skeleton, fit_tree, grow, pifa, reassign
from utils.sparse import normalised

log = logging.getLogger(__name__)


class TreeTraining:
    """The training points, and the files of trees that are trained on them.

    Args:
        source: of the points' features.
        threads: that the solver may use.
    """

    def __init__(
        self, config: Config, data: Dataset, source: TreeFeatures, levels: Levels, threads: int
    ) -> None:
        self.config = config
        self.data = data
        self.source = source
        self.levels = levels
        self.ranking = ranking(config, threads)
        self.split = data.splits["trn"]

    @cached_property
    def features(self) -> Features:
        """Features of the training points; computed when the first level needs them."""
        features = self.source.of(self.split.texts[:])  # a view: embeddings are dropped with it
        if empty := int(features.empty.sum()):
            log.info("%d of %d training points have no features", empty, len(self.split))
        return features

    def grown(self, name: str, number: int) -> Skeleton:
        """Cluster the labels that have training points, or read the clusters that are there.

        Args:
            name: of the tree's files. number: of the tree: each has other random numbers.
        """
        known = self.levels.skeleton(name)
        if known is not None:
            return known
        options = self.config.method
        skeleton = grow(
            self._label_embeddings(warn=number == 0),
            np.flatnonzero(self.data.seen_counts),
            max_leaf=options.max_leaf,
            splits=options.splits,
            seed=self.config.run.seed + 1000 * number,
            threads=self.ranking.threads,
        )
        return self.levels.keep_skeleton(name, skeleton)

    def _label_embeddings(self, warn: bool) -> sp.csr_matrix:
        """Make what labels are clustered by: [L, F + D], with their own texts [L, F + D + F]."""
        embeddings = pifa(self.split.relevance, self.features)
        if self.config.method.label_embedding == "pifa":
            return embeddings
        folder = self.data.folder
        without = stand_ins(folder, labels_without_text(folder))
        if without and warn:
            log.warning("%s", without)
        texts = self.source.tfidf(self.data.label_texts)
        return sp.hstack([embeddings, normalised(texts)], format="csr")

    def reassigned(
        self,
        name: str,
        tree: PartitionTree,
        before: Skeleton,
    ) -> Skeleton:
        """Put every label into the `copies` clusters that its points' beams reach most often.

        Args:
            name: of the new tree's files. tree: trained on the skeleton `before`.
        """
        known = self.levels.skeleton(name)
        if known is not None:
            return known
        copies = self.config.method.copies
        relevance = self.split.relevance
        skeleton = reassign(
            tree, before, self.features, relevance, copies=copies, ranking=self.ranking
        )
        return self.levels.keep_skeleton(name, skeleton)

    def trained(self, name: str, skeleton: Skeleton) -> PartitionTree:
        """Train the rankers of all levels that are not there; each is written when it is done."""
        depth = len(skeleton.child_ptrs)
        layers = self.levels.layers(name, depth)
        if len(layers) == depth:
            shape = self.source.shape
            bias = self.config.method.bias
            labels = self.data.num_labels
            return PartitionTree(tuple(layers), skeleton.node_labels, labels, shape, bias)
        if layers:
            log.info("%s: %d of %d levels are there already", name, len(layers), depth)

        return fit_tree(
            self.features,
            self.split.relevance,
            skeleton,
            self.ranking,
            self.split.filters,
            kept=layers,
            keep=partial(self.levels.keep_layer, name),
        )
