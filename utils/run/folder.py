"""The run folder: a process killed at any instant leaves nothing in it half written.

given.yaml         the config as it was given: the text of its files, and the command line
recipe.yaml        all stages of the run, if it has some, resolved: each but the last has a folder
                   like this in stages/
config.yaml        resolved config
environment.json   commit, versions, host, device, data hash
train.log          log
metrics.jsonl      one JSON object a line: training and validation
model/             best on validation
last/              everything needed to go on, gone when the run has finished, unless run.keep_last;
                   so are levels/ of trees
val_rows.npy       training rows held out
{val,tst}_metrics.json, tst_score_mat.npz, labels.csv, report.html
NAME_metrics.json, NAME_score_mat.npz, NAME_labels.csv, NAME_report.html   of rows of a file or
                   another data set
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.given import GIVEN
from utils.config.trust import RECIPE
from utils.files import clear_folder

ESTIMATOR = "estimator.json"  # what XMC of xmckit.py keeps beside its run
REMOVED = ".last.removed"  # last/ on its way out
WANDB_ID = "wandb_id"  # of the run at Weights & Biases
WRITTEN_FILES = (  # what a run writes, and --overwrite removes
    "config.yaml",
    GIVEN,
    RECIPE,
    "environment.json",
    "train.log",
    "metrics.jsonl",
    WANDB_ID,
    "val_rows.npy",
    "val_metrics.json",
    "trn_metrics.json",
    "tst_metrics.json",
    "labels.csv",
    "trn_score_mat.npz",
    "val_score_mat.npz",
    "tst_score_mat.npz",
    "graph.npz",
    "approx_A.npz",
    "finished",
    ESTIMATOR,
    "report.html",
    "trn_report.html",
    "val_report.html",
)
WRITTEN_PATTERNS = (  # of splits, of rows of files and of other data sets
    "*_metrics.json",
    "*_score_mat.npz",
    "*_labels.csv",
    "*_report.html",
    "*_ids.txt",
)
WRITTEN_FOLDERS = (
    "model",
    "last",
    "levels",
    "experiments",
    "plots",
    "tensorboard",
    "stages",
    ".model.old",
    ".last.old",
    ".model.partial",
    ".last.partial",
    REMOVED,
)


def folder_of(run: str | Path) -> Path:
    """Return a run folder, or the one of a run's config.yaml."""
    path = Path(run)
    return path.parent if path.name == "config.yaml" else path


def is_begun(folder: Path) -> bool:
    """Whether a run has come so far that something of it would be lost."""
    if any((folder / "levels").glob("*")) or (folder / "finished").exists():
        return True
    return any((folder / name).is_dir() for name in ("model", "last", ".model.old", ".last.old"))


def drop_progress(folder: Path) -> None:
    """Remove what a run that has finished could go on from.

    A process killed on the way leaves no half of last/; the next call removes the rest.
    """
    last = folder / "last"
    removed = folder / REMOVED
    clear_folder(removed)
    if last.is_dir() and not last.is_symlink():
        os.replace(last, removed)
        clear_folder(removed)
    clear_folder(last)
    clear_folder(folder / "levels")


def clear_run(folder: Path) -> None:
    """Remove a run, and only what a run writes: a mistyped folder must not go with it."""
    if not (folder / "config.yaml").exists() and not (folder / "stages").exists():
        return
    for name in WRITTEN_FILES:
        (folder / name).unlink(missing_ok=True)
    for pattern in WRITTEN_PATTERNS:
        for path in folder.glob(pattern):
            path.unlink()
    for name in WRITTEN_FOLDERS:
        clear_folder(folder / name)


def with_folder_renamed(
    value: Any,
    old: str,
    new: str,
) -> Any:
    """Return the values of a config with folder `new` in place of `old`, and for what is inside."""
    if isinstance(value, Mapping):
        return {key: with_folder_renamed(part, old, new) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_folder_renamed(part, old, new) for part in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value.removeprefix(old)
    return value
