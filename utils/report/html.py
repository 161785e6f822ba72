"""report.html of a run: one file that needs no network, written from plain data.

    write_report(folder / "report.html", ReportData(...))

The page is page/template.html beside this file, with its style, its scripts and the data as JSON
inside. The scripts set texts through textContent alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import write_text

PAGE = Path(__file__).with_name("page")
SCRIPTS = (  # in this order: each uses those before it
    "dom",
    "terms",
    "tables",
    "charts",
    "overview",
    "comparison",
    "training",
    "labels",
    "scores",
    "points",
    "main",
)


@dataclass
class ReportData:
    """What a report shows; every value is plain (JSON), and what is not given is left out.

    See `points_table` and the functions of utils/report for their keys.
    """

    title: str
    facts: Mapping[str, Any]  # of the header
    metrics: Mapping[str, float]  # "P@1" or "micro_F1" -> percent
    made: Mapping[str, Any] = field(default_factory=dict)  # how: commit, time, size
    configs: Mapping[str, str] = field(default_factory=dict)  # YAML, by what it is
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peers_source: str = ""
    members: Sequence[Mapping[str, Any]] = ()  # of a fusion, {name, metrics}
    members_fused: Mapping[str, float] = field(default_factory=dict)  # metrics of the same points
    members_points: int = 0  # that the two were measured on
    stages: Sequence[Mapping[str, Any]] = ()  # see `read_stages`
    deciles: Sequence[Mapping[str, Any]] = ()  # `by_decile` of the run, or of each run
    groups: Mapping[str, Any] | None = None  # names, says; else as `deciles`: head, torso, tail
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
    labels: Mapping[int, str] = field(default_factory=dict)  # texts of those shown
    label_counts: Mapping[int, int] = field(default_factory=dict)  # training points of the same
    points: Sequence[Mapping[str, Any]] = ()
    num_points: int = 0  # of the split, or that differ
    runs: Sequence[str] = ()  # compared ones: `top` of a point then holds a list for each
    comparison: Mapping[str, Any] | None = None  # see utils/report/compare.py


def report_path(folder: Path, split: str) -> Path:
    """Return where the report of a split lies in a run folder."""
    return folder / ("report.html" if split == "tst" else f"{split}_report.html")


def write_report(path: Path, data: ReportData) -> None:
    """Write the page with its data, whole."""
    parts = {
        "__STYLE__": _part("style.css"),
        "__SCRIPT__": "\n".join(_part(f"{name}.js") for name in SCRIPTS),
        "__PAYLOAD__": to_payload(asdict(data)),
    }
    write_text(path, _filled(_part("template.html"), parts))


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """Put each part in the place of its mark; what looks like a mark in a part stays."""
    pieces = re.split("(" + "|".join(parts) + ")", template)
    marks = pieces[1::2]
    assert sorted(marks) == sorted(parts), "the template must name the place of each part once"
    return "".join(parts.get(piece, piece) for piece in pieces)


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
