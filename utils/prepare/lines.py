"""Lines of text files, gzipped or not, and what an item of a line must be."""

from __future__ import annotations

import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from utils.errors import InputError
from utils.prepare.folder import existing
from utils.progress import tqdm
from utils.reading.matrix_limits import FLOAT32_MAX
from utils.text import decode_line

log = logging.getLogger(__name__)
LONGEST_LINE = 1 << 26  # bytes: an endless line stops here, not where the memory ends
# Control characters, and the two separators of Unicode at which str.splitlines would cut a text.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def lines(path: str | Path, latin: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line without end) of a UTF-8 file, gzipped or not, cut at \\n alone; shows
    progress.

    With `latin`, lines that are no UTF-8 are read as latin-1, as some published files need, and
    counted in the log.
    """
    path = existing(path)
    bad: list[str] = []  # lines that are no UTF-8: the first, and how many
    with (
        open(path, "rb") as raw,
        tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=path.name,
            disable=None,
            leave=False,
        ) as bar,
    ):
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18) if zipped else raw
        try:
            for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise InputError(
                        f"{path}:{number}: expected lines of at most {LONGEST_LINE:,} bytes, got "
                        "a longer one"
                    )
                try:
                    text = decode_line(line, path, number)
                except InputError:
                    if not latin or b"\0" in line:  # a zero byte: UTF-16, not latin-1
                        raise
                    text = line.rstrip(b"\r\n").decode("latin-1")
                    bad.append("" if bad else f"line {number}, {text[:60]!r}")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                if number % 4096 == 0:
                    bar.update(raw.tell() - bar.n)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected a whole gzip file, got: {error}") from error
    if bad:
        log.warning(
            "%s: %d lines are not UTF-8 and were read as latin-1, e.g. %s", path, len(bad), bad[0]
        )


def consume(
    path: str | Path, items: Iterable[tuple[int, object]], handle: Callable, empty: bool = False
) -> int:
    """Calls `handle(item)` for each (line, item) and counts; an InputError gains file and line."""
    count = 0
    for number, item in items:
        try:
            handle(item)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        count += 1
    if not count and not empty:
        raise InputError(f"{path}: expected at least one line of data, got an empty file")
    return count


def clean(text: str) -> str:
    """`text` on one line: control characters, with blanks around them, become one blank; ends
    stripped."""
    # isprintable is fast and spares most texts
    if not text.isprintable() and _BREAKS.search(text):
        text = " ".join(filter(None, (part.strip(" ") for part in _BREAKS.split(text))))
    return text.strip(" ")


def check_index(value: object, size: int, what: str = "a label index") -> None:
    """InputError unless `value` is an integer in [0, size)."""
    if type(value) is not int or not 0 <= value < size:  # a bool is an int to isinstance
        raise InputError(f"expected {what} in [0, {size}), got {value!r}")


def check_relevance(value: object) -> None:
    """InputError unless `value` is a number >= 0 that float32 can hold; NaN fails the
    comparison."""
    if type(value) not in (int, float) or not 0 <= value <= FLOAT32_MAX:
        raise InputError(f"expected a finite relevance >= 0, got {value!r}")
