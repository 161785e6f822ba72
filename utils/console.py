"""The screen: whatever its encoding, text is shown on it."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator


def show_anything() -> None:
    """Let what the screen's encoding lacks be escaped: an error would lose the whole line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def lent_screen() -> Iterator[None]:
    """Give back, when the block ends, what the screen does with what its encoding lacks."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def shows_unicode() -> bool:
    """Does the screen, or the file or pipe in its place, take all of Unicode?"""
    encoding = getattr(sys.stdout, "encoding", None)
    return encoding is None or codecs.lookup(encoding).name == "utf-8"


def is_screen(path: str) -> bool:
    """Does a name, such as /dev/stdout, stand for what the screen's text goes to?"""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # no such file, or a screen that is none
        return False
