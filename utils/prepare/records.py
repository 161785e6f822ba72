"""JSON objects, one a line, and their fields."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, TypeVar

from utils.errors import InputError

Value = TypeVar("Value")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # escapes that stand for halves of characters


def json_object(line: str) -> dict[str, Any]:
    """Return the JSON object of one line; InputError for anything else."""
    try:
        record = json.loads(line)
        if type(record) is dict and not _surely_distinct(line, len(record)):
            record = DISTINCT.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected a JSON object, got {line[:60]!r} (column {error.colno}: {error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets
        raise InputError(f"expected a JSON object, got {line[:60]!r} ({error})") from error
    if type(record) is not dict:
        raise InputError(f"expected a JSON object, got {type(record).__name__} {line[:60]!r}")
    if SURROGATE.search(line):
        _check_unicode(record)
    return record


def _check_unicode(record: dict[str, Any]) -> None:
    """InputError for a text that UTF-8 cannot hold, as an escape of half a character makes it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(f"expected Unicode text, got the lone surrogate {half}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object; ValueError for a key that stands twice: json keeps the last."""
    record = dict(pairs)
    if len(record) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return record


DISTINCT = json.JSONDecoder(object_pairs_hook=_distinct)  # three times slower


def _surely_distinct(line: str, keys: int) -> bool:
    """Whether no key can stand twice in a JSON object of so many keys.

    Colons after keys are counted, with those of texts.
    """
    if line.count(":") == keys:
        return True
    blank_before = " :" in line or "\t" in line or "\r" in line
    return line.count('":') == keys and not blank_before


def field(
    record: dict[str, Any],
    key: str,
    kind: type[Value],
) -> Value:
    """Return `record[key]`, which must be there and of type `kind`."""
    if key not in record:
        raise InputError(f"expected a key {key!r}, got only {sorted(record)}")
    if type(record[key]) is not kind:
        raise InputError(
            f"expected {key!r} to be a {kind.__name__}, got {type(record[key]).__name__} "
            f"{str(record[key])[:60]!r}"
        )
    return record[key]
