"""The run folder: a process killed at any instant leaves nothing in it half written.

recipe.yaml        all stages of the run, if it has some: each but the last has a folder like
                   this in stages/
config.yaml        resolved config
environment.json   commit, versions, host, device, data hash
train.log          log
metrics.jsonl      one JSON object a line: training and validation
model/             best on validation
last/              everything needed to go on
val_rows.npy       training rows held out
{val,tst}_metrics.json, tst_score_mat.npz, report.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import distributed
from utils.config.config import (
    Config,
    ConfigError,
    load_config,
    parse_overrides,
    read_yaml,
    to_mapping,
    to_yaml,
)
from utils.console import show_anything
from utils.errors import InputError
from utils.files import clear_folder, settled_folder, write_text
from utils.reading.saved import read_facts

log = logging.getLogger(__name__)
LOCK = ".lock"
RECIPE = "recipe.yaml"
MAY_DIFFER = {"run", "eval"}  # sections that do not change what is trained
MAY_CHANGE = {
    "data.root",
    "data.token_cache",
    "data.feature_cache",
    "data.workers",
    "encoder.trust_remote_code",
    "train.mixed_precision",
}  # of a run that goes on, if the data is the same
MAY_BE_OVERRIDDEN = (  # of a finished run, beside all of `eval`
    "data.root",
    "data.feature_cache",
    "data.token_cache",
    "data.workers",
    "encoder.trust_remote_code",
    "run.threads",
    "train.mixed_precision",
)
WRITTEN_FILES = (  # what a run writes, and --overwrite removes
    "config.yaml",
    RECIPE,
    "environment.json",
    "train.log",
    "metrics.jsonl",
    "val_rows.npy",
    "val_metrics.json",
    "trn_metrics.json",
    "tst_metrics.json",
    "trn_score_mat.npz",
    "val_score_mat.npz",
    "tst_score_mat.npz",
    "graph.npz",
    "approx_A.npz",
    "finished",
    "report.html",
    "trn_report.html",
    "val_report.html",
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
)


# -------------------------------- the folder of a run


def open_run(config: Config, recipe: Config, resume: bool, overwrite: bool) -> Path:
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
    saved = folder / "config.yaml"
    if saved.exists():
        before = read_yaml(saved)
        for key, (old, new) in differences(before, config).items():
            log.info("%s is %r from here on; until now it was %r", key, new, old)
        if _stop(before) != config.train.stop_epoch:
            (folder / "finished").unlink(missing_ok=True)  # it is not any more
    write_text(saved, to_yaml(config))


def check_folders(stages: Sequence[Config], resume: bool, overwrite: bool) -> None:
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
            _as_text(changed),
        )


def differences(saved: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ and matter to what is trained: {key: (saved, now)}.

    A key that the saved config does not have, as it is of an older version, had its default.
    """
    changed = {}
    for section, content in to_mapping(config).items():
        if not isinstance(content, Mapping):
            continue
        defaults = {
            field.name: field.default for field in dataclasses.fields(getattr(config, section))
        }
        before = saved.get(section)
        if not isinstance(before, Mapping):
            before = {}
        for key, now in content.items():
            default: Any = defaults[key]
            if isinstance(default, tuple):
                default = list(default)
            old = before.get(key, default)
            matters = section not in MAY_DIFFER or (section, key) == ("run", "seed")
            if matters and old != now:
                changed[f"{section}.{key}"] = old, now
    return changed


def _as_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items())


def _stop(saved: Mapping[str, Any]) -> int | None:
    return (saved.get("train") or {}).get("stop_epoch")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: another training run in it is refused until this one ends."""
    if not distributed.is_main():
        yield
        return
    with open(folder / LOCK, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False  # left by a process that was killed


def _refusal(config: Config, resume: bool, overwrite: bool) -> str | None:
    """Why a run cannot begin in its folder, or None."""
    folder = config.run_folder
    saved = folder / "config.yaml"
    if _is_locked(folder):
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
    names = [path.name for path in folder.iterdir()]
    return any(name not in ("stages", RECIPE, LOCK) and ".partial" not in name for name in names)


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
            f"{folder} holds a run of another config: {_as_text(fixed)}; {_way_out(fixed, folder)}"
        )
    if not resume:
        return f"{folder} holds this run already; use --resume to go on, --overwrite to replace it"
    return None


def is_begun(folder: Path) -> bool:
    """Whether a run has come so far that something of it would be lost."""
    if any((folder / "levels").glob("*")) or (folder / "finished").exists():
        return True
    return any((folder / name).is_dir() for name in ("model", "last", ".model.old", ".last.old"))


def _way_out(changed: Mapping[str, Any], folder: Path) -> str:
    usual = "use another run.expname, or --overwrite to replace it"
    if [*changed] != ["train.epochs"]:
        return usual
    return (
        "the learning rates of the steps that were taken follow from train.epochs. To train on "
        f"from its best model: --run.start_from {folder} with another run.expname; to train anew: "
        "--overwrite"
    )


def _stop_refusal(folder: Path, config: Config, before: int | None, now: int | None) -> str | None:
    """Why a run cannot go on to another `train.stop_epoch`, or None.

    If it can it is, bit by bit, the run that had it from the start.
    """
    last = settled_folder(folder / "last") / "progress.json"
    if not last.is_file():
        return "there is no last/ to go on from; train anew with --overwrite"
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


def clear_run(folder: Path) -> None:
    """Remove a run, and only what a run writes: a mistyped folder must not go with it."""
    if not (folder / "config.yaml").exists() and not (folder / "stages").exists():
        return
    for name in WRITTEN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in WRITTEN_FOLDERS:
        clear_folder(folder / name)


def with_folder_renamed(value: Any, old: str, new: str) -> Any:
    """Return the values of a config with folder `new` in place of `old`, and for what is inside."""
    if isinstance(value, Mapping):
        return {key: with_folder_renamed(part, old, new) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_folder_renamed(part, old, new) for part in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value.removeprefix(old)
    return value


def folder_of(run: str | Path) -> Path:
    """Return a run folder, or the one of a run's config.yaml."""
    path = Path(run)
    return path.parent if path.name == "config.yaml" else path


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
    for section, values in overrides.items():
        if fixed := [
            key
            for key in values
            if section != "eval" and f"{section}.{key}" not in MAY_BE_OVERRIDDEN
        ]:
            raise ConfigError(
                f"command line: {section}.{fixed[0]} is fixed by the run; what can be overridden: "
                f"eval.*, {', '.join(MAY_BE_OVERRIDDEN)}"
            )
    config = load_config(folder / "config.yaml", overrides)
    if config.encoder.trust_remote_code and "trust_remote_code" not in overrides.get("encoder", {}):
        # The folder may be a stranger's: only who opens it may allow its code to run.
        log.warning(
            "%s asks to run its own code; refused. If you trust it: --encoder.trust_remote_code "
            "true",
            folder,
        )
        config = dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, trust_remote_code=False)
        )
    if not settled_folder(folder / "model").is_dir():
        raise InputError(
            f"{folder}: the run has no model yet; train it, or go on with train.py --resume"
        )
    return folder, config


# -------------------------------- logging


def start_logging(folder: Path | None = None) -> None:
    """Log to the screen and, given a folder, to its train.log.

    Other processes than the main one warn only.
    """
    show_anything()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_Console()]
    if folder is not None and distributed.is_main():
        handlers.append(
            logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        )
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    for noisy in (
        "transformers",
        "accelerate",
        "httpx",
        "huggingface_hub",
        "matplotlib",
        "sentence_transformers",
        "onnxscript",
        "onnx_ir",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Console(logging.Handler):
    """Writes through tqdm, so that log lines do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from utils.progress import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def warn_unfinished(folder: Path) -> None:
    """Say that a run's model is only the best so far."""
    if not (folder / "finished").is_file():
        log.warning("%s: the run is not finished; this is its best model so far", folder)


def _forget_after(path: Path, epoch: int) -> None:
    """Drop the lines of unfinished epochs, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["epoch"] <= epoch:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


class MetricLog:
    """metrics.jsonl, TensorBoard and, if asked for, Weights & Biases, from the main process.

    Args:
        step, epoch: the steps done and the epochs finished where the run goes on from; what a
            killed run logged beyond them is forgotten, for it comes again.
    """

    def __init__(self, folder: Path, config: Config, step: int = 0, epoch: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        self._board: Any = None
        self._wandb: Any = None
        if not distributed.is_main():
            return
        _forget_after(self._path, epoch)
        if config.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if config.run.wandb:
            try:
                import wandb
            except ImportError:
                raise ConfigError(
                    "run.wandb is true but the package is missing: pip install wandb"
                ) from None
            self._wandb = wandb.init(
                project=config.run.project,
                name=f"{config.data.name}/{config.run.expname}",
                dir=str(folder),
                config=to_mapping(config),
            )

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl: {"kind": ..., "step": ..., **values}."""
        if not distributed.is_main():
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Close what is written to elsewhere."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
