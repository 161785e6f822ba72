"""The screen: whatever its encoding, text is shown on it."""

from __future__ import annotations

import codecs
import io
import os
import sys


def show_anything() -> None:
    """Let what the screen's encoding lacks be escaped: an error would lose the whole line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
