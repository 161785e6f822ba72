"""Files and folders that are written whole: a process killed at any instant leaves no half."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.errors import InputError, NotWrittenError


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place_of(path: Path) -> Path:
    """Return where a file or folder lies, or would lie, behind any links.

    What is replaced must be this, not the link.

    Raises:
        OSError: links that lead in a circle.
    """
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
    return Path(os.path.realpath(path))


def is_stream(path: Path) -> bool:
    """Is it a device, a pipe or a socket, which is sent what is written and never replaced?

    Raises:
        InputError: it is a folder.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder, expected the name of a file")
    return not stat.S_ISREG(mode)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`; synced and renamed onto it at the end, removed on an error.

    A link stays, what it points at is replaced. A file keeps its mode and owner, a new one gets
    what the umask leaves, whatever the writer asks for. A device or a pipe is sent the whole at the
    end.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / path.name
            yield whole
            with open(whole, "rb") as source, open(path, "wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    place = place_of(path)
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}{place.suffix}")
    try:
        partial.open("wb").close()
        if place.exists():
            take_access(partial, place)
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        _set_mode(partial, mode)
        _sync(partial)
        os.replace(partial, place)
        _sync(place.parent)
    finally:
        partial.unlink(missing_ok=True)


def take_access(path: Path, like: Path) -> None:
    """Give a file or folder the owner, where we may, and the mode of another."""
    status = os.stat(like)
    with contextlib.suppress(OSError):
        os.chown(path, status.st_uid, status.st_gid)
    _set_mode(path, stat.S_IMODE(status.st_mode))


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:  # not every file system takes one
        os.chmod(path, mode)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """As `written_whole`, for a folder that every process may write into.

    Its files get what the umask leaves, also of writers that make them private (safetensors). The
    folder in place is moved aside, the new one renamed into place, the old one removed.
    `settled_folder` finds the whole one if the process died between the two renames.
    """
    from utils import distributed  # here: tools that write files alone need no torch

    place = place_of(path)
    partial = place.with_name(f".{place.name}.partial")
    old = place.with_name(f".{place.name}.old")
    file_mode = 0
    if distributed.is_main():
        settle(place)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file_mode = partial.stat().st_mode & 0o666
        if place.exists():
            take_access(partial, place)
    distributed.barrier()
    try:
        yield partial
    except BaseException as error:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise NotWrittenError(
                f"{path} could not be written ({error}); what was there before is untouched. Make "
                "room and start again, a training run with --resume"
            ) from error
        raise
    distributed.barrier()
    if distributed.is_main():
        for file in (*partial.rglob("*"), partial):
            if file.is_file() and file.stat().st_nlink == 1:  # others are another folder's too
                _set_mode(file, file_mode)
            _sync(file)
        if place.exists():
            os.replace(place, old)
        os.replace(partial, place)
        _sync(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()


def settle(path: Path) -> None:
    """Restore a folder if its replacement was cut off between its two renames.

    For one process alone, while the others do not look.
    """
    place = place_of(path)
    old = place.with_name(f".{place.name}.old")
    if old.is_dir() and not place.exists():
        os.replace(old, place)
    shutil.rmtree(old, ignore_errors=True)


def settled_folder(path: Path) -> Path:
    """`path`, restored first if its replacement was cut off; a collective."""
    from utils import distributed

    if distributed.is_main():
        settle(path)
    distributed.barrier()
    return path


def clear_folder(path: Path) -> None:
    """Remove a folder with all that it holds; of a link to a folder, what that holds."""
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.is_dir():
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """Give a file that is never changed in place a second name.

    Or copy it, where the file system has no links.
    """
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, to)


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder, got one with files")


def same_bytes(first: Path, second: Path) -> bool:
    """Tell whether two files are there and hold the same."""
    filecmp.clear_cache()  # it takes files of equal size and time for those of an earlier call
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


def share_disk(path: Path, others: Iterable[Path]) -> None:
    """Make a file another name of the first of some others that has its bytes, if one has."""
    for other in others:
        if same_bytes(other, path):
            path.unlink()
            link_or_copy(other, path)
            return


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder, each counted once however many names it has."""
    files = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            files[status.st_dev, status.st_ino] = status.st_size
    return sum(files.values())
