"""Points as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.prepare.lines import check_relevance, lines
from utils.prepare.points import PointReader, Source, prepare_points
from utils.prepare.records import field, json_object


def prepare_jsonl(
    source: Source,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Read JSON lines {"text": "...", "labels": [LABEL, ...]}.

    LABEL is "name", ["name", 0.5] or {"name": 0.5}; `labels` may also be one such object as a
    whole. Labels are numbered by first appearance: file of labels, then training file, then test
    file; so the seed of the split moves none. Labels of test points alone stay.
    """
    return prepare_points(source, out, overwrite, PointReader("jsonl", lines, _parse_json))


def _parse_json(line: str) -> tuple[str, list[tuple[str, float]]]:
    record = json_object(line)
    text = field(record, "text", str)
    labels = record.get("labels")
    if type(labels) is dict:
        return text, _named(labels)
    pairs = []
    for label in field(record, "labels", list):
        pairs += _named(label)
    return text, pairs


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
