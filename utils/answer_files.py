"""Answers as JSON lines, CSV or TSV.

jsonl: a line a text. {"id": ..., "text": ..., "score_is": ..., "labels": [{"label": ..., ...},
...]}, the best label first; `id` where the text has one of its own.

csv, tsv: a header, then a row for each text and label, the best label of a text first. The columns
are COLUMNS; `id` is the text's own or its number from 0, `rank` counts from 1, `label` is the
label's id, `probability` is empty where nothing tells one, `label_name` stands where labels have
own names. A text without a label has no row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from utils.json_lines import Form, Record, json_lines

COLUMNS = ("id", "text", "rank", "label", "label_text", "score", "probability", "label_name")


def format_by_name(out: str | None) -> str:
    """Return the format that the name of a file tells, jsonl where it tells none."""
    suffix = "" if out is None else Path(out).suffix.lower()
    return suffix[1:] if suffix in (".csv", ".tsv") else "jsonl"


def form_of(
    name: str,
    *,
    texts: bool = True,
    names: bool = False,
) -> Form:
    """Return what makes lines of records in a format.

    Args:
        name: one of FORMS.
        texts: whether the texts stand in them.
        names: whether tables have a column of the labels' own names.
    """
    make = FORMS[name]
    left_out = {name for name, is_there in (("text", texts), ("label_name", names)) if not is_there}

    def lines(records: Iterable[Record], ascii_only: bool) -> Iterator[str]:
        return make(records, ascii_only, left_out)

    return lines


def _json_form(
    records: Iterable[Record],
    ascii_only: bool,
    left_out: Collection[str],
) -> Iterator[str]:
    if "text" in left_out:
        records = map(_without_text, records)
    return json_lines(records, ascii_only)


def _without_text(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "text"}


def _csv_form(
    records: Iterable[Record],
    ascii_only: bool,
    left_out: Collection[str],
) -> Iterator[str]:
    return _table(records, ",", left_out)


def _tsv_form(
    records: Iterable[Record],
    ascii_only: bool,
    left_out: Collection[str],
) -> Iterator[str]:
    return _table(records, "\t", left_out)


FORMS: dict[str, Callable[[Iterable[Record], bool, Collection[str]], Iterator[str]]] = {
    "jsonl": _json_form,
    "csv": _csv_form,
    "tsv": _tsv_form,
}


def _table(
    records: Iterable[Record],
    delimiter: str,
    left_out: Collection[str],
) -> Iterator[str]:
    """The header, then the rows of one text after the other."""
    columns = [name for name in COLUMNS if name not in left_out]
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, columns, extrasaction="ignore", delimiter=delimiter, lineterminator="\n"
    )
    writer.writeheader()
    for number, record in enumerate(records):
        yield _taken(buffer)
        for rank, label in enumerate(record["labels"], 1):
            writer.writerow(
                {
                    "id": record.get("id", number),
                    "text": record["text"],
                    "rank": rank,
                    "label": label["label"],
                    "label_text": label["text"],
                    "score": label["score"],
                    "probability": label.get("probability"),
                    "label_name": label.get("name"),
                }
            )
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> str:
    """What was written since it was last taken."""
    written = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return written
