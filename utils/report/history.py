"""What a report tells of a run's training: stages in their order, curves, time, commit, size."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.given import GIVEN
from utils.config.trust import RECIPE
from utils.config.yaml_text import read_yaml
from utils.errors import InputError
from utils.files import size_of
from utils.reading.input_files import present
from utils.reading.saved import read_facts

MAX_CURVE = 300  # points of a curve
CURVES = ("loss", "P@1", "P@5", "nDCG@5", "PSP@5", "R@100")
TOLD = ("P@1", "P@5", "nDCG@5", "PSP@5")  # of a stage's best validation
REFITTED = "-all"  # ends the name of a stage that `refit: true` adds

Entries = list[dict[str, Any]]


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """Read the stages of a run in the order of their training, the run itself last.

    Each is {name, method, epochs, best_epoch, seconds, validation, curves}; a name is "" where a
    run has one stage alone. Curves are those of `read_curves`. What is not known is None or {}.
    """
    order, last = _stage_names(folder)
    places = [path for path in folder.glob("stages/*") if path.is_dir()]
    places.sort(key=lambda path: (_place(path.name, order), path.name))
    stages = [_stage(path.name, path) for path in places]
    stages.append(_stage(last if places else "", folder))
    return stages


def _stage_names(folder: Path) -> tuple[list[str], str]:
    """Names of a run's stages as its recipe lists them, and that of the last one."""
    path = folder / RECIPE
    listed: Any = None
    if present(path):
        with contextlib.suppress(InputError):  # a page without their order is better than none
            listed = read_yaml(path).get("stages")
    if not isinstance(listed, list):
        return [], "last"
    names = [str(stage["name"]) for stage in listed if isinstance(stage, dict) and "name" in stage]
    return names, names[-1] if names else "last"


def _place(name: str, order: list[str]) -> tuple[bool, int]:
    """Where a stage comes; one that repeats another comes after all of these, in their order."""
    if name in order:
        return False, order.index(name)
    stem = name.removesuffix(REFITTED)
    return True, order.index(stem) if stem in order else len(order)


def _stage(name: str, folder: Path) -> dict[str, Any]:
    """What a stage's folder says of it."""
    finished = _facts(folder / "finished")
    facts = _facts(folder / "val_metrics.json")
    validation = {key: value for key, value in facts.items() if _number(value) is not None}
    entries = _entries(folder / "metrics.jsonl")
    return {
        "name": name,
        "method": _method(folder),
        "epochs": _number(finished.get("epochs")),
        "best_epoch": _number(finished.get("best_epoch")),
        "seconds": _number(finished.get("train_seconds")),
        "validation": {key: validation[key] for key in TOLD if key in validation},
        "curves": read_curves(entries),
    }


def _number(value: Any) -> int | float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


def _facts(path: Path) -> dict[str, Any]:
    """The map of a JSON file; {} where there is none."""
    if present(path):
        with contextlib.suppress(InputError):  # what is damaged is not shown
            return read_facts(path)
    return {}


def _method(folder: Path) -> str | None:
    path = folder / "config.yaml"
    if present(path):
        with contextlib.suppress(InputError):
            method = read_yaml(path).get("method")
            if isinstance(method, dict):
                return str(method.get("name"))
    return None


# -------------------------------- curves


def read_curves(entries: Entries) -> list[dict[str, Any]]:
    """Make the curves of the lines of a metrics.jsonl, over epochs.

    Each is {kind, name, points: [[epoch, value], ...]}, kind val, train (the mean of an epoch) or
    step (of the steps between); what has one value alone is no curve.
    """
    steps, epochs = _epochs_of_steps(entries)
    values: dict[tuple[str, str], dict[float, float]] = {}
    for entry in entries:
        step = _number(entry.get("step"))
        if step is None:
            continue
        epoch = round(float(np.interp(step, steps, epochs)), 3)
        kind = str(entry.get("kind"))
        for name in CURVES:
            value = _number(entry.get(name))
            if value is not None:
                values.setdefault((kind, name), {})[epoch] = float(f"{value:.5g}")
    return [
        {"kind": kind, "name": name, "points": _thinned(sorted(curve.items()))}
        for (kind, name), curve in values.items()
        if len(curve) > 1
    ]


def _epochs_of_steps(entries: Entries) -> tuple[list[float], list[float]]:
    """Steps at which an epoch ended, and how many had then; steps themselves where none did."""
    of_kind = {kind: [e for e in entries if e.get("kind") == kind] for kind in ("val", "train")}
    ends: dict[float, float] = {0.0: 0.0}
    for entry in of_kind["val"] or of_kind["train"]:
        step = _number(entry.get("step"))
        epoch = _number(entry.get("epoch"))
        if step and epoch is not None:
            ends[float(step)] = float(epoch)
    if len(ends) == 1:
        last = max((_number(entry.get("step")) or 0 for entry in entries), default=0)
        ends[float(last)] = float(last)
    steps = sorted(ends)
    return steps, [ends[step] for step in steps]


def _entries(path: Path) -> Entries:
    """The lines of a metrics.jsonl, but for a last one that was cut off."""
    return list(_lines(path)) if path.is_file() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def _thinned(points: list) -> list:
    """At most MAX_CURVE of them, first and last included."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), MAX_CURVE)).astype(np.int64)
    return [list(points[i]) for i in chosen]


# -------------------------------- how a run was made


def read_origin(folder: Path, stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Tell how a run was made: commit, versions, machine, seconds of training, bytes of its model.

    Args:
        folder: of the run.
        stages: of the run, from `read_stages`.
    """
    environment = _facts(folder / "environment.json")
    versions = environment.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    precision = environment.get("mixed_precision")
    seconds = [stage["seconds"] for stage in stages if stage["seconds"]]
    told = {
        "seconds of training": round(sum(seconds), 1) if seconds else None,
        "megabytes of the model": round(size_of(folder / "model") / 1e6, 3),
        "commit": _commit(environment),
        "Python": environment.get("python"),
        "torch": torch,
        "device": environment.get("device"),
        "precision": "float32" if precision == "no" else precision,
        "processes": environment.get("processes"),
        "processor": environment.get("cpu"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _commit(environment: Mapping[str, Any]) -> str | None:
    """The commit that a run was trained at, and whether files had been changed since."""
    commit = environment.get("commit")
    if commit and environment.get("dirty"):
        return f"{commit}, with changed files"
    return commit


def read_configs(folder: Path) -> dict[str, str]:
    """Return texts of a run's config by what they are: as it was given, and resolved.

    Resolved is that of all its stages, where it has some. What is not there is left out.
    """
    resolved = folder / RECIPE
    if not present(resolved):
        resolved = folder / "config.yaml"
    paths = {"as it was given": folder / GIVEN, "resolved": resolved}
    return {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in paths.items()
        if present(path)
    }
