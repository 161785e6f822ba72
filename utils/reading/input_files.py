"""Files that a user names: whether one is there, and whether it can be read.

Imports nothing that takes time.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from utils.errors import InputError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
FILTER_PREFIX = "filter_labels"  # what the names of filter files begin with
FILTER_FILES = {  # of a data set's splits: the name, and others that are taken
    "trn": ("filter_labels_train.txt",),
    "tst": ("filter_labels_test.txt", "filter_labels_text.txt"),  # misspelt in a published manual
}
_FILTER_PAIR = re.compile(r"([0-9]{1,18})\s+([0-9]{1,18})", re.ASCII)


def present(path: str | Path) -> bool:
    """Tell whether an optional file is there.

    What is there and cannot be read does not count as absent.

    Raises:
        InputError: of that name there is something else than a readable regular file.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):  # the next line says what it is
        pass
    check_file(path)
    return True


def check_file(path: str | Path, expected: str = "a file") -> Path:
    """Return `path`, a readable regular file once links are followed.

    Args:
        expected: what the file should hold, for the message where there is none.
    Raises:
        InputError: no such file, a folder, a FIFO, a device, a loop of links, one that may not be
            read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(
                f"{path}: a link to {os.readlink(path)}, where there is no file"
            ) from None
        raise InputError(f"{path}: no such file (expected {expected})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r}: cannot be read ({error})") from None
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{path}: expected a file, got {KINDS.get(stat.S_IFMT(mode), 'something else')}"
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read (permission denied)")
    return path


def filter_pair(line: str) -> tuple[int, int]:
    """Return the row and the label that one line of a filter file names.

    Raises:
        InputError: the line is no such pair.
    """
    pair = _FILTER_PAIR.fullmatch(line.strip())
    if pair is None:
        raise InputError(f"expected 'row label', got {line.strip()[:60]!r}")
    return int(pair[1]), int(pair[2])
