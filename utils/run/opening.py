"""A run folder is made, gone on in, or refused with the reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import distributed
from utils.config.config import Config, ConfigError, read_yaml, to_yaml
from utils.config.given import GIVEN
from utils.config.trust import RECIPE
from utils.errors import InputError
from utils.files import settle, write_text
from utils.reading.saved import read_facts
from utils.run.differences import MAY_CHANGE, as_text, differences
from utils.run.folder import clear_run, is_begun
from utils.run.lock import LOCK, is_locked

log = logging.getLogger(__name__)


def open_run(
    config: Config,
    recipe: Config,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Make or reopen the run folder and save the resolved config.

    Args:
        config: of a stage, or of a run without stages.
        recipe: of the whole run, whose folder `overwrite` clears.

    Raises:
        InputError: the folder holds a run already and neither `resume` nor `overwrite` is given, or
            it holds a run of another config.
    """
    folder = config.run_folder
    problem = None
    if distributed.is_main():
        problem = _refusal(config, resume, overwrite)
        if problem is None:
            if overwrite:
                clear_run(recipe.run_folder)
            _write_configs(config, recipe)
    problem = distributed.broadcast(problem)
    if problem:
        raise InputError(problem)
    return folder


def _write_configs(config: Config, recipe: Config) -> None:
    folder = config.run_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: the run folder cannot be made ({error.strerror}); choose another run.dir "
            "or run.root"
        ) from error
    for leftover in folder.glob(".*.partial-*"):  # of a process that was killed while it wrote
        leftover.unlink()
    if recipe.stages:
        write_text(recipe.run_folder / RECIPE, to_yaml(recipe))
    if recipe.given:
        write_text(recipe.run_folder / GIVEN, recipe.given)
    saved = folder / "config.yaml"
    if saved.exists():
        before = read_yaml(saved)
        for key, (old, new) in differences(before, config).items():
            log.info("%s is %r from here on; until now it was %r", key, new, old)
        if _stop(before) != config.train.stop_epoch:
            (folder / "finished").unlink(missing_ok=True)  # it is not any more
    write_text(saved, to_yaml(config))


def check_folders(
    stages: Sequence[Config],
    resume: bool,
    overwrite: bool,
) -> None:
    """Refuse what `open_run` will refuse of a run's stages, before the first one is trained.

    Finished stages before the last are kept as they are, whatever the config says of them now.
    """
    problem = None
    if distributed.is_main():
        for config in stages:
            if resume and config is not stages[-1] and is_finished(config):
                _say_kept(config)
            else:
                problem = problem or _refusal(config, resume, overwrite)
    problem = distributed.broadcast(problem)
    if problem:
        raise InputError(problem)


def is_finished(config: Config) -> bool:
    """Whether the run in a config's folder has ended, and no later end is asked for."""
    folder = config.run_folder
    if not (folder / "finished").exists():
        return False
    saved = folder / "config.yaml"
    return not saved.is_file() or _stop(read_yaml(saved)) == config.train.stop_epoch


def _say_kept(config: Config) -> None:
    saved = config.run_folder / "config.yaml"
    changed = differences(read_yaml(saved), config) if saved.is_file() else {}
    if changed := {key: values for key, values in changed.items() if key not in MAY_CHANGE}:
        log.warning(
            "%s is finished and kept as it was trained: %s has no effect on it",
            config.run_folder,
            as_text(changed),
        )


def _stop(saved: Mapping[str, Any]) -> int | None:
    return (saved.get("train") or {}).get("stop_epoch")


def _refusal(
    config: Config,
    resume: bool,
    overwrite: bool,
) -> str | None:
    """Why a run cannot begin in its folder, or None."""
    folder = config.run_folder
    saved = folder / "config.yaml"
    if is_locked(folder):
        return f"{folder}: another process is training in this folder"
    if folder.exists() and not folder.is_dir():
        return f"{folder}: expected a run folder, got a file; choose another run.dir"
    if not saved.exists():
        if folder.is_dir() and _holds_something_else(folder):
            return f"{folder}: the run folder is not empty and holds no run; choose another run.dir"
        return None
    if overwrite or (resume and not is_begun(folder)):
        return None  # where nothing was trained the config may be another
    return _refusal_to_go_on(config, resume)


def _holds_something_else(folder: Path) -> bool:
    own = ("stages", GIVEN, RECIPE, LOCK)
    names = [path.name for path in folder.iterdir()]
    return any(name not in own and ".partial" not in name for name in names)


def _refusal_to_go_on(config: Config, resume: bool) -> str | None:
    folder = config.run_folder
    saved = folder / "config.yaml"
    try:
        changed = differences(read_yaml(saved), config)
    except ConfigError as error:
        return f"the run's config is damaged ({error}); --overwrite replaces the run"
    fixed = {key: values for key, values in changed.items() if key not in MAY_CHANGE}
    if resume and [*fixed] == ["train.stop_epoch"]:
        problem = _stop_refusal(folder, config, *fixed.pop("train.stop_epoch"))
        if problem:
            return f"{folder}: {problem}"
    if fixed:
        return (
            f"{folder} holds a run of another config: {as_text(fixed)}; {_way_out(fixed, folder)}"
        )
    if not resume:
        return f"{folder} holds this run already; use --resume to go on, --overwrite to replace it"
    return None


def _way_out(changed: Mapping[str, Any], folder: Path) -> str:
    usual = "use another run.expname (or run.dir), or --overwrite to replace it"
    if [*changed] != ["train.epochs"]:
        return usual
    return (
        "the learning rates of the steps that were taken follow from train.epochs. To train on "
        f"from its best model: --run.start_from {folder} with another run.expname; to train anew: "
        "--overwrite. (A run that shall be trained on later needs its last train.epochs from the "
        "start, with a train.stop_epoch before them and run.keep_last: true)"
    )


def _stop_refusal(
    folder: Path,
    config: Config,
    before: int | None,
    now: int | None,
) -> str | None:
    """Why a run cannot go on to another `train.stop_epoch`, or None.

    If it can it is, bit by bit, the run that had it from the start.
    """
    settle(folder / "last")  # the main process alone comes here
    last = folder / "last" / "progress.json"
    if not last.is_file():
        return (
            "there is no last/ to go on from: a finished run keeps it only with run.keep_last: "
            f"true. To train on from its best model: --run.start_from {folder} with another "
            "run.expname; to train anew: --overwrite"
        )
    progress = read_facts(last, epoch=int, epoch_step=int)
    begun = progress["epoch"] + bool(progress["epoch_step"])
    if now is not None and now < begun:
        return (
            f"train.stop_epoch is {now}, but {begun} epochs are begun already; expected as many "
            "or more"
        )
    if (folder / "finished").exists() and progress["epoch"] % config.train.eval_interval:
        return (
            f"train.stop_epoch ({before} -> {now}): the run ended with an evaluation after epoch "
            f"{progress['epoch']}, which train.eval_interval {config.train.eval_interval} does "
            f"not have; to train on from its best model: --run.start_from {folder} with another "
            "run.expname"
        )
    return None
