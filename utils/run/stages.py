"""Stages of a config: what they say of each other, and those of a fusion's member configs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.config.automatic import WHEN
from utils.config.config import Config, ConfigError, stage_config, to_mapping
from utils.config.legacy_yaml import load_any_config
from utils.config.methods import method_class
from utils.config.plugins import NotAllowedError
from utils.config.references import check_references, with_references
from utils.errors import InputError
from utils.reading.saved import read_facts
from utils.run.finding import find_run

OF_THE_FUSION = (
    "root",
    "val_fraction",
    "val_max_points",
    "val_group_size",
    "features",
    "terms",
    "feature_cache",
    "token_cache",
)  # of section data


def stage_configs(config: Config) -> dict[str, Config]:
    """Return the stages of a config by name, each as it is trained.

    References are resolved; each starts from the one before.

    `best:NAME` is the best epoch of that stage, all its epochs while it is not trained yet. A
    config without stages is its own only one.
    """
    if not config.stages:
        return {"": config}
    check_references(config.stages)
    start = config.run.start_from
    last = config.stages[-1]["name"]
    configs: dict[str, Config] = {}

    def named(kind: str, name: str) -> Any:
        if kind == "stage":
            return str(configs[name].run_folder)
        return best_epoch(configs[name], name)

    for stage in config.stages:
        name = stage["name"]
        folder = config.run_folder if name == last else config.run_folder / "stages" / name
        # The stage may name another, or none.
        run = {"start_from": start, **(stage.get("run") or {}), "dir": str(folder)}
        with of_stage(name):
            overlay = with_references({**stage, "run": run}, named)
        configs[name] = stage_config(config, overlay)  # its errors name the stage
        start = str(folder)
    return configs


def best_epoch(config: Config, name: str) -> int:
    """The best epoch of a stage that is finished; of another all its epochs.

    Raises:
        ConfigError: it has none.
    """
    has_epochs = method_class(config.method.name).has_epochs
    if not has_epochs or config.train.epochs == 0:
        why = f"method {config.method.name} fits at once"
        if has_epochs:
            why = "its train.epochs is 0"
        raise ConfigError(
            f"train.stop_epoch is 'best:{name}', but stage {name} has no best epoch: {why}"
        )
    finished = config.run_folder / "finished"
    if not finished.exists():
        return config.train.epochs
    # 0 where the run that lies there, and is to be replaced, had no epochs
    return read_facts(finished, best_epoch=int)["best_epoch"] or config.train.epochs


@contextlib.contextmanager
def of_stage(name: str) -> Iterator[None]:
    """Errors of the block say which stage they are of."""
    try:
        yield
    except InputError as error:
        if not name:
            raise
        raise type(error)(f"stage '{name}': {error}") from error


class Runs:
    """Runs that a config names: finished ones, and earlier stages of its recipe.

    These need not be trained yet.
    """

    def __init__(self, stages: Mapping[str, Config] | None = None) -> None:
        """stages: by their run folders."""
        self._stages = dict(stages or {})

    def add(self, config: Config) -> None:
        """A stage that those after it may name."""
        self._stages[str(config.run_folder)] = config

    def __contains__(self, source: str) -> bool:
        """Whether something is there under a name; `config` says whether it is a run."""
        return source in self._stages or Path(source).exists()

    def config(self, source: str) -> Config:
        """Return the config of the run in a folder; InputError if that is no finished run."""
        if source in self._stages:
            return self._stages[source]
        return find_run(source)[1]

    def start(self, config: Config) -> Config:
        """Return the config of `run.start_from`."""
        assert config.run.start_from is not None
        try:
            return self.config(config.run.start_from)
        except NotAllowedError:
            raise
        except InputError as error:
            raise ConfigError(
                f"run.start_from: {error}; train that run first, or name another"
            ) from error


def member_stages(config: Config, own: bool = True) -> Config:
    """Give a fusion whose members are config files a stage for each of their stages.

    So what has been trained is not trained again. Any other config stays as it is.

    Args:
        own: of the members, as of `load_config`.
    """
    if config.method.name != "fusion" or config.stages:
        return config
    stages: list[dict[str, Any]] = []
    members: dict[str, str] = {}
    for name, source in (config.method.members or {}).items():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml") or (path.parent / "model").is_dir():
            members[name] = source
            continue
        members[name] = f"stage:{name}"
        stages += _stages_of_member(name, load_any_config(path, own=own), config)
    if not stages:
        return config
    method = {**to_mapping(config)["method"], "members": members}
    stages.append({"name": "fusion", "method": method, "run": {"start_from": None}})
    fusion = dataclasses.replace(config.method, members=MappingProxyType(members))
    return dataclasses.replace(config, method=fusion, stages=tuple(stages))


def _stages_of_member(
    name: str,
    member: Config,
    config: Config,
) -> list[dict[str, Any]]:
    """The stages of a member's config as stages of a fusion; the last one has the member's name."""
    stages: list[dict[str, Any]] = []
    before = member.run.start_from
    new_names: dict[str | None, str] = {}  # of its stages: its own name -> that of the fusion's

    def renamed(kind: str, old: str) -> str:
        return f"{kind}:{new_names.get(old, old)}"

    for number, stage in enumerate(member.stages or ({},), 1):
        run = {"start_from": before, **(stage.get("run") or {})}
        overlay = with_references({**stage, "run": run}, renamed)
        values = to_mapping(stage_config(member, overlay))
        values["data"] |= {key: getattr(config.data, key) for key in OF_THE_FUSION}
        new_name = name if number >= len(member.stages) else f"{name}-{overlay['name']}"
        start = values["run"]["start_from"]
        conditions = {WHEN: stage[WHEN]} if WHEN in stage else {}
        stages.append({**values, "name": new_name, **conditions, "run": {"start_from": start}})
        before = f"stage:{new_name}"
        new_names[overlay.get("name")] = new_name
    return stages
