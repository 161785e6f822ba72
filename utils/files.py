"""Files and folders that are written whole: a process killed at any instant leaves nothing half written."""
from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils import distributed


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`; synced and renamed onto it at the end, removed on an error."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """As `written_whole`, for a folder that every process may write into.

    The folder in place is moved aside, the new one renamed into place, the old one removed. `settled_folder` finds
    the whole one if the process died between the two renames.
    """
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    if distributed.is_main():
        _settle(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    try:
        yield partial
    except BaseException as error:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(f"{path} could not be written ({error}); what was there before is untouched. Make room and "
                          "start again, a training run with --resume") from error
        raise
    distributed.barrier()
    if distributed.is_main():
        for file in (*partial.rglob("*"), partial):
            _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()


def _settle(path: Path) -> None:
    """Undo a replacement that died between its two renames."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)
    shutil.rmtree(old, ignore_errors=True)


def settled_folder(path: Path) -> Path:
    """`path`, restored first if its replacement was cut off."""
    if distributed.is_main():
        _settle(path)
    distributed.barrier()
    return path


def link_or_copy(source: str | Path, to: str | Path) -> None:
    """A second name of a file that is never changed in place, or a copy where the file system has no links."""
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, to)
