"""Points of a user's file or stream: plain text, CSV, TSV or JSON lines, read one by one.

    reader = point_reader("tickets.csv", columns)
    for point in reader.points("tickets.csv"): ...

`-` is standard input. The rows of raw/trn_X.txt and raw/tst_X.txt have the ids that stand in
raw/trn_ids.txt and raw/tst_ids.txt, where `utils.prepare` was told of some.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.data.point_ids import ids_beside
from utils.errors import InputError
from utils.prepare.columns import Columns, columns_of
from utils.prepare.csv_table import csv_reader
from utils.prepare.jsonl import jsonl_reader
from utils.prepare.lines import STDIN, clean, is_stream_name, lines
from utils.prepare.points import Point, PointReader
from utils.text import check_plain_text, check_text_file, other_format

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
OF_TABLES = "csv, tsv or jsonl"


def given_reader(
    options: argparse.Namespace,
    path: str,
    labelled: bool = False,
) -> PointReader:
    """Return what reads a file or stream as the options of `add_point_options` say.

    Raises:
        InputError: columns are named, or labels are needed, and the format has none.
    """
    kind = options.points_format or format_of(path)
    named = [name for name in ("text_column", "id_column") if getattr(options, name)]
    if kind == "text" and (named or labelled):
        what = f"--{named[0].replace('_', '-')}" if named else "labels"
        raise InputError(
            f"{path}: read as plain text, which has no columns, but {what} needs some; a format "
            f"option ending in -format says that it is {OF_TABLES}"
        )
    delimiter = "\t" if kind == "tsv" else ","
    return point_reader(kind, columns_of(options, delimiter), labelled)


def format_of(path: str | Path) -> str:
    """Return the format that a file's name tells."""
    name = Path(Path(path).name.lower().removesuffix(".gz"))
    return SUFFIXES.get(name.suffix, "text")


def point_reader(
    kind: str,
    columns: Columns,
    labelled: bool = False,
) -> PointReader:
    """Return what reads points of one of the FORMATS, their texts on one line each."""
    if kind == "text":
        return PointReader("text", _text_items, lambda item: Point(item[0], (), item[1]))
    reader = jsonl_reader(columns, labelled)
    if kind != "jsonl":
        reader = csv_reader(columns, labelled)
    return PointReader(reader.kind, reader.items, partial(_cleaned, reader), reader.warn)


def _cleaned(reader: PointReader, item: object) -> Point:
    """A point whose text is on one line, as `utils.prepare` writes it."""
    point = reader.parse(item)
    return point._replace(text=clean(point.text))


def _text_items(path: str | Path) -> Iterator[tuple[int, tuple[str, str | None]]]:
    """(line, (text, id)) of plain text, one a line."""
    ids = None
    if not is_stream_name(path):
        check_plain_text(Path(path))
        ids = ids_beside(Path(path))
    for number, line in lines(path):
        if number == 1 and (came := other_format(line.encode())):
            raise InputError(
                f"{path}: expected plain text, one a line, got {came}; a format option ending in "
                f"-format says that it is {OF_TABLES}"
            )
        yield number, (line, None if ids is None else ids[number - 1])


def check_points_file(path: str) -> None:
    """Raise InputError for a file that is not there or empty; of a stream nothing is known yet."""
    if path != STDIN and not is_stream_name(path):
        check_text_file(Path(path))
