"""Trees in training, a file a level, so that an interrupted run goes on from the whole ones.

levels/features                 a hash of what the points were known by
levels/tree0.skeleton.npz       clusters of labels, no weights yet
levels/tree0.level0.npz, ...    rankers
levels/tree0.base.*             of overlap: the tree before labels are assigned anew
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.trees.forest import tree_files
from utils.arrays import map_arrays, save_arrays
from utils.errors import InputError
from utils.files import write_text, written_whole
from utils.linear.layer import Layer, load_layer
from utils.linear.tree_training import Skeleton


class Levels:
    """A folder of trees in training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, fingerprint: str, data: Path) -> None:
        """Make the folder, or see that its trees may be gone on with.

        Args:
            fingerprint: of the features. data: the data set's folder.
        Raises:
            InputError: its levels were trained on other features, of texts edited since.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.partial-*"):  # of a process killed while it wrote
            leftover.unlink()
        path = self.folder / "features"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != fingerprint and any(self.folder.glob("*.npz")):
            raise InputError(
                f"{self.folder}: its trees were trained on other features than those of {data} "
                "now: texts or features were changed since; start the run again with --overwrite"
            )
        write_text(path, fingerprint)

    def files(self, name: str, depth: int) -> list[Path]:
        """Name the skeleton's file, then those of so many levels."""
        return tree_files(self.folder, name, depth)

    def skeleton(self, name: str) -> Skeleton | None:
        """Read a tree without weights; None if it is not there."""
        path = self.files(name, 0)[0]
        if not path.exists():
            return None
        arrays = map_arrays(path)
        pointers = tuple(arrays[f"ptr{level}"] for level in range(len(arrays) - 1))
        return Skeleton(pointers, arrays["node_labels"])

    def keep_skeleton(self, name: str, skeleton: Skeleton) -> Skeleton:
        """Write a tree without weights, and give it back."""
        arrays = {"node_labels": skeleton.node_labels}
        for level, pointer in enumerate(skeleton.child_ptrs):
            arrays[f"ptr{level}"] = pointer
        _write(self.files(name, 0)[0], arrays)
        return skeleton

    def layers(self, name: str, depth: int) -> list[Layer]:
        """Read the levels that are there, from the first one on."""
        layers: list[Layer] = []
        for file in self.files(name, depth)[1:]:
            if not file.exists():
                break
            layers.append(load_layer(file))
        return layers

    def keep_layer(
        self,
        name: str,
        level: int,
        layer: Layer,
    ) -> None:
        """Write a level."""
        _write(self.files(name, level + 1)[-1], layer.arrays())


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with written_whole(path) as partial:
        save_arrays(partial, arrays)
