"""A table in the form that a page, a paper or a program wants: Markdown, LaTeX (booktabs), CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.config.options import nearest
from utils.errors import InputError

MISSING = "–"  # where a run has no such metric


@dataclass(frozen=True)
class Mean:
    """A value, over several seeds with its standard deviation (n - 1)."""

    value: float
    deviation: float | None = None


@dataclass(frozen=True)
class Difference:
    """What a value is more than another one, with the ends of its interval.

    Attributes:
        is_clear: the interval does not hold 0.
    """

    value: float
    low: float
    high: float
    is_clear: bool


Cell = str | Mean | Difference | None  # None: there is no value


@dataclass(frozen=True)
class Table:
    """Rows of text and measured values.

    Attributes:
        texts: names of the columns of text, which come first.
        metrics: names of the others.
        spreads: what CSV calls the numbers beside a value: its deviation, or its interval's ends.
        rows: a cell for each column.
        caption: what the numbers are.
    """

    texts: Sequence[str]
    metrics: Sequence[str]
    spreads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


def written(table: Table, form: str) -> str:
    """A table as text.

    Raises:
        InputError: there is no such form.
    """
    if form not in FORMATS:
        raise InputError(f"--format: '{form}' is no form of a table{nearest(form, [*FORMATS])}")
    return FORMATS[form](table)


# -------------------------------- Markdown


def markdown(table: Table) -> str:
    """Rows between bars; the caption below."""
    columns = [_markdown(name) for name in (*table.texts, *table.metrics)]
    lines = [_between_bars(columns), "| --- " * len(columns) + "|"]
    lines += [_between_bars([_markdown(cell) for cell in row]) for row in table.rows]
    if table.caption:
        lines += ["", table.caption]
    return "\n".join(lines)


def _between_bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(cell: Cell) -> str:
    if cell is None:
        return MISSING
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    if isinstance(cell, Difference):
        mark = "**" if cell.is_clear else ""
        return f"{mark}{cell.value:+.2f}{mark} [{cell.low:+.2f}, {cell.high:+.2f}]"
    return _number(cell, " ± ")


def _number(cell: Mean, sign: str) -> str:
    spread = "" if cell.deviation is None else f"{sign}{cell.deviation:.2f}"
    return f"{cell.value:.2f}{spread}"


# -------------------------------- LaTeX

ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
SPECIAL = re.compile("[" + re.escape("".join(ESCAPED)) + "]")


def latex(table: Table) -> str:
    """A tabular with the rules of booktabs, whose special characters are escaped."""
    columns = "l" * len(table.texts) + "r" * len(table.metrics)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _tabular_row([*table.texts, *table.metrics]),
        r"\midrule",
        *(_tabular_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.caption:
        lines.append(f"% {table.caption}")
    return "\n".join(lines)


def _tabular_row(cells: Sequence[Cell]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(cell: Cell) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, str):
        return escaped(cell)
    if isinstance(cell, Difference):
        value = f"{cell.value:+.2f}"
        bold = rf"\mathbf{{{value}}}" if cell.is_clear else value
        return rf"${bold}$ {{\scriptsize $[{cell.low:+.2f}, {cell.high:+.2f}]$}}"
    number = _number(cell, r" \pm ")
    return f"${number}$"


def escaped(text: str) -> str:
    """Text in which LaTeX finds nothing to do."""
    return SPECIAL.sub(lambda found: ESCAPED[found[0]], text)


# -------------------------------- CSV


def comma_separated(table: Table) -> str:
    """A column for each number: of metric P@1 `P@1`, and `P@1 sd` or `P@1 low`, `P@1 high`."""
    columns = [*table.texts]
    for metric in table.metrics:
        columns += [metric, *(f"{metric} {spread}" for spread in table.spreads)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in table.rows:
        cells: list[str] = []
        for number, cell in enumerate(row):
            numbers = _numbers(cell)
            width = 1 if number < len(table.texts) else 1 + len(table.spreads)
            cells += numbers + [""] * (width - len(numbers))
        writer.writerow(cells)
    return out.getvalue().rstrip("\n")


def _numbers(cell: Cell) -> list[str]:
    """The fields of a cell, those that are known."""
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, Difference):
        return [f"{value:.6g}" for value in (cell.value, cell.low, cell.high)]
    if cell.deviation is None:
        return [f"{cell.value:.6g}"]
    return [f"{cell.value:.6g}", f"{cell.deviation:.6g}"]


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
}
