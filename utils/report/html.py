"""report.html of a run: one file that needs no network, written from plain data.

    write_report(folder / "report.html", ReportData(...))

The page is report_template.html beside this file with the data as JSON inside; its script sets
texts through textContent alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import write_text

TEMPLATE = Path(__file__).with_name("report_template.html")
MARK = "__PAYLOAD__"


@dataclass
class ReportData:
    """What a report shows; every value is plain (JSON).

    See `points_table` and the functions below for their keys.
    """

    title: str
    facts: Mapping[str, Any]  # of the header
    metrics: Mapping[str, float]  # "P@1" -> percent
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peers_source: str = ""
    curves: Sequence[Mapping[str, Any]] = ()
    deciles: Sequence[Mapping[str, Any]] = ()  # `by_decile` of the run, or of each run
    score_is: str = ""  # what a score of the points is, such as "cosine"
    # bins of equal width over the probabilities: score, right, count; and the error in percent
    reliability: Mapping[str, list[float]] | None = None
    ece: float | None = None  # expected calibration error, in percent
    # threshold, ascending; precision, recall, micro_F1 and macro_F1 at each, in percent
    threshold_curve: Mapping[str, list[float]] | None = None
    # {value, chosen_for, labels}: the run's threshold, what for, and how many labels have their own
    threshold: Mapping[str, Any] | None = None
    # {columns, rows, hidden}: labels.csv of the most frequent labels, the first column their ids
    label_table: Mapping[str, Any] | None = None
    confusions: Sequence[Sequence[Any]] = ()  # [true text, wrong text, times]
    clusters: Sequence[Mapping[str, Any]] = ()  # {name, clusters, counts, edges}
    examples: Sequence[Mapping[str, Any]] = ()  # see `cluster_examples`
    plots: Sequence[Mapping[str, str]] = ()  # {name, data, alt}: PNG in base64
    labels: Mapping[int, str] = field(default_factory=dict)  # texts of those in `points`
    points: Sequence[Mapping[str, Any]] = ()
    num_points: int = 0  # of the split, or that differ
    runs: Sequence[str] = ()  # compared ones: `top` of a point then holds a list for each
    comparison: Mapping[str, Any] | None = None  # see utils/report/compare.py


def report_path(folder: Path, split: str) -> Path:
    """Return where the report of a split lies in a run folder."""
    return folder / ("report.html" if split == "tst" else f"{split}_report.html")


def write_report(path: Path, data: ReportData) -> None:
    """Write the page with its data, whole."""
    template = TEMPLATE.read_text(encoding="utf-8")
    assert template.count(MARK) == 1, "the template must name the place of the data once"
    write_text(path, template.replace(MARK, to_payload(asdict(data))))


def to_payload(value: Any) -> str:
    """Return JSON that may stand in a <script>: no `<`, so that no text can end it.

    NaN and infinities become null.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a pair of surrogates cannot be written as UTF-8.
    return text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    """Numpy scalars and mappings as plain values."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
