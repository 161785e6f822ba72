"""Records as lines, on the screen or in a file."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import distributed
from utils.console import is_screen, shows_unicode
from utils.files import place_of, written_whole

# Where str.splitlines cuts, and which JSON may leave as they are.
SEPARATORS = re.compile("[\x85\u2028\u2029]")
Record = Mapping[str, Any]
Form = Callable[[Iterable[Record], bool], Iterator[str]]  # records, whether ASCII alone -> text


def json_line(record: Record, ascii_only: bool = False) -> str:
    """JSON on a line that stays one also for readers that cut where Unicode does."""
    line = json.dumps(record, ensure_ascii=ascii_only)
    return SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def json_lines(records: Iterable[Record], ascii_only: bool = False) -> Iterator[str]:
    """A line of JSON a record, with its end."""
    return (json_line(record, ascii_only) + "\n" for record in records)


def write_records(
    records: Iterable[Record],
    out: str | None,
    form: Form = json_lines,
) -> None:
    """Print records as they come, or write them to a file, which is there when it is whole.

    The file is begun when there is a first record. Making records is a collective: every process
    goes through them, the main one alone prints or writes.

    Args:
        form: makes text of records.
    """
    if not distributed.is_main():
        for _ in records:
            pass
        return
    if out is None or is_screen(out):
        for part in form(records, not shows_unicode()):
            sys.stdout.write(part)
            sys.stdout.flush()
        return
    records = iter(records)
    first = list(itertools.islice(records, 1))
    place_of(Path(out)).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(Path(out)) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(form(itertools.chain(first, records), False))
