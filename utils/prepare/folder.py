"""A folder of published files: finds them by name, and knows which were read.

Their names say which format they are of.
"""

from __future__ import annotations

import os
from pathlib import Path

from utils.errors import InputError
from utils.reading.input_files import FILTER_PREFIX, check_file

# Format and the files that show it, the first that fits counts: a name, or a pattern with one star.
MARKS = (
    ("xml-repository", ("trn.json", "trn.raw.json")),
    ("pecos", ("Y.trn.npz",)),
    ("sparse-text", ("trn_X_Y.txt",)),
    ("attention-xml", ("train_labels.txt",)),
    ("sparse-text", ("train.txt", "*_train.txt", "*_data.txt")),
)
# Formats of one file, which no folder is asked for.
SINGLE = {".csv": "csv", ".tsv": "csv --delimiter '\\t'", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# What every archive has beside its data; all else that is not read is named.
ABOUT = ("readme", "license", ".")


def existing(path: str | Path) -> Path:
    """Return `path`; InputError if it is no file that can be read."""
    if not os.path.lexists(path):
        raise InputError(f"{path}: expected a file, got nothing there")
    return check_file(path)


class Folder:
    """The input files of one folder, each plain or `.gz`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            got = "nothing there"
            if self.path.exists():
                got = "a file; " + (single_file(self.path) or "unpack it first")
            raise InputError(f"{path}: expected a folder, got {got}")
        self._read: set[Path] = set()

    def find(self, *names: str) -> Path:
        """Return the one file with one of these names; InputError unless there is just one."""
        path = self.find_optional(*names)
        if path is None:
            raise InputError(
                f"{self.path}: expected a file {' or '.join(names)} (or .gz), got none"
            )
        return path

    def find_optional(self, *names: str) -> Path | None:
        """Return the one file with one of these names; InputError if there are several."""
        paths = self._present(names)
        if len(paths) > 1:
            several = ", ".join(str(path.relative_to(self.path)) for path in paths)
            raise InputError(f"{self.path}: expected one file of {several}, got all")
        if not paths:
            return None
        self._read.add(paths[0])
        return existing(paths[0])

    def first(self, *names: str) -> Path:
        """Return the file with the first of these names that is there."""
        return self.first_optional(*names) or self.find(*names)

    def first_optional(self, *names: str) -> Path | None:
        """Return the file with the first of these names that is there, if one is."""
        for name in names:
            if path := self.find_optional(name):
                return path
        return None

    def matching(self, pattern: str) -> Path | None:
        """Return the one file like this pattern; InputError if there are several."""
        names = sorted({path.name.removesuffix(".gz") for path in self._like(pattern)})
        if len(names) > 1:
            raise InputError(
                f"{self.path}: expected one file {pattern}, got {', '.join(names[:5])}"
            )
        return self.find(names[0]) if names else None

    def has(self, pattern: str) -> bool:
        """Whether a file with this name, or like this pattern, is there."""
        return bool(self._like(pattern) if "*" in pattern else self._present((pattern,)))

    def unread(self) -> list[str]:
        """Return the names of the data files here that nothing asked for."""
        there = (path for path in sorted(self.path.iterdir()) if path.is_file())
        return [
            path.name
            for path in there
            if path not in self._read and not path.name.lower().startswith(ABOUT)
        ]

    def _present(self, names: tuple[str, ...]) -> list[Path]:
        # By lexists: what is there and no file is an error where it is taken, not an absent file.
        return [
            path
            for name in names
            for path in (self.path / name, self.path / f"{name}.gz")
            if os.path.lexists(path)
        ]

    def _like(self, pattern: str) -> list[Path]:
        return [  # filter_labels_train.txt is like *_train.txt, and no data
            path
            for path in (*self.path.glob(pattern), *self.path.glob(f"{pattern}.gz"))
            if not path.name.startswith(FILTER_PREFIX)
        ]


def single_file(path: Path) -> str:
    """Return the command for a file whose name says CSV or JSON lines, empty for any other."""
    for ending, kind in SINGLE.items():
        if path.name.lower().removesuffix(".gz").endswith(ending):
            return f"for one file: python -m utils.prepare {kind} --train {path} --out OUT"
    return ""


def recognise(path: str | Path) -> str | None:
    """Return the format whose files lie in a folder, None if none is known."""
    folder = Folder(path)
    for kind, patterns in MARKS:
        if any(folder.has(pattern) for pattern in patterns):
            return kind
    return None


def hint(path: str | Path, given: str) -> str:
    """Return what to say where a folder has no file of the format `given`, or nothing."""
    if not Path(path).is_dir():
        return ""
    folder = Folder(path)
    marks = [mark for kind, patterns in MARKS for mark in patterns if given in (kind, "auto")]
    if any(folder.has(mark) for mark in marks):
        return ""
    kind = recognise(path)
    if kind is not None:
        return f"; its files look like `{kind}`"
    inside = [
        child for child in sorted(Path(path).iterdir()) if child.is_dir() and recognise(child)
    ]
    if inside:
        return f"; did you mean {inside[0]}?"
    commands = [single_file(child) for child in sorted(Path(path).iterdir())]
    return next((f"; {command}" for command in commands if command), "")
