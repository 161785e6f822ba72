"""How the rows of a table are laid out, in CSV or as JSON objects; the options that say so."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError

if TYPE_CHECKING:
    from _csv import Reader


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV file, or keys of JSON objects, are meant, and how a CSV is laid out.

    `separator` parts the labels of one field. `quote` is the mark around fields that hold
    delimiters or line ends, or "none"; None is the double quotation mark, which may then not span
    lines in tab-separated files. `id` names the rows' own ids; None = they have none.
    """

    text: str = "text"
    labels: str = "labels"
    separator: str = "|"
    delimiter: str = ","
    quote: str | None = None
    id: str | None = None

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


# -------------------------------- on the command line


def add_name_options(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    """Add the options that name columns.

    Args:
        labels: rows have labels.
    """
    parser.add_argument(
        "--text-column", metavar="NAME", help="column, or key, of the texts; default 'text'"
    )
    if labels:
        parser.add_argument(
            "--labels-column", metavar="NAME", help="that of the labels; default 'labels'"
        )
    parser.add_argument(
        "--id-column", metavar="NAME", help="that of the rows' own ids; default: they have none"
    )


def add_csv_options(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    """Add the options that say how a CSV file is written.

    Args:
        labels: rows have labels.
    """
    if labels:
        parser.add_argument(
            "--separator", metavar="MARK", help="CSV: parts the labels of a cell; default '|'"
        )
    parser.add_argument(
        "--delimiter",
        metavar="MARK",
        help="CSV: parts the columns; default ',', in files named .tsv the tab",
    )
    parser.add_argument(
        "--quote",
        metavar="MARK",
        help="CSV: mark around fields, or none; default '\"', which in tab-separated files may not "
        "span lines unless it is given",
    )


def columns_of(options: argparse.Namespace, delimiter: str = ",") -> Columns:
    """Return what the options say; of those that a command does not have, the default.

    Args:
        delimiter: that of the format, where none is given.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    mark = given.get("delimiter", delimiter)
    return Columns(
        given.get("text_column", "text"),
        given.get("labels_column", "labels"),
        given.get("separator", "|"),
        "\t" if mark == "\\t" else mark,
        given.get("quote"),
        given.get("id_column"),
    )


def usual_delimiter(path: str | Path) -> str:
    """Return the mark between columns that a file's name tells: a tab in .tsv, else a comma."""
    name = Path(path).name.lower().removesuffix(".gz")
    return "\t" if name.endswith(".tsv") else ","
