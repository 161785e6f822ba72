"""Which training points are held out for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils import distributed
from utils.config.config import DataConfig
from utils.reading.matrices import read_array

# the split belongs to the data, not to the run: every run of every seed sees the same one
VALIDATION_SEED = 0


def held_out_points(labelled: int, config: DataConfig) -> int:
    """How many of so many training points with labels are held out for validation; of whole groups,
    at most."""
    return max(min(round(config.val_fraction * labelled), config.val_max_points, labelled - 1), 0)


def validation_rows(relevance: sp.csr_matrix, config: DataConfig, folder: Path) -> np.ndarray:
    """Sorted training rows held out for validation: a fixed random draw among the points that have
    labels.

    With `data.val_group_size` s > 1 groups of about s similar texts are drawn, until there are
    enough points: at most as many, fewer by less than one group.
    """
    labelled = np.flatnonzero(np.diff(relevance.indptr))
    rng = np.random.default_rng(VALIDATION_SEED)
    count = held_out_points(len(labelled), config)
    if config.val_group_size == 1 or count == 0:
        return np.sort(rng.choice(labelled, count, replace=False))
    # here: scikit-learn and numba take seconds to import
    from utils.clustering.clustering import balanced_hierarchy
    from utils.features.files import grouping_features

    with distributed.main_first():
        features = grouping_features(folder, config)[labelled]
    groups = balanced_hierarchy(
        features,
        [-(-len(labelled) // config.val_group_size)],
        seed=VALIDATION_SEED,
        name="group texts",
    ).clusters()
    # group by group
    order = np.argsort(rng.permutation(groups.max() + 1)[groups], kind="stable")
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    return np.sort(labelled[order[: ends[ends <= count].max(initial=0)]])


def saved_validation_rows(run_folder: Path, config: DataConfig) -> np.ndarray | None:
    """The rows that a run held out, where drawing them again might give others: groups go by texts,
    which may have been edited, and by how these are cut into terms.

    Raises:
        InputError: val_rows.npy is not a list of rows.
    """
    path = run_folder / "val_rows.npy"
    if config.val_group_size == 1 or not path.is_file():
        return None
    return read_array(path, ndim=1, kinds="iu")
