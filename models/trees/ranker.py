"""Trees that answer: each level scores the children of the clusters that the level above kept.

    scores = TreeRanker.load(config, folder, num_labels, runtime).open(texts)
    values, ids = scores.best(100)

The search itself is in utils/linear/partition_tree.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker, write_facts
from models.encoders.reader import Reader
from models.scores import Reached, Scores
from models.trees.features import TreeFeatures
from models.trees.forest import Forest
from utils.config.config import Config
from utils.data.texts import Texts
from utils.files import link_or_copy
from utils.linear.layer import BLOCK, Features
from utils.linear.partition_tree import COMBINERS
from utils.runtime import Runtime
from utils.sparse import topk_csr, topk_rows

# labels that each of several trees proposes, so that the order of the first k does not depend on k
POOL = 200


class TreeRanker(Ranker):
    """One partition tree, or several whose scores are averaged."""

    def __init__(
        self,
        config: Config,
        features: TreeFeatures,
        forest: Forest,
        runtime: Runtime,
        folder: Path | None = None,
    ) -> None:
        super().__init__(config, forest.num_labels, folder)
        self.features = features
        self.forest = forest
        self.beam: dict[str, Any] = {  # how trees are searched
            "beam": config.method.beam,
            "combiner": COMBINERS[config.method.combiner],
            "mean": config.method.mean_of_copies,
            "threads": runtime.threads,
        }

    @property
    def score_is(self) -> str:
        name = self.config.method.combiner
        kinds = {"log-sigmoid": "sum of log sigmoid", "sum": "sum of the"}
        along = f"{kinds.get(name, f'product of {name}')} margins along the path to the label"
        trees = len(self.forest.trees)
        return along if trees == 1 else f"{along}, mean of {trees} trees"

    def open(self, texts: Texts, given: bool = False) -> Scores:
        features = self.features.of(texts)
        return self.reached(features) if given else TreeSearch(self, features)

    def reached(self, features: Features) -> Reached:
        """Score all labels that the beams reach; by their frequency for texts without features.

        A text may reach thousands: what the trees say one by one is held of some texts at a time.
        """
        step = BLOCK * self.beam["threads"]
        parts = [
            self._averaged(features[start : start + step])
            for start in range(0, max(len(features), 1), step)
        ]
        scores = parts[0] if len(parts) == 1 else sp.csr_matrix(sp.vstack(parts, "csr"))
        return Reached(scores, negative=self.beam["combiner"].start != 1.0)

    def _averaged(self, features: Features) -> sp.csr_matrix:
        """Scores [n, L] of the labels that any tree reaches."""
        scores = _average([tree.reached(features, **self.beam) for tree in self.forest.trees])
        if features.empty.any():
            scores = self.forest.prior.in_place_of(scores, features.empty)
        return scores

    def readers(self) -> list[Reader]:
        return self.features.readers()

    def clusters(self) -> dict[str, sp.csr_matrix]:
        trees = enumerate(self.forest.trees, 1)
        return {f"tree {number}": tree.labels_of_clusters() for number, tree in trees}

    def facts(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Tell inner products with label rankers per point, and points without features.

        The inner products are the paper's cost.
        """
        if not sums:
            return {}
        return {
            "inner_products": round(sums["inner_products"] / max(sums["points"], 1), 1),
            "points_without_features": int(sums["points_without_features"]),
        }

    # ---- saving
    def save(self, folder: Path) -> None:
        """Link the trees' files, which are not written twice, and write the rest."""
        for file in self.forest.files:
            link_or_copy(file, folder / file.name)
        self.features.save(folder)
        self.forest.prior.save(folder)
        write_facts(
            folder,
            self.config.method.name,
            self.num_labels,
            trees=[len(tree.layers) for tree in self.forest.trees],
            **self.features.facts(),
        )

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> TreeRanker:
        features = TreeFeatures.load(folder, runtime)
        forest = Forest.load(folder, num_labels, features.shape, config.method.bias)
        return cls(config, features, forest, runtime, folder)


class TreeSearch(Scores):
    """The best labels of some texts by beam search: of all that is reached the best alone are kept.

    Of texts without features the best are the most frequent labels.
    """

    def __init__(self, ranker: TreeRanker, features: Features) -> None:
        self._ranker = ranker
        self._features = features
        self.sums: dict[str, float] = {
            "points": len(features),
            "inner_products": 0,  # with label rankers; counted by `best`
            "points_without_features": int(features.empty.sum()),
        }

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels; of texts without features the most frequent ones."""
        forest = self._ranker.forest
        proposed = k if len(forest.trees) == 1 else max(k, min(POOL, forest.num_labels))
        searched = [
            tree.search(self._features, proposed, **self._ranker.beam) for tree in forest.trees
        ]
        ids, values, _ = searched[0]  # [n, k] each
        if len(searched) > 1:
            lists = [topk_csr(values, ids, forest.num_labels) for ids, values, _ in searched]
            ids, values = topk_rows(_average(lists), k)
        products = sum(count for _, _, count in searched)  # of a text
        self.sums["inner_products"] = len(self._features) * products
        forest.prior.fill(values, ids, np.flatnonzero(self._features.empty))
        return values, ids

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self._ranker.reached(self._features).of(labels)

    def among(self, labels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of labels that no beam reaches none is an answer."""
        return self._ranker.reached(self._features).among(labels, k)


def _average(scores: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """Average trees' scores [n, L]; a label that a tree does not reach has score 0 there."""
    if len(scores) == 1:
        return scores[0]
    total = scores[0]
    for part in scores[1:]:
        total = total + part
    total.data *= np.float32(1) / np.float32(len(scores))
    return total
