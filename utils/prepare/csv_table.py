"""Points as a CSV file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.errors import InputError
from utils.prepare.cells import LabelCells
from utils.prepare.columns import Columns
from utils.prepare.lines import lines
from utils.prepare.points import Reader, Source, prepare_points

log = logging.getLogger(__name__)
# characters of one CSV field: stops a forgotten quote from reading the whole file
LONGEST_FIELD = 1 << 26
MANY_LINES = 1000  # of one row: no text, but a forgotten quote
LONE = "a lone quotation mark? --quote none reads them as they stand"


def prepare_csv(
    source: Source, out: str | Path, columns: Columns | None = None, overwrite: bool = False
) -> Path:
    """CSV with a header row, one column of texts and one of labels; numbering as in
    `prepare_jsonl`.

    A cell of labels has names between separators, or is a list as pandas or JSON writes it: ['x',
    'y']. Quotation marks may enclose a field; --quote none reads them as they stand, as many
    tab-separated files need.
    """
    columns = columns or Columns()
    cells = LabelCells(columns)
    return prepare_points(
        source,
        out,
        overwrite,
        Reader("csv", partial(csv_rows, columns=columns), cells.parse, cells.report),
    )


def csv_rows(path: str | Path, columns: Columns) -> Iterator[tuple[int, tuple[str, str]]]:
    """(first line, (text, labels)) of each row below the header; blank lines between rows are
    skipped."""
    taken: list[str] = []  # lines of the row that is being read
    swallowed: list[str] = []  # rows that may be several, with a quotation mark too many

    def feed() -> Iterator[str]:
        for number, line in lines(path):
            if taken and columns.one_line_rows:
                raise InputError(
                    f"{path}:{number - len(taken)}: a quoted field spans lines in a tab-separated "
                    f"file; {LONE}, --quote '\"' lets fields span lines"
                )
            taken.append(line)
            # the line ends go back on: within quotes they belong to the text
            yield line + "\n"

    reader = columns.reader(feed())
    header = None
    limit = csv.field_size_limit(LONGEST_FIELD)
    start = 1
    try:
        while True:
            start = reader.line_num + 1
            taken.clear()
            row = next(reader)
            if header is None:
                header = row
                wanted = [
                    _column(path, row, name, columns) for name in (columns.text, columns.labels)
                ]
            elif len(row) == len(header):
                if len(taken) > 1 and _like_rows(taken, columns.delimiter, len(header)):
                    swallowed.append(f"lines {start} to {start + len(taken) - 1}")
                yield start, tuple(row[index] for index in wanted)
            elif row:
                raise InputError(
                    f"{path}:{start}: expected {len(header)} columns as in the header, got "
                    f"{len(row)}{_quote_hint(taken, columns)}"
                )
    except StopIteration:
        pass
    except csv.Error as error:
        raise InputError(
            f"{path}:{start}: expected a CSV row, got: {error}{_quote_hint(taken, columns)}"
        ) from error
    finally:
        csv.field_size_limit(limit)
    if swallowed:
        log.warning(
            "%s: %d rows span lines that look like rows of their own, e.g. %s; %s",
            path,
            len(swallowed),
            swallowed[0],
            LONE,
        )


def _like_rows(taken: list[str], delimiter: str, width: int) -> bool:
    """Whether each of these lines would be a row without quotation marks, or there are too many for
    one text."""
    return len(taken) > MANY_LINES or all(line.count(delimiter) == width - 1 for line in taken)


def _quote_hint(taken: list[str], columns: Columns) -> str:
    quoted = columns.quote != "none" and any((columns.quote or '"') in line for line in taken)
    return f"; {LONE}" if quoted else ""


def _column(path: str | Path, header: list[str], name: str, columns: Columns) -> int:
    if header.count(name) == 1:
        return header.index(name)
    hint = ""
    if len(header) == 1:
        other = next(
            (mark for mark in "\t;,|" if mark != columns.delimiter and mark in header[0]), None
        )
        hint = f"; --delimiter {other!r} would part them" if other else ""
    hint = hint or "; --text-column and --labels-column name those that are meant"
    raise InputError(f"{path}:1: expected one column {name!r}, got the columns {header}{hint}")
