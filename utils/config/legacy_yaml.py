"""Flat YAML configs of the older DEXML and ELIAS code -> the typed sections of `utils.config`.

    config = load_any_config("older.yaml", ["--train.epochs", "3"])

A flat file may name others in `__dependency__: a.yaml, b.yaml` (merged first, later wins) and refer
to its keys as `[key]` inside strings. Every key is converted, dropped for a stated reason, or
refused, and the log says which. Keys mean what they mean in the released code
(github.com/nilesh2797/DEXML and /ELIAS), where lr and bsz are given per process: here both are
taken as written, which is the older code's run on one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.config import (
    SECTIONS,
    Config,
    ConfigError,
    Expand,
    finish_config,
    load_config,
    nearest,
    read_yaml,
)
from utils.config.legacy_json import is_released, load_released
from utils.config.legacy_log import log, say, shown
from utils.config.legacy_yaml_files import Values, interpolate, read_flat, sections_of
from utils.config.legacy_yaml_keys import DROPPED, FIXED, METHOD_OF_NET, MOVED
from utils.config.legacy_yaml_rules import KNOWN, READ_BY_NET, RULES, Converted


def load_any_config(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Mapping] = (),
    *,
    expand: Expand | None = None,
    trusted: bool = False,
    own: bool = True,
) -> Config:
    """Load a config as `load_config` does, a flat one, or one of NGAME and DEXA.

    The last are read by utils/config/legacy_json.py. Overrides do not reach into the `[key]`s of
    flat ones.
    """
    path = Path(path)
    values = read_yaml(path)
    if is_released(values):
        return load_released(path, values, overrides, expand)
    if not _is_flat(values, path):
        return load_config(path, overrides, expand=expand, trusted=trusted, own=own)
    log.info("%s is a config of the older DEXML or ELIAS code:", path)
    merged, origin = convert(*read_flat(path))
    return finish_config(merged, origin, overrides, expname=path.stem, where=str(path))


def _is_flat(values: Mapping[str, Any], path: Path) -> bool:
    sections = sections_of(values)
    flat = [k for k in values if k in KNOWN and k not in SECTIONS]
    if sections and flat:
        raise ConfigError(
            f"{path}: mixes sections ({', '.join(sections)}) with flat keys of the older code "
            f"({', '.join(flat)}); a config is of one kind or the other"
        )
    return bool(flat)


def convert(flat: Values, files: Mapping[str, str]) -> tuple[dict[str, Values], dict[str, str]]:
    """Convert flat keys, and log what becomes of each.

    Args:
        files: which file each key stands in.
    Returns:
        {section: {key: value}}, and where each "section.key" comes from.
    Raises:
        ConfigError: a key or a value has no counterpart.
    """
    for key in flat:
        if key not in KNOWN:
            raise ConfigError(f"{files[key]}: unknown key '{key}'{nearest(key, sorted(KNOWN))}")
    if (net := str(flat.get("net"))) not in METHOD_OF_NET:
        where = files.get("net", next(iter(files.values())))
        raise ConfigError(
            f"{where}: net must be one of {', '.join(METHOD_OF_NET)}, got {shown(net)}"
        )
    flat = interpolate(flat, files)
    merged: dict[str, Values] = {}
    origin: dict[str, str] = {}
    for key in flat:
        try:
            values, note = _convert_key(key, flat)
        except ConfigError as error:
            raise ConfigError(f"{files[key]}: {error}") from None
        _put(values, note, f"{key}: {shown(flat[key])}", merged)
        origin |= dict.fromkeys(values, f"{files[key]} ({key})")
    propensity = _propensity(str(flat.get("dataset", "")))
    _put(propensity, "the older code's rule on names", "no key", merged)
    if net in ("elias-1", "elias-2", "ova-net"):
        _put({"loss.name": "bce"}, "the loss of this net", "no key", merged)
    _put({"optim.clip_norm": None}, "the older code does not clip gradients", "no key", merged)
    return merged, origin


def _convert_key(key: str, flat: Values) -> Converted:
    moved_by_net, rules_by_net = READ_BY_NET[flat["net"]]
    moved = MOVED | moved_by_net
    rules = RULES | rules_by_net
    if key in DROPPED:
        return {}, DROPPED[key]
    if key in FIXED:
        allowed, reason = FIXED[key]
        if flat[key] not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ConfigError(f"{key} {flat[key]!r} has no counterpart, only {known}: {reason}")
        return {}, reason
    if key in moved:
        return {moved[key]: flat[key]}, ""
    if key in rules:
        return rules[key](flat[key], flat)
    return {}, f"net {flat['net']} does not read it"


def _put(
    values: Values,
    note: str,
    came: str,
    merged: dict[str, Values],
) -> None:
    for target, value in values.items():
        section, key = target.split(".")
        place = merged.setdefault(section, {})
        place[key] = {**place.get(key, {}), **value} if isinstance(value, dict) else value
    say(came, values, note)


def _propensity(dataset: str) -> Values:
    """The older code's choice of constants, for which it had no keys: PSP@k stay comparable."""
    name = dataset.lower()
    if "amazon" in name:
        return {"data.propensity_a": 0.6, "data.propensity_b": 2.6}
    if "wiki" in name and "wikiseealso" not in name:
        return {"data.propensity_a": 0.5, "data.propensity_b": 0.4}
    return {"data.propensity_a": 0.55, "data.propensity_b": 1.5}
