"""What may differ between the config that a run folder holds and the one that goes on in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from utils.config.config import Config, to_mapping

MAY_DIFFER = {"run", "eval"}  # sections that do not change what is trained
MAY_CHANGE = {
    "data.root",
    "data.token_cache",
    "data.feature_cache",
    "data.workers",
    "encoder.packing",
    "encoder.trust_remote_code",
    "method.micro_batch_tokens",
    "train.compile",
    "train.mixed_precision",
    "train.tf32",
    "train.deterministic",
}  # of a run that goes on, if the data is the same


def differences(saved: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ and matter to what is trained: {key: (saved, now)}.

    A key that the saved config does not have, as it is of an older version, had its default.
    """
    changed = {}
    for section, content in to_mapping(config).items():
        if not isinstance(content, Mapping):
            continue
        defaults = {
            field.name: field.default for field in dataclasses.fields(getattr(config, section))
        }
        before = saved.get(section)
        if not isinstance(before, Mapping):
            before = {}
        for key, now in content.items():
            default: Any = defaults[key]
            if isinstance(default, tuple):
                default = list(default)
            old = before.get(key, default)
            matters = section not in MAY_DIFFER or (section, key) == ("run", "seed")
            if matters and old != now:
                changed[f"{section}.{key}"] = old, now
    return changed


def as_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items())
