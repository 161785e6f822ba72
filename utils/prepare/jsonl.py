"""Points as JSON lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.prepare.columns import Columns
from utils.prepare.lines import check_relevance, lines
from utils.prepare.points import Point, PointReader, Source, prepare_points
from utils.prepare.records import field, json_object


def prepare_jsonl(
    source: Source,
    out: str | Path,
    overwrite: bool = False,
    columns: Columns | None = None,
) -> Path:
    """Read JSON lines {"text": "...", "labels": [LABEL, ...]}.

    LABEL is "name", ["name", 0.5] or {"name": 0.5}; `labels` may also be one such object as a
    whole. Labels are numbered by first appearance: file of labels, then training file, then test
    file; so the seed of the split moves none. Labels of test points alone stay. Other keys than
    `text` and `labels` can be named, and that of the points' own ids, for raw/{trn,tst}_ids.txt.
    """
    return prepare_points(source, out, overwrite, jsonl_reader(columns or Columns()))


def jsonl_reader(columns: Columns, labelled: bool = True) -> PointReader:
    """Return what reads points of JSON lines, with their labels where these are asked for."""
    return PointReader("jsonl", lines, partial(_parse_json, columns, labelled))


def _parse_json(
    columns: Columns,
    labelled: bool,
    line: str,
) -> Point:
    record = json_object(line)
    text = field(record, columns.text, str)
    pairs = _labels(record, columns.labels) if labelled else []
    own_id = None if columns.id is None else _own_id(record, columns.id)
    return Point(text, pairs, own_id)


def _own_id(record: dict[str, Any], key: str) -> str | int:
    """The id of a row, which may be a number."""
    if type(record.get(key)) is int:
        return int(record[key])
    return field(record, key, str)


def _labels(record: dict[str, Any], key: str) -> list[tuple[str, float]]:
    """(name, relevance) pairs of one object's labels."""
    labels = record.get(key)
    if type(labels) is dict:
        return _named(labels)
    pairs = []
    for label in field(record, key, list):
        pairs += _named(label)
    return pairs


def _named(label: Any) -> list[tuple[str, float]]:
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
    return [(name, relevance) for name, relevance in pairs]
