"""The run folder: what it holds, written so that a process killed at any instant leaves nothing half written.

    config.yaml        resolved config            environment.json   commit, versions, host, device, data hash
    train.log          log                        metrics.jsonl      one JSON object a line: training and validation
    model/             best on validation         last/              everything needed to go on
    val_rows.npy       training rows held out     {val,tst}_metrics.json, tst_score_mat.npz, report.html
"""
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import distributed
from utils.config import Config, ConfigError, load_config, parse_overrides, read_yaml, to_mapping, to_yaml
from utils.files import clear_folder, settled_folder, write_text

log = logging.getLogger(__name__)
LOCK = ".lock"
MAY_DIFFER = {"run", "eval"}      # sections that do not change what is trained
MAY_BE_OVERRIDDEN = ("data.root", "data.token_cache", "data.workers", "encoder.trust_remote_code", "run.threads",
                     "train.mixed_precision")      # of a finished run, beside all of `eval`


# ---------------------------------------------------------------- the folder of a run

def open_run(config: Config, whole: Path, resume: bool, overwrite: bool) -> Path:
    """Make or reopen the run folder and save the resolved config.

    Args:
        whole: folder of the whole run, cleared by `overwrite`: that of all stages where there are several.

    Raises:
        ValueError: the folder holds a run already and neither `resume` nor `overwrite` is given, or it holds a run of
            another config.
    """
    folder = config.run_folder
    problem = None
    if distributed.is_main():
        problem = _refusal(folder, config, resume, overwrite)
        if problem is None:
            if overwrite:
                clear_run(whole)
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".*.partial-*"):      # of a process that was killed while it wrote
                leftover.unlink()
            if not (folder / "config.yaml").exists():
                write_text(folder / "config.yaml", to_yaml(config))
    problem = distributed.broadcast(problem)
    if problem:
        raise ValueError(problem)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: another training run in it is refused until this one ends, however it ends."""
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
    return False      # left by a process that was killed


def _refusal(folder: Path, config: Config, resume: bool, overwrite: bool) -> str | None:
    saved = folder / "config.yaml"
    if _is_locked(folder):
        return f"{folder}: another process is training in this folder"
    if not saved.exists():
        if folder.is_dir() and any(p.name not in ("stages", LOCK) and ".partial" not in p.name
                                   for p in folder.iterdir()):
            return f"{folder}: the run folder is not empty and holds no run; choose another run.dir"
        return None
    if overwrite:
        return None
    try:
        before, now = read_yaml(saved), to_mapping(config)
    except ConfigError as error:
        return f"the run's config is damaged ({error}); --overwrite replaces the run"
    changed = [f"{section}.{key} ({(before.get(section) or {}).get(key)!r} -> {value!r})"
               for section, content in now.items() if section not in MAY_DIFFER and isinstance(content, Mapping)
               for key, value in content.items() if (before.get(section) or {}).get(key) != value]
    seed = (before.get("run") or {}).get("seed")
    if seed != now["run"]["seed"]:
        changed.append(f"run.seed ({seed} -> {now['run']['seed']})")
    if before.get("stages") != now.get("stages"):
        changed.append("stages")
    if changed:
        return (f"{folder} holds a run of another config: {', '.join(changed)}; "
                "use another run.expname, or --overwrite to replace it")
    if not resume:
        return f"{folder} holds this run already; use --resume to go on, --overwrite to replace it"
    return None


def clear_run(folder: Path) -> None:
    """Remove a run, and only what a run writes: `--overwrite` must not take a mistyped folder with it."""
    if not (folder / "config.yaml").exists() and not (folder / "stages").exists():
        return
    for name in ("config.yaml", "environment.json", "train.log", "metrics.jsonl", "val_rows.npy", "val_metrics.json",
                 "trn_metrics.json", "tst_metrics.json", "trn_score_mat.npz", "val_score_mat.npz",
                 "tst_score_mat.npz", "graph.npz", "approx_A.npz", "finished", "report.html", "trn_report.html",
                 "val_report.html"):
        (folder / name).unlink(missing_ok=True)
    for name in ("model", "last", "levels", "experiments", "plots", "tensorboard", "stages", ".model.old", ".last.old",
                 ".model.partial", ".last.partial"):
        clear_folder(folder / name)


def find_run(path: str | Path, method_configs: Mapping[str, type], overrides: Any = ()) -> tuple[Path, Config]:
    """A run folder or its config.yaml -> (folder, config); ValueError if it is no finished run."""
    path = Path(path)
    folder = path.parent if path.name == "config.yaml" else path
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{path}: not a run folder: it has no config.yaml (train.py prints the folder it made)")
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    for section, values in overrides.items():
        if fixed := [key for key in values if section != "eval" and f"{section}.{key}" not in MAY_BE_OVERRIDDEN]:
            raise ConfigError(f"command line: {section}.{fixed[0]} is fixed by the run; what can be overridden: "
                              f"eval.*, {', '.join(MAY_BE_OVERRIDDEN)}")
    config = load_config(folder / "config.yaml", overrides, method_configs=method_configs)
    if config.encoder.trust_remote_code and "trust_remote_code" not in overrides.get("encoder", {}):
        # The folder may be a stranger's: only who opens it may allow its code to run.
        log.warning("%s asks to run its own code; refused. If you trust it: --encoder.trust_remote_code true", folder)
        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, trust_remote_code=False))
    if not settled_folder(folder / "model").is_dir():
        raise ValueError(f"{folder}: the run has no model yet; train it, or go on with train.py --resume")
    return folder, config


# ---------------------------------------------------------------- logging

def start_logging(folder: Path | None = None) -> None:
    """Log to the screen and, given a folder, to its train.log; other processes than the main one warn only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_Console()]
    if folder is not None and distributed.is_main():
        handlers.append(logging.FileHandler(folder / "train.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    for noisy in ("transformers", "accelerate", "httpx", "huggingface_hub", "matplotlib", "sentence_transformers",
                  "onnxscript", "onnx_ir"):
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
        step, epoch: the steps done and the epochs finished where the run goes on from; what a killed run logged beyond
            them is forgotten, for it comes again.
    """

    def __init__(self, folder: Path, config: Config, step: int = 0, epoch: int = 0) -> None:
        self._path, self._board, self._wandb = folder / "metrics.jsonl", None, None
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
                raise ConfigError("run.wandb is true but the package is missing: pip install wandb") from None
            self._wandb = wandb.init(project=config.run.project, name=f"{config.data.name}/{config.run.expname}",
                                     dir=str(folder), config=to_mapping(config))

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl: {"kind": ..., "step": ..., **values}."""
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
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
