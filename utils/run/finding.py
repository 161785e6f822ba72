"""The run of a folder or a config.yaml, as commands open it: its folder and its config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.config import Config, ConfigError, load_config, parse_overrides
from utils.errors import InputError
from utils.files import settled_folder
from utils.run.folder import folder_of

log = logging.getLogger(__name__)
MAY_BE_OVERRIDDEN = (  # of a finished run, beside all of `eval`
    "data.root",
    "data.feature_cache",
    "data.token_cache",
    "data.workers",
    "encoder.packing",
    "encoder.trust_remote_code",
    "run.threads",
    "train.mixed_precision",
    "train.deterministic",
)


def find_run(path: str | Path, overrides: Any = ()) -> tuple[Path, Config]:
    """Return the folder and the config of a run, of its folder or its config.yaml.

    Raises:
        InputError: it is no run, or one without a model.
        ConfigError: an override is fixed by the run.
    """
    folder = folder_of(path)
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{path}: not a run folder: it has no config.yaml (train.py prints the folder it made)"
        )
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    _check_overrides(overrides)
    config = load_config(folder / "config.yaml", overrides, own=False)
    if not settled_folder(folder / "model").is_dir():
        raise InputError(
            f"{folder}: the run has no model yet; train it, or go on with train.py --resume"
        )
    return folder, config


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for section, values in overrides.items():
        for key in values:
            if section != "eval" and f"{section}.{key}" not in MAY_BE_OVERRIDDEN:
                raise ConfigError(
                    f"command line: {section}.{key} is fixed by the run; what can be overridden: "
                    f"eval.*, {', '.join(MAY_BE_OVERRIDDEN)}"
                )


def warn_unfinished(folder: Path) -> None:
    """Say that a run's model is only the best so far."""
    if not (folder / "finished").is_file():
        log.warning("%s: the run is not finished; this is its best model so far", folder)
