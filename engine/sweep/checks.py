"""What of a sweep can be refused before its first trial is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.choosing import chosen
from engine.planning import plan_recipe
from models.evaluation import metric_ks
from utils.config.config import Config, ConfigError, nearest
from utils.data.sizes import DataSizes
from utils.distributed import launched_processes
from utils.errors import InputError
from utils.metrics import NAMES
from utils.reading.saved import read_facts
from utils.run.lock import is_locked
from utils.sweep.ranges import Choices, Range

SWEEP = "sweep.json"  # what a folder's sweep is of


def check_launch() -> None:
    """InputError under a launcher of several processes."""
    processes = launched_processes()
    if processes > 1:
        raise InputError(
            f"a sweep was started in {processes} processes: it starts its trials itself, each in "
            "one process. Run it without accelerate launch; --jobs N trains N trials beside each "
            "other, on a GPU each"
        )


def check_tries(
    tries: Mapping[str, Choices | Range],
    config_with: Callable[[Mapping[str, str]], Config],
) -> None:
    """Refuse a key or a value that the config would refuse, each by itself.

    Args:
        config_with: the config with other values, checked.
    Raises:
        ConfigError: naming the word of the command line.
    """
    for key, tried in tries.items():
        for value in tried.ends:
            try:
                config_with({key: value})
            except ConfigError as error:
                message = str(error).removeprefix("command line: ")
                raise ConfigError(f"--try {key}={value}: {message}") from error


def check_measured(config: Config, metric: str) -> str:
    """The metric that trials are compared by.

    Raises:
        InputError: the config cannot be trained on its data set, has no validation points, or the
            metric is not computed.
    """
    stages = plan_recipe(chosen(config))
    last = [*stages.values()][-1]
    sizes = DataSizes.read(last)
    if not sizes.validation:
        raise ConfigError(
            "a sweep compares trials by validation points, and there are none (data.val_fraction "
            f"is {last.data.val_fraction}); members that are trained again on all points (refit) "
            "are for the best config, after the sweep"
        )
    ks = metric_ks(last, sizes)
    if metric:
        known = [f"{name}@{k}" for name in NAMES for k in ks]
        if metric not in known:
            raise ConfigError(f"--metric: '{metric}' is not computed{nearest(metric, known)}")
        return metric
    usual = [k for k in ks if k <= 5]
    return last.train.track_metric or f"nDCG@{max(usual, default=min(ks))}"


def check_folder(folder: Path, said: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else than this sweep.

    Args:
        said: what must be the same where a sweep goes on.
    """
    path = folder / SWEEP
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a sweep's folder, got a file")
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder}: the folder is not empty and holds no sweep; name another by --dir"
            )
        return
    if is_locked(folder):
        raise InputError(f"{folder}: another process works on this sweep")
    before = read_facts(path)
    now = json.loads(json.dumps(said))
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise InputError(
            f"{folder} holds a sweep of {_others(changed, before, now)}; name another folder by "
            "--dir"
        )


def _others(
    changed: Sequence[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> str:
    """What is other than it was, for a message."""
    if changed == ["config"]:
        sections = before.get("config", {})
        keys = [
            f"{section}.{key}"
            for section, values in now["config"].items()
            for key in (values if isinstance(values, dict) else ())
            if sections.get(section, {}).get(key) != values[key]
        ]
        return f"another config ({', '.join(keys) or 'other stages'})"
    said = []
    for key in changed:
        if key == "config":
            said.append("another config")
        elif key == "tries":
            then = " ".join(f"--try {name}={text}" for name, text in before.get(key, {}).items())
            said.append(f"other values ({then})")
        else:
            said.append(f"another {key} ({before.get(key)}, now {now[key]})")
    return " and ".join(said)
