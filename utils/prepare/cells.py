"""Cells of labels: names between separators, or a list as pandas and JSON write it."""

from __future__ import annotations

import ast
import json
import logging
import re
import warnings

from utils.errors import InputError
from utils.prepare.columns import Columns

log = logging.getLogger(__name__)
LONGEST_LIST = 1 << 20  # characters of a cell that is read as a list
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
# A quotation mark where an item of a list begins.
_ITEM_BEGINS = re.compile(r"""[\[({,]\s*[bBrRuU]?['"]""")


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
        """Return the text and the labels [(name, 1.0)] of a row (text, cell).

        Blank names, as a separator at the end leaves them, do not count.
        """
        text, cell = row
        cell = cell.strip()
        if cell and cell[0] in FIRST_OF_LISTS and cell.startswith(BEGINNINGS):
            names = self._bracketed(cell)
        else:
            names = self._parted(cell)
        return text, [(name.strip(), 1.0) for name in names if name.strip()]

    def warn(self) -> None:
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
            way_out = f"; --separator {other!r} would part it" if other else ""
            log.warning(
                "column %r: the separator %r occurs in none of %d cells: each is one label, e.g. "
                "%r%s",
                self.column,
                self.separator,
                self.cells,
                self.single[:60],
                way_out,
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
            elif not self.parted and self._shows_more(cell):
                self.single = cell
        return names

    def _shows_more(self, cell: str) -> bool:
        """Whether a cell of one name says more than `single` of another separator."""
        if not self.single:
            return True
        return not _PARTS.search(self.single) and _PARTS.search(cell) is not None

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
    """Whether a cell that is no list was meant for one.

    Its first item is quoted, or any item is and a bracket ends it.
    """
    if cell[0] in "[{" and _ITEM_BEGINS.match(cell):
        return True
    return cell[-1] in "])}" and _ITEM_BEGINS.search(cell) is not None


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none, such as \d
            tree = ast.parse(cell, mode="eval").body
            # A set has no order: its items as written.
            parts = tree.elts if isinstance(tree, ast.List | ast.Tuple | ast.Set) else [tree]
            return [ast.literal_eval(part) for part in parts]
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(
            f"expected a list such as ['x', 'y'], got {cell[:60]!r} ({error})"
        ) from error
