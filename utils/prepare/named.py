"""Formats whose labels are names: JSON lines, CSV, and the text files of AttentionXML."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from utils.errors import InputError
from utils.prepare.cells import Columns, LabelCells, csv_rows
from utils.prepare.checks import warn_of_names
from utils.prepare.folder import Folder, existing
from utils.prepare.numbered import field, json_object
from utils.prepare.writer import SPLITS, Rows, Writer, check_relevance, clean, consume, lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Files with named labels.

    Without `test`, a share `test_fraction` of the training file's points is split off, by `seed`.
    `labels` gives label texts, as JSON lines {"label": name, "text": ...} or as name<TAB>text (the
    first line decides: JSON begins with a brace). A label without text there has its name as text.
    """

    train: str | Path
    test: str | Path | None = None
    labels: str | Path | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise InputError(f"expected a test fraction between 0 and 1, got {self.test_fraction}")

    def files(self) -> list[Path]:
        """All files given; InputError if one is missing."""
        return [existing(path) for path in (self.train, self.test, self.labels) if path is not None]


@dataclass(frozen=True)
class Reader:
    """One format: its name, path -> (line, item) pairs, item -> (text, [(name, relevance)]), what
    to say at the end."""

    kind: str
    items: Callable
    parse: Callable
    report: Callable[[], None] = lambda: None


def prepare_jsonl(source: Source, out: str | Path, overwrite: bool = False) -> Path:
    """JSON lines {"text": "...", "labels": [LABEL, ...]}; LABEL: "name", ["name", 0.5] or {"name":
    0.5}.

    `labels` may also be one such object as a whole. Labels are numbered by first appearance: file
    of labels, then training file, then test file; so the seed of the split moves none. Labels of
    test points alone stay.
    """
    return _prepare(source, out, overwrite, Reader("jsonl", lines, _parse_json))


def prepare_csv(
    source: Source, out: str | Path, columns: Columns | None = None, overwrite: bool = False
) -> Path:
    """CSV with a header row, one column of texts and one of labels; numbering as in
    `prepare_jsonl`.

    A cell of labels has names between separators, or is a list as pandas or JSON writes it: ['x',
    'y']. Quotation marks may enclose a field; --quote none reads them as they stand, as many
    tab-separated files need.
    """
    columns = columns or Columns()
    cells = LabelCells(columns)
    return _prepare(
        source,
        out,
        overwrite,
        Reader("csv", partial(csv_rows, columns=columns), cells.parse, cells.report),
    )


def prepare_attention_xml(folder: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """AttentionXML and LightXML: texts {train,test}_raw_texts.txt, or {train,test}_texts.txt where
    there are no raw ones, and {train,test}_labels.txt with the names of a point's labels, parted by
    blanks, in the same line.

    Label names, numbered by first appearance, serve as label texts.
    """
    source = Folder(folder)
    with Writer(out, "attention-xml", [folder], overwrite) as writer:
        labels = Labels(writer)
        rows = {
            split: _label_rows(source.find(f"{long}_labels.txt"), labels)
            for split, long in SPLITS.items()
        }
        for split, long in SPLITS.items():
            writer.put(f"Y.{split}", rows[split].csr(len(labels)), rows[split].read)
            path = source.first(f"{long}_raw_texts.txt", f"{long}_texts.txt")
            writer.copy_texts(path, f"{split}_X", len(rows[split]), f"line of {long}_labels.txt")
        labels.warn()
        return writer.finish(source)


def _label_rows(path: Path, labels: Labels) -> Rows:
    """Rows of label names parted by blanks."""
    rows = Rows(max)

    def store(line: str) -> None:
        names = line.split()
        rows.add([labels.id(name) for name in names], [1.0] * len(names))

    consume(path, lines(path), store)
    return rows


def _prepare(source: Source, out: str | Path, overwrite: bool, reader: Reader) -> Path:
    with Writer(out, reader.kind, source.files(), overwrite) as writer:
        labels = Labels(writer)
        rows = {"trn": Rows(max), "tst": Rows(max)}
        if source.labels is not None:
            labels.read(source.labels)

        def store(splits: Iterator[str], item: object) -> None:
            text, pairs = reader.parse(item)
            split = next(splits)
            writer.write(f"raw/{split}_X.txt", text)
            rows[split].add(
                [labels.id(name) for name, _ in pairs], [relevance for _, relevance in pairs]
            )

        first = (
            iter(lambda: "trn", None)
            if source.test
            else split_off(source.test_fraction, source.seed)
        )
        consume(source.train, reader.items(source.train), partial(store, first))
        if source.test is not None:
            consume(
                source.test, reader.items(source.test), partial(store, iter(lambda: "tst", None))
            )
        if not (len(rows["trn"]) and len(rows["tst"])):
            raise InputError(
                f"{source.train}: expected enough points for both splits at a test fraction of "
                f"{source.test_fraction}, got {len(rows['trn'])} + {len(rows['tst'])}"
            )
        for split, matrix in rows.items():
            writer.put(f"Y.{split}", matrix.csr(len(labels)), matrix.read)
        reader.report()
        labels.warn()
        return writer.finish()


def split_off(fraction: float, seed: int) -> Iterator[str]:
    """'trn' or 'tst' for point after point, however many come: one random test point in each
    1/fraction.

    Test point j falls uniformly into [j, j + 1) / fraction: N points give fraction * N, give or
    take one.
    """
    chance = random.Random(seed)
    position = 0
    for j in count():
        # never the place of the one before
        chosen = max(position, int((j + chance.random()) / fraction))
        for _ in range(position, chosen):
            yield "trn"
        yield "tst"
        position = chosen + 1


class Labels:
    """Label names -> ids by first appearance; writes raw/Y_ids.txt and raw/Y.txt as they come."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.ids = {}
        self.size = 0
        # of the labels from a file: enough to tell two texts apart
        self.text_hashes = array("q")

    def __len__(self) -> int:
        return self.size

    def id(self, name: str) -> int:
        """The id of `name`, a new one if it is new; names are compared on one line, as they are
        written."""
        found = self.ids.get(name)
        return self._id(name, None) if found is None else found

    def _id(self, raw: str, text: str | None) -> int:
        name = clean(raw)
        if not name:
            raise InputError(f"expected a label name, got {raw!r}")
        if name not in self.ids:
            self.writer.write("raw/Y_ids.txt", name)
            self.writer.write("raw/Y.txt", name if text is None else text)
            self.ids[name] = self.size
            self.size += 1
        return self.ids.setdefault(raw, self.ids[name])

    def warn(self) -> None:
        """Log names that differ by their spelling alone, those that are no texts, and empty
        texts."""
        if empty := self.text_hashes.count(0):  # hash("") is 0
            first = self.text_hashes.index(0)
            name = next(name for name, index in self.ids.items() if index == first)
            log.warning(
                "%d of %d labels have an empty text in the file of label texts, e.g. %r; methods "
                "that read label texts refuse more than 1%%",
                empty,
                self.size,
                name,
            )
        warn_of_names(self.ids, texts=not self.text_hashes)

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
                raise InputError(
                    f"expected one text for each label, got another for {name!r}: {text[:60]!r}"
                )

        consume(path, lines(path), store)


def _json_label(line: str) -> tuple[str, str]:
    record = json_object(line)
    return field(record, "label", str), field(record, "text", str)


def _tab_label(line: str) -> tuple[str, str]:
    name, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"expected name<TAB>text, got {line[:60]!r}")
    return name, text


def _parse_json(line: str) -> tuple[str, list[tuple[str, float]]]:
    record = json_object(line)
    text = field(record, "text", str)
    labels = record.get("labels")
    if type(labels) is dict:
        labels = [labels]
    elif type(labels) is not list:
        labels = field(record, "labels", list)  # says what is wrong
    return text, [pair for label in labels for pair in _named(label)]


def _named(label: object) -> list[tuple[str, float]]:
    """One entry of `labels` as (name, relevance) pairs."""
    if type(label) is str:
        return [(label, 1.0)]
    pairs = list(label.items()) if type(label) is dict else [label]
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str:
            raise InputError(
                'expected a label as "name", ["name", relevance] or {"name": relevance}, '
                f"got {str(label)[:60]!r}"
            )
        check_relevance(pair[1])
    return [tuple(pair) for pair in pairs]
