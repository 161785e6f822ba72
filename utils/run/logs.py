"""Where log lines go: the screen, around progress bars, and a run's train.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from utils import distributed
from utils.console import show_anything


def start_logging(folder: Path | None = None) -> None:
    """Log to the screen and, given a folder, to its train.log.

    Other processes than the main one warn only.
    """
    show_anything()
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [_Console()]
    if folder is not None and distributed.is_main():
        handlers.append(
            logging.FileHandler(folder / "train.log", encoding="utf-8", errors="backslashreplace")
        )
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    for noisy in (
        "transformers",
        "accelerate",
        "httpx",
        "huggingface_hub",
        "matplotlib",
        "sentence_transformers",
        "onnxscript",
        "onnx_ir",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Console(logging.Handler):
    """Writes through tqdm, so that log lines do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from utils.progress import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
