"""Rows of a CSV file, and cells of labels: names between separators, or a list as pandas and JSON
write it."""

from __future__ import annotations

import ast
import csv
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.prepare.writer import lines

log = logging.getLogger(__name__)
# characters of one CSV field: stops a forgotten quote from reading the whole file
LONGEST_FIELD = 1 << 26
LONGEST_LIST = 1 << 20  # characters of a cell that is read as a list
MANY_LINES = 1000  # of one row: no text, but a forgotten quote
LONE = "a lone quotation mark? --quote none reads them as they stand"
_STRING = r"""(?:[uU]?'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
_ITEM = rf"(?:{_STRING}|[-+]?\d+(?:\.\d+)?)"
# ['x', 1], also ('x', 'y') and {'x'}, and those that are empty
_LIST = re.compile(
    rf"\[\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*(?:\s*,)?\s*)?\]|\(\)|{{}}|set\(\)"
    rf"|[({{]\s*{_STRING}(?:\s*,\s*{_ITEM})*(?:\s*,)?\s*[)}}]",
    re.DOTALL,
)
BEGINNINGS = ("[", "(", "{", "set(", "array(", "frozenset(")
FIRST_OF_LISTS = {beginning[0] for beginning in BEGINNINGS}
_PARTS = re.compile(r"[,;|\t]")  # what may part names
# a quotation mark where an item of a list begins
_ITEM_BEGINS = re.compile(r"""[\[({,]\s*[bBrRuU]?['"]""")


@dataclass(frozen=True)
class Columns:
    """How a CSV file is laid out below its header row.

    `separator` parts the labels of one field. `quote` is the mark around fields that hold
    delimiters or line ends, or "none"; None is the double quotation mark, which may then not span
    lines in tab-separated files.
    """

    text: str = "text"
    labels: str = "labels"
    separator: str = "|"
    delimiter: str = ","
    quote: str | None = None

    def __post_init__(self) -> None:
        if not self.separator or len(self.delimiter) != 1:
            raise InputError(
                "expected a label separator and a delimiter of one character, got "
                f"{self.separator!r} and {self.delimiter!r}"
            )
        if self.quote not in (None, "none") and (
            len(self.quote) != 1 or self.quote in (self.delimiter, "\r", "\n")
        ):
            raise InputError(
                "expected --quote none or one character that is not the delimiter, got "
                f"{self.quote!r}"
            )

    @property
    def one_line_rows(self) -> bool:
        """Whether a quoted field that spans lines is taken for a mistake."""
        return self.quote is None and self.delimiter == "\t"

    def reader(self, feed: Iterator[str]) -> Iterator[list[str]]:
        """The csv module's reader."""
        if self.quote == "none":
            return csv.reader(
                feed, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, quotechar=None, strict=True
            )
        return csv.reader(feed, delimiter=self.delimiter, quotechar=self.quote or '"', strict=True)


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


class LabelCells:
    """Cells of labels -> names, and what is to be said of them at the end."""

    def __init__(self, columns: Columns) -> None:
        self.separator = columns.separator
        self.column = columns.labels
        self.cells = 0
        self.parted = 0  # cells where the separator occurs
        self.lists = 0
        self.list_cell = ""  # the first of them
        self.brackets = 0  # cells in brackets that are no lists
        self.bracket_cell = ""
        self.single = ""  # a cell of one name, if possible with another separator

    def parse(self, row: tuple[str, str]) -> tuple[str, list[tuple[str, float]]]:
        """Row (text, cell) -> (text, [(name, 1.0)]); blank names, as a separator at the end leaves
        them, do not count."""
        text, cell = row
        cell = cell.strip()
        if cell and cell[0] in FIRST_OF_LISTS and cell.startswith(BEGINNINGS):
            names = self._bracketed(cell)
        else:
            names = self._parted(cell)
        return text, [(name.strip(), 1.0) for name in names if name.strip()]

    def report(self) -> None:
        """Log what was read in another way than a user may think."""
        if self.lists:
            log.log(
                logging.WARNING if self.cells else logging.INFO,
                "column %r: %d of %d cells are read as lists, e.g. %r",
                self.column,
                self.lists,
                self.lists + self.cells,
                self.list_cell,
            )
        elif self.cells and not self.parted:
            other = next((mark for mark in ",;|\t" if mark in self.single), None)
            log.warning(
                "column %r: the separator %r occurs in none of %d cells: each is one label, e.g. "
                "%r%s",
                self.column,
                self.separator,
                self.cells,
                self.single[:60],
                f"; --separator {other!r} would part it" if other else "",
            )
        if self.brackets:
            log.warning(
                "column %r: %d cells in brackets are no lists and are read as names, e.g. %r",
                self.column,
                self.brackets,
                self.bracket_cell,
            )

    def _parted(self, cell: str) -> list[str]:
        names = cell.split(self.separator)
        if cell:
            self.cells += 1
            if len(names) > 1:
                self.parted += 1
            elif not self.parted and (
                not self.single or (not _PARTS.search(self.single) and _PARTS.search(cell))
            ):
                self.single = cell
        return names

    def _bracketed(self, cell: str) -> list[str]:
        if len(cell) > LONGEST_LIST:
            raise InputError(
                f"expected a list of labels of at most {LONGEST_LIST:,} characters, got "
                f"{len(cell):,}: {cell[:60]!r}"
            )
        if _LIST.fullmatch(cell):
            self.lists += 1
            self.list_cell = self.list_cell or cell[:60]
            return _items(cell)
        names = self._parted(cell)
        broken = (
            cell[0] == "["
            and cell[-1] == "]"
            and any(name.count("[") != name.count("]") for name in names)
        )
        if broken or _like_a_list(cell):
            raise InputError(
                f"column {self.column!r}: expected a list such as ['x', 'y'] or names between "
                f"{self.separator!r}, got {cell[:60]!r}"
            )
        if cell[0] == "[" and cell[-1] == "]":
            self.brackets += 1
            self.bracket_cell = self.bracket_cell or cell[:60]
        return names


def _like_a_list(cell: str) -> bool:
    """Whether a cell that is no list was meant for one: its first item is quoted, or any and a
    bracket ends it."""
    begins = _ITEM_BEGINS.match(cell)
    return bool(begins and cell[0] in "[{") or (
        cell[-1] in "])}" and _ITEM_BEGINS.search(cell) is not None
    )


def _items(cell: str) -> list[str]:
    """The items of a cell that is a list of strings and numbers, as JSON or as Python."""
    if cell in ("()", "{}", "set()"):
        return []
    try:
        items = json.loads(cell)
    except ValueError:
        items = _python_items(cell)
    return [str(item) for item in items]


def _python_items(cell: str) -> list[object]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that are none, such as \d
            tree = ast.parse(cell, mode="eval").body
            # a set has no order: its items as written
            parts = tree.elts if isinstance(tree, ast.List | ast.Tuple | ast.Set) else [tree]
            return [ast.literal_eval(part) for part in parts]
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(
            f"expected a list such as ['x', 'y'], got {cell[:60]!r} ({error})"
        ) from error
