"""Stages of a config: what they say of each other, and those that a fusion's member configs become."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.config import Config, ConfigError, read_yaml, stage_config, to_mapping
from utils.legacy_config import load_any_config
from utils.run import find_run

OF_THE_FUSION = ("root", "val_fraction", "val_max_points", "val_group_size", "token_cache")      # of section data


def _references(value: Any, change: Callable[[str, str], Any]) -> Any:
    """A stage's values with change(kind, name) for `stage:NAME` and `best:NAME` anywhere in them."""
    if isinstance(value, Mapping):
        return {key: _references(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_references(part, change) for part in value]
    if not isinstance(value, str) or not value.startswith(("stage:", "best:")):
        return value
    kind, _, name = value.partition(":")
    return change(kind, name)


def resolved(stage: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """`stage:NAME` -> the run folder of that earlier stage, `best:NAME` -> its best epoch."""
    return _references(stage, lambda kind, name: str(folders[name]) if kind == "stage" else
                       read_yaml(folders[name] / "finished")["best_epoch"])


def check_references(stages: Sequence[Mapping[str, Any]], method_configs: Mapping[str, type]) -> None:
    """ConfigError, before anything is trained, for a stage that names no earlier stage; ValueError for a member that is
    no run."""
    earlier: list[str] = []

    def check(kind: str, name: str) -> None:
        if name not in earlier:
            raise ConfigError(f"'{kind}:{name}': there is no earlier stage {name}; earlier stages: "
                              f"{', '.join(earlier) or 'none'}")
    for stage in stages:
        _references(stage, check)
        for source in ((stage.get("method") or {}).get("members") or {}).values():
            if not str(source).startswith("stage:"):
                find_run(source, method_configs)
        earlier.append(stage["name"])


def member_stages(config: Config, method_configs: Mapping[str, type]) -> Config:
    """A fusion whose members are config files -> the same with a stage for each of them (for each of their own stages),
    so that what has been trained is not trained again; any other config as it is."""
    if config.method.name != "fusion" or config.stages:
        return config
    stages, members = [], {}
    for name, source in (config.method.members or {}).items():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml") or (path.parent / "model").is_dir():
            members[name] = source
            continue
        own = load_any_config(path, method_configs=method_configs)
        before, members[name], names = own.run.start_from, f"stage:{name}", {}
        for number, overlay in enumerate(own.stages or ({},), 1):
            overlay = _references({**overlay, "run": {"start_from": before, **(overlay.get("run") or {})}},
                                  lambda kind, old, names=names: f"{kind}:{names.get(old, old)}")
            values = to_mapping(stage_config(own, overlay, method_configs))
            values["data"] |= {key: getattr(config.data, key) for key in OF_THE_FUSION}
            label = name if number >= len(own.stages) else f"{name}-{overlay['name']}"
            stages.append({**values, "name": label, "run": {"start_from": values["run"]["start_from"]}})
            before = f"stage:{label}"
            names[overlay.get("name")] = label
    if not stages:
        return config
    method = {**to_mapping(config)["method"], "members": members}
    stages.append({"name": "fusion", "method": method, "run": {"start_from": None}})
    fusion = dataclasses.replace(config.method, members=MappingProxyType(members))
    return dataclasses.replace(config, method=fusion, stages=tuple(stages))
