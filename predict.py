"""Labels for new texts from a saved run, as JSON lines: rank, label id, label text, score.

python predict.py RUN --text "gnome image viewer" --k 5
python predict.py RUN --texts queries.txt --out predictions.jsonl
python predict.py RUN --text "..." --labels new.txt      # rank labels never seen in training, by
their text accelerate launch --num_processes 4 predict.py RUN --texts queries.txt --out
predictions.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
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
    return parse_words(parser)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports below, so that --help is instant

import itertools  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
from collections.abc import Iterable, Iterator, Sequence  # noqa: E402

import torch  # noqa: E402

from models.eval_options import check_options, compare_index  # noqa: E402
from models.loading import load_method  # noqa: E402
from utils import distributed  # noqa: E402
from utils.config.config import Config  # noqa: E402
from utils.console import is_screen, shows_unicode  # noqa: E402
from utils.data.dataset import check_dataset_folder  # noqa: E402
from utils.data.label_texts import label_texts  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.files import place_of, written_whole  # noqa: E402
from utils.reading.saved import answers_of, check_answers  # noqa: E402
from utils.run.environment import check_labels  # noqa: E402
from utils.run.folder import find_run, start_logging, warn_unfinished  # noqa: E402
from utils.text import TextLines, check_plain_text, iter_lines, text_list  # noqa: E402

TEXTS_AT_ONCE = 1 << 14
COMPARED_TEXTS = 200  # by which an approximate index is compared with exact search
COMPARED_K = 10
# where str.splitlines cuts, and JSON may leave as they are
SEPARATORS = re.compile("[\x85\u2028\u2029]")


class Predictor:
    """A loaded run: texts in, labels out.

    Args:
        run: run folder or its config.yaml.
        labels: texts of labels to rank instead of the data set's; any number from 1, seen in
        training or not.
    Raises:
        ValueError: no finished run, another data set than that of the run, or labels that are no
        texts.
    """

    def __init__(
        self, run: str | Path, labels: Sequence[str] | None = None, overrides: Sequence[str] = ()
    ) -> None:
        folder, config = find_run(run, overrides)
        warn_unfinished(folder)
        torch.set_num_threads(distributed.cpu_threads(config.run.threads))
        self.accelerator = distributed.start(config.train.mixed_precision)
        self.folder = folder
        self.method = load_method(config, folder).to(self.accelerator.device)
        if labels is None:
            check_dataset_folder(config.dataset_folder)
            check_labels(folder, config.dataset_folder)
            self.label_texts: Sequence[str] = label_texts(
                config.dataset_folder, self.method.num_labels
            )
        else:
            labels = text_list(labels, "labels")
            if not labels:
                raise InputError("labels: expected at least one text, got none")
            if empty := [index for index, text in enumerate(labels) if not text.strip()]:
                logging.getLogger(__name__).warning(
                    "%d of %d label texts are empty, e.g. that of id %d; they are ranked as any "
                    "other",
                    len(empty),
                    len(labels),
                    empty[0],
                )
            self.label_texts = labels
            self.method.rank_new_labels(labels, self.accelerator)
        check_options(config, self.method)
        if config.eval.index != "exact" and distributed.is_main():
            self._check_index(config)

    def _check_index(self, config: Config) -> None:
        """Build the approximate index now, and warn where it finds little: of texts of the test
        split, or of labels."""
        path = config.dataset_folder / "raw" / "tst_X.txt"
        texts = TextLines(path) if path.is_file() else self.label_texts
        sample = [texts[i] for i in range(0, len(texts), -(-len(texts) // COMPARED_TEXTS))]
        k = min(COMPARED_K, len(self.label_texts))
        with answers_of(self.folder):
            compare_index(self.method, lambda: self.method.score_texts(sample, k, self.accelerator))

    def __call__(self, texts: Sequence[str], k: int = 5) -> list[list[dict]]:
        """The k best labels of each text, best first: [{"label": id, "text": ..., "score": ...},
        ...].

        A text alone, which is no list, is answered as a list of one.
        Under `accelerate launch` every process calls it with the same texts and scores its share of
        them; the main one gets all answers, the others an empty list.
        """
        texts = text_list(texts, "texts")
        if not 1 <= k <= len(self.label_texts):
            raise InputError(
                f"k must be from 1 to the number of labels, {len(self.label_texts)}; got {k}"
            )
        own = distributed.share(len(texts))
        with answers_of(self.folder):
            scores, ids = self.method.score_texts(texts[own.start : own.stop], k, self.accelerator)
            check_answers(scores, "scores")
        scores, ids = (distributed.gather_arrays(a, len(texts)) for a in (scores, ids))
        if scores is None:
            return []
        return [
            [
                {"label": int(i), "text": self.label_texts[int(i)], "score": round(float(s), 6)}
                for s, i in zip(*row, strict=True)
                if i >= 0
            ]
            for row in zip(scores, ids, strict=True)
        ]


def predictions(predictor: Predictor, texts: Iterable[str], k: int) -> Iterator[dict]:
    """Answers of any number of texts, in their order: {"text": ..., "labels": [{"label": id, ...},
    ...]}."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        found = predictor(some, k)
        for text, labels in zip(some if found else [], found, strict=True):
            yield {"text": text, "labels": labels}


def json_line(record: dict, ascii_only: bool = False) -> str:
    """JSON on a line that stays one for every reader, also for those that cut where Unicode
    does."""
    line = json.dumps(record, ensure_ascii=ascii_only)
    return SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def write_predictions(records: Iterable[dict], out: str | None) -> None:
    """Print records as JSON lines, or write them to a file, which is begun when there is a first
    one."""
    if out is None or is_screen(out) or not distributed.is_main():
        ascii_only = not shows_unicode()
        for record in records:
            print(json_line(record, ascii_only))
        sys.stdout.flush()
        return
    records = iter(records)
    first = list(itertools.islice(records, 1))
    place_of(Path(out)).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(Path(out)) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json_line(record) + "\n" for record in itertools.chain(first, records))


def texts_of(options: argparse.Namespace) -> Iterable[str]:
    """The texts that the command line names; InputError for those that are no text."""
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


def main(options: argparse.Namespace, words: list[str]) -> None:
    start_logging()
    try:
        texts = texts_of(options)
        labels = None
        if options.labels is not None:
            check_plain_text(Path(options.labels))
            labels = list(iter_lines(options.labels))
        predictor = Predictor(options.run, labels, words)
        k = min(5, len(predictor.label_texts)) if options.k is None else options.k
        write_predictions(predictions(predictor, texts, k), options.out)
        distributed.stop()
    except BrokenPipeError:  # who reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main(*ARGUMENTS)
