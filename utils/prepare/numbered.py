"""Formats of numbered labels in one folder: the Extreme Classification repository, sparse text,
PECOS."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.prepare.folder import Folder
from utils.prepare.tokens import write_token_texts
from utils.prepare.writer import SPLITS, Rows, Writer, check_index, check_relevance, consume, lines
from utils.reading.matrix_limits import FEATURE_MAX, LARGEST

log = logging.getLogger(__name__)
POINT_TEXTS = {
    split: (f"{split}_X.txt", f"raw/{split}_X.txt", f"{split}.raw.txt") for split in SPLITS
}
LABEL_TEXTS = ("Y.txt", "lbl.txt", "raw/Y.txt", "raw/lbl.txt", "lbl.raw.txt")
FIELDS = {"title": ("title",), "title+content": ("title", "content")}


def json_object(line: str) -> dict:
    """The JSON object of one line; InputError for anything else."""
    try:
        record = json.loads(line)
        if type(record) is dict and not _surely_distinct(line, len(record)):
            record = DISTINCT.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected a JSON object, got {line[:60]!r} (column {error.colno}: {error.msg})"
        ) from error
    # a number of thousands of digits, or of brackets
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON object, got {line[:60]!r} ({error})") from error
    if type(record) is not dict:
        raise InputError(f"expected a JSON object, got {type(record).__name__} {line[:60]!r}")
    return record


def _distinct(pairs: list[tuple[str, object]]) -> dict:
    """The dict of a JSON object; ValueError for a key that stands twice, of which json would keep
    the last."""
    record = dict(pairs)
    if len(record) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return record


DISTINCT = json.JSONDecoder(object_pairs_hook=_distinct)  # three times slower


def _surely_distinct(line: str, keys: int) -> bool:
    """Whether no key stands twice in a JSON object of so many: colons after keys are counted, with
    those of texts."""
    if line.count(":") == keys:
        return True
    blank_before = " :" in line or "\t" in line or "\r" in line
    return line.count('":') == keys and not blank_before


def field(record: dict, key: str, kind: type):
    """`record[key]`, which must be there and of type `kind`."""
    if key not in record:
        raise InputError(f"expected a key {key!r}, got only {sorted(record)}")
    if type(record[key]) is not kind:
        raise InputError(
            f"expected {key!r} to be a {kind.__name__}, got {type(record[key]).__name__} "
            f"{str(record[key])[:60]!r}"
        )
    return record[key]


def _record_text(record: dict, fields: tuple[str, ...]) -> str:
    """The record's fields joined by a blank; only `content` may be absent."""
    texts = [field(record, key, str).strip() for key in fields if key == "title" or key in record]
    return " ".join(filter(None, texts))


def prepare_xml_repository(
    folder: str | Path,
    out: str | Path,
    fields: str | None = None,
    label_fields: str | None = None,
    overwrite: bool = False,
    num_labels: int | None = None,
) -> Path:
    """The repository's raw data: trn.json, tst.json and lbl.json, one JSON object a line; all may
    be .json.gz or, as in Amazon-670K and Wikipedia-500K, .raw.json.gz. Yf.txt in place of lbl.json
    has a label's text a line (AmazonCat-13K, AmazonCat-14K). Lines that are not UTF-8 are read as
    latin-1.

    Points have `title`, `content` (optional), `target_ind` and `target_rel`; labels have `title`,
    `content` (optional) and `uid` (optional, for raw/Y_ids.txt). `fields` and `label_fields`
    (default: as `fields`) are 'title' or 'title+content'; the default is 'title' where the name of
    the folder or of the data set says Titles. Points without labels are kept, as
    filter_labels_*.txt counts them. Labels without texts: `num_labels` says how many there are.
    """
    source = Folder(folder)
    fields = fields or _fields_by_name(folder, out)
    for choice in (fields, label_fields or fields):
        if choice not in FIELDS:
            raise InputError(f"expected fields to be one of {', '.join(FIELDS)}, got {choice!r}")
    labels = source.first("lbl.json", "lbl.raw.json", "Yf.txt", required=num_labels is None)
    points = {split: source.find(f"{split}.json", f"{split}.raw.json") for split in SPLITS}
    with Writer(out, "xml-repository", [folder], overwrite) as writer:
        writer.facts["fields"] = fields
        if labels is None:
            width = _checked_size("labels", num_labels)
        else:
            width = _repository_labels(labels, FIELDS[label_fields or fields], writer)
            if num_labels not in (None, width):
                raise InputError(f"{labels}: expected {num_labels} labels, as given, got {width}")
        for split, path in points.items():
            rows = Rows()

            def store(line: str, split: str = split, rows: Rows = rows) -> None:
                record = json_object(line)
                writer.write(f"raw/{split}_X.txt", _record_text(record, FIELDS[fields]))
                rows.add(*_targets(record, width))

            consume(path, lines(path, latin=True), store)
            writer.put(f"Y.{split}", rows.csr(width), rows.read, path)
        writer.copy_filters(source)
        return writer.finish(source)


def _fields_by_name(folder: str | Path, out: str | Path) -> str:
    """Titles alone where a data set's name says so: those sets are made of titles."""
    if not any("titles" in Path(path).resolve().name.lower() for path in (folder, out)):
        return "title+content"
    log.info(
        "texts are titles alone, as the name says Titles (--fields title+content joins title and "
        "content)"
    )
    return "title"


def _repository_labels(path: Path, fields: tuple[str, ...], writer: Writer) -> int:
    """Writes raw/Y.txt, and raw/Y_ids.txt if the labels have a `uid`; returns L."""
    if path.name.removesuffix(".gz").endswith(".txt"):
        return consume(path, lines(path, latin=True), lambda line: writer.write("raw/Y.txt", line))
    with_uid: set[bool] = set()

    def store(line: str) -> None:
        record = json_object(line)
        with_uid.add("uid" in record)
        if len(with_uid) > 1:
            raise InputError("expected a key 'uid' in all labels or in none, got both")
        if "uid" in record:
            writer.write("raw/Y_ids.txt", field(record, "uid", str))
        writer.write("raw/Y.txt", _record_text(record, fields))

    return consume(path, lines(path, latin=True), store)


def _targets(record: dict, num_labels: int) -> tuple[list[int], list[float]]:
    indices, relevances = field(record, "target_ind", list), field(record, "target_rel", list)
    if len(indices) != len(relevances):
        raise InputError(
            f"expected target_ind and target_rel of one length, got {len(indices)} and "
            f"{len(relevances)}"
        )
    for index, relevance in zip(indices, relevances, strict=True):
        check_index(index, num_labels)
        check_relevance(relevance)
    return indices, relevances


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
        """[F, L] where they are given."""
        if (self.num_features is None) != (self.num_labels is None):
            raise InputError("expected --features and --labels together, got only one")
        if self.num_labels is None:
            return None
        return [
            _checked_size("features", self.num_features),
            _checked_size("labels", self.num_labels),
        ]


def _checked_size(what: str, size: int) -> int:
    if not 1 <= size <= LARGEST:
        raise InputError(f"expected a number of {what} from 1 to {LARGEST}, got {size}")
    return size


def prepare_sparse_text(
    folder: str | Path, out: str | Path, options: SparseText | None = None, overwrite: bool = False
) -> Path:
    """Matrices as text, one row a line, in one of three shapes. All numbers count from 0.

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
    kind = _shape_of(source, options)
    with Writer(out, "sparse-text", [folder], overwrite) as writer:
        if kind == "whole":
            _read_whole(source, options, writer)
        for split in SPLITS if kind != "whole" else ():
            if kind == "old":
                _read_bag_of_words(_bag_of_words(source, split, options), split, writer, options)
            else:
                _read_pair_files(source, split, writer)
        _same_width(writer, folder)
        if kind != "whole" and not _copy_texts(writer, source, POINT_TEXTS, LABEL_TEXTS):
            write_token_texts(source, writer, options.tokenizer)
        writer.copy_filters(source)
        return writer.finish(source)


def _shape_of(source: Folder, options: SparseText) -> str:
    """Which of the shapes lies in the folder: new, old or whole."""
    old = options.train or ("*_train.txt" if not source.has("train.txt") else "train.txt")
    marks = {"new": "trn_X_Y.txt", "old": old, "whole": "*_data.txt"}
    found = [kind for kind, mark in marks.items() if source.has(mark)]
    if len(found) != 1:
        wanted = ", ".join(marks[kind] for kind in found or marks)
        raise InputError(
            f"{source.path}: expected one of {wanted} (or .gz), got {'all' if found else 'none'}"
        )
    return found[0]


def _bag_of_words(source: Folder, split: str, options: SparseText) -> Path:
    """The file of a split: as given, or by its usual names."""
    given = {"trn": options.train, "tst": options.test}[split]
    usual = f"{SPLITS[split]}.txt"
    if given or source.has(usual):
        return source.find(given or usual)
    return source.matching(f"*_{usual}") or source.find(usual)


def _read_whole(source: Folder, options: SparseText, writer: Writer) -> None:
    """*_data.txt with the rows that *_trSplit.txt and *_tstSplit.txt name."""
    path = source.matching("*_data.txt")
    labels, features, header = _bag_of_words_rows(path, options)
    rows = {}
    for split, pattern in (("trn", "*_trSplit.txt"), ("tst", "*_tstSplit.txt")):
        file = source.matching(pattern)
        if file is None:
            raise InputError(f"{source.path}: expected a file {pattern} (or .gz), got none")
        rows[split] = _split_rows(file, options.split, len(labels))
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


def _split_rows(path: Path, column: int, size: int) -> dict[int, None]:
    """Rows from 0, in order, of one column of a file of row numbers from 1."""
    rows: dict[int, None] = {}

    def store(line: str) -> None:
        numbers = line.split()
        if not 1 <= column <= len(numbers):
            raise InputError(
                f"expected at least {max(column, 1)} columns for --split {column}, got "
                f"{line[:60]!r}"
            )
        row = _number(int, numbers[column - 1], "row numbers")
        if not 1 <= row <= size:
            raise InputError(f"expected a row from 1 to {size}, got {row}")
        if row - 1 in rows:
            raise InputError(f"expected each row once, got {row} again")
        rows[row - 1] = None

    consume(path, lines(path), store)
    return rows


def _read_pair_files(source: Folder, split: str, writer: Writer) -> None:
    """<split>_X_Y.txt and, where present, <split>_X_Xf.txt."""
    for name, stem, check, required in (
        (f"Y.{split}", f"{split}_X_Y.txt", check_relevance, True),
        (f"X.{split}", f"{split}_X_Xf.txt", _check_feature, False),
    ):
        if path := source.find(stem, required=required):
            rows = Rows()
            header = _read_rows(
                path,
                "N columns",
                lambda line, size, rows=rows, check=check: rows.add(*_pairs(line, size[1], check)),
            )
            writer.put(name, rows.csr(header[1]), rows.read, path)


def _read_bag_of_words(path: Path, split: str, writer: Writer, options: SparseText) -> None:
    """The labels and features of one split."""
    labels, features, header = _bag_of_words_rows(path, options)
    writer.put(f"Y.{split}", labels.csr(header[1]), labels.read, path)
    writer.put(f"X.{split}", features.csr(header[0]), path=path)


def _bag_of_words_rows(path: Path, options: SparseText) -> tuple[Rows, Rows, list[int]]:
    """(labels, features, [F, L]) of old repository format; the row of a point without labels begins
    with a blank."""
    labels, features = Rows(), Rows()

    def store(line: str, size: list[int]) -> None:
        first, _, rest = line.partition(" ")
        if ":" in first:  # some writers leave out the blank
            first = ""
            rest = line
        indices = (
            [_number(int, label, "labels 'l1,l2'") for label in first.split(",")] if first else []
        )
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
    """Calls `store(line, header)` for each line after the header; returns the header, its N
    checked.

    Of a file without header `columns` gives what stands there after N; a header that says the same
    may be there.
    """
    header = [-1, *columns] if columns else []
    first = True

    def handle(line: str) -> None:
        nonlocal first
        if first:
            first = False
            found = _header(line, names, required=not columns)
            if found and columns and found[1:] != columns:
                raise InputError(
                    f"expected a header with {columns} after the number of rows, as given, got "
                    f"{line!r}"
                )
            if found:
                header[:] = found
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


def _header(line: str, names: str, required: bool) -> list[int] | None:
    """The numbers of a header; None for a line that is none, where that may be."""
    parts = line.split()
    if len(parts) != len(names.split()) or not all(part.isdecimal() for part in parts):
        if required:
            hint = (
                "; of a file without one --features and --labels give F and L"
                if "F" in names
                else ""
            )
            raise InputError(f"expected the header '{names}', got {line[:60]!r}{hint}")
        return None
    header = list(map(int, parts))
    if max(header) > LARGEST:
        raise InputError(f"expected a header of numbers up to {LARGEST}, got {line!r}")
    return header


def _pairs(line: str, width: int, check: Callable[[float], None]) -> tuple[list[int], list[float]]:
    """'index:value index:value' -> indices in [0, width) and values."""
    parts = [token.partition(":") for token in line.split()]
    indices = [_number(int, index, "'index:value'") for index, _, _ in parts]
    values = [_number(float, value, "'index:value'") for _, _, value in parts]
    for index, value in zip(indices, values, strict=True):
        check_index(index, width, "an index")
        check(value)
    return indices, values


def _number(kind: type, text: str, what: str):
    try:
        if "_" in text or not text.isascii():  # Python's own spellings of numbers: 1_000
            raise ValueError
        return kind(text)
    except ValueError:
        raise InputError(f"expected {what}, got {text[:60]!r} for a number") from None


def _check_feature(value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"expected a finite feature, got {value!r}")
    if abs(value) > FEATURE_MAX:
        raise InputError(
            f"expected a feature from {-FEATURE_MAX:g} to {FEATURE_MAX:g}, got {value!r}"
        )


def prepare_pecos(folder: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """PECOS and X-Transformer: Y.{trn,tst}.npz; features X.{trn,tst}.npz (here or in
    tfidf-attnxml/, as in the published eurlex-4k, wiki10-31k, amazoncat-13k, amazon-670k, wiki-500k
    and amazon-3m), texts, or both.

    Texts: X.{trn,tst}.txt, {train,test}_raw_texts.txt (X-Transformer, DEXML's EURLex-4K) or
    raw/{trn,tst}_X.txt; of labels, optionally: output-items.txt, label_map.txt (X-Transformer) or
    raw/Y.txt.
    """
    source = Folder(folder)
    with Writer(out, "pecos", [folder], overwrite) as writer:
        for split in SPLITS:
            path = source.find(f"Y.{split}.npz")
            matrix = _load_matrix(path, "relevance")
            read = matrix.nnz
            matrix.eliminate_zeros()
            writer.put(f"Y.{split}", matrix, read, path)
            if path := source.find(
                f"X.{split}.npz", f"tfidf-attnxml/X.{split}.npz", required=False
            ):
                writer.put(f"X.{split}", _load_matrix(path, "features"), path=path)
        _same_width(writer, folder)
        points = {
            split: (f"X.{split}.txt", f"{long}_raw_texts.txt", f"raw/{split}_X.txt")
            for split, long in SPLITS.items()
        }
        _copy_texts(writer, source, points, ("output-items.txt", "label_map.txt", "raw/Y.txt"))
        writer.copy_filters(source)
        return writer.finish(source)


def _load_matrix(path: Path, what: str):
    """Relevance or features: a CSR in float32 with at least one row."""
    from utils.reading.matrices import FEATURES, RELEVANCE, read_matrix

    matrix = read_matrix(path, RELEVANCE if what == "relevance" else FEATURES)
    if not matrix.shape[0]:
        raise InputError(f"{path}: expected at least one row, got shape {matrix.shape}")
    return matrix


def _same_width(writer: Writer, folder: str | Path) -> None:
    """Both splits have the same columns, X both or none of them, and X as many rows as Y."""
    shapes = {name: matrix.shape for name, matrix in writer.matrices.items()}
    if ("X.trn" in shapes) != ("X.tst" in shapes):
        raise InputError(f"{folder}: expected features of both splits or of none, got those of one")
    for kind, columns in (("Y", "labels"), ("X", "features")):
        if f"{kind}.trn" in shapes and shapes[f"{kind}.trn"][1] != shapes[f"{kind}.tst"][1]:
            raise InputError(
                f"{folder}: expected as many {columns} in both splits, got "
                f"{shapes[f'{kind}.trn'][1]} (trn) and {shapes[f'{kind}.tst'][1]} (tst)"
                + _widths(writer, kind)
            )
    for split in SPLITS:
        if f"X.{split}" in shapes and shapes[f"X.{split}"][0] != shapes[f"Y.{split}"][0]:
            raise InputError(
                f"{folder}: expected as many rows in X.{split} as in Y.{split}, "
                f"{shapes[f'Y.{split}'][0]}, got {shapes[f'X.{split}'][0]}"
            )


def _widths(writer: Writer, kind: str) -> str:
    """What each file says of its columns, and the largest that it uses: which of the two is wrong
    is seen at once."""
    told = []
    for split in SPLITS:
        matrix = writer.matrices[f"{kind}.{split}"]
        if path := writer.read_from[f"{kind}.{split}"]:
            told.append(
                f"{path.name} says {matrix.shape[1]}, its largest index is "
                f"{matrix.indices.max(initial=-1)}"
            )
    return f"; {'; '.join(told)}" if told else ""


def _copy_texts(
    writer: Writer, source: Folder, points: dict[str, tuple[str, ...]], labels: tuple[str, ...]
) -> bool:
    """Texts of both splits or of none, and label texts where present, counted against Y; whether
    points had any."""
    paths = {split: source.find(*names, required=False) for split, names in points.items()}
    if (paths["trn"] is None) != (paths["tst"] is None):
        raise InputError(
            f"{source.path}: expected texts of both splits or of none, got only "
            f"{(paths['trn'] or paths['tst']).name}"
        )
    for split, path in paths.items():
        if path:
            rows = writer.matrices[f"Y.{split}"].shape[0]
            writer.copy_texts(path, f"{split}_X", rows, f"row of Y.{split}", _is_latin(path))
    if path := source.find(*labels, required=False):
        writer.copy_texts(path, "Y", writer.matrices["Y.trn"].shape[1], "label", _is_latin(path))
    return paths["trn"] is not None


def _is_latin(path: Path) -> bool:
    """Whether a file may be latin-1: the repository's Yf.txt, and what DEXA's scripts write."""
    name = path.name.removesuffix(".gz")
    return name == "Yf.txt" or name.endswith(".raw.txt")
