"""What the benchmarks print: rows of a markdown table, and the same as JSON."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def show(rows: Sequence[dict[str, object]], file: str | None = None) -> None:
    """Print rows of the same keys; with a file also write them there."""
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if file:
        Path(file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
