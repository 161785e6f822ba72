"""The config.yaml of a run as what `train.py` is given: it goes on where the file lies.

    python train.py MOVED/config.yaml --resume                   # all its stages, if it has some
    python train.py MOVED/stages/NAME/config.yaml --resume       # this stage alone
    python train.py MOVED/config.yaml --run.expname again        # the same in another folder

It may have been made elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from utils.config.command_line import parse_overrides
from utils.config.config import Config, Expand, build_config, to_mapping
from utils.config.given import given_text
from utils.config.legacy_yaml import load_any_config
from utils.config.presets import PRESETS, preset_path
from utils.config.trust import RECIPE, was_trained_in
from utils.run.folder import with_folder_renamed
from utils.run.places import with_places

PLACES = {"dir", "root", "project", "expname"}  # of section run: where a run goes


def load_training_config(
    path: str | Path,
    words: Sequence[str],
    expand: Expand,
) -> Config:
    """Load a config file, that of a run folder, or a preset by its name.

    Modules that a file outside of a run names for its methods and losses are imported.

    Args:
        words: overrides of the command line.
        expand: as for `load_any_config`.
    """
    path = Path(path)
    if str(path) in PRESETS and not path.exists():
        path = preset_path(str(path))
    folder = path.parent
    if not _is_written_by_a_run(path):
        trusted = not (folder / "model").is_dir()  # which may be a stranger's
        config = load_any_config(path, words, expand=expand, trusted=trusted)
        return dataclasses.replace(config, given=given_text(path, words))
    folder = path.resolve().parent
    path = folder / RECIPE if (folder / RECIPE).is_file() else path.resolve()
    config = load_any_config(path, words, expand=expand, own=False)
    overrides = parse_overrides(words)
    config = with_places(config, folder, overrides)
    place = PLACES & overrides.get("run", {}).keys()
    if place:
        return config if "dir" in place else _with_folder(config, None)
    return moved(config, folder)


def _is_written_by_a_run(path: Path) -> bool:
    """Whether a file is the config that a training run wrote into its folder."""
    path = Path(os.path.realpath(path))  # a link to a run's file is that file
    return path.name in ("config.yaml", RECIPE) and was_trained_in(path.parent)


def moved(config: Config, folder: Path) -> Config:
    """Return the config of a run as that of the folder which holds it now.

    What it names inside of its old folder is renamed too.
    """
    old = config.run_folder
    new = folder
    if old.parent.name == new.parent.name == "stages":  # it may name other stages of its run
        old = old.parent.parent
        new = new.parent.parent
    values = with_folder_renamed(to_mapping(config), str(old), str(new))
    stages = values.pop("stages", ())
    return _with_folder(build_config(values, {}, stages), folder)


def _with_folder(config: Config, folder: Path | None) -> Config:
    place = None if folder is None else str(folder)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=place))
