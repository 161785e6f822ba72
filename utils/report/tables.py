"""Tables over finished runs, as `python -m utils.report` prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.config.config import read_yaml
from utils.errors import InputError
from utils.reading.saved import read_facts
from utils.report.columns import COLUMNS
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


def common_metrics(runs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the metrics that every run has; InputError if there are none."""
    common = set.intersection(*(set(run["metrics"]) for run in runs))
    chosen = [column for column in columns if column in common]
    if not chosen:
        known = [name for name in runs[0]["metrics"] if "@" in name and name in common]
        raise InputError(
            f"none of the metrics {', '.join(columns)} is in every run; these are: "
            f"{', '.join(known) or 'none'}"
        )
    return chosen


def compare_runs(
    folders: Sequence[str | Path],
    split: str,
    columns: Sequence[str],
    *,
    out: Path | None = None,
    root: str | None = None,
    resamples: int = 10_000,
) -> str:
    """Return Markdown: the runs' metrics and differences to the first.

    Args:
        out: where the page is written, if at all.
        root: folder of the data sets, where it is another than that of training.
        resamples: of the bootstrap.
    """
    from utils.report import compare as comparing  # here: it reads data sets, which imports torch
    from utils.report.html import write_report

    if resamples < 1:
        raise InputError(f"--resamples: expected at least 1, got {resamples}")
    runs = [read_run(folder, split) for folder in folders]
    columns = [c for c in common_metrics(runs, columns) if c.partition("@")[2].isdigit()]
    comparison = comparing.compare(runs, split, columns, root, resamples)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, comparing.page_data(comparison))
    return (
        f"{comparing.markdown(comparison)}\n\nDifferences to {comparison.runs[0].name}, with 95 % "
        f"intervals of a paired bootstrap over the {len(comparison.split):,} points of split "
        f"{split} ({resamples:,} resamples); bold: without 0."
    )


def seeds_table(
    folders: Sequence[str | Path], split: str = "tst", columns: Sequence[str] = COLUMNS
) -> str:
    """Return Markdown: a row a config with mean ± standard deviation (n - 1) over its seeds.

    Metrics that a run does not have are left out of all rows.
    """
    groups = group_runs([read_run(folder, split) for folder in folders])
    shown = common_metrics([run for group in groups for run in group], columns)
    lines = ["| config | seeds | " + " | ".join(shown) + " |", "| --- " * (len(shown) + 2) + "|"]
    for group in groups:
        cells = []
        for column in shown:
            values = [run["metrics"][column] for run in group]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        seeds = ", ".join(str(run["seed"]) for run in group)
        lines.append(f"| {group[0]['name']} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
