"""The raw data of the Extreme Classification repository: JSON lines, labels by number."""

from __future__ import annotations

import logging
from pathlib import Path

from utils.errors import InputError
from utils.prepare.agreement import checked_size
from utils.prepare.folder import Folder
from utils.prepare.lines import check_index, check_relevance, consume, lines
from utils.prepare.records import field, json_object
from utils.prepare.rows import Rows
from utils.prepare.writer import SPLITS, Writer

log = logging.getLogger(__name__)
FIELDS = {"title": ("title",), "title+content": ("title", "content")}


def prepare_xml_repository(
    folder: str | Path,
    out: str | Path,
    fields: str | None = None,
    label_fields: str | None = None,
    overwrite: bool = False,
    *,
    num_labels: int | None = None,
) -> Path:
    """Read the repository's raw data: trn.json, tst.json and lbl.json, one JSON object a line.

    All may be .json.gz or, as in Amazon-670K and Wikipedia-500K, .raw.json.gz. Yf.txt in place of
    lbl.json has a label's text a line (AmazonCat-13K, AmazonCat-14K). Lines that are not UTF-8 are
    read as latin-1.

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
    names = ("lbl.json", "lbl.raw.json", "Yf.txt")
    labels = source.first(*names) if num_labels is None else source.first_optional(*names)
    points = {split: source.find(f"{split}.json", f"{split}.raw.json") for split in SPLITS}
    with Writer(out, "xml-repository", [folder], overwrite) as writer:
        writer.facts["fields"] = fields
        if labels is None:
            assert num_labels is not None
            width = checked_size("labels", num_labels)
        else:
            width = _repository_labels(labels, FIELDS[label_fields or fields], writer)
            if num_labels not in (None, width):
                raise InputError(f"{labels}: expected {num_labels} labels, as given, got {width}")
        for split, path in points.items():
            rows = _copy_points(path, f"raw/{split}_X.txt", FIELDS[fields], width, writer)
            writer.put(f"Y.{split}", rows.csr(width), rows.read, path)
        writer.copy_filters(source)
        return writer.finish(source)


def _copy_points(
    path: Path, texts: str, fields: tuple[str, ...], num_labels: int, writer: Writer
) -> Rows:
    """Writes the texts of the points; returns their labels."""
    rows = Rows()

    def store(line: str) -> None:
        record = json_object(line)
        writer.write(texts, _record_text(record, fields))
        rows.add(*_targets(record, num_labels))

    consume(path, lines(path, latin=True), store)
    return rows


def _fields_by_name(folder: str | Path, out: str | Path) -> str:
    """Titles alone where a data set's name says so: those sets are made of titles."""
    if not any("titles" in Path(path).resolve().name.lower() for path in (folder, out)):
        return "title+content"
    log.info(
        "texts are titles alone, as the name says Titles (--fields title+content joins title and "
        "content)"
    )
    return "title"


def _repository_labels(
    path: Path,
    fields: tuple[str, ...],
    writer: Writer,
) -> int:
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


def _record_text(record: dict, fields: tuple[str, ...]) -> str:
    """The record's fields joined by a blank; only `content` may be absent."""
    texts = [field(record, key, str).strip() for key in fields if key == "title" or key in record]
    return " ".join(filter(None, texts))


def _targets(record: dict, num_labels: int) -> tuple[list[int], list[float]]:
    indices = field(record, "target_ind", list)
    relevances = field(record, "target_rel", list)
    if len(indices) != len(relevances):
        raise InputError(
            f"expected target_ind and target_rel of one length, got {len(indices)} and "
            f"{len(relevances)}"
        )
    for index, relevance in zip(indices, relevances, strict=True):
        check_index(index, num_labels)
        check_relevance(relevance)
    return indices, relevances
