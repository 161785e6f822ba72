"""Records as JSON lines, on the screen or in a file."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils import distributed
from utils.console import is_screen, shows_unicode
from utils.files import place_of, written_whole

# Where str.splitlines cuts, and which JSON may leave as they are.
SEPARATORS = re.compile("[\x85\u2028\u2029]")


def json_line(record: Mapping[str, Any], ascii_only: bool = False) -> str:
    """JSON on a line that stays one also for readers that cut where Unicode does."""
    line = json.dumps(record, ensure_ascii=ascii_only)
    return SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def write_json_lines(records: Iterable[Mapping[str, Any]], out: str | None) -> None:
    """Print records, or write them to a file, which is begun when there is a first one.

    Every process makes the records; the main one writes the file.
    """
    if out is None or is_screen(out) or not distributed.is_main():
        ascii_only = not shows_unicode()
        for record in records:
            print(json_line(record, ascii_only))
        sys.stdout.flush()
        return
    records = iter(records)
    first = list(itertools.islice(records, 1))
    place_of(Path(out)).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(Path(out)) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json_line(record) + "\n" for record in itertools.chain(first, records))
