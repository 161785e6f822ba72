"""What a run of trees has learned: partition trees, and how frequent labels are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.arrays import map_arrays, save_arrays
from utils.data.dataset import Dataset
from utils.errors import InputError
from utils.linear.layer import load_layer
from utils.linear.partition_tree import PartitionTree
from utils.reading.saved import check_arrays, check_ids, read_facts
from utils.sparse import entry_rows

PRIOR = "prior.npz"


@dataclass(frozen=True)
class Prior:
    """How frequent labels are: what is known of texts without features.

    Attributes:
        ids: labels that have training points, the most frequent first [m].
        shares: of the training points that have each of them [m].
    """

    ids: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, data: Dataset) -> Prior:
        """Count the points of the split trn."""
        counts = data.seen_counts
        ids = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        points = max(len(data.splits["trn"]), 1)
        return cls(ids, (counts[ids] / points).astype(np.float32))

    def fill(
        self,
        values: np.ndarray,
        ids: np.ndarray,
        rows: np.ndarray,
    ) -> None:
        """Overwrite rows [r] of the best labels of texts [n, k] by the most frequent labels."""
        count = min(ids.shape[1], len(self.ids))
        ids[rows] = -1
        values[rows] = -np.inf
        ids[rows, :count] = self.ids[:count]
        values[rows, :count] = self.shares[:count]

    def in_place_of(self, scores: sp.csr_matrix, rows: np.ndarray) -> sp.csr_matrix:
        """Scores [n, L] whose rows [n] bool hold how frequent labels are instead."""
        entries = entry_rows(scores)
        kept = ~rows[entries]
        empty = np.flatnonzero(rows)
        places = np.concatenate([entries[kept], np.repeat(empty, len(self.ids))])
        labels = np.concatenate([scores.indices[kept], np.tile(self.ids, len(empty))])
        values = np.concatenate([scores.data[kept], np.tile(self.shares, len(empty))])
        return sp.csr_matrix((values, (places, labels)), scores.shape)

    def save(self, folder: Path) -> None:
        """Write it into the folder of a model."""
        save_arrays(folder / PRIOR, {"ids": self.ids, "shares": self.shares})

    @classmethod
    def load(cls, folder: Path, num_labels: int) -> Prior:
        """Read and check what `save` wrote."""
        path = folder / PRIOR
        prior = map_arrays(path)
        check_arrays(path, prior, {"ids": ((None,), np.int64), "shares": ((None,), np.float32)})
        if len(prior["ids"]) != len(prior["shares"]):
            raise InputError(
                f"{path}: expected a share for each of {len(prior['ids'])} labels, got "
                f"{len(prior['shares'])}"
            )
        check_ids(prior["ids"], num_labels, f"{path}: ids")
        return cls(prior["ids"], prior["shares"])


@dataclass(frozen=True)
class Forest:
    """Trees over the same labels and features.

    Attributes:
        files: skeletons and levels, where the trees lie.
    """

    trees: tuple[PartitionTree, ...]
    prior: Prior
    files: tuple[Path, ...]

    @property
    def num_labels(self) -> int:
        """L."""
        return self.trees[0].num_labels

    @classmethod
    def load(
        cls,
        folder: Path,
        num_labels: int,
        shape: tuple[int, int],
        bias: float,
    ) -> Forest:
        """Map the trees of a saved model and check them.

        Args:
            shape: (F, D), columns of the features.
            bias: value of the constant feature.
        """
        told = read_facts(folder / "method.json", trees=list[int])
        if not told["trees"]:
            raise InputError(
                f"{folder / 'method.json'}: trees: expected the levels of one tree or more, got "
                "none"
            )
        trees = []
        files = []
        for number, depth in enumerate(told["trees"]):
            skeleton, *levels = tree_files(folder, tree_name(number), depth)
            trees.append(_load_tree(skeleton, levels, num_labels, shape, bias))
            files += [skeleton, *levels]
        return cls(tuple(trees), Prior.load(folder, num_labels), tuple(files))


def tree_name(number: int) -> str:
    """Name the files of a model's tree."""
    return f"tree{number}"


def tree_files(
    folder: Path,
    name: str,
    depth: int,
) -> list[Path]:
    """List the files of a tree of so many levels: its skeleton, then one for each level."""
    levels = [folder / f"{name}.level{level}.npz" for level in range(depth)]
    return [folder / f"{name}.skeleton.npz", *levels]


def _load_tree(
    file: Path, levels: list[Path], num_labels: int, shape: tuple[int, int], bias: float
) -> PartitionTree:
    skeleton = map_arrays(file)
    layers = tuple(load_layer(path) for path in levels)
    if not layers:
        raise InputError(
            f"{file.with_name('method.json')}: trees: expected one level or more a tree, got 0"
        )
    if "node_labels" not in skeleton:
        raise InputError(
            f"{file}: expected an array 'node_labels', got {', '.join(skeleton) or 'none'}"
        )
    tree = PartitionTree(layers, skeleton["node_labels"], num_labels, shape, bias)
    tree.check(levels, file)
    return tree
