"""A config that leaves things to the data set -> the config that is trained on it.

    config = chosen(config)      # without `auto`, with the stages that this data set can have

`auto` values become what the rules of engine/chosen_values.py say; a stage whose `when:` does not
hold is left out, with what refers to it in lists and mappings, such as a fusion's members.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from engine.chosen_values import (
    RULES,
    has_epochs,
    label_lengths,
    point_lengths,
    reads_tokens,
    share_cut,
)
from utils import distributed
from utils.config.automatic import (
    AUTO,
    FEWEST_FOR_FUSION,
    WHEN,
    automatic_keys,
    conditions_of,
)
from utils.config.config import Config, ConfigError, build_config, stage_config, to_mapping
from utils.data.facts import DataFacts
from utils.plan.sizes import POSITIVES, Assumed
from utils.run.stages import of_stage

log = logging.getLogger(__name__)
Stage = Mapping[str, Any]


def chosen(config: Config, facts: DataFacts | None = None) -> Config:
    """Return a config in which nothing is left to the data set.

    One that leaves nothing to it stays as it is, and the data is not looked at.

    Args:
        facts: of the data set; None = read from its files.
    Raises:
        InputError: there is no such data set, or the data leaves no stage to be trained.
    """
    if not leaves_choices(config):
        return config
    facts = facts or DataFacts.read(config)
    config = _with_stages_that_can_be(config, facts)
    stages = []
    said: set[str] = set()
    for stage in config.stages:
        with of_stage(stage["name"]):
            stages.append(_chosen_stage(config, stage, facts, said))
    config, values = _with_values(config, facts)
    if not stages:
        _say(values, config, "", facts, said)
    return dataclasses.replace(config, stages=tuple(stages))


def assumed_facts(assumed: Assumed) -> DataFacts | None:
    """Facts of a data set that a plan was told of, whose labels have texts; None if of none."""
    if assumed.points is None or assumed.labels is None or assumed.tokens is None:
        return None
    pairs = assumed.points * POSITIVES
    return DataFacts(None, assumed.points, assumed.labels, pairs, assumed_tokens=assumed.tokens)


def leaves_choices(config: Config) -> bool:
    """Whether a config leaves a value or a stage to the data set."""
    if automatic_keys(config):
        return True
    return any(
        WHEN in stage or automatic_keys(stage_config(config, stage)) for stage in config.stages
    )


def holds(condition: str, facts: DataFacts) -> bool:
    """Whether a condition of utils/config/automatic.py holds of a data set."""
    negated = condition.startswith("no_")
    if condition in ("texts", "no_texts"):
        return facts.has_texts != negated
    if condition in ("label_texts", "no_label_texts"):
        return facts.has_label_texts != negated
    assert condition in ("few_points", "many_points"), condition
    return (facts.points >= FEWEST_FOR_FUSION) == (condition == "many_points")


# -------------------------------- stages


def _with_stages_that_can_be(config: Config, facts: DataFacts) -> Config:
    """The config with the stages whose conditions hold; a single one becomes the config itself."""
    if not config.stages:
        return config
    left_out: dict[str, str] = {}
    for stage in config.stages:
        missing = [name for name in conditions_of(stage) if not holds(name, facts)]
        if missing:
            left_out[stage["name"]] = missing[0]
    kept = [stage for stage in config.stages if stage["name"] not in left_out]
    if not kept:
        raise ConfigError(
            f"{config.run.expname}: data set {config.data.name} can have none of the stages: "
            + ", ".join(f"{name} needs {condition}" for name, condition in left_out.items())
        )
    if distributed.is_main():
        for name, condition in left_out.items():
            log.info("stage %s is left out: it is for data with %s", name, condition)
    stages = [_without(stage, left_out) for stage in kept]
    if len(stages) == 1:
        return stage_config(dataclasses.replace(config, stages=()), stages[0])
    return dataclasses.replace(config, stages=tuple(stages))


def _without(stage: Stage, left_out: Mapping[str, str]) -> dict[str, Any]:
    """A stage without its condition and without what it says of stages that are left out."""
    values = {key: value for key, value in stage.items() if key != WHEN}
    return _pruned(values, left_out, stage["name"])


def _pruned(
    value: Any,
    left_out: Mapping[str, str],
    name: str,
) -> Any:
    """A stage's values without the entries of lists and mappings that refer to stages left out.

    Raises:
        ConfigError: a single value does; that stage needs the same condition.
    """
    if isinstance(value, Mapping):
        found = {}
        for key, part in value.items():
            if not _refers(part, left_out):
                found[key] = _pruned(part, left_out, name)
            elif key in ("start_from", "stop_epoch"):
                raise ConfigError(
                    f"stage '{name}': {key} is '{part}', a stage that is left out of this data "
                    f"set; give both the same `{WHEN}:`"
                )
        return found
    if isinstance(value, (list, tuple)):
        return [_pruned(part, left_out, name) for part in value if not _refers(part, left_out)]
    return value


def _refers(value: Any, left_out: Mapping[str, str]) -> bool:
    """Whether a value is a reference to a stage that is left out."""
    if not isinstance(value, str):
        return False
    kind, _, name = value.partition(":")
    return kind in ("stage", "best") and name in left_out


# -------------------------------- values


def _chosen_stage(
    config: Config,
    stage: Stage,
    facts: DataFacts,
    said: set[str],
) -> dict[str, Any]:
    """A stage with the values that are its own on this data set."""
    found, values = _with_values(stage_config(config, stage), facts)
    _say(values, found, f"stage {stage['name']}: ", facts, said)
    written = dict(stage)
    for place, value in values.items():
        section, key = place.split(".")
        written[section] = {**written.get(section, {}), key: value}
    return written


def _with_values(config: Config, facts: DataFacts) -> tuple[Config, dict[str, Any]]:
    """The config of one stage with its `auto` values chosen, and these by "section.key"."""
    asked = set(automatic_keys(config))
    values: dict[str, Any] = {}
    for place, rule in RULES.items():
        if place not in asked:
            continue
        section, key = place.split(".")
        values[place] = rule(config, facts)
        changed = dataclasses.replace(getattr(config, section), **{key: values[place]})
        config = dataclasses.replace(config, **{section: changed})
    assert asked == values.keys(), f"no rule says what {AUTO} is for {asked - values.keys()}"
    found = build_config(to_mapping(config), {}, config.stages)  # within its limits
    return dataclasses.replace(found, given=config.given), values


def _say(
    values: Mapping[str, Any],
    config: Config,
    place: str,
    facts: DataFacts,
    said: set[str],
) -> None:
    """Say what was chosen for a stage, as far as its method reads it, and what is cut of texts.

    Args:
        said: what was said of earlier stages, and is not said again; of `refit: true` all is.
    """
    told = {key: value for key, value in values.items() if _counts(key, config)}
    if not told or not distributed.is_main():
        return
    words = ", ".join(f"{key} {value}" for key, value in told.items())
    _say_once(f"{place}chosen for this data: {words}", f"{config.method} {words}", said)
    for key, name, are_there, lengths in (
        ("data.max_len", "texts", facts.has_texts, point_lengths),
        ("data.label_max_len", "label texts", facts.has_label_texts, label_lengths),
    ):
        if key in told and are_there:
            cut = share_cut(lengths(config, facts), told[key])
            line = f"{key} {told[key]} cuts {100 * cut:.1f} % of the {name}"
            _say_once(line, line, said)


def _say_once(
    line: str,
    known_by: str,
    said: set[str],
) -> None:
    """Log a line unless what it is known by was said before."""
    if known_by not in said:
        log.info("%s", line)
    said.add(known_by)


def _counts(key: str, config: Config) -> bool:
    """Whether the method of a stage reads a key."""
    if key in ("data.max_len", "data.label_max_len"):
        return reads_tokens(config)
    if key.startswith(("train.", "optim.")):
        return has_epochs(config)
    return True
