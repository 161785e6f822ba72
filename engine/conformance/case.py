"""A method's config on a made data set, and what a run of it has left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from safetensors.torch import load_file
from torch import Tensor

from engine.conformance.made import tiny_sections, write_dataset, write_encoder
from utils.answering.decider import DECIDER
from utils.config.config import Config, build_config
from utils.config.plugins import allow, is_foreign, module_of
from utils.reading.arrays import read_arrays


@dataclass(frozen=True)
class Case:
    """A method's config and where it runs.

    Attributes:
        sections: of the config, and its stages.
        root: of the data sets.
        encoder: a folder read for its tokenizer.
        folder: where runs may lie.
    """

    sections: Mapping[str, Any]
    root: Path
    encoder: str
    folder: Path

    @classmethod
    def made(cls, sections: Mapping[str, Any], folder: Path) -> Case:
        """A case on a data set and an encoder that are written into `folder`.

        Modules that the sections name may be imported from here on.
        """
        for name in _names(sections):
            if is_foreign(name):
                allow(module_of(name))
        write_dataset(folder / "sets" / "tiny")
        write_dataset(folder / "few" / "tiny", test_points=3)
        encoder = write_encoder(folder / "encoder")
        return cls(sections, folder / "sets", encoder, folder / "runs")

    def with_few_points(self) -> Case:
        """The same on a data set of three test points: fewer than two blocks of two processes."""
        return replace(self, root=self.root.parent / "few")

    def with_last_stage(self, **more: Mapping[str, Any]) -> Case:
        """The case with `more` laid over the last stage, or over the sections if there is none."""
        sections = dict(self.sections)
        stages: list[Mapping[str, Any]] = [*sections.get("stages", ())]
        if not stages:
            return replace(self, sections={**sections, **_laid_over(sections, more)})
        stages[-1] = {**stages[-1], **_laid_over(stages[-1], more)}
        return replace(self, sections={**sections, "stages": stages})

    def config(self, name: str, **more: Mapping[str, Any]) -> Config:
        """The config of a run in `folder`/name, `more` laid over its sections."""
        names = {*self.sections, *more} - {"stages"}
        merged = {key: {**self.sections.get(key, {}), **more.get(key, {})} for key in names}
        whole = tiny_sections(self.root, self.encoder, self.folder / name, merged)
        return build_config(whole, {}, self.sections.get("stages", ()))


def _laid_over(
    sections: Mapping[str, Any], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Those sections that `more` names, its values over what they have."""
    return {key: {**sections.get(key, {}), **values} for key, values in more.items()}


def _names(sections: Mapping[str, Any]) -> Iterator[Any]:
    """Names of methods and losses of some sections and of their stages."""
    for part in (sections, *sections.get("stages", ())):
        for section in ("method", "loss"):
            yield part.get(section, {}).get("name")


# -------------------------------- what a run leaves


def logged(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of a run's log by their kind."""
    found: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["kind"], []).append(record)
    return found


def losses_of(folder: Path) -> list[float]:
    """The mean loss of each epoch of the last stage."""
    return [record["loss"] for record in logged(folder)["train"]]


def measured(record: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a record of validation."""
    return {name: value for name, value in record.items() if "@" in name}


def scores_of_test(folder: Path) -> np.ndarray:
    """Scores of the test points [n, L], 0 where a label was not kept."""
    return sp.load_npz(folder / "tst_score_mat.npz").toarray()


def answered(folder: Path) -> list[dict[int, float]]:
    """What predict has answered: for each text of each call the labels with their scores."""
    calls = json.loads((folder / "answers.json").read_text())
    rows = [row for call in calls for row in call]
    return [{place["label"]: place["score"] for place in row} for row in rows]


def decisions_of(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of calibration and thresholds beside a run's model; {} where there are none."""
    path = folder / "model" / DECIDER
    return read_arrays(path) if path.is_file() else {}


def state_of(folder: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint holds of parameters, optimizers and random states."""
    found = {}
    for path in sorted((folder / "last").glob("*.safetensors")):
        found.update({f"{path.stem}|{name}": value for name, value in load_file(path).items()})
    return found
