"""Labels for new texts from a saved run, as JSON lines: label id, label text, score.

python predict.py RUN --text "gnome image viewer" --k 5
python predict.py RUN --texts queries.txt --out predictions.jsonl
python predict.py RUN --text "..." --labels new.txt     # rank labels never seen in training
accelerate launch --num_processes 4 predict.py RUN --texts queries.txt --out predictions.jsonl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder or its config.yaml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", help="a text; may be given several times")
    source.add_argument(
        "--texts", help="file with one text a line, without header; no CSV, no JSON"
    )
    parser.add_argument(
        "--k", type=int, help="labels per text (default 5, or all if there are fewer)"
    )
    parser.add_argument(
        "--labels", help="file with one label text a line, ranked instead of the data set's labels"
    )
    parser.add_argument("--out", help="write to this file instead of the screen")
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


def __getattr__(name: str) -> Any:
    """`predict.Predictor`, which imports torch, when it is asked for: --help is instant."""
    if name == "Predictor":
        from engine.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def texts_of(options: argparse.Namespace) -> Iterable[str]:
    """The texts that the command line names; InputError for those that are no text."""
    from utils.errors import InputError
    from utils.text import check_plain_text, iter_lines

    if options.texts is not None:
        check_plain_text(Path(options.texts))
        return iter_lines(options.texts)
    for text in options.text:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) & 0xFF  # os.fsdecode keeps a stray byte so
            raise InputError(
                f"--text {text!r}: expected UTF-8, got byte 0x{byte:02x} at place {error.start + 1}"
            ) from None
    return options.text


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug):
        from engine.predictor import Predictor, predictions  # here: --help is instant
        from utils import distributed
        from utils.json_lines import write_json_lines
        from utils.run.logs import start_logging
        from utils.text import check_plain_text, iter_lines

        start_logging()
        try:
            texts = texts_of(options)
            labels = None
            if options.labels is not None:
                check_plain_text(Path(options.labels))
                labels = list(iter_lines(options.labels))
            predictor = Predictor(options.run, labels, words)
            k = min(5, len(predictor.label_texts)) if options.k is None else options.k
            write_json_lines(predictions(predictor, texts, k), options.out)
            distributed.stop()
        except BrokenPipeError:  # who reads has enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


if __name__ == "__main__":
    main()
