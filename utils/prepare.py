"""Other people's formats -> Datasets/<name>, the layout that training reads.

    python -m utils.prepare xml-repository downloads/LF-AmazonTitles-131K --fields title \\
        --out Datasets/LF-AmazonTitles-131K
    python -m utils.prepare sparse-text downloads/Eurlex --train eurlex_train.txt --test eurlex_test.txt \\
        --out Datasets/EURLex-4K
    python -m utils.prepare pecos downloads/wiki10-31k --out Datasets/Wiki10-31K
    python -m utils.prepare jsonl --train posts.jsonl.gz --labels tags.tsv --test-fraction 0.1 \\
        --out Datasets/Posts
    python -m utils.prepare csv --train posts.csv --test new.csv --text-column body --labels-column tags \\
        --separator ";" --out Datasets/Posts

Any text file may be gzipped. Lines end at \\n (or \\r\\n) alone; control characters within a text, tabs and
line ends among them, become one blank. The data set appears at --out only when it is complete; its stats.json
holds sizes and hashes.
`python -m utils.prepare FORMAT --help` describes the files of a format.
"""
from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from utils.prepare_formats import FIELDS, prepare_pecos, prepare_sparse_text, prepare_xml_repository
from utils.prepare_named import Columns, Source, prepare_csv, prepare_jsonl

__all__ = ["Columns", "Source", "main", "prepare_csv", "prepare_jsonl", "prepare_pecos",
           "prepare_sparse_text", "prepare_xml_repository"]


def _run_xml_repository(args: argparse.Namespace) -> Path:
    return prepare_xml_repository(args.folder, args.out, args.fields, args.label_fields, args.overwrite)


def _run_sparse_text(args: argparse.Namespace) -> Path:
    return prepare_sparse_text(args.folder, args.out, args.train, args.test, args.overwrite)


def _run_pecos(args: argparse.Namespace) -> Path:
    return prepare_pecos(args.folder, args.out, args.overwrite)


def _source(args: argparse.Namespace) -> Source:
    return Source(args.train, args.test, args.labels, args.test_fraction, args.seed)


def _run_jsonl(args: argparse.Namespace) -> Path:
    return prepare_jsonl(_source(args), args.out, args.overwrite)


def _run_csv(args: argparse.Namespace) -> Path:
    delimiter = "\t" if args.delimiter == "\\t" else args.delimiter
    columns = Columns(args.text_column, args.labels_column, args.separator, delimiter)
    return prepare_csv(_source(args), args.out, columns, args.overwrite)


FORMATS = {     # subcommand -> (runs it from parsed arguments, the function whose docstring describes it)
    "xml-repository": (_run_xml_repository, prepare_xml_repository),
    "sparse-text": (_run_sparse_text, prepare_sparse_text),
    "pecos": (_run_pecos, prepare_pecos),
    "jsonl": (_run_jsonl, prepare_jsonl),
    "csv": (_run_csv, prepare_csv),
}


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m utils.prepare", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="format", metavar="FORMAT", required=True,
                                     help=", ".join(FORMATS))
    parsers = {}
    for name, (_, function) in FORMATS.items():
        parsers[name] = commands.add_parser(name, description=function.__doc__, formatter_class=raw)
        parsers[name].add_argument("--out", required=True, help="folder to make, such as Datasets/NAME")
        parsers[name].add_argument("--overwrite", action="store_true", help="replace a folder with files")
    for name in ("xml-repository", "sparse-text", "pecos"):
        parsers[name].add_argument("folder", help="folder with the files named above")
    fields = parsers["xml-repository"]
    fields.add_argument("--fields", choices=list(FIELDS), default="title+content", help="default %(default)s")
    fields.add_argument("--label-fields", choices=list(FIELDS), help="default: as --fields")
    for split in ("train", "test"):
        parsers["sparse-text"].add_argument(f"--{split}", default=f"{split}.txt", metavar="NAME",
                                            help="bag-of-words file in the folder; default %(default)s")
    for name in ("jsonl", "csv"):
        _add_source(parsers[name])
    for option, default in (("--text-column", "text"), ("--labels-column", "labels"), ("--separator", "|"),
                            ("--delimiter", ",")):
        parsers["csv"].add_argument(option, default=default, help="default %(default)r")
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", required=True, metavar="FILE", help="training points")
    parser.add_argument("--test", metavar="FILE", help="test points; default: a part of the training points")
    parser.add_argument("--labels", metavar="FILE",
                        help='label texts: {"label": name, "text": ...} or name<TAB>text')
    parser.add_argument("--test-fraction", type=float, default=0.2, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of that part; default %(default)s")


def _report(out: Path) -> None:
    """What was made and what to do next."""
    stats = json.loads((out / "stats.json").read_text())
    print(f"{out}: {stats['train_points']} training and {stats['test_points']} test points, "
          f"{stats['labels']} labels, {stats['avg_labels_per_train_point']} labels per training point")
    for split in ("train", "test"):
        if without := stats[f"{split}_points_without_labels"]:
            print(f"note: {without} {split} points without labels, kept")
        if dropped := stats[f"{split}_pairs_read"] - stats[f"{split}_pairs"]:
            print(f"note: {dropped} {split} pairs were repeated or of relevance 0, dropped")
    if not (out / "raw" / "Y.txt").exists():
        print("note: no label texts (raw/Y.txt); methods that encode labels need them")
    print(f"next, in a config:  data: {{root: {out.parent}, name: {out.name}}}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one line of error."""
    args = _parser().parse_args(argv)
    try:
        _report(FORMATS[args.format][0](args))
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _stop(number: int, _frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    for _signal in (signal.SIGTERM, signal.SIGINT):     # an exception removes the unfinished folder
        signal.signal(_signal, _stop)
    sys.exit(main())
