"""How every command ends: a user's mistake is one line, a bug shows its traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from utils.errors import InputError, NotWrittenError

FULL = (errno.ENOSPC, errno.EDQUOT)  # of the user's disk, whichever file it was


@contextlib.contextmanager
def command(
    debug: bool,
    interrupted: str = "interrupted",
    code: int = 1,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Run a command's work: errors of what the user gave become `error: ...` and exit code 1.

    Those are InputError, an OSError of a file or of a full disk, and `also`. All else, such as a
    ValueError of a method or a loss, keeps its traceback.

    Args:
        debug: show the tracebacks of the user's errors, too.
        interrupted: what to say after Ctrl-C.
        code: the exit code after Ctrl-C.
    """
    try:
        yield
        print(end="", flush=True)  # a pipe that nobody reads any more is known now
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(code)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug or not (is_of_input(error) or isinstance(error, also)):
            raise
        sys.exit(f"error: {error}")


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """`--debug`, as `command` takes it."""
    parser.add_argument(
        "--debug", action="store_true", help="show where in the program an error came from"
    )


def _nobody_reads() -> bool:
    """Whether who reads the output has enough, as `head` has."""
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        return True
    return False


def is_of_input(error: Exception) -> bool:
    """Whether an error tells of what the user gave, or of the user's disk; others are bugs."""
    if isinstance(error, (InputError, NotWrittenError)):
        return True
    return isinstance(error, OSError) and (error.filename is not None or error.errno in FULL)
