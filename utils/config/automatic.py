"""What a config leaves to the data set: values `auto`, and stages that only some data sets have.

    data: {max_len: auto}                # a key whose option says what `auto` becomes
    stages:
      - {name: dual, when: [label_texts]}

A Config holds the word `auto` in the place of a number until `engine.choosing.chosen` has read the
data set; what is trained, and written into the run folder, holds none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError

if TYPE_CHECKING:
    from utils.config.config import Config

AUTO = "auto"
WHEN = "when"  # key of a stage beside its sections
FEWEST_FOR_FUSION = 250  # labelled points; of 300 a fusion ranked better than its trees
CONDITIONS = {  # names that `when:` may list; all of a list must hold
    "texts": "its points have texts (raw/trn_X.txt)",
    "no_texts": "its points have features alone",
    "label_texts": "its labels have texts (raw/Y.txt)",
    "no_label_texts": "its labels have no texts",
    "few_points": "it has too few training points to fit a fusion on some that are held out",
    "many_points": "it has enough training points for that",
}


def takes_auto(field: dataclasses.Field[Any]) -> bool:
    """Whether the option of a section may be left to the data set."""
    return bool(field.metadata.get(AUTO))


def automatic_keys(config: Config) -> list[str]:
    """Each "section.key" of a config that is `auto`, its stages apart."""
    found = []
    for place in dataclasses.fields(config):
        section = getattr(config, place.name)
        if not dataclasses.is_dataclass(section):
            continue
        for field in dataclasses.fields(section):
            if takes_auto(field) and getattr(section, field.name) == AUTO:
                found.append(f"{place.name}.{field.name}")
    return found


def conditions_of(stage: Mapping[str, Any]) -> list[str]:
    """The names that the `when:` of a checked stage lists."""
    return list(stage.get(WHEN) or ())


def check_conditions(stages: Iterable[Mapping[str, Any]], where: str) -> None:
    """Refuse a `when:` that is no list of known conditions.

    Raises:
        ConfigError: naming the file and the stage, and the conditions that there are.
    """
    for stage in stages:
        asked = stage.get(WHEN)
        is_list = asked is None or isinstance(asked, (list, tuple))
        if not is_list or not all(_is_condition(name) for name in asked or ()):
            raise ConfigError(
                f"{where}: stage '{stage.get('name')}': `{WHEN}:` must be a list of conditions "
                f"({', '.join(CONDITIONS)}), got {asked!r}"[:1000]
            )


def _is_condition(name: Any) -> bool:
    return isinstance(name, str) and name in CONDITIONS
