"""JSON configs of the released NGAME and DEXA code -> sections and stages of `utils.config`.

    # Results/DEXA/LF-AmazonTitles-131K/v_0_108
    python train.py DEXA/LF-AmazonTitles-131K.json --run.seed 108

A file has three sections: global; siamese, the encoder (M1); extreme, the classifiers (M4), which
take from siamese what they do not say themselves. They become three stages: encoder, classifiers,
fused. Every key is converted, dropped for a stated reason, or refused, and the log says which. What
the released code fixes without a key stands in `GIVEN`.

Its command line has a type, a version and a seed, which name its folders: the type is the folder
that the file lies in (else what its keys make it), the seed is run.seed, and runs are named
v_<version>_<seed>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.config import Config, ConfigError, Expand, finish_config, nearest, parse_overrides
from utils.config.legacy_json_rules import FUSED, RULES, XC, Values
from utils.config.legacy_log import log, say, shown

SECTIONS = ("global", "siamese", "extreme")
TYPES = ("DEXA", "NGAME", "SiameseXML", "DeepXML")
NEEDED = {
    "global": ("dataset", "encoder_name", "max_length"),
    "siamese": (
        "num_epochs",
        "batch_size",
        "learning_rate",
        "warmup_steps",
        "margin",
        "sampling_curr_epochs",
    ),
    "extreme": ("num_epochs", "batch_size", "learning_rate", "margin", "sampling_curr_epochs"),
}
GIVEN: Values = {
    "encoder.pooling": "mean",
    "encoder.normalize": True,
    "encoder.dropout": None,
    "method.name": "dexa",
    "method.pool": "in-batch",
    "method.tau": 1.0,
    "method.batches": "clustered",
    "loss.name": "triplet",
    "loss.sample": True,
    "loss.hardness_tau": 0.1,
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": None,
    f"{XC}method.name": "xc",
    f"{XC}method.pool": "in-batch",
    f"{XC}method.dropout": 0.5,
    f"{XC}method.batches": "clustered",
    f"{XC}loss.sample": False,
    f"{XC}loss.hardness_tau": 1.0,
    f"{FUSED}method.name": "fused",
    f"{FUSED}method.depth": 7,
    f"{FUSED}train.epochs": 0,
}
# What extreme takes over from siamese where its stage would start from a default of its own.
INHERITED = (
    "sampling_curr_epochs",
    "sampling_refresh_interval",
    "loss_num_positives",
    "optim",
    "weight_decay",
    "sampling_init_cluster_size",
)


def is_released(values: Mapping[str, Any]) -> bool:
    """Whether a file's keys are sections of the released NGAME and DEXA code."""
    return any(section in values for section in SECTIONS)


def load_released(
    path: Path,
    values: Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any],
    expand: Expand | None = None,
) -> Config:
    """Make a Config of a file's mapping, by the arguments of `utils.config.config.load_config`."""
    log.info("%s is a config of the released NGAME or DEXA code:", path)
    settings = _checked(values, path)
    merged, stages, origin = convert(settings, str(path))
    if not isinstance(overrides, Mapping):
        overrides = parse_overrides(overrides)
    run = merged.setdefault("run", {})
    run.setdefault("project", _type(path, settings["global"]))
    seed = overrides.get("run", {}).get("seed", run.get("seed", 0))
    expname = f"v_{settings['global'].get('version', 0)}_{seed}"
    say("type, version and seed", {"run.project": run["project"], "run.expname": expname})
    return finish_config(
        merged,
        origin,
        overrides,
        expname=expname,
        stages=stages,
        expand=expand,
        where=str(path),
    )


def _checked(values: Mapping[str, Any], path: Path) -> dict[str, Values]:
    """The three sections, extreme with what it takes over from siamese.

    Raises:
        ConfigError: a section or a key is unknown or missing.
    """
    for name in [*values, *SECTIONS]:
        if name not in SECTIONS:
            raise ConfigError(f"{path}: unknown section '{name}'{nearest(name, SECTIONS)}")
        if not isinstance(values.get(name), Mapping):
            raise ConfigError(
                f"{path}: expected the sections {', '.join(SECTIONS)}, each a mapping; '{name}' "
                f"is {shown(values[name]) if name in values else 'missing'}"
            )
    for section, rules in RULES.items():
        for key in values[section]:
            if key not in rules:
                raise ConfigError(
                    f"{path}: unknown key '{section}.{key}'{nearest(key, list(rules))}"
                )
    settings = {section: dict(values[section]) for section in SECTIONS}
    inherited = {key: settings["siamese"][key] for key in INHERITED if key in settings["siamese"]}
    settings["extreme"] = inherited | settings["extreme"]
    for section, keys in NEEDED.items():
        if missing := [key for key in keys if key not in settings[section]]:
            raise ConfigError(f"{path}: '{section}.{missing[0]}' is missing")
    return settings


def convert(
    settings: Mapping[str, Values], where: str
) -> tuple[dict[str, Values], list[Values], dict[str, str]]:
    """Convert sections of the released code, and log what becomes of each key.

    Args:
        where: the file, for messages.
    Returns:
        {section: {key: value}} of all stages, the stages, and where each "section.key" comes from.
    Raises:
        ConfigError: a value has no counterpart.
    """
    placed: dict[str, dict[str, Values]] = {"": {}, XC: {}, FUSED: {}}
    origin: dict[str, str] = {}
    if settings["global"].get("aux_num_vectors"):
        given = GIVEN | {f"{XC}optim.eps": 1e-8}
    else:
        given = GIVEN | {"method.num_vectors": 0}
    _place(given, placed)
    say("no key", given, "fixed in the released code")
    for section, rules in RULES.items():
        for key, value in settings[section].items():
            try:
                values, note = rules[key](value, settings[section])
            except ConfigError as error:
                raise ConfigError(f"{where}: {section}.{key} {error}") from None
            say(f"{section}.{key}: {shown(value)}", values, note)
            _place(values, placed)
            origin |= dict.fromkeys(values, f"{where} ({section}.{key})")
    stages: list[Values] = [
        {"name": "encoder"},
        {"name": XC[:-1], **placed[XC]},
        {"name": FUSED[:-1], **placed[FUSED]},
    ]
    return placed[""], stages, origin


def _place(values: Values, placed: dict[str, dict[str, Values]]) -> None:
    for target, value in values.items():
        stage, _, name = target.rpartition(":")
        section, key = name.split(".")
        placed[f"{stage}:" if stage else ""].setdefault(section, {})[key] = value


def _type(path: Path, settings: Values) -> str:
    """The folder that the file lies in, as released; else by its keys."""
    folder = path.resolve().parent.name
    if folder in TYPES:
        return folder
    return "DEXA" if settings.get("aux_num_vectors") else "NGAME"
