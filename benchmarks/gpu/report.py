"""Rows of measurements: how they are shown, what is wrong in them, and the files they end in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import heading, line

Row = dict[str, Any]  # what was measured by its name; `case`; `ok` of a check; `failed`: the reason
Rows = Mapping[str, Sequence[Row]]  # by section


def is_wrong(row: Row) -> bool:
    """Whether a check did not hold, or a case could not be computed."""
    return "failed" in row or row.get("ok") is False


def text_of(value: Any) -> str:
    """A cell of the table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def shown(row: Row) -> str:
    """A row as one line, while others are still to come."""
    values = [f"{name} {text_of(value)}" for name, value in row.items() if name != "case"]
    return f"{row['case']}: {', '.join(values)}"


def markdown(machine: Mapping[str, Any], rows: Rows) -> str:
    """A table for each section, below what the machine is."""
    parts = ["; ".join(f"{name} {value}" for name, value in machine.items())]
    for section, own in rows.items():
        parts.append(f"### {section}\n\n{_table(own)}")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    # a failed case has no columns of its own
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "failed"))
    lines = [heading(columns)]
    for row in rows:
        cells = [text_of(row.get(name)) for name in columns]
        if "failed" in row:
            cells = [row["case"], f"failed: {row['failed'].replace('|', '/')}"]
            cells += [""] * (len(columns) - 2)
        lines.append(line(cells))
    return "\n".join(lines)


def write(folder: Path, machine: Mapping[str, Any], rows: Rows) -> None:
    """Write gpu.json and gpu.md; other cases that were measured on the same machine stay."""
    path = folder / "gpu.json"
    before: Rows = {}
    if path.exists():
        said = json.loads(path.read_text())
        before = said["sections"] if said["machine"] == machine else {}
    sections = dict(before)
    for name, own in rows.items():
        sections[name] = _replaced(before.get(name, ()), own)
    path.write_text(json.dumps({"machine": machine, "sections": sections}, indent=1) + "\n")
    (folder / "gpu.md").write_text(markdown(machine, sections))


def _replaced(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows, those of the same cases in place of the older ones."""
    return [*{row["case"]: row for row in (*before, *now)}.values()]
