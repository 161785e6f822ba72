"""Options of a section: values of YAML or of the command line, checked by what fields declare."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from utils.config.automatic import AUTO, takes_auto
from utils.config.command_line import Word
from utils.config.plugins import Foreign, is_foreign
from utils.config.yaml_text import parse_yaml, shown_word
from utils.errors import ConfigError

MAX_TEXT = 4096  # characters of a text, which is often a path


def nearest(name: Any, known: Sequence[str]) -> str:
    """What to say behind an unknown name: the known one that is like it, or all that are known."""
    close = difflib.get_close_matches(shown_word(name), known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def shown(value: Any) -> str:
    """A value inside a message: on one line, and not long."""
    return shown_word(repr(str(value) if isinstance(value, Word) else value))


def type_name(kind: Any) -> str:
    """A type as a user would say it: 'int or null', 'one of softmax, bce'."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        return f"one of {choices}" if len(arguments) > 1 else choices
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is Mapping:
        return f"mapping of names to {type_name(arguments[1])}"
    if kind is Foreign:
        return "module:name"
    return {
        type(None): "null",
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
    }[kind]


def option_type(kind: type, key: str) -> str:
    """The type of a key of a section of type `kind` as a user would say it."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    said = type_name(_hints(kind)[key])
    return f"{said} or {AUTO}" if takes_auto(fields[key]) else said


class _Mismatch(Exception):
    """A value of another type; its text is what else there is to say, if anything."""


def _convert(value: Any, kind: Any) -> Any:
    """`value` as type `kind`; _Mismatch if it is not one. A Word is read as the type has it."""
    if isinstance(value, Word):
        return _read_word(value, kind)
    if typing.get_origin(kind) is None:
        return _convert_plain(value, kind)
    return _convert_composed(value, typing.get_origin(kind), typing.get_args(kind))


def _convert_composed(
    value: Any,
    origin: Any,
    arguments: tuple[Any, ...],
) -> Any:
    """`value` as a union, choice, list or mapping of other types."""
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            with contextlib.suppress(_Mismatch):
                return _convert(value, choice)
    elif origin is Literal:
        if isinstance(value, bool):
            value = "yes" if value else "no"  # YAML reads `no` as false
        if isinstance(value, str) and value in arguments:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, arguments[0]) for item in value)
    elif origin is Mapping and isinstance(value, Mapping) and all(map(_is_text, value)):
        items = {key: _convert(item, arguments[1]) for key, item in value.items()}
        return types.MappingProxyType(items)
    raise _Mismatch


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _convert_plain(value: Any, kind: Any) -> Any:
    """`value` as null, a name of a module, text, truth or number."""
    if kind is type(None) and value is None:
        return None
    if kind is Foreign and is_foreign(value):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, bool) and type(value) is kind:
        return value
    raise _Mismatch


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number that no float holds
        return float("inf")


def _read_word(word: Word, kind: Any) -> Any:
    """A word of the command line as type `kind`.

    `null` and named choices come first, then numbers, lists and mappings as YAML has them, then
    text as it is written.
    """
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    choices = typing.get_args(kind) if union else (kind,)
    text = str(word)
    if text == "null" and type(None) in choices:
        return None
    for choice in choices:
        if typing.get_origin(choice) is Literal and text in typing.get_args(choice):
            return text
    others = tuple(choice for choice in choices if choice not in (str, type(None)))
    problem = ""
    try:
        value = parse_yaml(text, "as YAML") if others else None
    except ConfigError as error:
        value = None
        problem = f" ({error})"
    for choice in others:
        with contextlib.suppress(_Mismatch):
            return _convert(value, choice)
    if str in choices:
        return text
    raise _Mismatch(problem)


LIMITS = {
    "ge": ("at least", lambda v, m: v >= m),
    "gt": ("above", lambda v, m: v > m),
    "le": ("at most", lambda v, m: v <= m),
    "lt": ("below", lambda v, m: v < m),
}


def build_section(
    kind: type, name: str, values: Mapping[str, Any], origin: Mapping[str, str] | None = None
) -> Any:
    """Make the frozen section `kind` of a mapping.

    Args:
        name: of the section.
        origin: where a "section.key" comes from, for messages.
    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.
    """
    origin = origin or {}
    options = {}
    for key, value in values.items():
        where = origin.get(f"{name}.{key}", "config")
        options[key] = read_option(kind, name, key, value, where)
    return kind(**options)


def read_option(
    kind: type,
    section: str,
    key: str,
    value: Any,
    where: str,
) -> Any:
    """Return the value of one key of a section of type `kind`, as its field has it.

    Raises:
        ConfigError: the key is unknown, or the value of another type or out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if key not in fields:
        raise ConfigError(
            f"{where}: unknown key '{section}.{shown_word(key)}'{nearest(key, list(fields))}"
        )
    hint = _hints(kind)[key]
    if takes_auto(fields[key]) and value == AUTO:
        return AUTO
    try:
        converted = _convert(value, hint)
    except _Mismatch as problem:
        raise ConfigError(
            f"{where}: {section}.{key} must be {type_name(hint)}, got "
            f"{shown(value)}{_quote_it(value, hint)}{problem}"
        ) from None
    _check_values(f"{where}: {section}.{key}", converted, fields[key].metadata)
    return converted


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _quote_it(value: Any, hint: Any) -> str:
    """What to write for text that YAML reads as a number or truth, or for a list of one text."""
    kinds = (hint, *typing.get_args(hint))
    if str in kinds and isinstance(value, (int, float)):
        return "; with quotation marks around it, it is text"
    takes_list = any(typing.get_origin(kind) is tuple for kind in kinds)
    if takes_list and isinstance(value, str) and value[:1] != "[":
        return f"; a list is written [{shown_word(value)}]"
    return ""


def _check_values(
    where: str,
    value: Any,
    metadata: Mapping[str, Any],
) -> None:
    for single in _singles(value):
        if isinstance(single, str):
            check_text(where, single)
            if not single.startswith(metadata["starts"]):
                raise ConfigError(
                    f"{where} must be a whole number or text that starts with "
                    f"{metadata['starts']}, got {shown(single)}"
                )
        elif isinstance(single, (int, float)) and not isinstance(single, bool):
            _check_limits(where, single, metadata["limits"])


def _singles(value: Any) -> Iterable[Any]:
    """The values of a mapping (and its keys), those of a list, or the value itself."""
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return value if isinstance(value, tuple) else (value,)


def check_text(where: str, text: str) -> None:
    """ConfigError for text that can be no name, path or pattern."""
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise ConfigError(
            f"{where} must be text of UTF-8 without control characters, got {shown(text)}"
        )
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{where} must be text of at most {MAX_TEXT:,} characters, got {len(text):,}"
        )


def _check_limits(
    where: str,
    value: float,
    limits: Mapping[str, float],
) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, got {value}")
    for limit, bound in limits.items():
        words, holds = LIMITS[limit]
        if not holds(value, bound):
            raise ConfigError(f"{where} must be {words} {bound:,}, got {shown(value)}")
