"""A finished run as a folder that answers elsewhere: `Predictor(folder)`, `XMC.load`, serve.py.

config.yaml, finished      settings, without places of this machine
model/                     as in the run: weights, label texts, calibration, thresholds
estimator.json             of a run that `xmckit.XMC` made
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.predictor import Predictor
from utils.config.config import Config, to_mapping
from utils.config.yaml_text import dump_yaml
from utils.errors import InputError
from utils.export.portable_config import make_portable, portable
from utils.files import link_or_copy, write_text
from utils.run.environment import check_labels
from utils.run.folder import ESTIMATOR
from utils.run.model_files import complete_model, model_format

BESIDE_MODEL = ("finished", ESTIMATOR)
COMPARED_K = 10
TOLERANCE = 1e-4  # of scores, in proportion where they are larger than 1


def write_answering(
    run: Path,
    config: Config,
    folder: Path,
) -> None:
    """Write what answering needs of a run; large files are linked where the disk can.

    Args:
        run: its folder.
        config: with the overrides that the exported folder shall have.
        folder: where to write.
    Raises:
        InputError: a model of before there were format versions, whose data set is another one now.
    """
    model = folder / "model"
    shutil.copytree(run / "model", model, copy_function=link_or_copy)
    if not model_format(model):
        check_labels(run, config.dataset_folder)
        complete_model(model, config.dataset_folder)
    for path in model.rglob("config.yaml"):
        make_portable(path)
    write_text(folder / "config.yaml", dump_yaml(portable(to_mapping(config))))
    for name in BESIDE_MODEL:
        if (run / name).is_file():
            link_or_copy(run / name, folder / name)


def compare_answers(
    before: Predictor,
    folder: Path,
    texts: Sequence[str],
) -> float:
    """Return the largest difference of the scores that a run and its exported folder give.

    Raises:
        InputError: it is more than TOLERANCE, or the labels have other texts.
    """
    after = Predictor(folder)
    labels = len(before.label_texts)
    if len(after.label_texts) != labels:
        raise InputError(f"{folder}: expected {labels} labels, got {len(after.label_texts)}")
    largest = 0.0
    answers = [predictor(list(texts), min(COMPARED_K, labels)) for predictor in (before, after)]
    for text, ours, theirs in zip(texts, *answers, strict=True):
        scores = [np.array([place["score"] for place in answer]) for answer in (ours, theirs)]
        difference = float(np.abs(scores[0] - scores[1]).max(initial=0))
        limit = TOLERANCE * max(1.0, float(np.abs(scores[0]).max(initial=0)))
        named = [{place["label"]: place["text"] for place in answer} for answer in (ours, theirs)]
        same = all(named[1].get(label, name) == name for label, name in named[0].items())
        if not same or not difference <= limit:
            raise InputError(
                f"what was written answers otherwise: scores of {text[:60]!r} differ by "
                f"{difference:.1e}, expected at most {limit:.1e}, or labels have other texts; "
                "nothing is exported"
            )
        largest = max(largest, difference)
    return largest
