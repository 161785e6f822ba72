"""Overlap-XMC: label disentanglement on top of XR-Linear.

Liu et al., NeurIPS 2021, arXiv 2106.12751. Labels that several clusters' points ask for get a copy
in each, and the tree is trained again with the copies as pseudo-labels.
"""

from __future__ import annotations

from math import prod

from models.trees.forest import tree_name
from models.trees.options import OverlapConfig
from models.trees.training import TreeTraining
from models.trees.xr_linear import XrLinear
from utils.config.config import Config, ConfigError
from utils.data.sizes import DataSizes
from utils.linear.partition_tree import PartitionTree
from utils.linear.tree_training import tree_levels
from utils.run.stages import Runs


class Overlap(XrLinear):
    """XR-Linear whose labels live in their `copies` best clusters."""

    Options = OverlapConfig

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse more copies of a label than there are clusters."""
        super().check(config, sizes, runs)
        options = config.method
        labels = sizes.used_labels
        clusters = prod(tree_levels(labels, options.max_leaf, options.splits))
        if options.copies > clusters:
            raise ConfigError(
                f"method.copies is {options.copies}, but {labels} labels with method.max_leaf "
                f"{options.max_leaf} make only {clusters}; lower method.copies or method.max_leaf"
            )

    def fit_tree(self, training: TreeTraining, number: int) -> PartitionTree:
        """Train a tree, then `rounds` times: assign the labels anew, and train it again."""
        name = tree_name(number)
        skeleton = training.grown(f"{name}.base", number)
        tree = training.trained(f"{name}.base", skeleton)
        rounds = self.config.method.rounds
        for turn in range(1, rounds + 1):
            part = name if turn == rounds else f"{name}.round{turn}"
            skeleton = training.reassigned(part, tree, skeleton)
            tree = training.trained(part, skeleton)
        return tree
