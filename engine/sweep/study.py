"""The trials of a sweep, as optuna keeps and draws them: `study.log` in the sweep's folder.

What a trial is drawn from follows from the seed, its number and the trials before it, so that a
sweep that was interrupted draws what it would have drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.sweep.child import FAILED, FINISHED, PRUNED, Ended, Reached
from utils.config.config import ConfigError
from utils.errors import InputError
from utils.sweep.ranges import Choices, Range, combinations

STUDY = "study.log"
BEFORE_PRUNING = 5  # trials that are finished before one is pruned
VALUES = "values"  # attributes of a trial: what was tried, as a command line has it
RESULT = "result"
PROBLEM = "problem"


def imported() -> ModuleType:
    """Return optuna; ConfigError with what installs it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("a sweep needs the package optuna: pip install 'optuna>=4'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """The trials of a sweep; numbers of trials count from 1.

    Args:
        tries: values of each key.
        seed: of what is drawn.
        total: trials that are wanted.
    """

    def __init__(
        self,
        folder: Path,
        tries: Mapping[str, Choices | Range],
        seed: int,
        total: int,
    ) -> None:
        self._optuna = imported()
        self._tries = tries
        self._seed = seed
        self._study = self._opened(folder / STUDY)
        self.total = total
        everything = combinations(tries)
        if everything is not None and len(everything) <= total:
            self.total = len(everything)
            for values in everything:
                self._study.enqueue_trial(values, skip_if_exists=True)

    def _opened(self, path: Path) -> Any:
        """optuna's study in a file, which is made where there is none.

        Raises:
            InputError: the file is damaged.
        """
        storages = self._optuna.storages
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
        except (ValueError, KeyError, TypeError) as error:  # of a line, and of what it holds
            raise InputError(
                f"{path}: expected the trials of a sweep, as JSON lines of optuna, got others "
                f"({error}); name another folder by --dir"
            ) from error
        return self._optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=self._optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING),
        )

    # ---- trials
    def trials(self) -> list[Any]:
        """All that were begun, as optuna's FrozenTrial."""
        waiting = self._optuna.trial.TrialState.WAITING
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state != waiting]

    def interrupted(self) -> list[int]:
        """Numbers of those that were begun and have not ended.

        One whose values were not all drawn has failed.
        """
        running = self._optuna.trial.TrialState.RUNNING
        numbers = []
        for trial in self.trials():
            if trial.state != running:
                continue
            if trial.params.keys() >= self._tries.keys():
                numbers.append(trial.number + 1)
            else:
                self.end(trial.number + 1, Ended(FAILED, problem="interrupted as it was drawn"))
        return numbers

    def owed(self) -> int:
        """How many are still to begin."""
        return max(self.total - len(self.trials()), 0)

    def begin(self) -> tuple[int, dict[str, str]]:
        """Begin a trial: its number, and its values as a command line has them."""
        number = len(self.trials())
        self._study.sampler = self._sampler(number)
        trial = self._study.ask(self._distributions())
        values = self._written(trial.params)
        trial.set_user_attr(VALUES, values)
        return trial.number + 1, values

    def values(self, number: int) -> dict[str, str]:
        """What a trial tries."""
        return self._written(self._frozen(number).params)

    def _written(self, drawn: Mapping[str, Any]) -> dict[str, str]:
        """Drawn values as a command line has them."""
        values = {}
        for key, tried in self._tries.items():
            values[key] = tried.written(drawn[key]) if isinstance(tried, Range) else drawn[key]
        return values

    def same(self, values: Mapping[str, str]) -> Any | None:
        """A trial of the same values that has finished, or None."""
        for trial in self.trials():
            is_finished = trial.state == self._optuna.trial.TrialState.COMPLETE
            if is_finished and trial.user_attrs.get(VALUES) == values:
                return trial
        return None

    def reach(
        self,
        number: int,
        reached: Reached,
        may_prune: bool,
    ) -> bool:
        """Note an evaluation; whether the trial is to be pruned: below the median of the others."""
        frozen = self._frozen(number)
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
        if reached.step not in frozen.intermediate_values:  # again, after an interruption
            trial.report(reached.value, reached.step)
        return may_prune and not reached.is_last and trial.should_prune()

    def end(self, number: int, ended: Ended) -> None:
        """Note how a trial ended; one that was interrupted stays as it is."""
        states = self._optuna.trial.TrialState
        state = {FINISHED: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}[ended.state]
        trial = self._optuna.trial.Trial(self._study, self._frozen(number)._trial_id)
        trial.set_user_attr(RESULT, dict(ended.facts))
        if ended.problem:
            trial.set_user_attr(PROBLEM, ended.problem)
        self._study.tell(number - 1, ended.value, state=state)

    # ---- how they are drawn
    def _frozen(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number - 1]

    def _sampler(self, number: int) -> Any:
        state = np.random.SeedSequence([self._seed, number]).generate_state(1)
        return self._optuna.samplers.TPESampler(seed=int(state[0]))

    def _distributions(self) -> dict[str, Any]:
        distributions = self._optuna.distributions
        found: dict[str, Any] = {}
        for key, tried in self._tries.items():
            if isinstance(tried, Choices):
                found[key] = distributions.CategoricalDistribution(tried.values)
            elif tried.is_whole:
                found[key] = distributions.IntDistribution(int(tried.low), int(tried.high))
            else:
                found[key] = distributions.FloatDistribution(
                    tried.low, tried.high, log=tried.is_log
                )
        return found
