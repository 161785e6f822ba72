"""A config as a user wrote it, for the run folder: comments, bases and command line.

given.yaml is a stream of YAML documents, what each file says by its own words; `base:` files come
first, in the order in which they are merged:

    # given: python train.py configs/mine.yaml --train.epochs 3
    --- # configs/dataset.yaml
    data: {name: Mine}
    --- # configs/mine.yaml
    base: dataset.yaml       # what is common to all
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.legacy_yaml_files import dependency_file
from utils.config.yaml_text import read_yaml

GIVEN = "given.yaml"  # in the folder of a whole run


def given_text(path: Path, words: Sequence[str]) -> str:
    """Return the text of a config file that was loaded, and of those that it names.

    Args:
        words: overrides of the command line.
    """
    parts = [f"# given: python train.py {shlex.join([str(path), *words])}\n"]
    for file in _files(path, set()):
        text = file.read_text(encoding="utf-8-sig")
        parts.append(f"--- # {file}\n{text.rstrip()}\n")
    return "".join(parts)


def _files(path: Path, seen: set[Path]) -> Iterator[Path]:
    """The files of a config, those that it names before itself, each once."""
    seen.add(path.resolve())
    values = read_yaml(path)
    for other in _named(values, path):
        if other.resolve() not in seen:
            yield from _files(other, seen)
    yield path


def _named(values: Mapping[str, Any], path: Path) -> list[Path]:
    """The files that a file names as its `base:`, or as `__dependency__:` of the older code."""
    bases = values.get("base") or []
    files = [path.parent / base for base in ([bases] if isinstance(bases, str) else bases)]
    names = str(values.get("__dependency__") or "").split(",")
    return files + [dependency_file(name.strip(), path) for name in names if name.strip()]
