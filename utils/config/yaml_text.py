"""YAML text to plain values and back, by PyYAML's safe loader within limits.

Size, depth and what aliases expand to are checked on the parser's events, before anything is
built. Other than YAML 1.1 has it: 1e-4 is a number; 0010, 12:30 and 2024-01-31 are text, not
numbers to another base or dates; a key is the word that stands there, and stands there once.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")  # JSON is that of older code
MAX_CHARACTERS = 1 << 20  # of a file; and of its values, aliases expanded
MAX_DEPTH = 32  # of lists and mappings inside each other
VALUE_COSTS = 8  # characters that a value counts beside its own
TAG = "tag:yaml.org,2002:"
TAGS = {None, "!", *(TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map"))}
OTHERWISE = ("int", "float", "timestamp", "value")  # tags that plain words get by other rules
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where it is built in


class _Loader(_FastLoader):
    """The safe loader with the rules above."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)  # `<<: *anchor`; what stands beside it wins
            node.value = [
                (yaml.ScalarNode(f"{TAG}str", key.value), value) for key, value in node.value
            ]
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper; text that `_Loader` would take for a number gets quotation marks."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.removeprefix(TAG) not in OTHERWISE]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{TAG}int", INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{TAG}float", NUMBER, list("-+0123456789."))
_Dumper.add_implicit_resolver(f"{TAG}float", NUMBER, list("-+0123456789."))


@dataclass
class _Open:
    """A list, a mapping or the whole text, whose end has not come yet."""

    anchor: str | None = None
    is_mapping: bool = False
    size: int = 0  # characters of the values in it, aliases expanded
    nodes: int = 0
    keys: set[str] = field(default_factory=set)


def _check(text: str) -> None:
    """Refuse what is too large or too deep, has a key twice, or tags that plain values need not."""
    whole = [_Open()]
    sizes: dict[str | None, int] = {}  # by anchor
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            closed = whole.pop()
            sizes[closed.anchor] = closed.size
            _add(whole[-1], closed.size, event)
        elif isinstance(event, yaml.NodeEvent):
            _check_node(event, whole[-1])
            if isinstance(event, yaml.CollectionStartEvent):
                whole.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
                if len(whole) > MAX_DEPTH:
                    raise _at(
                        event, f"lists and mappings inside each other, more than {MAX_DEPTH} deep"
                    )
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise _at(
                        event,
                        f"*{event.anchor} stands inside &{event.anchor}, or there is no such "
                        "anchor",
                    )
                _add(whole[-1], sizes[event.anchor], event)
            elif isinstance(event, yaml.ScalarEvent):
                sizes[event.anchor] = VALUE_COSTS + len(event.value)
                _add(whole[-1], sizes[event.anchor], event)


def _check_node(event: yaml.NodeEvent, parent: _Open) -> None:
    is_key = parent.is_mapping and parent.nodes % 2 == 0
    parent.nodes += 1
    tag = None
    if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
        tag = event.tag
    if tag not in TAGS:
        raise _at(event, f"not valid YAML of a config: the tag '{shown_word(tag)}'")
    if not is_key:
        return
    if not isinstance(event, yaml.ScalarEvent):
        raise _at(event, f"a key must be a word, got {_kind(event)}")
    if event.value in parent.keys and event.value != "<<":
        raise _at(event, f"the key '{shown_word(event.value)}' stands twice")
    parent.keys.add(event.value)


def _kind(event: yaml.NodeEvent) -> str:
    if isinstance(event, yaml.AliasEvent):
        return "an alias"
    return "a mapping" if isinstance(event, yaml.MappingStartEvent) else "a list"


def _add(
    parent: _Open,
    size: int,
    event: yaml.Event,
) -> None:
    parent.size += size
    if parent.size > MAX_CHARACTERS:
        raise _at(
            event,
            f"more than {MAX_CHARACTERS:,} characters of values, aliases expanded (a value counts "
            f"{VALUE_COSTS} more than it has)",
        )


def _at(event: yaml.Event, message: str) -> ConfigError:
    assert event.start_mark is not None, "an event of a text has its place"
    return ConfigError(f"line {event.start_mark.line + 1}: {message}")


def shown_word(word: Any) -> str:
    """A word inside a message: on one line, and not long."""
    text = (
        str(word).encode("unicode_escape", "replace").decode()
        if not str(word).isprintable()
        else str(word)
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_yaml(text: str, where: str) -> Any:
    """YAML text -> Python values; ConfigError names `where` and the line."""
    try:
        _check(text)
        return yaml.load(text, Loader=_Loader)  # a safe loader
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # also `!!int x`, 5000 digits
        message = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{where}: not valid YAML: {message[:300]}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file as a mapping.

    Raises:
        ConfigError: it is missing, too large, unreadable or not a mapping.
    """
    path = Path(path)
    try:
        text = _read_text(path)
        if path.suffix == ".json":
            text = text.replace("\t", " ")  # YAML but for tabs, which stand in no word of it
        values = parse_yaml(text, str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such config file (the current folder is {Path.cwd()})"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def _read_text(path: Path) -> str:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        inside = path / "config.yaml"
        holds = f"; it holds {inside}" if inside.is_file() else ""
        raise ConfigError(f"{path}: expected a config file, got a folder{holds}")
    if not stat.S_ISREG(mode):  # a pipe or a device may never end
        raise ConfigError(f"{path}: expected a config file, got no regular file")
    with open(path, "rb") as file:
        content = file.read(MAX_CHARACTERS + 1)
    if len(content) > MAX_CHARACTERS:
        raise ConfigError(f"{path}: a config of more than {MAX_CHARACTERS:,} bytes is not read")
    return content.decode("utf-8-sig")


def dump_yaml(values: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same plain values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
