"""Formats of numbered labels in one folder: the Extreme Classification repository, sparse text, PECOS."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from utils.prepare_writer import SPLITS, Rows, Writer, check_index, check_relevance, consume, find, lines

FIELDS = {"title": ("title",), "title+content": ("title", "content")}
MOST_COLUMNS = 2**31 - 1        # column ids are kept in 4 bytes


def json_object(line: str) -> dict:
    """The JSON object of one line; ValueError for anything else."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object, got {line[:60]!r} "
                         f"(column {error.colno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:       # a number of thousands of digits, or of brackets
        raise ValueError(f"expected a JSON object, got {line[:60]!r} ({error})") from error
    if type(record) is not dict:
        raise ValueError(f"expected a JSON object, got {type(record).__name__} {line[:60]!r}")
    return record


def field(record: dict, key: str, kind: type):
    """`record[key]`, which must be there and of type `kind`."""
    if key not in record:
        raise ValueError(f"expected a key {key!r}, got only {sorted(record)}")
    if type(record[key]) is not kind:
        raise ValueError(f"expected {key!r} to be a {kind.__name__}, got {type(record[key]).__name__} "
                         f"{str(record[key])[:60]!r}")
    return record[key]


def _record_text(record: dict, fields: tuple[str, ...]) -> str:
    """The record's fields joined by a blank; only `content` may be absent."""
    texts = [field(record, key, str).strip() for key in fields if key == "title" or key in record]
    return " ".join(filter(None, texts))


def prepare_xml_repository(folder: str | Path, out: str | Path, fields: str = "title+content",
                           label_fields: str | None = None, overwrite: bool = False) -> Path:
    """The repository's raw data: trn.json, tst.json and lbl.json (or .json.gz), one JSON object a line.

    Points have `title`, `content` (optional), `target_ind` and `target_rel`; labels have `title`, `content`
    (optional) and `uid` (optional, for raw/Y_ids.txt). `fields` and `label_fields` (default: as `fields`) are
    'title' or 'title+content'. Points without labels are kept, as filter_labels_*.txt counts them.
    """
    for choice in (fields, label_fields or fields):
        if choice not in FIELDS:
            raise ValueError(f"expected fields to be one of {', '.join(FIELDS)}, got {choice!r}")
    paths = {stem: find(folder, f"{stem}.json") for stem in ("lbl", "trn", "tst")}
    with Writer(out, "xml-repository", [folder], overwrite) as writer:
        num_labels = _repository_labels(paths["lbl"], FIELDS[label_fields or fields], writer)
        for split in SPLITS:
            rows = Rows()

            def store(line: str, split: str = split, rows: Rows = rows) -> None:
                record = json_object(line)
                writer.write(f"raw/{split}_X.txt", _record_text(record, FIELDS[fields]))
                rows.add(*_targets(record, num_labels))
            consume(paths[split], lines(paths[split]), store)
            writer.put(f"Y.{split}", rows.csr(num_labels), rows.read)
        writer.copy_filters(folder)
        return writer.finish()


def _repository_labels(path: Path, fields: tuple[str, ...], writer: Writer) -> int:
    """Writes raw/Y.txt, and raw/Y_ids.txt if the labels have a `uid`; returns L."""
    with_uid: set[bool] = set()

    def store(line: str) -> None:
        record = json_object(line)
        with_uid.add("uid" in record)
        if len(with_uid) > 1:
            raise ValueError("expected a key 'uid' in all labels or in none, got both")
        if "uid" in record:
            writer.write("raw/Y_ids.txt", field(record, "uid", str))
        writer.write("raw/Y.txt", _record_text(record, fields))
    return consume(path, lines(path), store)


def _targets(record: dict, num_labels: int) -> tuple[list[int], list[float]]:
    indices, relevances = field(record, "target_ind", list), field(record, "target_rel", list)
    if len(indices) != len(relevances):
        raise ValueError("expected target_ind and target_rel of one length, "
                         f"got {len(indices)} and {len(relevances)}")
    for index, relevance in zip(indices, relevances, strict=True):
        check_index(index, num_labels)
        check_relevance(relevance)
    return indices, relevances


def prepare_sparse_text(folder: str | Path, out: str | Path, train: str = "train.txt", test: str = "test.txt",
                        overwrite: bool = False) -> Path:
    """Matrices as text, one row a line, in one of two shapes.

    New: trn_X_Y.txt and tst_X_Y.txt with header 'N L' and rows 'label:relevance ...'; optionally
    trn_X_Xf.txt and tst_X_Xf.txt likewise for features. Old bag of words: files `train` and `test` with
    header 'N F L' and rows 'l1,l2 feature:value ...'. Both: optionally texts trn_X.txt, tst_X.txt and
    Y.txt or lbl.txt, here or in raw/. All numbers count from 0.
    """
    new, old = find(folder, "trn_X_Y.txt", required=False), find(folder, train, required=False)
    if (new is None) == (old is None):
        raise ValueError(f"{folder}: expected either trn_X_Y.txt or {train}, "
                         f"got {'both' if new else 'neither'}")
    with Writer(out, "sparse-text", [folder], overwrite) as writer:
        for split, name in (("trn", train), ("tst", test)):
            if old:
                _read_bag_of_words(find(folder, name), split, writer)
            else:
                _read_pair_files(folder, split, writer)
        _same_width(writer, folder)
        _copy_texts(writer, folder, {split: (f"{split}_X.txt", f"raw/{split}_X.txt") for split in SPLITS},
                    ("Y.txt", "lbl.txt", "raw/Y.txt", "raw/lbl.txt"))
        writer.copy_filters(folder)
        return writer.finish()


def _read_pair_files(folder: str | Path, split: str, writer: Writer) -> None:
    """<split>_X_Y.txt and, where present, <split>_X_Xf.txt."""
    for name, stem, check, required in ((f"Y.{split}", f"{split}_X_Y.txt", check_relevance, True),
                                        (f"X.{split}", f"{split}_X_Xf.txt", _check_feature, False)):
        if path := find(folder, stem, required=required):
            rows = Rows()
            header = _read_rows(path, "N columns", lambda line, size, rows=rows, check=check:
                                rows.add(*_pairs(line, size[1], check)))
            writer.put(name, rows.csr(header[1]), rows.read)


def _read_bag_of_words(path: Path, split: str, writer: Writer) -> None:
    """Old repository format; the row of a point without labels begins with a blank."""
    labels, features = Rows(), Rows()

    def store(line: str, size: list[int]) -> None:
        first, _, rest = line.partition(" ")
        if ":" in first:                        # some writers leave out the blank
            first, rest = "", line
        indices = [_number(int, label, "labels 'l1,l2'") for label in first.split(",")] if first else []
        for index in indices:
            check_index(index, size[2])
        labels.add(indices, [1.0] * len(indices))
        features.add(*_pairs(rest, size[1], _check_feature))
    header = _read_rows(path, "N F L", store)
    writer.put(f"Y.{split}", labels.csr(header[2]), labels.read)
    writer.put(f"X.{split}", features.csr(header[1]))


def _read_rows(path: Path, names: str, store: Callable[[str, list[int]], None]) -> list[int]:
    """Calls `store(line, header)` for each line after the header; returns the header, its N checked."""
    header: list[int] = []

    def handle(line: str) -> None:
        if header:
            store(line, header)
        elif len(parts := line.split()) != len(names.split()) or not all(part.isdecimal() for part in parts):
            raise ValueError(f"expected the header '{names}', got {line[:60]!r}")
        else:
            header.extend(map(int, parts))
            if max(header) > MOST_COLUMNS:
                raise ValueError(f"expected a header of numbers up to {MOST_COLUMNS}, got {line!r}")
    rows = consume(path, lines(path), handle) - 1
    if rows != header[0]:
        raise ValueError(f"{path}: expected {header[0]} rows after the header, as it says, got {rows}")
    if not rows:
        raise ValueError(f"{path}: expected at least one row, got the header alone")
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
        return kind(text)
    except ValueError:
        raise ValueError(f"expected {what}, got {text[:60]!r} for a number") from None


def _check_feature(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite feature, got {value!r}")


def prepare_pecos(folder: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """PECOS: Y.{trn,tst}.npz; features X.{trn,tst}.npz (here or in tfidf-attnxml/, as in the published
    eurlex-4k, wiki10-31k, amazoncat-13k, amazon-670k, wiki-500k and amazon-3m), texts X.{trn,tst}.txt, or both;
    optionally output-items.txt (label texts).
    """
    from utils.sparse import check_relevance as check_matrix
    with Writer(out, "pecos", [folder], overwrite) as writer:
        for split in SPLITS:
            path = find(folder, f"Y.{split}.npz")
            matrix = _load_matrix(path)
            writer.put(f"Y.{split}", check_matrix(matrix, path), matrix.nnz)
            if path := find(folder, f"X.{split}.npz", f"tfidf-attnxml/X.{split}.npz", required=False):
                writer.put(f"X.{split}", _finite(_load_matrix(path), path))
        _same_width(writer, folder)
        _copy_texts(writer, folder, {split: (f"X.{split}.txt",) for split in SPLITS}, ("output-items.txt",))
        writer.copy_filters(folder)
        return writer.finish()


def _load_matrix(path: Path):
    """A scipy sparse matrix in CSR with at least one row."""
    from zipfile import BadZipFile

    from scipy import sparse
    try:
        with open(path, "rb") as file:      # numpy leaves a file that it opened itself open if it is damaged
            matrix = sparse.csr_matrix(sparse.load_npz(file))
        matrix.check_format(full_check=True)
    except (ValueError, KeyError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a matrix saved by scipy.sparse.save_npz, got: {error}") from error
    if not matrix.shape[0]:
        raise ValueError(f"{path}: expected at least one row, got shape {matrix.shape}")
    return matrix


def _finite(matrix, path: Path):
    import numpy as np
    if not np.isfinite(matrix.data).all():
        raise ValueError(f"{path}: expected finite features, got NaN or infinity")
    return matrix.astype(np.float32)


def _same_width(writer: Writer, folder: str | Path) -> None:
    """Both splits have the same columns, X both or none of them, and X as many rows as Y."""
    shapes = {name: matrix.shape for name, matrix in writer.matrices.items()}
    if ("X.trn" in shapes) != ("X.tst" in shapes):
        raise ValueError(f"{folder}: expected features of both splits or of none, got those of one")
    for kind, columns in (("Y", "labels"), ("X", "features")):
        if f"{kind}.trn" in shapes and shapes[f"{kind}.trn"][1] != shapes[f"{kind}.tst"][1]:
            raise ValueError(f"{folder}: expected as many {columns} in both splits, got "
                             f"{shapes[f'{kind}.trn'][1]} (trn) and {shapes[f'{kind}.tst'][1]} (tst)")
    for split in SPLITS:
        if f"X.{split}" in shapes and shapes[f"X.{split}"][0] != shapes[f"Y.{split}"][0]:
            raise ValueError(f"{folder}: expected as many rows in X.{split} as in Y.{split}, "
                             f"{shapes[f'Y.{split}'][0]}, got {shapes[f'X.{split}'][0]}")


def _copy_texts(writer: Writer, folder: str | Path, points: dict[str, tuple[str, ...]],
                labels: tuple[str, ...]) -> None:
    """Texts of both splits or of none, and label texts where present, counted against Y."""
    paths = {split: find(folder, *names, required=False) for split, names in points.items()}
    if (paths["trn"] is None) != (paths["tst"] is None):
        raise ValueError(f"{folder}: expected texts of both splits or of none, got only "
                         f"{(paths['trn'] or paths['tst']).name}")
    for split, path in paths.items():
        if path:
            writer.copy_texts(path, f"{split}_X", writer.matrices[f"Y.{split}"].shape[0], f"row of Y.{split}")
    if path := find(folder, *labels, required=False):
        writer.copy_texts(path, "Y", writer.matrices["Y.trn"].shape[1], "label")
