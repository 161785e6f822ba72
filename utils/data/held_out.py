"""Which training points are held out for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils import distributed
from utils.config.config import DataConfig
from utils.errors import InputError
from utils.reading.arrays import read_array
from utils.reading.input_files import present

# The split belongs to the data, not to the run: every run of every seed sees the same one.
VALIDATION_SEED = 0
HELD_OUT = "val_rows.npy"  # of a run folder


def held_out_points(labelled: int, config: DataConfig) -> int:
    """Return how many of so many training points with labels are held out; of groups, at most."""
    return max(min(round(config.val_fraction * labelled), config.val_max_points, labelled - 1), 0)


def validation_rows(
    relevance: sp.csr_matrix,
    config: DataConfig,
    folder: Path,
) -> np.ndarray:
    """Draw the training rows that are held out, sorted: the same ones for a data set every time.

    They are drawn among the points that have labels. With `data.val_group_size` s > 1 groups of
    about s similar texts are drawn, until there are enough points: at most as many, fewer by less
    than one group.
    """
    labelled = np.flatnonzero(np.diff(relevance.indptr))
    rng = np.random.default_rng(VALIDATION_SEED)
    count = held_out_points(len(labelled), config)
    if config.val_group_size == 1 or count == 0:
        return np.sort(rng.choice(labelled, count, replace=False))
    groups = _groups(labelled, config, folder)
    order = np.argsort(rng.permutation(groups.max() + 1)[groups], kind="stable")  # group by group
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    return np.sort(labelled[order[: ends[ends <= count].max(initial=0)]])


def _groups(
    labelled: np.ndarray,
    config: DataConfig,
    folder: Path,
) -> np.ndarray:
    """The group of similar texts that each of these rows is in [n]."""
    # Imported here: scikit-learn and numba take seconds.
    from utils.clustering.clustering import balanced_hierarchy
    from utils.features.files import grouping_features

    with distributed.main_first():
        features = grouping_features(folder, config)[labelled]
    num_groups = -(-len(labelled) // config.val_group_size)
    hierarchy = balanced_hierarchy(features, [num_groups], seed=VALIDATION_SEED, name="group texts")
    return hierarchy.clusters()


def read_held_out(run_folder: Path, needed: str) -> np.ndarray:
    """Return the training rows that a run held out.

    Args:
        needed: what the message says where there is no such file.
    Raises:
        InputError: there is none, or it is not a list of rows.
    """
    path = run_folder / HELD_OUT
    if not present(path):
        raise InputError(f"{path}: no such file; {needed}")
    return read_array(path, ndim=1, kinds="iu")


def saved_validation_rows(run_folder: Path, config: DataConfig) -> np.ndarray | None:
    """Return the rows that a run held out, where drawing them again might give others.

    Groups go by texts, which may have been edited, and by how these are cut into terms.

    Raises:
        InputError: val_rows.npy is not a list of rows.
    """
    if config.val_group_size == 1 or not present(run_folder / HELD_OUT):
        return None
    return read_held_out(run_folder, "")
