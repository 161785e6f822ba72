"""Flat YAML files of the older DEXML and ELIAS code: their dependencies and references."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.config import OUTSIDE, SECTIONS, ConfigError, nearest, read_yaml
from utils.config.legacy_log import shown

Values = dict[str, Any]
MAX_FILES = 100  # that a flat config depends on
MAX_TEXT = 10_000  # characters of a value, references replaced


def sections_of(values: Mapping[str, Any]) -> list[str]:
    """Return the keys of a file that are a typed config's."""
    return [
        key
        for key, content in values.items()
        if key in OUTSIDE or (key in SECTIONS and isinstance(content, Mapping))
    ]


def read_flat(
    path: Path,
    seen: tuple[Path, ...] = (),
    opened: list[Path] | None = None,
) -> tuple[Values, dict[str, str]]:
    """Read the keys of a flat file after those of its dependencies, and the file of each.

    Args:
        seen: the files that lead to this one.
        opened: all files so far.
    Raises:
        ConfigError: a dependency is missing, goes in a circle or is of another kind.
    """
    opened = [] if opened is None else opened
    opened.append(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `__dependency__:` goes in a circle")
    if len(opened) > MAX_FILES:
        raise ConfigError(
            f"{opened[0]}: its `__dependency__:` leads to more than {MAX_FILES} files, by way of "
            f"{path}"
        )
    values = read_yaml(path)
    flat = {}
    files = {}
    if sections := sections_of(values):
        raise ConfigError(
            f"{path}: holds sections ({', '.join(sections)}), but {seen[-1]}, a flat config of "
            "the older code, depends on it; a config is of one kind or the other"
        )
    for name in str(values.get("__dependency__") or "").split(","):
        if name.strip():
            dependency = dependency_file(name.strip(), path)
            inherited, origins = read_flat(dependency, (*seen, path.resolve()), opened)
            flat.update(inherited)
            files.update(origins)
    return {**flat, **values}, {**files, **dict.fromkeys(values, str(path))}


def dependency_file(name: str, path: Path) -> Path:
    """The file beside this one, else under a folder above: the older code counts from its root."""
    for folder in (path.parent, *path.resolve().parents, Path()):
        if os.path.isfile(folder / name):  # False for a name that can be no file's
            return folder / name
    raise ConfigError(
        f"{path}: `__dependency__:` names '{name}': no such file beside it, under a folder above "
        "it or under the current one"
    )


def interpolate(flat: Values, files: Mapping[str, str]) -> Values:
    """Replace `[key]` inside strings by that key's value, its own references replaced first."""

    def resolve(key: str, chain: tuple[str, ...]) -> Any:
        def value_of(match: re.Match) -> str:
            name = match[1]
            if name not in flat:
                raise ConfigError(
                    f"{files[key]}: {key} refers to [{name}], which is no "
                    f"key{nearest(name, list(flat))}"
                )
            if name in chain:
                raise ConfigError(
                    f"{files[key]}: references go in a circle: {' -> '.join((*chain, name))}"
                )
            return shown(resolve(name, (*chain, name)))

        if not isinstance(flat[key], str):
            return flat[key]
        whole = re.sub(r"\[(\w+)\]", value_of, flat[key])
        if len(whole) > MAX_TEXT:
            raise ConfigError(
                f"{files[key]}: {key} has more than {MAX_TEXT:,} characters, its references "
                "replaced"
            )
        return whole

    return {key: resolve(key, (key,)) for key in flat}
