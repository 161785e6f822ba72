"""A trial in a process of its own, with which ends whatever it took of memory.

The process is forked from a server that has imported what training needs and computed nothing, so
that it starts at once and with nothing that an earlier trial left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import InputError

if TYPE_CHECKING:
    from engine.callbacks import EpochEvaluation
    from utils.config.config import Config

CONTEXT = multiprocessing.get_context("forkserver")
GRACE_SECONDS = 600.0  # that a trial has for its checkpoint when the sweep is stopped
STAGE_STEPS = 10**7  # more than the epochs of a stage
FINISHED = "finished"
PRUNED = "pruned"
FAILED = "failed"
INTERRUPTED = "interrupted"  # goes on with the same sweep


@dataclass(frozen=True)
class Task:
    """What a process trains.

    Attributes:
        config: a YAML file, whose run goes on where it stands.
        output: file of what it prints.
        metric: that trials are compared by; "" = the one that selects the model.
        environment: variables of its own.
    """

    config: Path
    output: Path
    metric: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """An evaluation of the trial, which waits to be told whether it is pruned.

    Attributes:
        step: counts epochs, those of a later stage behind all of an earlier one.
        is_last: nothing is left to be saved by pruning it.
    """

    stage: str
    epoch: int
    step: int
    value: float
    is_last: bool


@dataclass(frozen=True)
class Ended:
    """How a trial ended.

    Attributes:
        state: FINISHED, PRUNED, FAILED or INTERRUPTED.
        value: of the metric, of its best model; None where it has none.
        facts: of its run: best_epoch, epochs, train_seconds.
        problem: why it failed, in a line.
    """

    state: str
    value: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class Pruned(Exception):
    """A trial is no better than most others were."""


class Child:
    """A trial that is being trained.

    Attributes:
        connection: gives Reached and Ended.
    """

    def __init__(self, task: Task) -> None:
        CONTEXT.set_forkserver_preload(["engine.trainer"])
        self.connection, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_work, args=(task, other))
        self._process.start()
        other.close()

    def receive(self) -> Reached | Ended:
        """The next thing that it says; Ended too where its process was killed."""
        try:
            return self.connection.recv()
        except EOFError:
            self._process.join()
            return Ended(FAILED, problem=self._death())

    def go_on(self, pruned: bool) -> None:
        """Answer Reached; a process that has died meanwhile says so when it is asked next."""
        try:
            self.connection.send(pruned)
        except OSError:
            return

    def stop(self) -> None:
        """Let it write its checkpoint and end."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGTERM)
            self.go_on(False)  # it may be waiting for an answer
            self._process.join(GRACE_SECONDS)
            self._process.kill()
        self.join()

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()
        self.connection.close()

    def _death(self) -> str:
        code = self._process.exitcode or 0
        if code >= 0:
            return f"its process ended with exit code {code} and said nothing"
        name = signal.Signals(-code).name
        memory = "; the machine's memory may have been full" if -code == signal.SIGKILL else ""
        return f"its process was killed by {name}{memory}"


def own_gpu(slot: int, jobs: int) -> dict[str, str]:
    """Variables that give a trial its own GPU, where several run beside each other."""
    import torch

    from utils.cards import gpu_computes

    if jobs == 1 or not gpu_computes():
        return {}
    number = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = named.split(",") if named else [str(card) for card in range(number)]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}


# -------------------------------- in the process


def _work(task: Task, connection: Connection) -> None:
    """Train, say how it ended, and leave."""
    _redirect(task.output)
    os.environ.update(task.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = _ended(task, connection)
    try:
        connection.send(ended)
    except OSError:  # nobody is there any more
        sys.exit(1)


def _redirect(output: Path) -> None:
    """Let what is printed go into a file, behind what an earlier process printed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _ended(task: Task, connection: Connection) -> Ended:
    from utils.training.interrupt import Interrupted

    try:
        return _trained(task, connection)
    except Pruned:
        return Ended(PRUNED)
    except (Interrupted, KeyboardInterrupt):
        return Ended(INTERRUPTED)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split()) or "no message"
        return Ended(FAILED, problem=f"{kind}{message}"[:500])


def _trained(task: Task, connection: Connection) -> Ended:
    from engine.choosing import chosen
    from engine.trainer import fit, tracked_metric
    from utils.reading.saved import read_facts
    from utils.run.logs import start_logging
    from utils.run.reopened import load_training_config
    from utils.run.stages import member_stages, stage_configs
    from utils.training.interrupt import Interrupted

    def tell(found: EpochEvaluation) -> None:
        metric = task.metric or found.tracked
        if metric not in found.metrics:
            return
        try:
            connection.send(_reached(found, metric, stages))
            is_pruned = connection.recv()
        except (OSError, EOFError) as error:
            raise Interrupted("the sweep has ended", signal.SIGTERM) from error
        if is_pruned:
            raise Pruned

    start_logging()
    config = load_training_config(task.config, (), member_stages)
    stages = stage_configs(chosen(config))
    folder = fit(config, resume=True, on_evaluation=tell)
    found = read_facts(folder / "val_metrics.json")
    metric = task.metric or tracked_metric(config, found)
    if metric not in found:
        raise InputError(
            f"{folder / 'val_metrics.json'}: expected {metric}, got {', '.join(found)}"
        )
    return Ended(FINISHED, float(found[metric]), read_facts(folder / "finished"))


def _reached(
    found: EpochEvaluation,
    metric: str,
    stages: Mapping[str, Config],
) -> Reached:
    from engine.trainer import last_epoch

    names = [*stages]
    place = names.index(found.stage)
    is_over = found.epoch == 0 or found.epoch >= last_epoch(stages[found.stage])
    return Reached(
        found.stage,
        found.epoch,
        place * STAGE_STEPS + found.epoch,
        found.metrics[metric],
        is_last=place == len(names) - 1 and is_over,
    )
