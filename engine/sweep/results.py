"""What a sweep leaves: a table of its trials, and the best config, which can be trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.sweep.study import PROBLEM, RESULT, VALUES
from utils.config.config import Config, to_yaml
from utils.files import write_text
from utils.report.formats import Cell, Table, written

BEST = "best.yaml"
TABLE = "trials.md"
CSV = "trials.csv"
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "interrupted"}


def ranked(trials: Sequence[Any]) -> list[Any]:
    """The finished ones, best first, then the others as they were begun."""
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    others = [trial for trial in trials if trial.state.name != "COMPLETE"]
    return sorted(finished, key=lambda trial: (-trial.value, trial.number)) + others


def best(trials: Sequence[Any]) -> Any | None:
    """The best trial; None before one has finished."""
    first = ranked(trials)[:1]
    return first[0] if first and first[0].state.name == "COMPLETE" else None


def table(
    trials: Sequence[Any],
    keys: Sequence[str],
    metric: str,
) -> Table:
    """Make a row a trial, best first.

    Of one that was pruned or is not finished the metric is the best that it had reached.
    """
    rows: list[Sequence[Cell]] = [_row(trial, keys) for trial in ranked(trials)]
    columns = ("trial", *keys, metric, "best epoch", "seconds", "state")
    return Table(columns, (), (), rows)


def _row(trial: Any, keys: Sequence[str]) -> list[str]:
    values = trial.user_attrs.get(VALUES, {})
    result = trial.user_attrs.get(RESULT, {})
    value = trial.value
    if trial.state.name != "COMPLETE":
        value = max(trial.intermediate_values.values(), default=None)
    state = STATES[trial.state.name]
    problem = trial.user_attrs.get(PROBLEM, "")
    return [
        str(trial.number + 1),
        *(values.get(key, "") for key in keys),
        "" if value is None else f"{value:.2f}",
        str(result.get("best_epoch", "")),
        str(result.get("train_seconds", "")),
        f"{state}: {problem}" if problem else state,
    ]


def write_tables(folder: Path, shown: Table) -> None:
    """The table in the sweep's folder, for a reader and for a program."""
    write_text(folder / TABLE, written(shown, "markdown") + "\n")
    write_text(folder / CSV, written(shown, "csv") + "\n")


def write_best(
    folder: Path,
    config: Config,
    heading: str,
) -> Path:
    """Write a config that trains the best trial again, in a run folder of its own.

    Args:
        config: of the trial.
        heading: what is said of it.
    """
    run = dataclasses.replace(config.run, dir=None, expname=f"{config.run.expname}-best")
    text = to_yaml(dataclasses.replace(config, run=run))
    path = folder / BEST
    write_text(path, f"# {heading}\n{text}")
    return path
