"""Typed configuration: YAML -> `base:` list -> `--section.key value` -> frozen sections.

    python -m utils.config            # every key with its type, default and meaning

`utils/sections.py` is the one home of every default. A YAML states only what differs:

    base: [dataset.yaml]              # merged first, in order; paths are relative to the file that names them
    method: {name: dexml, pool: all}
    train: {epochs: 10}
    stages:                           # optional: overlays run one after the other in one run folder
      - {name: warm, train: {epochs: 2}}
      - {name: main, method: {pool: hnm}}

This module imports neither torch nor the methods: whoever loads a config passes the methods' own
`Config` classes (see `models.METHOD_CONFIGS`), which become the type of the section `method:`.
"""
from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from utils.errors import InputError
from utils.sections import (
    SECTIONS,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    LossConfig,
    MethodConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    option,
)

__all__ = ["SECTIONS", "Config", "ConfigError", "DataConfig", "EncoderConfig", "EvalConfig", "LossConfig",
           "MethodConfig", "OptimConfig", "RunConfig", "TrainConfig", "build_config", "describe", "load_config",
           "merge_sections", "nearest", "option", "parse_overrides", "read_yaml", "split_words", "stage_config",
           "to_mapping", "to_yaml"]


class ConfigError(InputError):
    """A config that cannot be used; the message names the file, the key, what was expected and what came."""


@dataclass(frozen=True)
class Config:
    data: DataConfig
    encoder: EncoderConfig
    method: Any          # the Config of the chosen method, a MethodConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    run: RunConfig
    stages: tuple[Mapping[str, Any], ...] = ()

    @property
    def dataset_folder(self) -> Path:
        return Path(self.data.root) / self.data.name

    @property
    def run_folder(self) -> Path:
        """Where the run lives: `run.dir`, or <root>/<project>/<data set>/<expname>."""
        if self.run.dir:
            return Path(self.run.dir)
        return Path(self.run.root) / self.run.project / self.data.name / (self.run.expname or self.method.name)


# ---------------------------------------------------------------- YAML

class _Loader(yaml.SafeLoader):
    """The safe loader, except that 1e-4 is a number (YAML 1.1 reads it as text) and a key may not stand twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":      # `<<: *anchor`; what stands beside it wins
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key '{key}' stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                              list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """YAML text -> Python values by the safe loader; ConfigError names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML file as a mapping; ConfigError if it is missing, unreadable or not a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file (run from the folder that holds train.py?)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


# ---------------------------------------------------------------- merging

def merge_sections(into: dict, values: Mapping, where: str, origin: dict[str, str]) -> None:
    """Merge section by section; later wins key by key. `origin` keeps where each key came from, for errors."""
    for section, content in values.items():
        if section in ("base", "stages"):
            continue
        if section not in SECTIONS:
            raise ConfigError(f"{where}: unknown section '{section}'{nearest(section, [*SECTIONS, 'base', 'stages'])}")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: section '{section}' must be a mapping of keys, got {content!r}")
        for key, value in content.items():
            into.setdefault(section, {})[key] = value
            origin[f"{section}.{key}"] = where


def _load_file(path: Path, merged: dict, origin: dict[str, str], seen: tuple[Path, ...] = ()) -> dict:
    """Merge `path` after its bases into `merged`; returns the file's own mapping."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` goes in a circle")
    values = read_yaml(path)
    bases = values.get("base") or []
    for base in [bases] if isinstance(bases, str) else bases:
        inherited = _load_file(path.parent / str(base), merged, origin, (*seen, path.resolve()))
        values.setdefault("stages", inherited.get("stages"))
    merge_sections(merged, values, str(path), origin)
    return values


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line words -> (those for argparse, `--section.key VALUE` overrides), in any order."""
    plain, overrides, words = [], [], list(arguments)
    while words:
        word = words.pop(0)
        if not re.match(r"--[A-Za-z_]+\.", word):
            plain.append(word)
            continue
        overrides.append(word)
        if "=" not in word and words:
            overrides.append(words.pop(0))
    return plain, overrides


def parse_overrides(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """['--train.epochs', '3', '--run.seed=1'] -> {'train': {'epochs': 3}, 'run': {'seed': 1}}."""
    values: dict[str, dict[str, Any]] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        matched = re.fullmatch(r"--([A-Za-z_]+)\.([A-Za-z_0-9]+)(?:=(.*))?", word, re.DOTALL)
        if not matched:
            raise ConfigError(f"command line: expected --section.key VALUE, got '{word}'")
        section, key, text = matched.groups()
        if text is None:
            if not words:
                raise ConfigError(f"command line: '{word}' needs a value")
            text = words.pop(0)
        values.setdefault(section, {})[key] = parse_yaml(text, f"command line: {word}") if text else text
    return values


# ---------------------------------------------------------------- typed sections

def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def type_name(kind: Any) -> str:
    """A type as a user would say it: 'int or null', 'one of softmax, bce'."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is Mapping:
        return f"mapping of names to {type_name(arguments[1])}"
    return {type(None): "null", bool: "true or false", int: "whole number", float: "number", str: "text"}[kind]


class _Mismatch(Exception):
    pass


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _convert(value, choice)
            except _Mismatch:
                continue
    elif origin is Literal:
        text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value   # YAML reads `no` so
        if text in arguments:
            return text
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(v, arguments[0]) for v in value)
    elif origin is Mapping and isinstance(value, Mapping):
        return types.MappingProxyType({str(k): _convert(v, arguments[1]) for k, v in value.items()})
    elif kind is type(None) and value is None:
        return None
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    elif kind in (int, bool) and type(value) is kind:
        return value
    raise _Mismatch


_LIMITS = {"ge": ("at least", lambda v, m: v >= m), "gt": ("above", lambda v, m: v > m),
           "le": ("at most", lambda v, m: v <= m), "lt": ("below", lambda v, m: v < m)}


def build_section(kind: type, name: str, values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Any:
    """Mapping -> frozen section `kind`; ConfigError on an unknown key, a wrong type or a value out of range."""
    hints, origin = typing.get_type_hints(kind), origin or {}
    fields = {f.name: f for f in dataclasses.fields(kind)}
    converted = {}
    for key, value in values.items():
        where = f"{origin.get(f'{name}.{key}', 'config')}: "
        if key not in fields:
            raise ConfigError(f"{where}unknown key '{name}.{key}'{nearest(key, list(fields))}")
        try:
            converted[key] = _convert(value, hints[key])
        except _Mismatch:
            raise ConfigError(f"{where}{name}.{key} must be {type_name(hints[key])}, got {value!r}") from None
        _check_limits(f"{where}{name}.{key}", converted[key], fields[key].metadata.get("limits", {}))
    return kind(**converted)


def _check_limits(where: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"{where} must be a finite number, got {value}")
        for limit, bound in limits.items():
            words, holds = _LIMITS[limit]
            if not holds(value, bound):
                raise ConfigError(f"{where} must be {words} {bound}, got {value}")


def build_config(merged: Mapping[str, Mapping], method_configs: Mapping[str, type], origin: Mapping[str, str],
                 stages: Sequence[Mapping] = ()) -> Config:
    """Merged mapping -> Config. The section `method:` gets the type that `method_configs` has for its name."""
    name = merged.get("method", {}).get("name", "")
    if not name:
        raise ConfigError(f"config: method.name is missing; known: {', '.join(sorted(method_configs))}")
    if name not in method_configs:
        where = origin.get("method.name", "config")
        raise ConfigError(f"{where}: unknown method.name '{name}'; known: {', '.join(sorted(method_configs))}")
    if not merged.get("data", {}).get("name"):
        raise ConfigError("config: data.name is missing: the name of a folder in data.root")
    kinds = {**SECTIONS, "method": method_configs[name]}
    sections = {s: build_section(kind, s, merged.get(s, {}), origin) for s, kind in kinds.items()}
    for key in ("project", "expname"):
        value = getattr(sections["run"], key)
        if value is not None and (not value or value.startswith(".") or "/" in value or "\\" in value):
            raise ConfigError(f"{origin.get(f'run.{key}', 'config')}: run.{key} must be a plain folder name, got "
                              f"{value!r}; run.dir takes a path")
    return Config(**sections, stages=tuple(stages))


def load_config(path: str | Path, overrides: Sequence[str] | Mapping[str, Mapping] = (), *,
                method_configs: Mapping[str, type]) -> Config:
    """Read a YAML config with its bases, apply `overrides`, and check everything.

    Args:
        path: the YAML file.
        overrides: command-line words (`--section.key value`) or a mapping {section: {key: value}}.
        method_configs: method name -> its Config class.
    Raises:
        ConfigError: naming the file and key, what was expected and what came.
    """
    path, merged, origin = Path(path), {}, {}
    values = _load_file(path, merged, origin)
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    stages = _check_stages(values.get("stages") or (), str(path))
    merge_sections(merged, overrides, "command line", origin)
    if not merged.get("run", {}).get("expname"):
        merged.setdefault("run", {})["expname"] = path.stem
    config = build_config(merged, method_configs, origin, stages)
    for stage in config.stages:      # every stage is checked before the first one starts
        stage_config(config, stage, method_configs)
    return config


def _check_stages(stages: Any, where: str) -> list[dict]:
    if not isinstance(stages, (list, tuple)) or not all(isinstance(s, Mapping) for s in stages):
        raise ConfigError(f"{where}: `stages:` must be a list of mappings, got {stages!r}")
    named = [{"name": f"stage{i + 1}", **stage} for i, stage in enumerate(stages)]
    names = [stage["name"] for stage in named]
    bad = [n for n in names if not re.fullmatch(r"[\w.-]+", str(n)) or str(n).startswith(".")]
    if bad or len(set(names)) < len(names):
        raise ConfigError(f"{where}: stage names must be distinct plain names, got {names}")
    return named


def stage_config(config: Config, stage: Mapping[str, Any], method_configs: Mapping[str, type]) -> Config:
    """The config of one stage: the file's sections overlaid with the stage's; a new method starts from defaults."""
    merged = to_mapping(config)
    merged.pop("stages", None)
    overlay = {section: content for section, content in stage.items() if section != "name"}
    chosen = (overlay.get("method") or {}).get("name", config.method.name)
    if chosen != config.method.name:
        merged["method"] = {}
    origin: dict[str, str] = {}
    merge_sections(merged, overlay, f"stage '{stage.get('name')}'", origin)
    return build_config(merged, method_configs, origin)


# ---------------------------------------------------------------- saving

def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_mapping(config: Config) -> dict[str, Any]:
    """Config -> nested plain dict, every key resolved; `build_config` of it gives the same Config."""
    sections = {s: {f.name: _plain(getattr(getattr(config, s), f.name))
                    for f in dataclasses.fields(getattr(config, s))} for s in SECTIONS}
    return {**sections, "stages": _plain(config.stages)} if config.stages else sections


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def describe(method_configs: Mapping[str, type] | None = None) -> str:
    """Every key with its type, default, limits and meaning, as text."""
    kinds = [(section, kind) for section, kind in SECTIONS.items() if section != "method"]
    kinds += [(f"method ({name})", kind) for name, kind in sorted((method_configs or {}).items())]
    lines = []
    for section, kind in kinds:
        lines.append(f"{section}:")
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            default = yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
            limits = "".join(f", {_LIMITS[name][0]} {bound}" for name, bound in field.metadata["limits"].items())
            lines.append(f"  {f'{field.name}: {default}':<32} # {type_name(hints[field.name])}{limits}: "
                         f"{field.metadata['meaning']}")
    return "\n".join(lines)


if __name__ == "__main__":
    from models import METHOD_CONFIGS
    print(describe(METHOD_CONFIGS))
