"""Whose word counts: what lies in a run folder may be a stranger's, and asks for no code.

A config file of one's own may have an encoder's own code run, and have modules imported. One that
lies in a run folder may not, nor what it names as its `base:`; the command line and a file of one's
own that names it still may.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
RECIPE = "recipe.yaml"  # of a run with stages, of which none may have begun
# what training writes beside config.yaml, each for itself; models are given away without them
TRAINED = ("environment.json", "last", "metrics.jsonl", "train.log", RECIPE)
MODELS = ("model", ".model.old")
CODE = "trust_remote_code"  # of section encoder
OUTSIDE_NAME = re.compile(r"(?!stage:|best:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:Class


def is_ones_own(path: Path) -> bool:
    """Whether a config file lies in no run folder, nor does what it is a link to."""
    linked = Path(os.path.realpath(path))  # of a loop of links, too
    folders = [*path.absolute().parents, *linked.parents]
    return not any(_is_a_run(folder) for folder in folders)


def was_trained_in(folder: Path) -> bool:
    """Whether training wrote into a folder."""
    return any((folder / name).exists() for name in TRAINED)


def _is_a_run(folder: Path) -> bool:
    if any((folder / model / "method.json").exists() for model in MODELS):
        return True
    if (folder / RECIPE).exists() and (folder / "stages").exists():
        return True
    has_model = any((folder / model).exists() for model in MODELS)
    return (folder / "config.yaml").exists() and (has_model or was_trained_in(folder))


def without_code(sections: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, its stages among it, without the wish to run an encoder's own code."""
    changed = dict(sections)
    encoder = sections.get("encoder")
    if isinstance(encoder, Mapping) and encoder.get(CODE):
        changed["encoder"] = {**encoder, CODE: False}
    stages = sections.get("stages")
    if isinstance(stages, Sequence) and not isinstance(stages, str):
        changed["stages"] = [
            without_code(stage) if isinstance(stage, Mapping) else stage for stage in stages
        ]
    return changed


def asks_for_code(value: Any) -> bool:
    """Whether settings of a stranger name a class of a module outside, or an encoder's own code."""
    if isinstance(value, Mapping):
        return any(
            (str(key).endswith(CODE) and bool(part)) or asks_for_code(part)
            for key, part in value.items()
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(map(asks_for_code, value))
    return isinstance(value, str) and bool(OUTSIDE_NAME.fullmatch(value))


def say_refused(path: Path, overrides: Mapping[str, Any]) -> None:
    """Say that a file's wish was not granted, unless the command line says what is wanted."""
    stages = overrides.get("stages") or {}
    asked = [overrides, *(part for part in stages.values() if isinstance(part, Mapping))]
    if any(CODE in (part.get("encoder") or {}) for part in asked):
        return
    log.warning(
        "%s asks to run its own code; refused. If you trust it: --encoder.trust_remote_code true",
        path,
    )
