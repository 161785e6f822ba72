"""Matrices as text, one row a line: the repository's newer and older files, and LibSVM."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.prepare.agreement import checked_size, copy_texts, same_width
from utils.prepare.folder import Folder
from utils.prepare.lines import check_index, check_relevance, consume, lines
from utils.prepare.rows import Rows
from utils.prepare.tokens import write_token_texts
from utils.prepare.writer import SPLITS, Writer
from utils.reading.matrix_limits import FEATURE_MAX, LARGEST

log = logging.getLogger(__name__)
POINT_TEXTS = {
    split: (f"{split}_X.txt", f"raw/{split}_X.txt", f"{split}.raw.txt") for split in SPLITS
}
LABEL_TEXTS = ("Y.txt", "lbl.txt", "raw/Y.txt", "raw/lbl.txt", "lbl.raw.txt")


@dataclass(frozen=True)
class SparseText:
    """How the files of `prepare_sparse_text` are to be read.

    `train` and `test` are names of bag-of-words files; None: train.txt, or the one *_train.txt.
    `num_features` and `num_labels` are the sizes of files without a header. `split` is the column,
    from 1, of files *_trSplit.txt and *_tstSplit.txt. `tokenizer` is that of *_input_ids.npy.
    """

    train: str | None = None
    test: str | None = None
    num_features: int | None = None
    num_labels: int | None = None
    split: int = 1
    tokenizer: str = "minilm"

    def header(self) -> list[int] | None:
        """Return [F, L] where they are given."""
        if self.num_features is None and self.num_labels is None:
            return None
        if self.num_features is None or self.num_labels is None:
            raise InputError("expected --features and --labels together, got only one")
        return [
            checked_size("features", self.num_features),
            checked_size("labels", self.num_labels),
        ]


def prepare_sparse_text(
    folder: str | Path, out: str | Path, options: SparseText | None = None, overwrite: bool = False
) -> Path:
    """Read matrices as text, one row a line, in one of three shapes. All numbers count from 0.

    New: trn_X_Y.txt and tst_X_Y.txt with header 'N L' and rows 'label:relevance ...'; optionally
    trn_X_Xf.txt and tst_X_Xf.txt likewise for features.
    Old bag of words, or LibSVM: train.txt and test.txt (or *_train.txt and *_test.txt, or --train
    and --test) with header 'N F L' and rows 'l1,l2 feature:value ...'; without a header, --features
    and --labels give F and L. One file for both splits: *_data.txt like those, with *_trSplit.txt
    and *_tstSplit.txt, whose columns hold row numbers from 1; --split chooses the column.
    All: optionally texts trn_X.txt and tst_X.txt (here or in raw/), or {trn,tst}.raw.txt, and of
    labels Y.txt or lbl.txt (here or in raw/), lbl.raw.txt. Where there are none, as in data that
    scripts of DEXA or NGAME prepared, texts are made of
    {trn_doc,tst_doc,lbl}_{input_ids,attention_mask}.npy with --tokenizer.
    """
    source = Folder(folder)
    options = options or SparseText()
    shape = _shape_of(source, options)
    with Writer(out, "sparse-text", [folder], overwrite) as writer:
        if shape == "whole":
            _read_whole(source, options, writer)
        elif shape == "old":
            for split in SPLITS:
                _read_bag_of_words(_bag_of_words(source, split, options), split, writer, options)
        else:
            for split in SPLITS:
                _read_pair_files(source, split, writer)
        same_width(writer, folder)
        if shape != "whole" and not copy_texts(writer, source, POINT_TEXTS, LABEL_TEXTS):
            write_token_texts(source, writer, options.tokenizer)
        writer.copy_filters(source)
        return writer.finish(source)


def _shape_of(source: Folder, options: SparseText) -> str:
    """Which of the shapes lies in the folder: new, old or whole."""
    old = options.train or ("*_train.txt" if not source.has("train.txt") else "train.txt")
    marks = {"new": "trn_X_Y.txt", "old": old, "whole": "*_data.txt"}
    shapes = [shape for shape, mark in marks.items() if source.has(mark)]
    if len(shapes) != 1:
        wanted = ", ".join(marks[shape] for shape in shapes or marks)
        raise InputError(
            f"{source.path}: expected one of {wanted} (or .gz), got {'all' if shapes else 'none'}"
        )
    return shapes[0]


def _bag_of_words(
    source: Folder,
    split: str,
    options: SparseText,
) -> Path:
    """The file of a split: as given, or by its usual names."""
    given = {"trn": options.train, "tst": options.test}[split]
    usual = f"{SPLITS[split]}.txt"
    if given or source.has(usual):
        return source.find(given or usual)
    return source.matching(f"*_{usual}") or source.find(usual)


def _read_whole(
    source: Folder,
    options: SparseText,
    writer: Writer,
) -> None:
    """*_data.txt with the rows that *_trSplit.txt and *_tstSplit.txt name."""
    path = _required(source, "*_data.txt")
    labels, features, header = _bag_of_words_rows(path, options)
    rows = {}
    for split, pattern in (("trn", "*_trSplit.txt"), ("tst", "*_tstSplit.txt")):
        rows[split] = _split_rows(_required(source, pattern), options.split, len(labels))
    both = sorted(rows["trn"].keys() & rows["tst"].keys())
    if both:
        raise InputError(
            f"{source.path}: expected rows in one split each, got {len(both)} in both, e.g. "
            f"{both[0] + 1}"
        )
    if left := len(labels) - sum(map(len, rows.values())):
        log.warning(
            "%s: %d of %d rows are in neither split and are left out", path, left, len(labels)
        )
    for name, matrix in (("Y", labels.csr(header[1])), ("X", features.csr(header[0]))):
        for split, chosen in rows.items():
            writer.put(f"{name}.{split}", matrix[list(chosen)], path=path)


def _required(source: Folder, pattern: str) -> Path:
    path = source.matching(pattern)
    if path is None:
        raise InputError(f"{source.path}: expected a file {pattern} (or .gz), got none")
    return path


def _split_rows(
    path: Path,
    column: int,
    size: int,
) -> dict[int, None]:
    """Rows from 0, in order, of one column of a file of row numbers from 1."""
    rows: dict[int, None] = {}

    def store(line: str) -> None:
        numbers = line.split()
        if not 1 <= column <= len(numbers):
            raise InputError(
                f"expected at least {max(column, 1)} columns for --split {column}, got "
                f"{line[:60]!r}"
            )
        row = _integer(numbers[column - 1], "row numbers")
        if not 1 <= row <= size:
            raise InputError(f"expected a row from 1 to {size}, got {row}")
        if row - 1 in rows:
            raise InputError(f"expected each row once, got {row} again")
        rows[row - 1] = None

    consume(path, lines(path), store)
    return rows


def _read_pair_files(
    source: Folder,
    split: str,
    writer: Writer,
) -> None:
    """<split>_X_Y.txt and, where present, <split>_X_Xf.txt."""
    _read_pairs(source.find(f"{split}_X_Y.txt"), f"Y.{split}", check_relevance, writer)
    if path := source.find_optional(f"{split}_X_Xf.txt"):
        _read_pairs(path, f"X.{split}", _check_feature, writer)


def _read_pairs(
    path: Path,
    name: str,
    check: Callable[[float], None],
    writer: Writer,
) -> None:
    """One file of rows 'index:value ...' below a header 'N columns'."""
    rows = Rows()

    def store(line: str, header: list[int]) -> None:
        rows.add(*_pairs(line, header[1], check))

    header = _read_rows(path, "N columns", store)
    writer.put(name, rows.csr(header[1]), rows.read, path)


def _read_bag_of_words(
    path: Path,
    split: str,
    writer: Writer,
    options: SparseText,
) -> None:
    """The labels and features of one split."""
    labels, features, header = _bag_of_words_rows(path, options)
    writer.put(f"Y.{split}", labels.csr(header[1]), labels.read, path)
    writer.put(f"X.{split}", features.csr(header[0]), path=path)


def _bag_of_words_rows(path: Path, options: SparseText) -> tuple[Rows, Rows, list[int]]:
    """(labels, features, [F, L]) of the old repository format.

    The row of a point without labels begins with a blank.
    """
    labels = Rows()
    features = Rows()

    def store(line: str, size: list[int]) -> None:
        first, _, rest = line.partition(" ")
        if ":" in first:  # some writers leave out the blank
            first = ""
            rest = line
        indices = []
        if first:
            indices = [_integer(label, "labels 'l1,l2'") for label in first.split(",")]
        for index in indices:
            check_index(index, size[2])
        labels.add(indices, [1.0] * len(indices))
        features.add(*_pairs(rest, size[1], _check_feature))

    header = _read_rows(path, "N F L", store, options.header())
    return labels, features, header[1:]


def _read_rows(
    path: Path,
    names: str,
    store: Callable[[str, list[int]], None],
    columns: list[int] | None = None,
) -> list[int]:
    """Call `store(line, header)` for each line after the header; return it, its N checked.

    Of a file without header `columns` gives what stands there after N; a header that says the same
    may be there.
    """
    header = [-1, *columns] if columns else []
    first = True

    def handle(line: str) -> None:
        nonlocal first
        if first:
            first = False
            told = _header(line, names, required=not columns)
            if told and columns and told[1:] != columns:
                raise InputError(
                    f"expected a header with {columns} after the number of rows, as given, got "
                    f"{line!r}"
                )
            if told:
                header[:] = told
                return
        store(line, header)

    rows = consume(path, lines(path), handle) - (header[0] >= 0)
    if header[0] not in (-1, rows):
        raise InputError(
            f"{path}: expected {header[0]} rows after the header, as it says, got {rows}"
        )
    if not rows:
        raise InputError(f"{path}: expected at least one row, got the header alone")
    return [rows, *header[1:]]


def _header(
    line: str,
    names: str,
    required: bool,
) -> list[int] | None:
    """The numbers of a header; None for a line that is none, where that may be."""
    parts = line.split()
    if len(parts) != len(names.split()) or not all(part.isdecimal() for part in parts):
        if required:
            hint = ""
            if "F" in names:
                hint = "; of a file without one --features and --labels give F and L"
            raise InputError(f"expected the header '{names}', got {line[:60]!r}{hint}")
        return None
    header = list(map(int, parts))
    if max(header) > LARGEST:
        raise InputError(f"expected a header of numbers up to {LARGEST}, got {line!r}")
    return header


def _pairs(
    line: str,
    width: int,
    check: Callable[[float], None],
) -> tuple[list[int], list[float]]:
    """'index:value index:value' -> indices in [0, width) and values."""
    parts = [token.partition(":") for token in line.split()]
    indices = [_integer(index, "'index:value'") for index, _, _ in parts]
    values = [_real(value, "'index:value'") for _, _, value in parts]
    for index, value in zip(indices, values, strict=True):
        check_index(index, width, "an index")
        check(value)
    return indices, values


def _integer(text: str, what: str) -> int:
    try:
        return int(_plain(text))
    except ValueError:
        raise InputError(f"expected {what}, got {text[:60]!r} for a number") from None


def _real(text: str, what: str) -> float:
    try:
        return float(_plain(text))
    except ValueError:
        raise InputError(f"expected {what}, got {text[:60]!r} for a number") from None


def _plain(text: str) -> str:
    """`text`; ValueError for Python's own spellings of numbers, such as 1_000."""
    if "_" in text or not text.isascii():
        raise ValueError
    return text


def _check_feature(value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"expected a finite feature, got {value!r}")
    if abs(value) > FEATURE_MAX:
        raise InputError(
            f"expected a feature from {-FEATURE_MAX:g} to {FEATURE_MAX:g}, got {value!r}"
        )
