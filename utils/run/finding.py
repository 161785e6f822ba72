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
from utils.run.model_files import NewerModelError, model_format
from utils.run.places import with_places

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

    Its data is looked for where it lay in training.

    Raises:
        InputError: it is no run, one without a model, or one whose model is of a newer version.
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
    model = settled_folder(folder / "model")
    _refuse_newer(model)  # first: the config of a newer version may have other keys
    config = load_config(folder / "config.yaml", overrides, own=False)
    if not model.is_dir():
        raise InputError(
            f"{folder}: the run has no model yet; train it, or go on with train.py --resume"
        )
    return folder, with_places(config, folder, overrides)


def _refuse_newer(model: Path) -> None:
    """Raise NewerModelError where a model is one; what else is wrong with it is told on loading."""
    try:
        model_format(model)
    except NewerModelError:
        raise
    except InputError:
        pass


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
