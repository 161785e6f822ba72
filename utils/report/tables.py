"""Tables over finished runs, as `python -m utils.report` prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.config import read_yaml
from utils.errors import InputError
from utils.reading.saved import read_facts
from utils.report.columns import COLUMNS
from utils.report.formats import Cell, Mean, Table
from utils.run.differences import MAY_DIFFER
from utils.run.folder import with_folder_renamed


def read_run(folder: str | Path, split: str) -> dict[str, Any]:
    """Read {name, folder, config, seed, metrics} of a run.

    Raises:
        InputError: it is none, or was not evaluated on the split.

    name: data set and experiment, without the seed that an experiment's name may end with, as in
    dexa-seed1 or dexa-s1.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: not a run folder: it has no config.yaml")
    config = read_yaml(folder / "config.yaml")
    path = folder / f"{split}_metrics.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with: python eval.py {split} {folder}")
    metrics = read_facts(path)
    if odd := [
        name
        for name, value in metrics.items()
        if "@" in name and not isinstance(value, (int, float))
    ]:
        raise InputError(f"{path}: {odd[0]}: expected a number, got {str(metrics[odd[0]])[:60]!r}")
    try:
        seed = config["run"]["seed"]
        whole = str(config["run"]["expname"])
        stem = re.sub(rf"[-_.]?(s|seed)?{seed}$", "", whole) or whole
        name = f"{config['data']['name']}/{stem}"
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.yaml'}: not the config of a run ({error!r})"
        ) from error
    if without := metrics.get("without"):
        raise InputError(
            f"{path}: measured without {', '.join(map(str, without))}; measure the whole with: "
            f"python eval.py {split} {folder}"
        )
    trained = {section: content for section, content in config.items() if section not in MAY_DIFFER}
    # Its own stages, such as a fusion's members, are those of every seed.
    if place := config["run"].get("dir"):
        trained = with_folder_renamed(trained, str(place), "RUN")
    return {"name": name, "folder": folder, "config": trained, "seed": seed, "metrics": metrics}


def group_runs(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group runs of one config, seeds ascending.

    Raises:
        InputError: a seed stands twice, or a name has two configs.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["name"], []).append(run)
    for name, group in groups.items():
        group.sort(key=lambda run: run["seed"])
        seeds = [run["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{name}: seeds {seeds}: a seed stands twice")
        for run in group[1:]:
            if run["config"] != group[0]["config"]:
                different = [
                    s for s in run["config"] if run["config"][s] != group[0]["config"].get(s)
                ]
                raise InputError(
                    f"{name}: the run of seed {run['seed']} has another config than that of seed "
                    f"{seeds[0]} (sections {', '.join(different)})"
                )
    return list(groups.values())


@dataclass(frozen=True)
class Shown:
    """Metrics that a table has columns for, and what is to be said of those that runs lack."""

    columns: list[str]
    notes: list[str]


def shown_metrics(
    runs: Sequence[dict[str, Any]],
    split: str,
    asked: Sequence[str] | None,
) -> Shown:
    """Choose the metrics that at least one run has.

    Args:
        asked: None = the usual ones.
    Raises:
        InputError: no run has any of them.
    """
    known = {name: None for run in runs for name in run["metrics"] if "@" in name}
    columns = list(dict.fromkeys(COLUMNS if asked is None else asked))
    chosen = [column for column in columns if column in known]
    if not chosen:
        raise InputError(
            f"no run has any of the metrics {', '.join(columns)}; what runs have: "
            f"{', '.join(known) or 'none'}"
        )
    notes = []
    if asked is not None and (lost := [column for column in columns if column not in known]):
        notes.append(f"no run has {', '.join(lost)}; left out. Runs have: {', '.join(known)}")
    for run in runs:
        if lacking := [column for column in chosen if column not in run["metrics"]]:
            notes.append(_lacks(run, split, lacking))
    return Shown(chosen, notes)


def _lacks(
    run: dict[str, Any],
    split: str,
    lacking: Sequence[str],
) -> str:
    """What a run has no value of, and the command that measures it."""
    measured = [name for name in run["metrics"] if "@" in name]
    ks = {column.partition("@")[2] for column in (*measured, *lacking)}
    wanted = ",".join(map(str, sorted(int(k) for k in ks if k.isdigit())))
    return (
        f"{run['folder'] / f'{split}_metrics.json'}: no {', '.join(lacking)}; measure with: "
        f"python eval.py {split} {run['folder']} --eval.ks [{wanted}]"
    )


@dataclass(frozen=True)
class Told:
    """What a command prints: the table, and notes beside it."""

    table: Table
    notes: list[str]


def compare_runs(
    folders: Sequence[str | Path],
    split: str,
    metrics: Sequence[str] | None = None,
    *,
    out: Path | None = None,
    root: str | None = None,
    resamples: int = 10_000,
) -> Told:
    """Tell the runs' metrics and their differences to the first.

    Args:
        metrics: None = the usual ones.
        out: where the page is written, if at all.
        root: folder of the data sets, where it is another than that of training.
        resamples: of the bootstrap.
    """
    from utils.report import compare as comparing  # here: it reads data sets, which imports torch
    from utils.report.html import write_report

    if resamples < 1:
        raise InputError(f"--resamples: expected at least 1, got {resamples}")
    runs = [read_run(folder, split) for folder in folders]
    shown = shown_metrics(runs, split, metrics)
    columns = [column for column in shown.columns if column.partition("@")[2].isdigit()]
    comparison = comparing.compare(runs, split, columns, root, resamples)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, comparing.page_data(comparison))
    caption = (
        f"Differences to {comparison.runs[0].name}, with 95 % intervals of a paired bootstrap over "
        f"the {len(comparison.split):,} points of split {split} ({resamples:,} resamples); bold: "
        "without 0."
    )
    return Told(comparing.table(comparison, caption), shown.notes)


def seeds_table(
    folders: Sequence[str | Path],
    split: str = "tst",
    metrics: Sequence[str] | None = None,
) -> Told:
    """Tell a row a config: mean and standard deviation (n - 1) over its seeds.

    A metric that one of a config's seeds lacks has no mean over them.

    Args:
        metrics: None = the usual ones.
    """
    groups = group_runs([read_run(folder, split) for folder in folders])
    shown = shown_metrics([run for group in groups for run in group], split, metrics)
    rows: list[list[Cell]] = []
    for group in groups:
        seeds = ", ".join(str(run["seed"]) for run in group)
        means = [_mean([run["metrics"].get(column) for run in group]) for column in shown.columns]
        rows.append([group[0]["name"], seeds, *means])
    return Told(Table(("config", "seeds"), shown.columns, ("sd",), rows), shown.notes)


def _mean(values: Sequence[float | None]) -> Mean | None:
    """The mean over seeds; None where one of them has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Mean(float(np.mean(known)), deviation)


def rows_alike(folders: Sequence[str | Path], split: str) -> str:
    """Say which rows would be one, had their runs been named so; empty if there are none."""
    groups = group_runs([read_run(folder, split) for folder in folders])
    for i, group in enumerate(groups):
        names = [
            other[0]["name"] for other in groups[i:] if other[0]["config"] == group[0]["config"]
        ]
        if len(names) > 1:
            return (
                f"{', '.join(names)}: runs of one config; they make one row where their names "
                "differ by the seed at their end alone, as dexml-seed0 and dexml-seed1"
            )
    return ""
