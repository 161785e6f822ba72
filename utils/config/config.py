"""Typed configuration: YAML -> `base:` list -> `--section.key value` -> frozen sections.

    python -m utils.config            # every key with its type, default and meaning

`utils/config/sections.py` is the one home of every default. A YAML states only what differs:

    base: [dataset.yaml]              # merged first, in order; paths are relative to the file that
    names them
    method: {name: dexml, pool: all}
    train: {epochs: 10}
    stages:                           # optional: overlays run one after the other in one run folder
      - {name: warm, train: {epochs: 2}}
      - {name: main, method: {pool: hnm}}
    refit: true                       # stages that end in a fusion: members again on all points

Importing this module imports neither torch nor the methods: the section `method:` has the type
that the method itself gives it, and utils/config/methods.py imports a method when it is named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.automatic import AUTO, CONDITIONS, WHEN, check_conditions
from utils.config.command_line import parse_overrides, spelling, split_words
from utils.config.methods import METHODS, known_methods, method_options
from utils.config.options import (
    LIMITS,
    build_section,
    check_text,
    nearest,
    option_type,
    read_option,
    shown,
)
from utils.config.plugins import allow, is_foreign, module_of
from utils.config.refit import refitted_stages
from utils.config.sections import (
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
from utils.config.trust import is_ones_own, say_refused, without_code
from utils.config.yaml_text import dump_yaml, read_yaml, shown_word
from utils.errors import ConfigError

__all__ = [
    "SECTIONS",
    "Config",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "EvalConfig",
    "Expand",
    "LossConfig",
    "MethodConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "build_config",
    "describe",
    "finish_config",
    "load_config",
    "merge_sections",
    "nearest",
    "option",
    "parse_overrides",
    "read_option",
    "read_yaml",
    "split_words",
    "stage_config",
    "to_mapping",
    "to_yaml",
]

MAX_FILES = 100  # that a config's `base:` leads to
MAX_STAGES = 100
MAX_NAME = 200  # bytes of a folder's name
OUTSIDE = {  # keys of a file beside its sections
    "base": "files that are merged first, in this order; paths are relative to this file",
    "stages": "list of overlays that run one after the other, each with a name; one with `when:` "
    f"runs on data of which all listed conditions hold ({', '.join(CONDITIONS)})",
    "refit": "true: stages end in a fusion, whose members are trained again on all training points",
}
COMMAND_LINE = "command line"  # where a key comes from
Expand = Callable[["Config", bool], "Config"]  # of a config, and whether it is one's own
OF_THE_WHOLE_RUN = ("root", "project", "expname", "dir")  # of section run: no stage has its own


@dataclass(frozen=True)
class Config:
    """The sections of a run, or of one stage.

    Attributes:
        stages: overlays that run one after the other.
        given: text of the files that it was read from, for the run folder.
    """

    data: DataConfig
    encoder: EncoderConfig
    method: Any  # the Config of the chosen method, a MethodConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    run: RunConfig
    stages: tuple[Mapping[str, Any], ...] = ()
    given: str = field(default="", compare=False, repr=False)

    @property
    def dataset_folder(self) -> Path:
        return Path(self.data.root) / self.data.name

    @property
    def run_folder(self) -> Path:
        """Where the run lives: `run.dir`, or <root>/<project>/<data set>/<expname>."""
        if self.run.dir:
            return Path(self.run.dir)
        return (
            Path(self.run.root)
            / self.run.project
            / self.data.name
            / (self.run.expname or self.method.name)
        )


# -------------------------------- merging


def merge_sections(
    into: dict,
    values: Mapping,
    where: str,
    origin: dict[str, str],
) -> None:
    """Merge section by section; later wins key by key.

    Args:
        origin: keeps where each "section.key" came from, for errors.
    """
    for section, content in values.items():
        if section not in SECTIONS:
            known = [name for name in (*SECTIONS, *OUTSIDE) if name != section]
            raise ConfigError(
                f"{where}: unknown section '{shown_word(section)}'{nearest(section, known)}"
            )
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"{where}: section '{section}' must be a mapping of keys, got {shown(content)}"
            )
        for key, value in content.items():
            into.setdefault(section, {})[key] = value
            origin[f"{section}.{key}"] = where


@dataclass
class _Chain:
    """A config file and what it inherits: sections, stages, and the files that were opened."""

    merged: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    stages: Any = None
    stages_of: str = ""
    refit: bool = False
    files: int = 0
    imports: bool = False  # modules that files of one's own name
    refused: list[Path] = field(default_factory=list)  # files that ask for code of an encoder


def _load_file(
    path: Path,
    chain: _Chain,
    above: tuple[Path, ...] = (),
    own: bool = True,
) -> None:
    """Merge `path`, after its bases, into `chain`; what is not one's `own` asks for no code."""
    own = own and is_ones_own(path)
    chain.files += 1
    if chain.files > MAX_FILES:
        raise ConfigError(
            f"{above[0]}: its `base:` leads to more than {MAX_FILES} files, by way of {above[-1]}"
        )
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(
            f"{error}{f', which is a `base:` of {above[-1]}' if above else ''}"
        ) from error
    if path.resolve() in above:
        raise ConfigError(f"{path}: `base:` goes in a circle")
    for base in _bases(values.get("base"), path):
        _load_file(path.parent / base, chain, (*above, path.resolve()), own)
    values = _granted(values, path, chain, own)
    if "stages" in values:
        chain.stages = values["stages"]
        chain.stages_of = str(path)
    if "refit" in values:
        chain.refit = values["refit"]
        if not isinstance(chain.refit, bool):
            raise ConfigError(f"{path}: `refit:` must be true or false, got {shown(chain.refit)}")
    sections = {name: content for name, content in values.items() if name not in OUTSIDE}
    merge_sections(chain.merged, sections, str(path), chain.origin)


def _granted(
    values: dict[str, Any],
    path: Path,
    chain: _Chain,
    own: bool,
) -> dict[str, Any]:
    """What a file says, where a stranger's is not listened to; modules of one's own are allowed."""
    if not own:
        granted = without_code(values)
        if granted != values:
            chain.refused.append(path)
        return granted
    if chain.imports:
        _allow_named(values, values.get("stages"))
    return values


def _bases(value: Any, path: Path) -> list[str]:
    bases = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f"{path}: `base:` must be a file or a list of files, got {shown(value)}")
    for base in bases:
        check_text(f"{path}: base", base)
    return bases


# -------------------------------- building


def build_config(
    merged: Mapping[str, Mapping],
    origin: Mapping[str, str],
    stages: Sequence[Mapping] = (),
    where: str = "config",
) -> Config:
    """Merged mapping -> Config. The section `method:` gets the type of the method that it names."""
    name = merged.get("method", {}).get("name", "")
    if not name:
        others = "".join(f" (there is {shown(key)})" for key in list(merged.get("method", {}))[:1])
        raise ConfigError(f"{where}: method.name is missing{others}; known: {known_methods()}")
    method = method_options(name, origin.get("method.name", where))
    if not merged.get("data", {}).get("name"):
        raise ConfigError(
            f"{where}: data.name is missing: the name of a folder in data.root (--data.name NAME)"
        )
    kinds = {**SECTIONS, "method": method}
    sections = {s: build_section(kind, s, merged.get(s, {}), origin) for s, kind in kinds.items()}
    for key in ("project", "expname"):
        value = getattr(sections["run"], key)
        plain = value is None or (
            value and not value.startswith(".") and not {"/", "\\"} & set(value)
        )
        if not plain or len((value or "").encode()) > MAX_NAME:
            raise ConfigError(
                f"{origin.get(f'run.{key}', 'config')}: run.{key} must be a plain folder name, "
                f"got {shown(value)}; run.dir takes a path"
            )
    return Config(**sections, stages=tuple(stages))


def load_config(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Mapping] = (),
    *,
    expand: Expand | None = None,
    trusted: bool = False,
    own: bool = True,
) -> Config:
    """Read a YAML config with its bases, apply `overrides`, and check everything.

    What a file in a run folder says of code is not listened to; see utils/config/trust.py.

    Args:
        path: the YAML file.
        overrides: command-line words (`--section.key value`, `--stages.NAME.section.key value`) or
            a mapping {section: {key: value}, "stages": {NAME: {section: {key: value}}}}.
        expand: makes stages of a config that has none, before overrides of stages are applied.
        trusted: methods and losses of modules outside of this repository that files of one's own
            name are imported. Without it only modules that were allowed are.
        own: False where a stranger's file names this one.
    Raises:
        ConfigError: naming the file and key, what was expected and what came.
    """
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    own = own and is_ones_own(Path(path))
    chain = _Chain(imports=trusted)
    _load_file(Path(path), chain, own=own)
    stages = _check_stages(chain.stages, chain.stages_of)
    if trusted:
        _allow_named(overrides, [*(overrides.get("stages") or {}).values()])
    config = finish_config(
        chain.merged,
        chain.origin,
        overrides,
        expname=Path(path).stem,
        stages=stages,
        refit=chain.refit,
        expand=expand,
        where=str(path),
        own=own,
    )
    for refused in chain.refused:
        say_refused(refused, overrides)
    return config


def finish_config(
    merged: dict[str, dict[str, Any]],
    origin: dict[str, str],
    overrides: Any,
    *,
    expname: str,
    stages: Sequence[Mapping] = (),
    refit: bool = False,
    expand: Expand | None = None,
    where: str = "config",
    own: bool = True,
) -> Config:
    """Make a Config of what a file says and of overrides; further arguments as of `load_config`.

    Args:
        expname: of a run without one.
        where: the file.
    Raises:
        ConfigError: a stage cannot be built, or an override reaches only some of the stages.
    """
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    of_all = {section: content for section, content in overrides.items() if section != "stages"}
    merge_sections(merged, of_all, COMMAND_LINE, origin)
    _check_it_is_no_stages_own(merged, of_all, stages)
    config = build_config(merged, origin, stages, where)
    if not config.run.expname:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, expname=expname))
    if expand is not None:
        config = expand(config, own)
    of_stages = overrides.get("stages") or {}
    _check_sections_of_stages(of_stages)
    if refit:
        config = _with_refit(config, of_stages, where)
    config = dataclasses.replace(config, stages=tuple(_override_stages(config, of_stages)))
    built = _built_stages(config, where)
    _check_all_are_reached(config, built, of_all, of_stages)
    return config


def _built_stages(config: Config, where: str) -> dict[str, Config]:
    return {stage["name"]: stage_config(config, stage, where) for stage in config.stages}


def _with_refit(
    config: Config,
    overrides: Mapping[str, Any],
    where: str,
) -> Config:
    """With the stages that `refit: true` adds, under the overrides of those that they repeat."""
    names = {stage["name"] for stage in config.stages}
    written = {name: values for name, values in overrides.items() if name in names}
    config = dataclasses.replace(config, stages=tuple(_override_stages(config, written)))
    added = refitted_stages(config.stages, _built_stages(config, where), where)
    stages = _check_stages([*config.stages, *added], where)
    return dataclasses.replace(config, stages=tuple(stages))


def _allow_named(values: Mapping[str, Any], stages: Any) -> None:
    """Allow the modules of methods and losses that what a user wrote names, its stages too."""
    for sections in (values, *(stages if isinstance(stages, list) else ())):
        if not isinstance(sections, Mapping):
            continue
        for section in ("method", "loss"):
            content = sections.get(section)
            name = content.get("name") if isinstance(content, Mapping) else None
            if is_foreign(name):
                allow(module_of(name))


# -------------------------------- stages


def _check_stages(stages: Any, where: str) -> list[dict]:
    """The stages of a file, each with a name, if they are a list of mappings of sections."""
    if stages is None:
        return []
    if not isinstance(stages, (list, tuple)) or not all(isinstance(s, Mapping) for s in stages):
        raise ConfigError(f"{where}: `stages:` must be a list of mappings, got {shown(stages)}")
    if len(stages) > MAX_STAGES:
        raise ConfigError(
            f"{where}: `stages:` must have at most {MAX_STAGES} entries, got {len(stages)}"
        )
    named = [{"name": f"stage{number}", **stage} for number, stage in enumerate(stages, 1)]
    names = [stage["name"] for stage in named]
    bad = [
        name
        for name in names
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,99}", name)
    ]
    if bad or len(set(names)) < len(names):
        raise ConfigError(f"{where}: stage names must be distinct plain names, got {shown(names)}")
    check_conditions(named, where)
    for stage in named:
        of_whole = [
            key for key in OF_THE_WHOLE_RUN if key in _sections_of(stage, where).get("run", {})
        ]
        if of_whole:
            raise ConfigError(
                f"{where}: stage '{stage['name']}' sets run.{of_whole[0]}, but all stages lie in "
                "one run folder: it stands outside of `stages:`"
            )
    return named


def _sections_of(
    stage: Mapping[str, Any], where: str = "", origin: dict[str, str] | None = None
) -> dict[str, dict]:
    """What a stage says, section by section."""
    sections: dict[str, dict[str, Any]] = {}
    prefix = f"{where}: " if where else ""
    values = {key: content for key, content in stage.items() if key not in ("name", WHEN)}
    merge_sections(
        sections, values, f"{prefix}stage '{stage.get('name')}'", {} if origin is None else origin
    )
    return sections


def stage_config(
    config: Config,
    stage: Mapping[str, Any],
    where: str = "",
) -> Config:
    """Return the config of one stage: the file's sections overlaid with the stage's.

    A new method starts from defaults.
    """
    origin: dict[str, str] = {}
    overlay = _sections_of(stage, where, origin)
    merged = to_mapping(config)
    merged.pop("stages", None)
    if overlay.get("method", {}).get("name", config.method.name) != config.method.name:
        merged["method"] = {}
    for section, content in overlay.items():
        merged[section] |= content
    place = f"stage '{stage.get('name')}'"
    return build_config(merged, origin, where=f"{where}: {place}" if where else place)


def _check_sections_of_stages(overrides: Any) -> None:
    """ConfigError if overrides are no {name: {section: {key: value}}}."""
    if not isinstance(overrides, Mapping) or not all(
        isinstance(sections, Mapping) for sections in overrides.values()
    ):
        raise ConfigError(
            f"overrides of stages must be a mapping of names to sections, got {shown(overrides)}"
        )


def _override_stages(config: Config, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages with {name: {section: {key: value}}} put in."""
    stages = {stage["name"]: dict(stage) for stage in config.stages}
    for name, sections in overrides.items():
        if name not in stages:
            known = nearest(name, list(stages)) if stages else "; the config has no stages"
            raise ConfigError(f"{COMMAND_LINE}: there is no stage '{shown_word(name)}'{known}")
        stages[name] |= _override_stage(config, {**stages[name]}, sections)
    return _check_stages(list(stages.values()), COMMAND_LINE)


def _override_stage(
    config: Config,
    stage: Mapping[str, Any],
    sections: Mapping[str, Mapping],
) -> dict[str, Any]:
    """The sections of a stage that overrides change, with values of the right type."""
    where = f"{COMMAND_LINE}: stages.{stage['name']}"
    merge_sections({}, sections, where, {})  # checks them
    of_stage = _sections_of(stage)
    method = {**of_stage.get("method", {}), **sections.get("method", {})}
    kinds = {**SECTIONS, "method": method_options(method.get("name", config.method.name), where)}
    changed = {}
    for section, content in sections.items():
        values = dict(of_stage.get(section, {}))
        for key, value in content.items():
            values[key] = _plain(read_option(kinds[section], section, key, value, where))
        changed[section] = values
    return changed


def _check_it_is_no_stages_own(
    merged: Mapping[str, Mapping],
    overrides: Mapping[str, Mapping],
    stages: Sequence[Mapping],
) -> None:
    """ConfigError for an override of an option that only the method of some stage has."""

    def has(sections: Mapping[str, Mapping], key: str) -> bool:
        name = sections.get("method", {}).get("name")
        return bool(name) and key in {f.name for f in dataclasses.fields(method_options(name))}

    for key, value in overrides.get("method", {}).items():
        owners = [stage["name"] for stage in stages if has(_sections_of(stage), key)]
        if owners and has(merged, "name") and not has(merged, key):
            raise ConfigError(
                f"{COMMAND_LINE}: method {merged['method']['name']} has no option {key}, but that "
                f"of stage {owners[0]} has: {spelling('method', key, value, owners[0])}"
            )


def _check_all_are_reached(
    config: Config,
    built: Mapping[str, Config],
    overrides: Mapping[str, Mapping],
    of_stages: Mapping[str, Mapping],
) -> None:
    """Refuse an override of all stages that some do not take.

    Those set the key themselves, or have another method.
    """
    for section, content in overrides.items():
        for key, value in content.items():
            wanted = getattr(getattr(config, section), key)
            values = {
                name: getattr(getattr(stage, section), key, wanted)
                for name, stage in built.items()
                if key not in of_stages.get(name, {}).get(section, {})
            }
            kept = {name: own for name, own in values.items() if own != wanted}
            if kept:
                owners = ", ".join(f"{name} ({shown(_plain(own))})" for name, own in kept.items())
                named = " ".join(spelling(section, key, value, name) for name in list(kept)[:3])
                raise ConfigError(
                    f"{COMMAND_LINE}: {spelling(section, key, value)} does not reach the stages "
                    f"with a value or a method of their own: {owners}; name each stage that is "
                    f"meant, of {', '.join(built)}: {named}"
                )


# -------------------------------- saving


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_mapping(config: Config) -> dict[str, Any]:
    """Return plain nested dicts, every key resolved: `build_config` makes the same Config of it."""
    sections = {name: _plain_section(getattr(config, name)) for name in SECTIONS}
    return {**sections, "stages": _plain(config.stages)} if config.stages else sections


def _plain_section(section: Any) -> dict[str, Any]:
    return {
        field.name: _plain(getattr(section, field.name)) for field in dataclasses.fields(section)
    }


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal Config."""
    return dump_yaml(to_mapping(config))


def _automatic(field: dataclasses.Field[Any]) -> str:
    """What `auto` becomes, behind a key's meaning."""
    said = field.metadata.get(AUTO)
    return f"; {AUTO} = {said}" if said else ""


def describe(asked: Sequence[str] = ()) -> str:
    """Every key with its type, default, limits and meaning, as text; of a method what it is, too.

    `asked` names the sections and methods that are meant, none all of them; `method` stands for all
    methods.
    """
    known = {*SECTIONS, *METHODS}
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"there is no section or method {shown(name)}{nearest(name, sorted(known))}"
            )
    meant = set(asked) or known
    kinds = [
        (section, kind)
        for section, kind in SECTIONS.items()
        if section in meant and section != "method"
    ]
    kinds += [
        (f"method ({name})", method_options(name))
        for name in sorted(METHODS)
        if meant & {"method", name}
    ]
    lines = [] if asked else [f"{f'{key}:':<34} # {meaning}" for key, meaning in OUTSIDE.items()]
    for section, kind in kinds:
        lines.append(f"{section}:")
        lines += _about(section)
        for key in dataclasses.fields(kind):
            default = dump_yaml(_plain(key.default)).split("\n")[0]
            limits = "".join(
                f", {LIMITS[name][0]} {bound:,}" for name, bound in key.metadata["limits"].items()
            )
            lines.append(
                f"  {f'{key.name}: {default}':<32} # {option_type(kind, key.name)}{limits}: "
                f"{key.metadata['meaning']}{_automatic(key)}"
            )
    return "\n".join(lines)


def _about(section: str) -> list[str]:
    """What a method is, as comments of its section `method (NAME)`; nothing of other sections."""
    method = METHODS.get(section.removeprefix("method (").removesuffix(")"))
    if method is None:
        return []
    return [f"  # {line}" for line in (method.about, method.paper) if line]
