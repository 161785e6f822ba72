"""Labels for new texts from a saved run, as JSON lines: rank, label id, label text, score.

    python predict.py RUN --text "gnome image viewer" --k 5
    python predict.py RUN --texts queries.txt --out predictions.jsonl
    python predict.py RUN --text "..." --labels new.txt      # rank labels never seen in training, by their text
    accelerate launch --num_processes 4 predict.py RUN --texts queries.txt --out predictions.jsonl
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.command_line import parse_words


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("run", help="run folder or its config.yaml")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", help="a text; may be given several times")
    source.add_argument("--texts", help="file with one text a line")
    parser.add_argument("--k", type=int, help="labels per text (default 5, or all if there are fewer)")
    parser.add_argument("--labels", help="file with one label text a line, ranked instead of the data set's labels")
    parser.add_argument("--out", help="write to this file instead of the screen")
    return parse_words(parser)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()      # before the imports below, so that --help is instant

import itertools  # noqa: E402
import json  # noqa: E402
from collections.abc import Iterable, Iterator, Sequence  # noqa: E402

import torch  # noqa: E402

from models import METHOD_CONFIGS, load_method  # noqa: E402
from utils import distributed  # noqa: E402
from utils.data import check_dataset_folder, label_texts  # noqa: E402
from utils.environment import check_labels  # noqa: E402
from utils.files import written_whole  # noqa: E402
from utils.run import find_run, start_logging, warn_unfinished  # noqa: E402
from utils.text import iter_lines  # noqa: E402

TEXTS_AT_ONCE = 1 << 14


class Predictor:
    """A loaded run: texts in, labels out.

    Args:
        run: run folder or its config.yaml.
        labels: texts of labels to rank instead of the data set's; any number, seen in training or not.
    """

    def __init__(self, run: str | Path, labels: Sequence[str] | None = None, overrides: Sequence[str] = ()) -> None:
        folder, config = find_run(run, METHOD_CONFIGS, overrides)
        warn_unfinished(folder)
        torch.set_num_threads(distributed.cpu_threads(config.run.threads))
        self.accelerator = distributed.start(config.train.mixed_precision)
        self.method = load_method(config, folder).to(self.accelerator.device)
        if labels is None:
            check_dataset_folder(config.dataset_folder)
            check_labels(folder, config.dataset_folder)
            self.label_texts: Sequence[str] = label_texts(config.dataset_folder, self.method.num_labels)
        else:
            self.label_texts = labels
            self.method.rank_new_labels(labels, self.accelerator)

    def __call__(self, texts: Sequence[str], k: int = 5) -> list[list[dict]]:
        """The k best labels of each text, best first: [{"label": id, "text": ..., "score": ...}, ...].

        Under `accelerate launch` every process calls it with the same texts and scores its share of them; the main
        one gets all answers, the others an empty list.
        """
        if not 1 <= k <= len(self.label_texts):
            raise ValueError(f"k must be from 1 to the number of labels, {len(self.label_texts)}; got {k}")
        own = distributed.share(len(texts))
        scores, ids = self.method.score_texts(texts[own.start:own.stop], k, self.accelerator)
        scores, ids = (distributed.gather_arrays(a, len(texts)) for a in (scores, ids))
        if scores is None:
            return []
        return [[{"label": int(i), "text": self.label_texts[int(i)], "score": round(float(s), 6)}
                 for s, i in zip(*row, strict=True) if i >= 0] for row in zip(scores, ids, strict=True)]


def predict_lines(predictor: Predictor, texts: Iterable[str], k: int) -> Iterator[str]:
    """One JSON line per text: {"text": ..., "labels": [{"label": id, "text": ..., "score": ...}, ...]}."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        found = predictor(some, k)
        for text, labels in zip(some if found else [], found, strict=True):
            yield json.dumps({"text": text, "labels": labels}, ensure_ascii=False)


def main(options: argparse.Namespace, words: list[str]) -> None:
    start_logging()
    try:
        labels = list(iter_lines(options.labels)) if options.labels else None
        predictor = Predictor(options.run, labels, words)
        k = min(5, len(predictor.label_texts)) if options.k is None else options.k
        lines = predict_lines(predictor, options.text or iter_lines(options.texts), k)
        if options.out and distributed.is_main():
            Path(options.out).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(Path(options.out)) as partial, open(partial, "w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        else:
            for line in lines:
                print(line)
        distributed.stop()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main(*ARGUMENTS)
