"""What `--try` says of a key: the values that trials may have.

optim.lr=1e-3,2e-3            these
method.tau=log:0.01:0.1       numbers from 0.01 to 0.1, small ones as often as large ones
encoder.dropout=lin:0:0.3     numbers from 0 to 0.3
train.epochs=int:5:20         whole numbers, both ends among them
stages.NAME.optim.lr=...      the key of one stage
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.config.command_line import SPELLING
from utils.config.yaml_text import shown_word
from utils.errors import ConfigError

RANGE = re.compile(r"(log|lin|int):([^:]+):([^:]+)")
MOST_CHOICES = 1000
LARGEST = 1e15  # of a range: whole numbers up to here are floats too
FIXED = {  # keys that no trial may have of its own, and why
    "data.name": "trials would be measured on other points",
    "data.root": "trials would be measured on other points",
    "data.val_fraction": "trials would be measured on other points",
    "data.val_max_points": "trials would be measured on other points",
    "data.val_group_size": "trials would be measured on other points",
    "train.track_metric": "trials would be measured by other metrics; --metric names one for all",
    "run.root": "the sweep places its trials",
    "run.project": "the sweep places its trials",
    "run.expname": "the sweep places its trials",
    "run.dir": "the sweep places its trials",
}


@dataclass(frozen=True)
class Choices:
    """Values as they would be written on a command line."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """What a config must take, so that it takes everything."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; drawn by their logarithm, or whole ones alone."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """What a config must take, so that it takes everything."""
        if self.is_whole:
            return (str(int(self.low)), str(int(self.high)))
        return (repr(self.low), repr(self.high))

    def written(self, value: float) -> str:
        """A drawn number as a command line has it: of four digits, inside of the range."""
        if self.is_whole:
            return str(int(value))
        rounded = float(f"{value:.4g}")
        return repr(min(max(rounded, self.low), self.high))


def parse_tries(words: Sequence[str]) -> dict[str, Choices | Range]:
    """Return {key: its values} of `KEY=VALUES` words, in their order.

    Raises:
        ConfigError: a word is no `KEY=VALUES`, its key stands twice or may not differ between
            trials, or a range is none.
    """
    tries: dict[str, Choices | Range] = {}
    for word in words:
        key, equals, text = word.partition("=")
        where = f"--try {shown_word(word)}"
        spelled = SPELLING.fullmatch(f"--{key}")
        if not equals or spelled is None:
            raise ConfigError(f"{where}: expected section.key=VALUES, such as optim.lr=1e-3,2e-3")
        if key in tries:
            raise ConfigError(f"{where}: {key} stands twice")
        reason = FIXED.get(f"{spelled['section']}.{spelled['key']}")
        if reason:
            raise ConfigError(f"{where}: {key} is the same in all trials: {reason}")
        tries[key] = parse_values(text, where)
    if not tries:
        raise ConfigError("expected --try section.key=VALUES at least once")
    return tries


def parse_values(text: str, where: str) -> Choices | Range:
    """Return the values that text stands for; ConfigError, which begins with `where`."""
    found = RANGE.fullmatch(text)
    if found:
        kind, low, high = found.groups()
        return _range(kind, low, high, where)
    if re.match(r"(log|lin|int):", text):
        raise ConfigError(f"{where}: expected {text[:3]}:LOW:HIGH")
    values = _split(text)
    if not all(values):
        raise ConfigError(f"{where}: expected values between commas, got an empty one")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{where}: {shown_word(twice[0])} stands twice")
    if len(values) > MOST_CHOICES:
        raise ConfigError(f"{where}: expected at most {MOST_CHOICES} values, got {len(values)}")
    return Choices(tuple(values))


def _range(
    kind: str,
    first: str,
    last: str,
    where: str,
) -> Range:
    read = int if kind == "int" else float
    try:
        low = read(first)
        high = read(last)
    except ValueError:
        numbers = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"{where}: expected {numbers}, got {first}:{last}") from None
    if max(abs(low), abs(high)) > LARGEST:
        raise ConfigError(f"{where}: expected numbers up to {LARGEST:.0e}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where}: expected two numbers, the smaller one first")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{where}: a log range starts above 0, got {first}")
    return Range(low, high, is_log=kind == "log", is_whole=kind == "int")


def _split(text: str) -> list[str]:
    """The parts between commas, but for those inside of brackets."""
    parts = [""]
    depth = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def combinations(tries: Mapping[str, Choices | Range]) -> list[dict[str, str]] | None:
    """All that can be tried, {key: value} each; None where that is without end, or too much."""
    choices = []
    for values in tries.values():
        if isinstance(values, Range):
            return None
        choices.append(values.values)
    if math.prod(map(len, choices)) > MOST_CHOICES:
        return None
    return [dict(zip(tries, chosen, strict=True)) for chosen in itertools.product(*choices)]


def as_words(values: Mapping[str, str]) -> list[str]:
    """Overrides of a command line."""
    return [f"--{key}={value}" for key, value in values.items()]
