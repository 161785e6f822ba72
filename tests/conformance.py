"""What every method must do, as functions that raise AssertionError where one does not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from torch import Tensor, nn

import train
from models.conformance.made import tiny_sections
from models.encoders import reader
from models.encoders.encoder import TextEncoder
from models.loading import load_run
from tests import commands, distributed_worker
from utils import distributed
from utils.config.config import Config, build_config, to_yaml
from utils.data.texts import ListTexts
from utils.run.finding import find_run
from utils.runtime import Runtime


@dataclass(frozen=True)
class Case:
    """A method's config and where it runs.

    Attributes: sections, of the config, and its stages; root, of the data sets; encoder, a folder
    read for its tokenizer; folder, where runs may lie.
    """

    sections: Mapping[str, Any]
    root: Path
    encoder: str
    folder: Path

    def with_last_stage(self, **more: Mapping[str, Any]) -> Case:
        """The case with `more` laid over the last stage, or over the sections if there is none."""
        *before, last = self.sections.get("stages") or ({},)
        if not last:
            return replace(self, sections={**self.sections, **more})
        changed = {key: {**last.get(key, {}), **values} for key, values in more.items()}
        return replace(self, sections={**self.sections, "stages": [*before, {**last, **changed}]})

    def config(self, name: str, **more: Mapping[str, Any]) -> Config:
        """The config of a run in `folder`/name, `more` laid over its sections."""
        names = {*self.sections, *more} - {"stages"}
        merged = {key: {**self.sections.get(key, {}), **more.get(key, {})} for key in names}
        whole = tiny_sections(self.root, self.encoder, self.folder / name, merged)
        return build_config(whole, {}, self.sections.get("stages", ()))


def logged(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of a run's log by their kind."""
    found: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["kind"], []).append(record)
    return found


def step_losses(folder: Path) -> list[float]:
    """The loss of every step of the last stage."""
    return json.loads((folder / "steps.json").read_text())


def scores_of_test(folder: Path) -> np.ndarray:
    """Scores of the test points [n, L], 0 where a label was not kept."""
    return sp.load_npz(folder / "tst_score_mat.npz").toarray()


DIGIT = 2e-6  # answers are rounded to six digits


def answered(folder: Path) -> list[dict[int, float]]:
    """What predict has answered: for each text of each call the labels with their scores."""
    calls = json.loads((folder / "answers.json").read_text())
    rows = [row for call in calls for row in call]
    return [{place["label"]: place["score"] for place in row} for row in rows]


COLLECTIVES = (
    "barrier",
    "main_first",
    "sum_tensor",
    "gather_parts",
    "gather_rows",
    "gather_arrays",
    "broadcast",
    "agree",
    "total",
)


@contextlib.contextmanager
def no_collectives() -> Iterator[None]:
    """Inside, every function of utils.distributed that all processes must call raises, on one
    process too: a block is scored by the process that has it, alone."""

    def refused(name: str) -> Callable[..., None]:
        def raise_(*_: object, **__: object) -> None:
            raise AssertionError(f"distributed.{name} is a collective: not every process calls it")

        return raise_

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(distributed, name, refused(name))
        yield


@contextlib.contextmanager
def counted_encodings() -> Iterator[list[int]]:
    """Give a list that grows by the number of texts at each call of an encoder inside; what is kept
    of earlier calls is forgotten first."""
    calls: list[int] = []
    reader.forget()

    def count(module: nn.Module, _: object, embeddings: Tensor) -> None:
        if isinstance(module, TextEncoder):
            calls.append(len(embeddings))

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def check_answers(folder: Path) -> None:
    """Ask a finished run as evaluation and a fusion do: without a collective, every label once,
    best first, finite, an empty text included; labels looked up have the scores they rank by."""
    _, config = find_run(folder)
    ranker, _ = load_run(folder, Runtime.start(config))
    texts = ListTexts(distributed_worker.TEXTS)
    with no_collectives():
        scores = ranker.open(texts, given=True)
        values, ids = scores.best(ranker.num_labels)
        looked_up = scores.of(ids)
    assert np.isfinite(values).all()
    assert (np.diff(values, axis=1) <= 0).all()
    assert [sorted(row) for row in ids.tolist()] == [list(range(ranker.num_labels))] * len(texts)
    np.testing.assert_allclose(looked_up, values, rtol=1e-4, atol=1e-5)


# Where a gradient is 0 but for rounding, Adam with a tiny eps turns the sign of a rounding error
# into a whole step.
STEADY = {
    "optim": {"lr": 0.01, "eps": 1e-4},
    "train": {"epochs": 2, "batch_size": 17},
    "eval": {"batch_size": 1},
    "run": {"threads": 1},
}
SECONDS = 100  # far more than a run takes: a process that waits for ever says where, and ends


def check_processes(case: Case, processes: int = 2, tolerance: float = 1e-5) -> None:
    """Train, evaluate and ask on one process and on several: the results agree.

    Every block holds one point and `case` should have few test points, no multiple of the
    processes, so that a collective inside a block never ends.

    Args:
        tolerance: of losses and scores, relative to each and to the largest; 0 for methods that
        compute the same bits. Dropout draws other numbers on several processes: a case must do
        without.
    """
    one = case.config("processes1", **STEADY)
    many = case.config(f"processes{processes}", **STEADY)
    distributed_worker.run(one)
    path = case.folder / "config.yaml"
    path.write_text(to_yaml(many))
    words = ("-m", "tests.distributed_worker", "--seconds", SECONDS, path)
    commands.launch(processes, *words)
    losses = [step_losses(config.run_folder) for config in (one, many)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    scores = [scores_of_test(config.run_folder) for config in (one, many)]
    size = tolerance * max(1.0, float(abs(scores[0]).max()))
    np.testing.assert_allclose(scores[1], scores[0], rtol=tolerance, atol=size)
    answers = [answered(config.run_folder) for config in (one, many)]
    for first, second in zip(*answers, strict=True):
        assert second == pytest.approx(first, rel=tolerance, abs=max(size, DIGIT))


def check_evaluation_changes_nothing(case: Case, epochs: int = 3) -> None:
    """Evaluate after every epoch, and at the end alone: the last evaluation sees the same model.

    A ranker that keeps a copy of what it saw at its first evaluation would answer as then; one that
    is evaluated in the tensors of training, and changes them, would lead to another model.
    """
    folders = []
    for interval in (1, epochs):
        # the best model of an earlier stage depends on how often it is evaluated
        changed = case.with_last_stage(train={"epochs": epochs, "eval_interval": interval})
        config = changed.config(f"interval{interval}", run={"threads": 1})
        folders.append(train.fit(config))
    often, once = (logged(folder) for folder in folders)
    assert [r["loss"] for r in often["train"]] == [r["loss"] for r in once["train"]]
    last, alone = often["val"][-1], once["val"][-1]
    assert {k: v for k, v in last.items() if "@" in k} == {
        k: v for k, v in alone.items() if "@" in k
    }
