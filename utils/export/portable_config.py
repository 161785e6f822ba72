"""The config of a run as another machine may have it: without the places of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.config import DataConfig, RunConfig
from utils.config.yaml_text import dump_yaml, read_yaml
from utils.files import write_text

GENERAL: dict[str, dict[str, Any]] = {  # keys that name places, and what stands there instead
    "data": {"root": DataConfig().root, "token_cache": None, "feature_cache": None},
    "run": {"root": RunConfig().root, "dir": None, "start_from": None},
}
NAMING_FOLDERS = {"encoder": ("name", "init", "tokenizer"), "method": None}  # None = all keys


def portable(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a config, of one stage, without absolute paths.

    Of a folder that the encoder or the method was made from the name is left: answering reads
    nothing there.
    """
    changed = {name: value for name, value in sections.items() if name != "stages"}
    for section, values in GENERAL.items():
        changed[section] = {**changed.get(section, {}), **values}
    for section, keys in NAMING_FOLDERS.items():
        content = changed.get(section, {})
        changed[section] = {
            key: without_folders(value) if keys is None or key in keys else value
            for key, value in content.items()
        }
    return changed


def without_folders(value: Any) -> Any:
    """Return a value of a config with `./NAME` in place of absolute paths."""
    if isinstance(value, Mapping):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_folders(part) for part in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return f"./{Path(value).name}"  # never the name of a kind of encoder
    return value


def make_portable(path: Path) -> None:
    """Rewrite a config file; another name of the same file keeps what it has."""
    write_text(path, dump_yaml(portable(read_yaml(path))))
