"""What stages say of each other: `stage:NAME` and `best:NAME` in their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.errors import ConfigError


def with_references(value: Any, change: Callable[[str, str], Any]) -> Any:
    """A stage's values with change(kind, name) for `stage:NAME` and `best:NAME` in them."""
    if isinstance(value, Mapping):
        return {key: with_references(part, change) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_references(part, change) for part in value]
    if not isinstance(value, str) or not value.startswith(("stage:", "best:")):
        return value
    kind, _, name = value.partition(":")
    return change(kind, name)


def check_references(stages: Sequence[Mapping[str, Any]]) -> None:
    """ConfigError for a stage that names one which is no earlier stage."""
    earlier: list[str] = []

    def check(kind: str, name: str) -> None:
        if name not in earlier:
            raise ConfigError(
                f"'{kind}:{name}': there is no earlier stage {name}; earlier stages: "
                f"{', '.join(earlier) or 'none'}"
            )

    for stage in stages:
        with_references(stage, check)
        earlier.append(stage["name"])
