"""Runs of one data set side by side, with intervals of a paired bootstrap over a split's points.

    python -m utils.report compare RUN RUN... [--split val] [--metrics P@1 PSP@5] [--out c.html]

Everything is read from saved predictions (<split>_score_mat.npz, filter pairs removed); no model is
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from utils.config.config import Config, DataConfig, build_section
from utils.data.dataset import Dataset, Split, load_dataset
from utils.data.held_out import HELD_OUT, read_held_out
from utils.errors import InputError
from utils.metrics import PointMetrics, paired_bootstrap, per_point
from utils.reading.input_files import present
from utils.reading.matrices import read_matrix
from utils.reading.matrix_checks import SCORES
from utils.report import html, measured, point_table
from utils.report.formats import Cell, Difference, Mean, Table
from utils.run.environment import check_labels
from utils.sparse import contains, topk_rows
from utils.text import text_of

DECILE_KS = (5, 100)
TOLERANCE = 0.01  # percent, between saved metrics and those of the saved predictions


@dataclass
class ComparedRun:
    """A run and its saved predictions of the split."""

    name: str
    folder: Path
    scores: sp.csr_matrix  # [n, L]
    points: PointMetrics  # its metrics point by point


@dataclass
class Comparison:
    """Runs, and their metrics."""

    runs: list[ComparedRun]
    data: Dataset
    split: Split
    columns: list[str]
    values: list[dict[str, float]]  # of each run, in percent, of those columns that it has
    # Of each run after the first: {metric: (difference to the first, low, high)}.
    differences: list[dict[str, tuple[float, float, float]]]


def compare(
    records: Sequence[Mapping[str, Any]],
    split: str,
    columns: Sequence[str],
    root: str | None = None,
    resamples: int = 10_000,
) -> Comparison:
    """Compare runs.

    Args:
        records: what utils.report.tables.read_run says of each run.
        columns: metrics, each in <split>_metrics.json of some runs.
        root: folder of the data sets, where it is another than that of training.
    Raises:
        ValueError: fewer than two runs, one that stands twice, other data or another validation
            split, predictions that do not fit the data or the saved metrics.
    """
    names = _names([run["folder"] for run in records])
    data = _load_data(records, split, root)
    points = data.splits[split]
    runs = [
        _read_predictions(run, name, data, points, columns)
        for run, name in zip(records, names, strict=True)
    ]
    samples = paired_bootstrap([run.points for run in runs], resamples)
    values = [run.points.mean() for run in runs]
    differences = []
    for i in range(1, len(runs)):
        intervals = {}
        for column in columns:
            if column not in samples[i] or column not in samples[0]:
                continue
            spread = samples[i][column] - samples[0][column]
            low, high = np.percentile(spread, (2.5, 97.5)).tolist()
            intervals[column] = (values[i][column] - values[0][column], low, high)
        differences.append(intervals)
    return Comparison(runs, data, points, list(columns), values, differences)


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where names are the same.

    Raises:
        InputError: there is one run, or the same run twice.
    """
    if len(folders) < 2:
        raise InputError(f"compare: expected two runs or more, got {len(folders)}")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder}: the same run stands twice")
    names = [place.name for place in places]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _load_data(
    records: Sequence[Mapping[str, Any]],
    split: str,
    root: str | None,
) -> Dataset:
    """The data set that all runs were evaluated on, with their validation split."""
    first = records[0]
    needed = "expected the rows of the run's validation split"
    held_out = [read_held_out(run["folder"], needed) for run in records]
    for run, rows in zip(records, held_out, strict=True):
        if "data_hash" not in run["metrics"]:
            raise InputError(
                f"{run['folder'] / f'{split}_metrics.json'}: written by training, not by eval.py; "
                f"make it again with: python eval.py {split} {run['folder']}"
            )
        if split != "tst" and not np.array_equal(rows, held_out[0]):
            raise InputError(
                f"{run['folder'] / HELD_OUT}: another validation split than that of "
                f"{first['folder']}; split {split} has other points"
            )
    section = first["config"]["data"] | ({"root": root} if root else {})
    no_sections: list[Any] = [None] * 7  # nothing but the data is read of it
    config = Config(build_section(DataConfig, "data", section, {}), *no_sections)
    data = load_dataset(config, None, held_out[0])
    _check_data(records, data)
    for run in records:
        check_labels(run["folder"], data.folder)
    return data


def _check_data(records: Sequence[Mapping[str, Any]], data: Dataset) -> None:
    """Raise InputError unless all runs were evaluated on this data.

    Filters count, where the runs say something of them.
    """
    known = (data.hash, data.relevance_hash)  # older runs said nothing of filters
    first = records[0]
    for run in records:
        if run["metrics"]["data_hash"] not in known and first["metrics"]["data_hash"] in known:
            raise InputError(
                f"{run['folder']}: evaluated on data {_data_of(run)}, but {first['folder']} on "
                f"{_data_of(first)}; only runs of one data set, and its filters, can be compared"
            )
    if first["metrics"]["data_hash"] not in known:
        raise InputError(
            f"{data.folder}: expected the data that the runs were evaluated on, "
            f"{_data_of(first)}, got data of hash {data.hash}"
        )


def _data_of(run: Mapping[str, Any]) -> str:
    return f"{run['config']['data']['name']} ({run['metrics']['data_hash']})"


def _read_predictions(
    run: Mapping[str, Any],
    name: str,
    data: Dataset,
    points: Split,
    columns: Sequence[str],
) -> ComparedRun:
    path = run["folder"] / f"{points.name}_score_mat.npz"
    again = f"make it again with: python eval.py {points.name} {run['folder']}"
    if not present(path):
        raise InputError(f"{path}: no such file; {again}")
    try:
        scores = read_matrix(path, SCORES, dtype=None)
    except InputError as error:
        raise InputError(f"{error}; {again}") from error
    if scores.shape != points.relevance.shape:
        raise InputError(
            f"{path}: expected shape {points.relevance.shape}, got {scores.shape}; {again}"
        )
    own = [column for column in columns if column in run["metrics"]]
    if not own:
        raise InputError(
            f"{run['folder'] / f'{points.name}_metrics.json'}: expected one of "
            f"{', '.join(columns)}, got none of them; {again}"
        )
    ks = sorted({int(column.partition("@")[2]) for column in own})
    of_points = per_point(scores, points.relevance, data.inverse_propensity(), ks).only(own)
    for key, value in of_points.mean().items():
        if abs(value - run["metrics"][key]) > TOLERANCE:
            raise InputError(
                f"{path}: its {key} is {value:.2f}, but {points.name}_metrics.json says "
                f"{run['metrics'][key]:.2f}; {again}"
            )
    return ComparedRun(name, run["folder"], scores, of_points)


# -------------------------------- what is shown


def table(comparison: Comparison, caption: str) -> Table:
    """Make a row a run, and after each but the first its difference to the first."""
    columns = comparison.columns
    runs = comparison.runs
    rows: list[list[Cell]] = []
    for number, (run, values) in enumerate(zip(runs, comparison.values, strict=True)):
        means = [Mean(values[column]) if column in values else None for column in columns]
        rows.append([run.name, *means])
        if number:
            differences = comparison.differences[number - 1]
            cells = [_difference(differences.get(column)) for column in columns]
            rows.append([f"{run.name} − {runs[0].name}", *cells])
    return Table(("run",), columns, ("low", "high"), rows, caption)


def is_clear(low: float, high: float) -> bool:
    """Whether an interval does not hold 0."""
    return low > 0 or high < 0


def _difference(found: tuple[float, float, float] | None) -> Difference | None:
    if found is None:
        return None
    value, low, high = found
    return Difference(value, low, high, is_clear(low, high))


def page_data(comparison: Comparison) -> html.ReportData:
    """Return the data of the page: table, metrics by frequency, points where the runs differ."""
    runs = comparison.runs
    data = comparison.data
    split = comparison.split
    tops = [topk_rows(run.scores, min(point_table.SHOWN, data.num_labels))[0] for run in runs]
    differ = np.flatnonzero(differing(tops, split.relevance))
    chosen = differ[point_table.chosen_points(len(differ))]
    texts = text_of(split.text_path, split.rows[chosen])
    tables = [
        point_table.points_table(chosen, texts, run.scores[chosen], split.relevance[chosen])
        for run in runs
    ]
    labels = sorted({label for table in tables for label in point_table.used_labels(table)})
    points = []
    for entries in zip(*tables, strict=True):
        points.append({**entries[0], "top": [entry["top"] for entry in entries]})
    points = point_table.with_own_ids(points, split)
    return html.ReportData(
        title=f"{data.name}: " + " against ".join(run.name for run in runs),
        facts={
            "data set": data.name,
            "split": split.name,
            "points": len(split),
            "labels": data.num_labels,
        },
        made={
            "data hash": data.hash,
            **{f"run {i}": str(run.folder) for i, run in enumerate(runs, 1)},
        },
        metrics={},
        comparison=_table(comparison),
        deciles=_deciles(comparison),
        labels={label: data.label_texts[label] for label in labels},
        label_counts={label: int(data.label_counts[label]) for label in labels},
        points=points,
        num_points=len(differ),
        runs=[run.name for run in runs],
    )


def differing(tops: Sequence[np.ndarray], relevance: sp.csr_matrix) -> np.ndarray:
    """Mark points where not every run has the same true labels at the same ranks [n].

    Args:
        tops: first predictions [n, k] of each run, -1 = no more.
        relevance: CSR [n, L].
    """
    rows = np.arange(relevance.shape[0])[:, None]
    right = [np.where(contains(relevance, rows, ids), ids, -1) for ids in tops]
    return np.any([(other != right[0]).any(axis=1) for other in right[1:]], axis=0)


def _table(comparison: Comparison) -> dict[str, Any]:
    """{columns, rows: [{name, values, differences: [value, low, high, clear] or none}]}

    Of the metrics that all runs have.
    """
    columns = [
        column
        for column in comparison.columns
        if all(column in values for values in comparison.values)
    ]
    all_differences = [None, *comparison.differences]
    rows = []
    for run, values, differences in zip(
        comparison.runs, comparison.values, all_differences, strict=True
    ):
        shown = differences and [_interval(*differences[column]) for column in columns]
        values_shown = [values[column] for column in columns]
        rows.append({"name": run.name, "values": values_shown, "differences": shown})
    return {"columns": columns, "rows": rows}


def _interval(
    value: float,
    low: float,
    high: float,
) -> list[Any]:
    return [value, low, high, is_clear(low, high)]


def _deciles(comparison: Comparison) -> list[dict[str, Any]]:
    width = min(max(DECILE_KS), comparison.data.num_labels)
    kept = min(int(np.diff(run.scores.indptr).max(initial=1)) for run in comparison.runs)
    # A k beyond the saved predictions would mislead.
    ks = [k for k in DECILE_KS if k <= min(kept, width)] or [1]
    return [
        {
            "run": run.name,
            **measured.by_decile(
                topk_rows(run.scores, width)[0],
                comparison.split.relevance,
                comparison.data.label_counts,
                ks,
            ),
        }
        for run in comparison.runs
    ]
