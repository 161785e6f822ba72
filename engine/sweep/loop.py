"""A sweep: trials one after the other, or some beside each other, until as many as wanted ended.

    Sweep(Asked("configs/mine.yaml", tries=["optim.lr=1e-3,2e-3"], trials=20)).run()

Every trial is a run of its own in `trial-NNN/` of the sweep's folder, trained from `trial-NNN.yaml`
in a process of its own. The same sweep again goes on: with trials that were interrupted, then with
those that are still owed.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from engine.sweep.checks import SWEEP, check_folder, check_launch, check_measured, check_tries
from engine.sweep.child import FAILED, FINISHED, INTERRUPTED, Child, Ended, Reached, Task, own_gpu
from engine.sweep.results import best, table, write_best, write_tables
from engine.sweep.study import RESULT, Study, imported
from utils.config.config import Config, ConfigError, to_mapping, to_yaml
from utils.errors import InputError
from utils.files import clear_folder, write_json, write_text
from utils.report.formats import Table
from utils.run.lock import is_locked, locked
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages
from utils.sweep.ranges import as_words, parse_tries

log = logging.getLogger("sweep")
USUAL_TRIALS = 20


class Stopped(Exception):
    """The sweep was told to end by SIGTERM."""


@dataclass(frozen=True)
class Asked:
    """What a sweep is.

    Attributes:
        config: YAML file.
        tries: `KEY=VALUES` each.
        words: overrides of the command line, for all trials.
        trials: how many; None = all combinations, or USUAL_TRIALS where these are more or endless.
        folder: None = the run's folder with `-sweep` behind it.
        metric: by which trials are compared; "" = the one that selects the model.
        seed: of what is drawn.
        jobs: trials beside each other, on a GPU each where there are several.
        prune: end trials that are below the median of the others.
    """

    config: str | Path
    tries: Sequence[str]
    words: Sequence[str] = ()
    trials: int | None = None
    folder: str | Path | None = None
    metric: str = ""
    seed: int = 0
    jobs: int = 1
    prune: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a sweep found: its trials, and of the best one number, metric, config and run folder."""

    shown: Table
    failed: int
    number: int | None = None
    value: float | None = None
    config: Path | None = None
    run: Path | None = None


class Sweep:
    """Checks everything when it is made; `run` trains.

    Raises:
        InputError: a key, a value, the data set or the sweep's folder cannot be used.
    """

    def __init__(self, asked: Asked) -> None:
        imported()
        check_launch()
        self.asked = asked
        self.tries = parse_tries(asked.tries)
        if asked.trials is not None and asked.trials < 1:
            raise InputError(f"--trials: expected at least 1, got {asked.trials}")
        if asked.jobs < 1:
            raise InputError(f"--jobs: expected at least 1, got {asked.jobs}")
        if asked.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {asked.seed}")
        self.base = self._config({})
        check_tries(self.tries, self._config)
        self.metric = check_measured(self.base, asked.metric)
        folder = self.base.run_folder
        self.folder = Path(asked.folder or folder.with_name(f"{folder.name}-sweep"))
        check_folder(self.folder, self._said())

    # ---- what it is
    def _config(self, values: Mapping[str, str], folder: Path | None = None) -> Config:
        words = [*self.asked.words, *as_words(values)]
        if folder is not None:
            words.append(f"--run.dir={folder}")
            words += self._threads()
        return load_training_config(self.asked.config, words, member_stages)

    def _threads(self) -> list[str]:
        """Trials beside each other share the cores."""
        if self.asked.jobs == 1 or self.base.run.threads is not None or "run.threads" in self.tries:
            return []
        return [f"--run.threads={max(len(os.sched_getaffinity(0)) // self.asked.jobs, 1)}"]

    def _said(self) -> dict[str, Any]:
        """What must be the same where a sweep goes on."""
        return {
            "config": to_mapping(self.base),
            "tries": dict(word.partition("=")[::2] for word in self.asked.tries),
            "metric": self.metric,
            "seed": self.asked.seed,
        }

    # ---- trials
    def run(self) -> Outcome:
        """Train until no trial is owed.

        After each trial the table and the best config are written.

        Raises:
            KeyboardInterrupt, Stopped: by Ctrl-C or SIGTERM, once running trials have written their
                checkpoints.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            write_json(self.folder / SWEEP, self._said())
            wanted = USUAL_TRIALS if self.asked.trials is None else self.asked.trials
            study = Study(self.folder, self.tries, self.asked.seed, wanted)
            log.info("sweep of %d trials in %s", study.total, self.folder)
            running: dict[Any, Running] = {}
            with raising_on_sigterm():
                try:
                    self._work(study, running)
                finally:
                    for one in running.values():
                        one.child.stop()
            return self.outcome(study)

    def _work(self, study: Study, running: dict[Any, Running]) -> None:
        """Begin trials where there is room, and listen to those that run."""
        interrupted = study.interrupted()
        for number in interrupted:
            if is_locked(self.run_folder(number)):
                raise InputError(f"{self.run_folder(number)}: another process is training there")
        while True:
            while len(running) < self.asked.jobs and (interrupted or study.owed()):
                if interrupted:
                    number = interrupted.pop(0)
                    log.info("trial %d goes on", number)
                    values = study.values(number)
                else:
                    number, values = study.begin()
                self._start(study, running, number, values)
            if not running:
                return
            for connection in wait([*running]):
                self._listen(study, running, connection)

    def _start(
        self,
        study: Study,
        running: dict[Any, Running],
        number: int,
        values: Mapping[str, str],
    ) -> None:
        said = ", ".join(f"{key} {value}" for key, value in values.items())
        same = study.same(values)
        if same is not None:
            log.info("trial %d of %d: %s, as trial %d", number, study.total, said, same.number + 1)
            study.end(number, Ended(FINISHED, same.value, same.user_attrs[RESULT]))
            return
        folder = self.run_folder(number)
        log.info("trial %d of %d: %s; %s", number, study.total, said, folder / "train.log")
        slots = {one.slot for one in running.values()}
        slot = next(slot for slot in range(self.asked.jobs) if slot not in slots)
        try:
            config = self._config(values, folder)
        except ConfigError as error:  # of values that do not go together
            self._end(study, number, Ended(FAILED, problem=str(error)))
            return
        path = self.folder / f"{folder.name}.yaml"
        write_text(path, to_yaml(config))
        output = self.folder / f"{folder.name}.out"
        child = Child(Task(path, output, self.asked.metric, own_gpu(slot, self.asked.jobs)))
        running[child.connection] = Running(number, slot, child)

    def _listen(
        self,
        study: Study,
        running: dict[Any, Running],
        connection: Any,
    ) -> None:
        one = running[connection]
        said = one.child.receive()
        if isinstance(said, Reached):
            where = (
                f"stage {said.stage}, epoch {said.epoch}" if said.stage else f"epoch {said.epoch}"
            )
            log.info("trial %d, %s: %s %.2f", one.number, where, self.metric, said.value)
            one.child.go_on(study.reach(one.number, said, self.asked.prune))
            return
        del running[connection]
        one.child.join()
        if said.state == INTERRUPTED:
            raise KeyboardInterrupt  # it was told to stop; so is the sweep
        self._end(study, one.number, said)

    def _end(
        self,
        study: Study,
        number: int,
        ended: Ended,
    ) -> None:
        study.end(number, ended)
        if ended.state != FINISHED:
            clear_folder(self.run_folder(number) / "last")  # nothing goes on there
        value = "" if ended.value is None else f", {self.metric} {ended.value:.2f}"
        problem = f": {ended.problem}" if ended.problem else ""
        shown = log.warning if ended.state == FAILED else log.info
        shown("trial %d %s%s%s", number, ended.state, value, problem)
        self.outcome(study)

    def run_folder(self, number: int) -> Path:
        """Where a trial's run lies."""
        return self.folder / f"trial-{number:03}"

    def outcome(self, study: Study) -> Outcome:
        """Write what is known by now: the table, and the best config."""
        trials = study.trials()
        shown = table(trials, [*self.tries], self.metric)
        write_tables(self.folder, shown)
        failed = sum(trial.state.name == "FAIL" for trial in trials)
        found = best(trials)
        if found is None:
            return Outcome(shown, failed)
        number = found.number + 1
        heading = (
            f"the best of {len(trials)} trials: {self.metric} {found.value:.2f} on validation "
            f"points; trial {number} of {self.folder}"
        )
        path = write_best(self.folder, self._config(study.values(number)), heading)
        return Outcome(shown, failed, number, found.value, path, self.run_folder(number))


@dataclass(frozen=True)
class Running:
    """A trial that is being trained, and the place among them that it takes."""

    number: int
    slot: int
    child: Child


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
