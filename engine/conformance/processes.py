"""Train, evaluate and ask, on one process and on several: the results agree."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.conformance.case import Case, answered, decisions_of, losses_of, scores_of_test
from engine.evaluator import evaluate_run
from engine.predictor import Predictor
from engine.trainer import fit
from utils import distributed
from utils.config.config import Config, to_yaml

Launch = Callable[..., Any]  # launch(processes, *words of python); AssertionError where one fails
TEXTS = ("the linux tool", "", "glyph and letter")
ASKED = 2  # no set of the tests has fewer labels
SECONDS = 300  # far more than a run takes
ROOT = Path(__file__).parents[2]
DIGIT = 2e-6  # answers are rounded to six digits
# Where a gradient is 0 but for rounding, Adam with a tiny eps turns the sign of a rounding error
# into a whole step.
STEADY: dict[str, dict[str, Any]] = {
    "optim": {"lr": 0.01, "eps": 1e-4},
    "train": {"epochs": 2, "batch_size": 17},
    "eval": {"batch_size": 1},
    "run": {"threads": 1},
}


def train_and_ask(config: Config, resume: bool = False) -> None:
    """Train, evaluate and ask for labels of TEXTS; a collective.

    The answers are written beside the run.
    """
    folder = fit(config, resume=resume)
    evaluate_run(folder)
    predictor = Predictor(folder)
    answers = [predictor(texts, k=ASKED) for texts in (TEXTS, TEXTS[:1])]
    if distributed.is_main():
        (folder / "answers.json").write_text(json.dumps(answers))


def environments(processes: int) -> list[dict[str, str]]:
    """What each of several CPU processes finds in its environment, as of `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everyone = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_MIXED_PRECISION": "no",
        "OMP_NUM_THREADS": "1",
    }
    return [{**everyone, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def launch(processes: int, *words: object) -> None:
    """Run `python WORDS` in several CPU processes, which see what this one can import.

    Raises:
        AssertionError: one of them fails, or takes too long; all are ended then.
    """
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, *map(str, words)]
    with tempfile.TemporaryFile("w+") as output:
        children = [
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": path, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for own in environments(processes)
        ]
        try:
            _wait(children)
        finally:
            for child in children:
                child.kill()
                child.wait()
        output.seek(0)
        told = output.read()
    assert not any(child.returncode for child in children), f"{processes} processes:\n{told}"


def _wait(children: list[subprocess.Popen]) -> None:
    """Until all have ended, or one has failed."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        codes = [child.poll() for child in children]
        if any(codes) or None not in codes:
            return
        time.sleep(0.05)


# -------------------------------- what is compared


def check_processes(
    case: Case, processes: int = 2, tolerance: float = 1e-5, start: Launch = launch
) -> None:
    """Train, evaluate and ask on one process and on several: the results agree.

    Every block holds one point and `case` should have few test points, no multiple of the
    processes, so that a collective inside a block never ends.

    Args:
        tolerance: of losses and scores, relative to each and to the largest; 0 for methods that
            compute the same bits. Dropout draws other numbers on several processes: a case must do
            without.
        start: runs a command in several processes.
    """
    one = case.config("processes1", **STEADY)
    many = case.config(f"processes{processes}", **STEADY)
    train_and_ask(one)
    path = case.folder / "config.yaml"
    path.write_text(to_yaml(many))
    words = ("-m", "engine.conformance", "--seconds", SECONDS // 3, path)
    start(processes, *words)
    folders = (one.run_folder, many.run_folder)
    check_near("losses", map(losses_of, folders), tolerance)
    size = check_near("scores of test points", map(scores_of_test, folders), tolerance)
    for first, second in zip(*map(answered, folders), strict=True):
        assert first.keys() == second.keys(), f"answers: {first}, of several {second}"
        scores = [[answer[label] for label in first] for answer in (first, second)]
        check_near("scores of answers", scores, tolerance, max(size, DIGIT))
    decisions = [decisions_of(folder) for folder in folders]
    check_decisions(decisions[0], decisions[1], is_exact=tolerance == 0)


def check_decisions(
    one: Mapping[str, np.ndarray], many: Mapping[str, np.ndarray], is_exact: bool
) -> None:
    """Compare the calibration and the thresholds of one process and of several.

    Args:
        is_exact: the scores that they were fitted on are the same bits; otherwise a threshold may
            lie on the other side of a score, and what was fitted is compared by its kind alone.
    Raises:
        AssertionError: they differ.
    """
    assert one.keys() == many.keys(), f"decisions have {sorted(one)}, of several {sorted(many)}"
    for name in one if is_exact else one.keys() & {"num_points"}:
        np.testing.assert_array_equal(
            many[name], one[name], err_msg=f"decisions: {name} on several processes"
        )


def check_near(
    what: str,
    results: Iterable[Any],
    tolerance: float,
    size: float = 0.0,
) -> float:
    """Compare results of one process and of several.

    Raises:
        AssertionError: they lie further apart than `tolerance`, relative to each and to the
            largest, and than `size`.
    Returns:
        what `tolerance` of the largest is.
    """
    one, many = (np.asarray(result, np.float64) for result in results)
    assert one.shape == many.shape, f"{what} of several processes have another shape"
    size = max(size, tolerance * max(1.0, float(abs(one).max(initial=0.0))))
    np.testing.assert_allclose(
        many, one, rtol=tolerance, atol=size, err_msg=f"{what} on several processes"
    )
    return size
