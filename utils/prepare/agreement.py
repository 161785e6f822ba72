"""What the files of one folder must agree in: columns, rows and lines of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utils.errors import InputError
from utils.prepare.folder import Folder
from utils.prepare.writer import SPLITS, Writer
from utils.reading.matrix_limits import LARGEST


def checked_size(what: str, size: int) -> int:
    """Return a number of labels or features that was given; InputError if none can be so many."""
    if not 1 <= size <= LARGEST:
        raise InputError(f"expected a number of {what} from 1 to {LARGEST}, got {size}")
    return size


def same_width(writer: Writer, folder: str | Path) -> None:
    """Raise InputError unless the matrices of both splits fit each other.

    Both have the same columns, X both or none of them, and X as many rows as Y.
    """
    shapes = {name: matrix.shape for name, matrix in writer.matrices.items()}
    if ("X.trn" in shapes) != ("X.tst" in shapes):
        raise InputError(f"{folder}: expected features of both splits or of none, got those of one")
    for kind, columns in (("Y", "labels"), ("X", "features")):
        if f"{kind}.trn" in shapes and shapes[f"{kind}.trn"][1] != shapes[f"{kind}.tst"][1]:
            raise InputError(
                f"{folder}: expected as many {columns} in both splits, got "
                f"{shapes[f'{kind}.trn'][1]} (trn) and {shapes[f'{kind}.tst'][1]} (tst)"
                + _widths(writer, kind)
            )
    for split in SPLITS:
        if f"X.{split}" in shapes and shapes[f"X.{split}"][0] != shapes[f"Y.{split}"][0]:
            raise InputError(
                f"{folder}: expected as many rows in X.{split} as in Y.{split}, "
                f"{shapes[f'Y.{split}'][0]}, got {shapes[f'X.{split}'][0]}"
            )


def _widths(writer: Writer, kind: str) -> str:
    """What each file says of its columns, and the largest that it uses: one of them is wrong."""
    told = []
    for split in SPLITS:
        matrix = writer.matrices[f"{kind}.{split}"]
        if path := writer.read_from[f"{kind}.{split}"]:
            told.append(
                f"{path.name} says {matrix.shape[1]}, its largest index is "
                f"{matrix.indices.max(initial=-1)}"
            )
    return f"; {'; '.join(told)}" if told else ""


def copy_texts(
    writer: Writer, source: Folder, points: Mapping[str, tuple[str, ...]], labels: tuple[str, ...]
) -> bool:
    """Copy texts of both splits or of none, and label texts where present, counted against Y.

    Returns:
        whether points had any.
    """
    paths = {split: source.find_optional(*names) for split, names in points.items()}
    there = [path for path in paths.values() if path is not None]
    if len(there) == 1:
        raise InputError(
            f"{source.path}: expected texts of both splits or of none, got only {there[0].name}"
        )
    for split, path in paths.items():
        if path:
            rows = writer.matrices[f"Y.{split}"].shape[0]
            writer.copy_texts(path, f"{split}_X", rows, f"row of Y.{split}", _is_latin(path))
    if path := source.find_optional(*labels):
        writer.copy_texts(path, "Y", writer.matrices["Y.trn"].shape[1], "label", _is_latin(path))
    return bool(there)


def _is_latin(path: Path) -> bool:
    """Whether a file may be latin-1: the repository's Yf.txt, and what DEXA's scripts write."""
    name = path.name.removesuffix(".gz")
    return name == "Yf.txt" or name.endswith(".raw.txt")
