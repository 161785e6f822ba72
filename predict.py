"""Labels for new texts from a saved run.

python predict.py RUN --text "gnome image viewer" --k 5
python predict.py RUN --texts queries.txt --out predictions.jsonl      # one text a line
python predict.py RUN --text "..." --threshold auto     # or 0.3: labels of that probability alone
python predict.py RUN --texts table.csv --text-column body --id-column number --out answers.csv
zcat posts.txt.gz | python predict.py RUN --texts -                    # standard input
python predict.py RUN --text "..." --labels new.txt     # rank labels never seen in training
python predict.py RUN --text "..." --add-labels new.txt # rank them together with the run's own
accelerate launch --num_processes 4 predict.py RUN --texts queries.txt --out predictions.jsonl

Answers come in the order of the texts. As JSON lines, a line a text: {"id": ..., "text": ...,
"score_is": what a score is, "labels": [{"label": id, "text": ..., "score": ..., "probability":
...}, ...]}; the probability is null of a run without validation points, and "name" stands where
the data set's labels have own names (raw/Y_ids.txt). As CSV or TSV, a row for each text and label:
id, text, rank, label, label_text, score, probability, and label_name where there are names.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option

if TYPE_CHECKING:
    from utils.prepare.points import Point

USUAL_K = 5  # labels of a text
USUAL_ABOVE = 100  # the same above a threshold


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    from utils.prepare.point_options import add_point_options

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder or its config.yaml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", help="a text; may be given several times")
    source.add_argument(
        "--texts",
        metavar="FILE",
        help="one text a line, or a table: .csv, .tsv or .jsonl, with a header or keys; - is "
        "standard input, pipes are read as they come",
    )
    add_point_options(parser, "texts")
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="texts that are read and answered together: 1 answers each as it comes (default "
        "4096, from a terminal 1)",
    )
    parser.add_argument(
        "--k", type=int, help="labels per text (default 5, or all if there are fewer)"
    )
    parser.add_argument(
        "--threshold",
        help="labels of at least this probability alone: a number from 0 to 1, or `auto`, the "
        "threshold that training chose on validation points for eval.threshold_for; at most --k, "
        "then 100 by default",
    )
    parser.add_argument(
        "--labels", help="file with one label text a line, ranked instead of the data set's labels"
    )
    parser.add_argument(
        "--add-labels",
        metavar="FILE",
        help="file with one label text a line, ranked together with the run's labels; ids go on "
        "after those",
    )
    parser.add_argument("--out", help="write to this file, which appears when it is whole")
    parser.add_argument(
        "--format",
        choices=("jsonl", "csv", "tsv"),
        help="of the answers (default: by the name of --out, else jsonl)",
    )
    parser.add_argument("--no-text", action="store_true", help="leave the texts out of the answers")
    add_plugin_option(parser)
    add_debug_option(parser)
    return parse_words(parser, arguments)


def __getattr__(name: str) -> Any:
    """`predict.Predictor`, which imports torch, when it is asked for: --help is instant."""
    if name == "Predictor":
        from engine.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def points_of(options: argparse.Namespace) -> Iterable[str | Point]:
    """The texts that the command line names; InputError for those that are no text.

    A file's first row is read at once, so that what is wrong with it is said before a model is
    loaded; a stream is not touched before the answers are asked for.
    """
    from utils.errors import InputError
    from utils.prepare.point_files import given_reader, is_stream_name

    if options.texts is not None:
        points = given_reader(options, options.texts).points(options.texts)
        return points if is_stream_name(options.texts) else _begun(points, options.texts)
    for text in options.text:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) & 0xFF  # os.fsdecode keeps a stray byte so
            raise InputError(
                f"--text {text!r}: expected UTF-8, got byte 0x{byte:02x} at place {error.start + 1}"
            ) from None
    return options.text


def _begun(points: Iterator[Point], path: str) -> Iterator[Point]:
    """The points of a file, whose first one has been read."""
    from utils.errors import InputError

    first = next(points, None)
    if first is None:
        raise InputError(f"{path}: expected at least one text, got none")
    return itertools.chain([first], points)


def texts_at_once(options: argparse.Namespace) -> int:
    """How many texts are answered together; InputError for fewer than one."""
    from engine.predictor import TEXTS_AT_ONCE
    from utils.errors import InputError

    if options.at_once is None:
        typed = options.texts in ("-", "/dev/stdin") and sys.stdin is not None
        return 1 if typed and sys.stdin.isatty() else TEXTS_AT_ONCE
    if options.at_once < 1:
        raise InputError(f"--at-once: expected at least 1, got {options.at_once}")
    return int(options.at_once)


def lines_of(path: str | None) -> list[str] | None:
    """The lines of a plain text file; None where none is given."""
    from utils.text import check_plain_text, iter_lines

    if path is None:
        return None
    check_plain_text(Path(path))
    return list(iter_lines(path))


def check_out(options: argparse.Namespace) -> None:
    """InputError where the answers would replace a file that is read."""
    from utils.errors import InputError

    if options.out is None or not os.path.isfile(options.out):
        return
    for name in ("texts", "labels", "add_labels"):
        path = getattr(options, name)
        if path is not None and os.path.isfile(path) and os.path.samefile(path, options.out):
            option = name.replace("_", "-")
            raise InputError(
                f"--out: {options.out} is the file of --{option}, expected another: it would be "
                "replaced"
            )


def answer(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Write the answers that the command line asks for."""
    from engine.predictor import Predictor, predictions
    from utils import distributed
    from utils.answer_files import form_of, format_by_name
    from utils.json_lines import write_records

    check_out(options)
    points = points_of(options)
    at_once = texts_at_once(options)
    labels = lines_of(options.labels)
    more = lines_of(options.add_labels)
    predictor = Predictor(options.run, labels, words, more)
    usual = USUAL_K if options.threshold is None else USUAL_ABOVE
    k = min(usual, len(predictor.label_texts)) if options.k is None else options.k
    form = form_of(
        options.format or format_by_name(options.out),
        texts=not options.no_text,
        names=len(predictor.label_names) > 0,
    )
    found = predictions(predictor, points, k, at_once, options.threshold)
    write_records(found, options.out, form)
    distributed.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    options, words = parse_arguments(arguments)
    with command(options.debug):
        from utils.run.logs import start_logging  # here: --help is instant

        start_logging()
        answer(options, words)


if __name__ == "__main__":
    main()
