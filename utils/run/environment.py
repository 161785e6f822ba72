"""What a run was made by and of: environment.json, and whether the data is still the same."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import distributed
from utils.data.held_out import HELD_OUT, read_held_out
from utils.data.label_texts import label_text_path
from utils.errors import InputError
from utils.files import write_json
from utils.reading.input_files import present
from utils.reading.saved import read_facts
from utils.run.places import places_of
from utils.text import byte_hashes, lines_hash

if TYPE_CHECKING:
    from utils.data.dataset import Dataset

log = logging.getLogger(__name__)
VERSIONED = (
    "xmckit",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "scipy",
    "safetensors",
)


def write_environment(
    folder: Path, data: Dataset, labels_hash: str, computing: Mapping[str, str]
) -> None:
    """Write environment.json of a new run; of a resumed one, how it was gone on with.

    Args:
        computing: what else is to be known: the device and the precision in effect.
    """
    path = folder / "environment.json"
    now = {
        **environment(data.hash),
        "relevance_hash": data.relevance_hash,
        **computing,
        "labels_hash": labels_hash,
        "places": places_of(data.config),
    }
    if path.exists():
        before = read_facts(path)
        now = {**before, "resumed": [*before.get("resumed", []), now]}
    write_json(path, now)


def environment(data_hash: str) -> dict[str, Any]:
    """Return what a result needs to be made again: commit, versions, machine, data."""
    import torch

    versions = {}
    for package in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        **_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "host": platform.node(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "devices": devices,
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "data_hash": data_hash,
    }


def _recorded(folder: Path, name: str) -> str | None:
    """What a run's environment.json says, None where it says nothing."""
    path = folder / "environment.json"
    said = read_facts(path).get(name) if present(path) else None
    if said is not None and not isinstance(said, str):
        raise InputError(f"{path}: {name}: expected text, got {str(said)[:60]!r}")
    return said


def check_labels(folder: Path, data: Path) -> None:
    """Raise InputError if the label texts are not those of a run's training, in their order.

    Args:
        folder: of the run.
        data: folder of the data set.
    """
    path = label_text_path(data)
    trained = _recorded(folder, "labels_hash")
    if not trained:  # by an older version, or without label texts
        return
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected the label texts that {folder} was trained with"
        )
    now = lines_hash(path)
    if trained != now and trained not in byte_hashes(path):
        raise InputError(
            f"{path} is not what {folder} was trained with (labels_hash {now}, then {trained}): "
            "an id would be another label"
        )


def check_same_data(folder: Path, data: Dataset) -> None:
    """Raise InputError unless a run was trained on this data with the same validation points.

    Its scores of other points would not be those of unseen ones, and its labels perhaps others.
    """
    whole = _recorded(folder, "data_hash")
    # Older runs have the one, under the other's name.
    trained = _recorded(folder, "relevance_hash") or whole
    if trained != data.relevance_hash:
        raise InputError(
            f"{folder} was trained on data {trained}, but {data.folder} is {data.relevance_hash}: "
            "other points, or another order of labels"
        )
    if whole not in (data.hash, data.relevance_hash):
        log.warning("%s was trained with other filter pairs than those of %s", folder, data.folder)
    check_labels(folder, data.folder)
    held_out = read_held_out(
        folder, "without it validation points cannot be told from training points"
    )
    if not np.array_equal(held_out, data.splits["val"].rows):
        raise InputError(
            f"{folder / HELD_OUT}: another validation split than data.val_fraction "
            f"{data.config.val_fraction} and data.val_group_size {data.config.val_group_size} "
            "give, so that its points may have been trained on"
        )


def peak_memory(device: Any) -> dict[str, float]:
    """Return this process's largest memory so far in MB: resident, and on a GPU if there is one."""
    import torch

    memory = {"memory_mb": _peak_resident()}
    if device.type == "cuda":
        memory["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return memory


def _peak_resident() -> float:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    # Elsewhere than on Linux, where it would count what the parent process held before.
    import resource

    units = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def _commit() -> dict[str, Any]:
    """Return the commit of this program, and whether its files were changed since.

    Both are None where it lies in no git tree: of a repository around an installed program, which
    does not know its files, nothing is told.
    """
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "--short=12", "HEAD")
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str:
    """Return what git prints; SubprocessError where it fails."""
    got = subprocess.run(
        ["git", *words], capture_output=True, text=True, timeout=5, cwd=folder, check=True
    )
    return got.stdout.strip()


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
