"""How a CSV file is laid out."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import InputError

if TYPE_CHECKING:
    from _csv import Reader


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

    def reader(self, feed: Iterator[str]) -> Reader:
        """Return the csv module's reader."""
        if self.quote == "none":
            return csv.reader(
                feed, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, quotechar=None, strict=True
            )
        return csv.reader(feed, delimiter=self.delimiter, quotechar=self.quote or '"', strict=True)
