"""What the benchmarks print: rows of a markdown table, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def heading(columns: Sequence[str]) -> str:
    """The two lines above the rows."""
    return line(columns) + "\n|" + " --- |" * len(columns)


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def show(rows: Sequence[dict[str, object]], file: str | None = None) -> None:
    """Print rows of the same keys; with a file also write them there."""
    print("\n".join([heading(list(rows[0])), *(line(row.values()) for row in rows)]))
    if file:
        Path(file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
