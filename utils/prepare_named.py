"""Formats whose labels are names: JSON lines and CSV."""
from __future__ import annotations

import csv
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from utils.prepare_formats import field, json_object
from utils.prepare_writer import Rows, Writer, check_relevance, clean, consume, existing, lines

LONGEST_FIELD = 1 << 26     # characters of one CSV field: stops a forgotten quote from reading the whole file


@dataclass(frozen=True)
class Source:
    """Files with named labels.

    Without `test`, a share `test_fraction` of the training file's points is split off, by `seed`. `labels`
    gives label texts, as JSON lines {"label": name, "text": ...} or as name<TAB>text (the first line decides:
    JSON begins with a brace). A label without text there has its name as text.
    """
    train: str | Path
    test: str | Path | None = None
    labels: str | Path | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"expected a test fraction between 0 and 1, got {self.test_fraction}")

    def files(self) -> list[Path]:
        """All files given; ValueError if one is missing."""
        return [existing(path) for path in (self.train, self.test, self.labels) if path is not None]


@dataclass(frozen=True)
class Columns:
    """How a CSV file is laid out below its header row; `separator` parts the labels of one field."""
    text: str = "text"
    labels: str = "labels"
    separator: str = "|"
    delimiter: str = ","

    def __post_init__(self) -> None:
        if not self.separator or len(self.delimiter) != 1:
            raise ValueError("expected a label separator and a delimiter of one character, "
                             f"got {self.separator!r} and {self.delimiter!r}")


def prepare_jsonl(source: Source, out: str | Path, overwrite: bool = False) -> Path:
    """JSON lines {"text": "...", "labels": [LABEL, ...]}; LABEL: "name", ["name", 0.5] or {"name": 0.5}.

    `labels` may also be one such object as a whole. Labels are numbered by first appearance: file of labels,
    then training file, then test file; so the seed of the split moves none. Labels of test points alone stay.
    """
    return _prepare(source, out, overwrite, ("jsonl", lines, _parse_json))


def prepare_csv(source: Source, out: str | Path, columns: Columns = Columns(),
                overwrite: bool = False) -> Path:
    """CSV with a header row, one column of texts and one of label names; numbering as in `prepare_jsonl`."""
    return _prepare(source, out, overwrite, ("csv", partial(_csv_rows, columns=columns),
                                             partial(_parse_row, separator=columns.separator)))


def _prepare(source: Source, out: str | Path, overwrite: bool,
             reader: tuple[str, Callable, Callable]) -> Path:
    """`reader`: name of the format, path -> (line, item) pairs, item -> (text, [(name, relevance)])."""
    kind, items, parse = reader
    with Writer(out, kind, source.files(), overwrite) as writer:
        labels, rows = Labels(writer), {"trn": Rows(), "tst": Rows()}
        if source.labels is not None:
            labels.read(source.labels)

        def store(splits: Iterator[str], item: object) -> None:
            text, pairs = parse(item)
            split = next(splits)
            writer.write(f"raw/{split}_X.txt", text)
            rows[split].add([labels.id(name) for name, _ in pairs], [relevance for _, relevance in pairs])
        first = iter(lambda: "trn", None) if source.test else split_off(source.test_fraction, source.seed)
        consume(source.train, items(source.train), partial(store, first))
        if source.test is not None:
            consume(source.test, items(source.test), partial(store, iter(lambda: "tst", None)))
        if not (len(rows["trn"]) and len(rows["tst"])):
            raise ValueError(f"{source.train}: expected enough points for both splits at a test fraction of "
                             f"{source.test_fraction}, got {len(rows['trn'])} + {len(rows['tst'])}")
        for split, matrix in rows.items():
            writer.put(f"Y.{split}", matrix.csr(len(labels)), matrix.read)
        return writer.finish()


def split_off(fraction: float, seed: int) -> Iterator[str]:
    """'trn' or 'tst' for point after point, however many come: one random test point in each 1/fraction.

    Test point j falls uniformly into [j, j + 1) / fraction: N points give fraction * N, give or take one.
    """
    chance, position = random.Random(seed), 0
    for j in count():
        chosen = max(position, int((j + chance.random()) / fraction))   # never the place of the one before
        for _ in range(position, chosen):
            yield "trn"
        yield "tst"
        position = chosen + 1


class Labels:
    """Label names -> ids by first appearance; writes raw/Y_ids.txt and raw/Y.txt as they come."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.ids, self.size = writer, {}, 0
        self.text_hashes = array("q")       # of the labels from a file: enough to tell two texts apart

    def __len__(self) -> int:
        return self.size

    def id(self, name: str) -> int:
        """The id of `name`, a new one if it is new; names are compared on one line, as they are written."""
        found = self.ids.get(name)
        return self._id(name, None) if found is None else found

    def _id(self, raw: str, text: str | None) -> int:
        name = clean(raw)
        if not name:
            raise ValueError(f"expected a label name, got {raw!r}")
        if name not in self.ids:
            self.writer.write("raw/Y_ids.txt", name)
            self.writer.write("raw/Y.txt", name if text is None else text)
            self.ids[name] = self.size
            self.size += 1
        return self.ids.setdefault(raw, self.ids[name])

    def read(self, path: str | Path) -> None:
        """The file of label texts; a name may come again with the same text only."""
        parse: list[Callable] = []

        def store(line: str) -> None:
            if not parse:
                parse.append(_json_label if line.lstrip().startswith("{") else _tab_label)
            name, text = parse[0](line)
            index = self._id(name, clean(text))
            if index == len(self.text_hashes):
                self.text_hashes.append(hash(clean(text)))
            elif self.text_hashes[index] != hash(clean(text)):
                raise ValueError(f"expected one text for each label, got another for {name!r}: {text[:60]!r}")
        consume(path, lines(path), store)


def _json_label(line: str) -> tuple[str, str]:
    record = json_object(line)
    return field(record, "label", str), field(record, "text", str)


def _tab_label(line: str) -> tuple[str, str]:
    name, tab, text = line.partition("\t")
    if not tab:
        raise ValueError(f"expected name<TAB>text, got {line[:60]!r}")
    return name, text


def _parse_json(line: str) -> tuple[str, list[tuple[str, float]]]:
    record = json_object(line)
    text = field(record, "text", str)
    labels = record.get("labels")
    if type(labels) is dict:
        labels = [labels]
    elif type(labels) is not list:
        labels = field(record, "labels", list)      # says what is wrong
    return text, [pair for label in labels for pair in _named(label)]


def _named(label: object) -> list[tuple[str, float]]:
    """One entry of `labels` as (name, relevance) pairs."""
    if type(label) is str:
        return [(label, 1.0)]
    pairs = list(label.items()) if type(label) is dict else [label]
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str:
            raise ValueError('expected a label as "name", ["name", relevance] or {"name": relevance}, '
                             f"got {str(label)[:60]!r}")
        check_relevance(pair[1])
    return [tuple(pair) for pair in pairs]


def _csv_rows(path: str | Path, columns: Columns) -> Iterator[tuple[int, tuple[str, str]]]:
    """(first line, (text, labels)) of each row below the header; blank lines between rows are skipped."""
    # The line ends go back on: within quotes they belong to the text.
    reader = csv.reader((line + "\n" for _, line in lines(path)), delimiter=columns.delimiter, strict=True)
    header, limit = None, csv.field_size_limit(LONGEST_FIELD)
    try:
        while True:
            start = reader.line_num + 1
            row = next(reader)
            if header is None:
                header, wanted = row, [_column(path, row, name) for name in (columns.text, columns.labels)]
            elif len(row) == len(header):
                yield start, tuple(row[index] for index in wanted)
            elif row:
                raise ValueError(f"{path}:{start}: expected {len(header)} columns as in the header, "
                                 f"got {len(row)}")
    except StopIteration:
        return
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: expected a CSV row, got: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _column(path: str | Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        raise ValueError(f"{path}:1: expected one column {name!r}, got the columns {header}")
    return header.index(name)


def _parse_row(row: tuple[str, str], separator: str) -> tuple[str, list[tuple[str, float]]]:
    """Blank names, as a separator at the end leaves them, do not count."""
    text, labels = row
    return text, [(name.strip(), 1.0) for name in labels.split(separator) if name.strip()]
