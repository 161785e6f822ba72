"""Words of a command line: those for argparse, and overrides of a config's keys.

    --section.key VALUE                  a key of the config, for all its stages
    --stages.NAME.section.key VALUE      the same key, for one stage

The type of a key says how its value is read: text is taken as it is written, `null` aside.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from utils.config.legacy_yaml_keys import NEW_NAMES
from utils.config.sections import SECTIONS
from utils.config.yaml_text import shown_word
from utils.errors import ConfigError

OVERRIDE = re.compile(r"--[A-Za-z_]+\.")
SPELLING = re.compile(
    r"--(?:stages\.(?P<stage>.+)\.)?(?P<section>[A-Za-z_]+)\.(?P<key>[A-Za-z_0-9]+)"
)


class Word(str):
    """A value as it stands on the command line, not read yet."""


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line words -> (those for argparse, overrides with their values), in any order."""
    plain: list[str] = []
    overrides: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not OVERRIDE.match(word):
            plain.append(word)
            continue
        overrides.append(word)
        if "=" not in word and words:
            overrides.append(words.pop(0))
    return plain, overrides


def parse_overrides(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return {section: {key: Word}} of overrides, those of a stage as {"stages": {NAME: ...}}.

    ['--train.epochs', '3', '--stages.warm.run.seed=1'] -> {'train': {'epochs': Word('3')},
    'stages': {'warm': {'run': {'seed': Word('1')}}}}; of a key given twice, the last value.

    Raises:
        ConfigError: a word is no override, or its value is missing.
    """
    values: dict[str, dict[str, Any]] = {}
    words = list(arguments)
    while words:
        name, equals, text = words.pop(0).partition("=")
        matched = SPELLING.fullmatch(name)
        if not matched or matched["section"] == "stages":
            raise ConfigError(
                "command line: expected --section.key VALUE or --stages.NAME.section.key VALUE, "
                f"got '{shown_word(name)}'"
            )
        if not equals:
            text = _value_of(name, words)
        target = values
        if matched["stage"] is not None:
            target = values.setdefault("stages", {}).setdefault(matched["stage"], {})
        target.setdefault(matched["section"], {})[matched["key"]] = Word(text)
    return values


def _value_of(name: str, words: list[str]) -> str:
    """Take the value of an override from the words behind it."""
    if words and not words[0].startswith("--"):
        return words.pop(0)
    came = ""
    if words:
        came = f", got '{shown_word(words[0])}' ({name}=--... for a value that begins so)"
    raise ConfigError(f"command line: '{name}' needs a value{came}")


def spelling(
    section: str,
    key: str,
    value: Any,
    stage: str | None = None,
) -> str:
    """How to write an override: `--stages.NAME.section.key value`."""
    place = f"stages.{stage}." if stage else ""
    return f"--{place}{section}.{key} {shlex.quote(shown_word(value))}"


def parse_words(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    """Return argparse's options and the overrides of the command line.

    A word that neither knows ends the program with a hint.
    """
    plain, overrides = split_words(sys.argv[1:] if arguments is None else arguments)
    options, unknown = parser.parse_known_args(plain)
    if unknown:
        parser.exit(2, f"{parser.prog}: error: {_hint(unknown, plain, vars(options))}\n")
    return options, overrides


def _hint(
    unknown: Sequence[str],
    plain: Sequence[str],
    options: Mapping[str, Any],
) -> str:
    """What to write instead of words that are not known.

    Such as flat names of the older code, or a second config.
    """
    flags = [word for word in unknown if word.startswith("--")]
    if flags:
        return "; ".join(_flag_hint(flag, plain) for flag in flags)
    if matched := re.fullmatch(r"([a-z]+)\.(\w+)=(.*)", unknown[0], re.DOTALL):
        return f"'{shown_word(unknown[0])}': write {spelling(*matched.groups())}"
    if unknown[0].endswith((".yaml", ".yml")) and "config" in options:
        files = ", ".join(shown_word(word) for word in (options["config"], *unknown))
        return (
            f"one config a command, got {files}: make a file that names them in `base: [{files}]` "
            "(merged in that order, paths relative to that file), and give that one"
        )
    return f"unexpected words: {' '.join(map(shown_word, unknown))}"


def _flag_hint(flag: str, plain: Sequence[str]) -> str:
    name, equals, value = flag.partition("=")
    after = [word for word in plain[plain.index(flag) + 1 :][:1] if not word.startswith("--")]
    if not equals:
        value = after[0] if after else "VALUE"
    places = known_places(name.removeprefix("--"))
    if not places:
        return (
            f"unknown option {shown_word(name)}; keys of a config are given as --section.key VALUE"
        )
    section, key = places[0].split(".")
    also = f" (or {', '.join('--' + place for place in places[1:])})" if places[1:] else ""
    return f"unknown option {shown_word(name)}: write {spelling(section, key, value)}{also}"


def known_places(name: str) -> list[str]:
    """Return the "section.key"s that a bare name may mean.

    That is what the older code's flat name became, else keys of that name.
    """
    if name in NEW_NAMES:
        return [NEW_NAMES[name]]
    places = []
    for section, kind in SECTIONS.items():
        if any(field.name == name for field in fields(kind)):
            places.append(f"{section}.{name}")
    return places
