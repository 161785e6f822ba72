"""Where log lines go: the screen, around progress bars, and a run's train.log."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.console import show_anything

NOISY = (  # packages that are told to be quiet
    "transformers",
    "accelerate",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "sentence_transformers",
    "onnxscript",
    "onnx_ir",
)
_least = logging.NOTSET  # level of what is shown on the screen


def start_logging(folder: Path | None = None) -> None:
    """Log to the screen and, given a folder, to its train.log.

    Other processes than the main one warn only.
    """
    show_anything()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_Console(_least)]
    if folder is not None and distributed.is_main():
        handlers.append(
            logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        )
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def lent_logging(verbose: bool) -> Iterator[None]:
    """Log inside a block of somebody else's program; afterwards its logging is as it was.

    Args:
        verbose: show all lines on the screen, not warnings alone. A run's train.log has all.
    """
    global _least
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in ("", *NOISY)}
    least = _least
    root.handlers.clear()  # so that `start_logging` closes none of them
    _least = logging.NOTSET if verbose else logging.WARNING
    try:
        start_logging()
        yield
    finally:
        _least = least
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _Console(logging.Handler):
    """Writes through tqdm, so that log lines do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from utils.progress import tqdm

        tqdm.write(self.format(record), file=_screen())


def _screen() -> TextIO:
    """Where lines are shown: stderr, but in a notebook, which paints that red as an error."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return sys.stdout if in_notebook else sys.stderr
