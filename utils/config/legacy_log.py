"""What the doors for older configs say of each key."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("legacy_config")


def shown(value: Any) -> str:
    """A value as a config would have it, on one line."""
    plain = isinstance(value, str) and value != "" and value.isprintable()
    return value if plain else json.dumps(value, default=str)


def say(
    came: str,
    values: Mapping[str, Any],
    note: str = "",
) -> None:
    """Log what a key became: "section.key" -> value, nothing where it was dropped."""
    became = ", ".join(f"{target} {shown(value)}" for target, value in values.items()) or "dropped"
    log.info("%s -> %s%s", came, became, f" ({note})" if note else "")
