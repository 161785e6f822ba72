"""Other people's formats -> Datasets/<name>, the layout that training reads.

    python -m utils.prepare auto downloads/Eurlex-4K --out Datasets/EURLex-4K
    python -m utils.prepare xml-repository downloads/LF-AmazonTitles-131K \\
        --out Datasets/LF-AmazonTitles-131K
    python -m utils.prepare pecos downloads/wiki10-31k --out Datasets/wiki10-31k
    python -m utils.prepare attention-xml downloads/Wiki10-31K --out Datasets/Wiki10-31K
    python -m utils.prepare sparse-text downloads/Eurlex --train eurlex_train.txt \\
        --test eurlex_test.txt --out Datasets/EURLex-4K
    python -m utils.prepare jsonl --train posts.jsonl.gz --labels tags.tsv --test-fraction 0.1 \\
        --out Datasets/Posts
    python -m utils.prepare csv --train posts.csv --test new.csv --text-column body \\
        --labels-column tags --id-column number --separator ";" --out Datasets/Posts

What lies in the folder says which format to give (`auto` looks for itself):

    xml-repository   trn.json.gz, tst.json.gz, lbl.json.gz or Yf.txt (also *.raw.json.gz): the
                     Extreme Classification Repository's raw data
    pecos            Y.trn.npz, Y.tst.npz: PECOS, X-Transformer, the EURLex-4K that DEXML downloads
    attention-xml    train_raw_texts.txt, train_labels.txt: AttentionXML, LightXML
    sparse-text      trn_X_Y.txt (the repository's newer files; data that DEXA's or NGAME's scripts
                     prepared); train.txt, *_train.txt (older bag of words, LibSVM); *_data.txt with
                     *_trSplit.txt

Any text file may be gzipped. Lines end at \\n (or \\r\\n) alone; control characters within a text,
tabs and line ends among them, become one blank. The data set appears at --out only when it is
complete; its stats.json holds sizes and hashes. What is odd about the data is said in the log, one
line each. `python -m utils.prepare FORMAT --help` describes the files of a format.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.commands import add_debug_option, command
from utils.console import show_anything
from utils.errors import InputError
from utils.prepare.attention_xml import prepare_attention_xml
from utils.prepare.columns import (
    Columns,
    add_csv_options,
    add_name_options,
    columns_of,
    usual_delimiter,
)
from utils.prepare.csv_table import prepare_csv
from utils.prepare.folder import MARKS, hint, recognise
from utils.prepare.jsonl import prepare_jsonl
from utils.prepare.pecos import prepare_pecos
from utils.prepare.points import Source
from utils.prepare.sparse_text import SparseText, prepare_sparse_text
from utils.prepare.xml_repository import FIELDS, prepare_xml_repository

__all__ = [
    "Columns",
    "Source",
    "SparseText",
    "main",
    "prepare_attention_xml",
    "prepare_auto",
    "prepare_csv",
    "prepare_jsonl",
    "prepare_pecos",
    "prepare_sparse_text",
    "prepare_xml_repository",
]


def prepare_auto(
    folder: str | Path,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Read a folder in whichever format it has the files of, with that format's defaults."""
    kind = recognise(folder)
    if kind is None:
        marks = ", ".join(name for _, names in MARKS for name in names)
        raise InputError(f"{folder}: expected one of the files {marks} (or .gz), got none")
    logging.getLogger(__name__).info("%s: read as %s", folder, kind)
    functions: dict[str, Callable[..., Path]] = {
        "xml-repository": prepare_xml_repository,
        "sparse-text": prepare_sparse_text,
        "pecos": prepare_pecos,
        "attention-xml": prepare_attention_xml,
    }
    return functions[kind](folder, out, overwrite=overwrite)


def _run_auto(args: argparse.Namespace) -> Path:
    return prepare_auto(args.folder, args.out, args.overwrite)


def _run_xml_repository(args: argparse.Namespace) -> Path:
    return prepare_xml_repository(
        args.folder,
        args.out,
        args.fields,
        args.label_fields,
        args.overwrite,
        num_labels=args.labels,
    )


def _run_sparse_text(args: argparse.Namespace) -> Path:
    options = SparseText(
        args.train, args.test, args.features, args.labels, args.split, args.tokenizer
    )
    return prepare_sparse_text(args.folder, args.out, options, args.overwrite)


def _run_pecos(args: argparse.Namespace) -> Path:
    return prepare_pecos(args.folder, args.out, args.overwrite)


def _run_attention_xml(args: argparse.Namespace) -> Path:
    return prepare_attention_xml(args.folder, args.out, args.overwrite)


def _source(args: argparse.Namespace) -> Source:
    return Source(args.train, args.test, args.labels, args.test_fraction, args.seed)


def _run_jsonl(args: argparse.Namespace) -> Path:
    return prepare_jsonl(_source(args), args.out, args.overwrite, columns_of(args))


def _run_csv(args: argparse.Namespace) -> Path:
    columns = columns_of(args, usual_delimiter(args.train))
    return prepare_csv(_source(args), args.out, columns, args.overwrite)


# By subcommand: what runs it from parsed arguments, and whose docstring describes it.
FORMATS: dict[str, tuple[Callable[[argparse.Namespace], Path], Callable[..., Path]]] = {
    "auto": (_run_auto, prepare_auto),
    "xml-repository": (_run_xml_repository, prepare_xml_repository),
    "sparse-text": (_run_sparse_text, prepare_sparse_text),
    "pecos": (_run_pecos, prepare_pecos),
    "attention-xml": (_run_attention_xml, prepare_attention_xml),
    "jsonl": (_run_jsonl, prepare_jsonl),
    "csv": (_run_csv, prepare_csv),
}


OF_FOLDERS = ("auto", "xml-repository", "sparse-text", "pecos", "attention-xml")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m utils.prepare", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(
        dest="format", metavar="FORMAT", required=True, help=", ".join(FORMATS)
    )
    parsers = {}
    for name, (_, function) in FORMATS.items():
        of_format = commands.add_parser(name, description=function.__doc__, formatter_class=raw)
        of_format.add_argument("--out", required=True, help="folder to make, such as Datasets/NAME")
        of_format.add_argument(
            "--overwrite", action="store_true", help="replace a folder with files"
        )
        if name in OF_FOLDERS:
            of_format.add_argument("folder", help="folder with the files named above")
        add_debug_option(of_format)
        parsers[name] = of_format
    _add_repository(parsers["xml-repository"])
    _add_sparse_text(parsers["sparse-text"])
    _add_source(parsers["jsonl"])
    add_name_options(parsers["jsonl"])
    _add_source(parsers["csv"])
    add_name_options(parsers["csv"])
    add_csv_options(parsers["csv"])
    return parser


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fields",
        choices=list(FIELDS),
        help="default: title where the name of the folder or of --out says Titles, else "
        "title+content",
    )
    parser.add_argument("--label-fields", choices=list(FIELDS), help="default: as --fields")
    parser.add_argument(
        "--labels", type=int, metavar="L", help="how many labels there are, where no file says it"
    )


def _add_sparse_text(parser: argparse.ArgumentParser) -> None:
    for split in ("train", "test"):
        parser.add_argument(
            f"--{split}",
            metavar="NAME",
            help=f"bag-of-words file in the folder; default {split}.txt, or the one *_{split}.txt",
        )
    parser.add_argument(
        "--features", type=int, metavar="F", help="number of features, of files without a header"
    )
    parser.add_argument(
        "--labels", type=int, metavar="L", help="number of labels, of files without a header"
    )
    parser.add_argument(
        "--split",
        type=int,
        default=1,
        metavar="N",
        help="column of *_trSplit.txt and *_tstSplit.txt, from 1; default %(default)s",
    )
    parser.add_argument(
        "--tokenizer",
        default="minilm",
        metavar="ID",
        help="id or folder of the tokenizer of *_input_ids.npy; default %(default)s, which is that "
        "of bert-base-uncased",
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", required=True, metavar="FILE", help="training points")
    parser.add_argument(
        "--test", metavar="FILE", help="test points; default: a part of the training points"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help='label texts: {"label": name, "text": ...} or name<TAB>text; a '
        "label that is not in it has its name as text",
    )
    parser.add_argument("--test-fraction", type=float, default=0.2, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of that part; default %(default)s")


def _say_what_next(out: Path) -> None:
    """Print what was made and what to do next."""
    stats = json.loads((out / "stats.json").read_text())
    print(
        f"{out}: {stats['train_points']} training and {stats['test_points']} test points, "
        f"{stats['labels']} labels, {stats['avg_labels_per_train_point']:.2f} labels per training "
        "point"
    )
    for split in ("train", "test"):
        if without := stats[f"{split}_points_without_labels"]:
            print(f"note: {without} {split} points without labels, kept")
        if dropped := stats[f"{split}_pairs_read"] - stats[f"{split}_pairs"]:
            print(
                f"note: {dropped} {split} pairs are of relevance 0, or repeat a label of their row"
            )
    if unseen := stats["labels_without_train_points"]:
        print(f"note: {unseen} of {stats['labels']} labels have no training point")
    if not (out / "raw" / "Y.txt").exists():
        print("note: no label texts (raw/Y.txt); methods that encode labels need them")
    print(f"next: python -m utils.advise {out}")
    print(f"in a config: data: {{root: {out.parent}, name: {out.name}}}")


def _prepared(options: argparse.Namespace) -> Path:
    """Make the data set; errors of a folder say which other format it seems to have."""
    run, _ = FORMATS[options.format]
    try:
        return run(options)
    except InputError as error:
        more = hint(options.folder, options.format) if options.format in OF_FOLDERS else ""
        if not more:
            raise
        raise InputError(f"{error}{more}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see `utils.commands.command` for how it ends."""
    show_anything()
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with command(options.debug, "interrupted; nothing was written", code=130):
        out = _prepared(options)
    _say_what_next(out)
