"""Points as a CSV file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.prepare.cells import LabelCells
from utils.prepare.columns import Columns
from utils.prepare.lines import lines
from utils.prepare.points import Point, PointReader, Source, prepare_points

log = logging.getLogger(__name__)
# Characters of one CSV field: stops a forgotten quote from reading the whole file.
LONGEST_FIELD = 1 << 26
MANY_LINES = 1000  # of one row: no text, but a forgotten quote
LONE = "a lone quotation mark? --quote none reads them as they stand"


def prepare_csv(
    source: Source, out: str | Path, columns: Columns | None = None, overwrite: bool = False
) -> Path:
    """Read CSV with a header row, one column of texts and one of labels.

    Labels are numbered as in `prepare_jsonl`. A cell of labels has names between separators, or is
    a list as pandas or JSON writes it: ['x', 'y']. Quotation marks may enclose a field; --quote
    none reads them as they stand, as many tab-separated files need. A column of the points' own
    ids, where one is named, becomes raw/{trn,tst}_ids.txt.
    """
    return prepare_points(source, out, overwrite, csv_reader(columns or Columns()))


def csv_reader(columns: Columns, labelled: bool = True) -> PointReader:
    """Return what reads points of a CSV file, with their labels where these are asked for."""
    cells = LabelCells(columns)
    names = [columns.text]
    if labelled:
        names.append(columns.labels)
    if columns.id is not None:
        names.append(columns.id)

    def parse(row: Sequence[str]) -> Point:
        pairs = cells.parse((row[0], row[1]))[1] if labelled else []
        return Point(row[0], pairs, None if columns.id is None else row[-1])

    items = partial(csv_rows, columns=columns, names=names)
    return PointReader("csv", items, parse, cells.warn)


def csv_rows(
    path: str | Path,
    columns: Columns,
    names: Sequence[str],
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells of the named columns) of each row below the header.

    Blank lines between rows are skipped.

    Raises:
        InputError: naming the file, the line and what is wrong with it.
    """
    rows = _Rows(path, columns)
    header = next(rows, None)
    if header is None:
        return
    wanted = [_column(path, header.cells, name, columns) for name in names]
    swallowed: list[str] = []  # rows that may be several, with a quotation mark too many
    for row in rows:
        if not row.cells:
            continue
        width = len(header.cells)
        if len(row.cells) != width:
            raise InputError(
                f"{path}:{row.start}: expected {width} columns as in the header, got "
                f"{len(row.cells)}{_quote_hint(row.lines, columns)}"
            )
        if len(row.lines) > 1 and _like_rows(row.lines, columns.delimiter, width):
            swallowed.append(f"lines {row.start} to {row.start + len(row.lines) - 1}")
        yield row.start, [row.cells[number] for number in wanted]
    if swallowed:
        log.warning(
            "%s: %d rows span lines that look like rows of their own, e.g. %s; %s",
            path,
            len(swallowed),
            swallowed[0],
            LONE,
        )


class _Row(NamedTuple):
    """A row of a CSV file: its first line, its cells, and the lines that it spans."""

    start: int
    cells: list[str]
    lines: list[str]


class _Rows(Iterator[_Row]):
    """All rows of a CSV file, the header and blank lines among them."""

    def __init__(self, path: str | Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns
        self._taken: list[str] = []  # lines of the row that is being read
        self._reader = columns.reader(self._feed())

    def _feed(self) -> Iterator[str]:
        for number, line in lines(self._path):
            if self._taken and self._columns.one_line_rows:
                raise InputError(
                    f"{self._path}:{number - len(self._taken)}: a quoted field spans lines in a "
                    f"tab-separated file; {LONE}, --quote '\"' lets fields span lines"
                )
            self._taken.append(line)
            yield line + "\n"  # within quotes the line ends belong to the text

    def __next__(self) -> _Row:
        start = self._reader.line_num + 1
        self._taken.clear()
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            cells = next(self._reader)
        except csv.Error as error:
            raise InputError(
                f"{self._path}:{start}: expected a CSV row, got: {error}"
                f"{_quote_hint(self._taken, self._columns)}"
            ) from error
        finally:
            csv.field_size_limit(limit)
        return _Row(start, cells, list(self._taken))


def _like_rows(
    spanned: list[str],
    delimiter: str,
    width: int,
) -> bool:
    """Whether each of these lines would be a row without quotation marks.

    Or there are too many for one text.
    """
    if len(spanned) > MANY_LINES:
        return True
    return all(line.count(delimiter) == width - 1 for line in spanned)


def _quote_hint(spanned: list[str], columns: Columns) -> str:
    if columns.quote == "none":
        return ""
    mark = columns.quote or '"'
    return f"; {LONE}" if any(mark in line for line in spanned) else ""


def _column(
    path: str | Path,
    header: list[str],
    name: str,
    columns: Columns,
) -> int:
    """The index of the one column of this name."""
    if header.count(name) == 1:
        return header.index(name)
    hint = "; --text-column, --labels-column and --id-column name those that are meant"
    if len(header) == 1:
        for mark in "\t;,|":
            if mark != columns.delimiter and mark in header[0]:
                hint = f"; --delimiter {mark!r} would part them"
                break
    raise InputError(f"{path}:1: expected one column {name!r}, got the columns {header}{hint}")
