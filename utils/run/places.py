"""Where a run's data lay, so that it is found from any working folder.

A config says `data.root: Datasets`, which is meant from the working folder of the training.
config.yaml keeps it as it was given, environment.json has what it meant then:

    "places": {"root": "/home/me/xmckit/Datasets"}
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.config import Config, DataConfig
from utils.errors import InputError
from utils.reading.input_files import present
from utils.reading.saved import read_facts

KEYS = ("root", "token_cache", "feature_cache")  # of section data, which name folders


def places_of(data: DataConfig) -> dict[str, str]:
    """Return what the folders that section `data` names mean now, by their keys."""
    named = {key: getattr(data, key) for key in KEYS}
    return {key: os.path.abspath(value) for key, value in named.items() if value}


def with_places(
    config: Config,
    folder: Path,
    overrides: Mapping[str, Any],
) -> Config:
    """Return a run's config with the folders of its data where they lay in training.

    A folder that is not there any more is looked for from the working folder, as it was given.

    Args:
        folder: of the run.
        overrides: of the command line, which are meant from the working folder.
    Raises:
        InputError: environment.json is damaged.
    """
    own = overrides.get("data") or {}
    places: dict[str, Any] = {}
    for key, then in _recorded(folder).items():
        given = getattr(config.data, key)
        if not given or key in own or os.path.abspath(given) == then:
            continue
        there = Path(then) / config.data.name if key == "root" else Path(then)
        here = Path(given) / config.data.name if key == "root" else Path(given)
        if there.exists() or not here.exists():
            places[key] = then
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **places))


def _recorded(folder: Path) -> dict[str, str]:
    """What the folders meant where a run was trained, or gone on with the last time.

    Of a run whose stages alone have begun it is what they say.
    """
    for path in (folder / "environment.json", *sorted(folder.glob("stages/*/environment.json"))):
        if not present(path):
            continue
        facts = read_facts(path)
        resumed = facts.get("resumed")
        if isinstance(resumed, list) and resumed and isinstance(resumed[-1], dict):
            facts = resumed[-1]
        places = facts.get("places", {})
        texts = isinstance(places, dict) and all(isinstance(at, str) for at in places.values())
        if not texts:
            raise InputError(f"{path}: places: expected folders by key, got {str(places)[:60]!r}")
        return {key: places[key] for key in KEYS if key in places}
    return {}
