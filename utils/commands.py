"""How every command ends: a user's mistake is one line, a bug shows its traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
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
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        if debug or not (
            isinstance(error, (InputError, NotWrittenError, *also)) or _is_of_a_file(error)
        ):
            raise
        sys.exit(f"error: {error}")


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """`--debug`, as `command` takes it."""
    parser.add_argument(
        "--debug", action="store_true", help="show where in the program an error came from"
    )


def _is_of_a_file(error: Exception) -> bool:
    return isinstance(error, OSError) and (error.filename is not None or error.errno in FULL)
