"""What an estimator keeps on disk: a folder to work in, and what a run does not say of labels."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.label_inputs import LabelledTexts, Name
from engine.predictor import Predictor
from utils.config.config import ConfigError
from utils.config.presets import preset_path
from utils.config.trust import asks_for_code
from utils.config.yaml_text import CONFIG_SUFFIXES, dump_yaml
from utils.errors import InputError
from utils.files import check_new_folder, write_json, write_text
from utils.prepare.in_memory import Points, prepare_points_in_memory
from utils.reading.input_files import present
from utils.reading.saved import read_facts
from utils.run.folder import ESTIMATOR
from utils.run.model_files import LABEL_IDS
from utils.text import TextLines

FORMAT = 1
DATA = "data"  # of a working folder: holds the data set
RUN = "run"  # of a working folder: the run
CONFIG = "given.yaml"  # of a working folder: a config that came as a mapping


# -------------------------------- a folder to work in


class Workspace:
    """A folder with the data set and the run of one estimator.

    A temporary one is removed with the object, by the process that made it.
    """

    def __init__(self, folder: Path, is_temporary: bool) -> None:
        self.folder = folder
        if is_temporary:
            weakref.finalize(self, _remove, folder, os.getpid())

    @classmethod
    def temporary(cls) -> Workspace:
        """Make one that goes with the object."""
        return cls(Path(tempfile.mkdtemp(prefix="xmckit-")), True)

    @classmethod
    def named(cls, folder: str | Path) -> Workspace:
        """Take a folder that the user names; InputError unless it is new or empty."""
        path = Path(folder).resolve()
        check_new_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, False)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a fork ends with a copy of the object
        shutil.rmtree(folder, ignore_errors=True)


def write_data_set(
    folder: Path,
    texts: Sequence[str],
    labelled: LabelledTexts,
    name: str,
) -> Path:
    """Write the texts of a fit as a data set in a working folder."""
    names = [str(name) for name in labelled.names] if labelled.has_names else None
    points = Points(texts, labelled.relevance, names, labelled.texts)
    return prepare_points_in_memory(points, folder / DATA / name, overwrite=True)


# -------------------------------- a config


def config_path(config: Any, folder: Path) -> Path:
    """The YAML file of a preset's name, of a path, or of sections, which are written to `folder`.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(config, Mapping):
        path = folder / CONFIG
        write_text(path, dump_yaml({name: _plain(value) for name, value in config.items()}))
        return path
    if isinstance(config, Path) or (isinstance(config, str) and config.endswith(CONFIG_SUFFIXES)):
        return Path(config)
    if not isinstance(config, str):
        raise ConfigError(
            "config: expected a preset's name, a path of a YAML file or a mapping of sections, got "
            f"{type(config).__name__}"
        )
    return preset_path(config)


def _plain(value: Any) -> Any:
    """A setting of any type as those of YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def nested_overrides(overrides: Any) -> dict[str, dict[str, Any]]:
    """Settings by key, `train.epochs` or `stages.NAME.train.epochs`, as `load_config` takes them.

    Raises:
        ConfigError: a key is none of these.
    """
    if not isinstance(overrides, Mapping):
        raise ConfigError(
            'overrides: expected a mapping such as {"train.epochs": 3}, got '
            f"{type(overrides).__name__}"
        )
    nested: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        parts = str(name).split(".")
        target: dict[str, Any] = nested
        if parts[0] == "stages" and len(parts) > 3:
            target = nested.setdefault("stages", {}).setdefault(".".join(parts[1:-2]), {})
            parts = parts[-2:]
        if len(parts) != 2 or not all(parts):
            raise ConfigError(
                f"overrides: expected keys such as train.epochs or stages.NAME.train.epochs, got "
                f"{name!r}"
            )
        target.setdefault(parts[0], {})[parts[1]] = _plain(value)
    return nested


# -------------------------------- what a run does not say


@dataclass(frozen=True)
class Facts:
    """What an estimator knows beside its run.

    Attributes:
        parameters: of its constructor.
        names: of the labels [L], distinct.
        label_counts: training points of each label [L]; None = not known.
        num_points: training points; 0 = not known.
    """

    parameters: dict[str, Any]
    names: list[Name]
    label_counts: np.ndarray | None = None
    num_points: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, Any], labelled: LabelledTexts) -> Facts:
        """Those of an estimator with such parameters that is fitted to such labels."""
        counts = np.bincount(labelled.relevance.indices, minlength=len(labelled.names))
        points = labelled.relevance.shape[0]
        return cls(dict(parameters), labelled.names, counts, points)

    @classmethod
    def read(cls, predictor: Predictor) -> Facts:
        """Those of a folder; of a run that no estimator has made, what it says itself."""
        path = predictor.folder / ESTIMATOR
        if not present(path):
            config = str(predictor.folder / "config.yaml")
            return cls({"config": config}, _names_of_run(predictor))
        facts = read_facts(
            path,
            format=int,
            parameters=dict,
            names=list,
            label_counts=list[int],
            num_points=int,
        )
        if facts["format"] != FORMAT:
            raise InputError(
                f"{path}: expected format {FORMAT}, got {facts['format']}: it was written by "
                "another version"
            )
        labels = len(predictor.label_texts)
        if not len(facts["names"]) == len(facts["label_counts"]) == labels:
            raise InputError(
                f"{path}: expected {labels} names and label_counts, as the model has labels, got "
                f"{len(facts['names'])} and {len(facts['label_counts'])}"
            )
        _check_names(path, facts["names"])
        if asks_for_code(facts["parameters"]):
            raise InputError(
                f"{path}: parameters: expected methods and losses of XMCKit, got code of a module "
                "outside, which is not run on a file's word"
            )
        counts = np.array(facts["label_counts"], np.int64)
        return cls(facts["parameters"], facts["names"], counts, facts["num_points"])

    def save(self, folder: Path) -> None:
        """Write them into a run folder."""
        parameters = {name: _plain(value) for name, value in self.parameters.items()}
        del parameters["folder"]  # taken by the fit that there was
        counts = None if self.label_counts is None else self.label_counts.tolist()
        facts = {
            "format": FORMAT,
            "parameters": parameters,
            "names": self.names,
            "label_counts": counts,
            "num_points": self.num_points,
        }
        write_json(folder / ESTIMATOR, facts)


def _check_names(path: Path, names: list[Any]) -> None:
    """InputError for names that are not distinct, or not all texts or all numbers."""
    are_texts = all(isinstance(name, str) for name in names)
    are_numbers = all(type(name) is int and name.bit_length() < 64 for name in names)
    if not (are_texts or are_numbers) or len(set(names)) < len(names):
        raise InputError(f"{path}: names: expected distinct names, all str or all int")


def _names_of_run(predictor: Predictor) -> list[Name]:
    """Names of a run's labels: those of its data set, else their texts, else their ids."""
    candidates = [predictor.label_texts]
    path = predictor.folder / "model" / LABEL_IDS
    if present(path):
        candidates.insert(0, TextLines(path))
    for names in candidates:
        listed: list[Name] = list(names)
        if len(set(listed)) == len(listed) == predictor.ranker.num_labels:
            return listed
    return list(range(predictor.ranker.num_labels))
