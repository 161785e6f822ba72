"""Lines of text files, gzipped or not, and what an item of a line must be."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from utils.errors import InputError
from utils.prepare.folder import existing
from utils.progress import ProgressBar
from utils.reading.matrix_limits import FLOAT32_MAX
from utils.text import decode_line

log = logging.getLogger(__name__)
Item = TypeVar("Item")
STDIN = "-"  # the name of standard input
LONGEST_LINE = 1 << 26  # bytes: an endless line stops here, not where the memory ends
# Control characters, and the two separators of Unicode at which str.splitlines would cut a text.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def lines(path: str | Path, latin: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without end) of a UTF-8 file, gzipped or not; shows progress.

    `-` is standard input; a pipe or a device is read as it comes. Lines are cut at \\n alone. With
    `latin`, lines that are no UTF-8 are read as latin-1, as some published files need, and counted
    in the log.

    Raises:
        InputError: naming the file and the line.
    """
    path = Path(path)
    num_read = 0  # bytes of a stream
    num_bad = 0  # lines that are no UTF-8
    example = ""
    bar = ProgressBar(_size(path), path.name, "B", scaled=True)
    with _opened(path) as raw, bar:
        for number, line in _raw_lines(raw, path):
            try:
                text = decode_line(line, path, number)
            except InputError:
                if not latin or b"\0" in line:  # a zero byte: UTF-16, not latin-1
                    raise
                text = line.rstrip(b"\r\n").decode("latin-1")
                num_bad += 1
                example = example or f"line {number}, {text[:60]!r}"
            yield number, text.removeprefix("\ufeff") if number == 1 else text
            num_read += len(line)
            if number % 4096 == 0:
                bar.update((raw.tell() if raw.seekable() else num_read) - bar.n)
    if num_bad:
        log.warning(
            "%s: %d lines are not UTF-8 and were read as latin-1, e.g. %s", path, num_bad, example
        )


def is_stream_name(path: str | Path) -> bool:
    """Tell whether what is to be read is standard input, a pipe, a device or a socket."""
    if str(path) == STDIN:
        return True
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _size(path: Path) -> int | None:
    """Bytes of a file that is there, None of a stream; InputError for anything else."""
    return None if is_stream_name(path) else existing(path).stat().st_size


def _opened(path: Path) -> io.BufferedReader:
    """What is read; standard input stays open."""
    if str(path) != STDIN:
        return open(path, "rb")
    try:
        return open(0, "rb", closefd=False)
    except OSError as error:
        raise InputError(f"-: standard input cannot be read ({error.strerror})") from None


def _raw_lines(raw: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of an open file, unpacked if it is a gzip."""
    zipped = raw.peek(2)[:2] == b"\x1f\x8b"
    stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18) if zipped else raw
    number = 0
    try:
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(
                    f"{path}:{number}: expected lines of at most {LONGEST_LINE:,} bytes, got "
                    "a longer one"
                )
            yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected a whole gzip file, got: {error}") from error


def consume(
    path: str | Path,
    items: Iterable[tuple[int, Item]],
    handle: Callable[[Item], object],
    empty: bool = False,
) -> int:
    """Call `handle(item)` for each (line, item) and count; an InputError gains file and line.

    Args:
        empty: whether the file may have no line.
    """
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
    """Return `text` on one line, its ends stripped.

    Control characters, with blanks around them, become one blank.
    """
    if not text.isprintable() and _BREAKS.search(text):  # isprintable is fast and spares most texts
        text = " ".join(filter(None, (part.strip(" ") for part in _BREAKS.split(text))))
    return text.strip(" ")


def check_index(
    value: object,
    size: int,
    what: str = "a label index",
) -> None:
    """Raise InputError unless `value` is an integer in [0, size)."""
    if type(value) is not int or not 0 <= value < size:  # a bool is an int to isinstance
        raise InputError(f"expected {what} in [0, {size}), got {value!r}")


def check_relevance(value: object) -> None:
    """Raise InputError unless `value` is a number >= 0 that float32 can hold."""
    # a bool is an int to isinstance; NaN fails the comparison
    if type(value) not in (int, float) or not 0 <= value <= FLOAT32_MAX:  # type: ignore[operator]
        raise InputError(f"expected a finite relevance >= 0, got {value!r}")
