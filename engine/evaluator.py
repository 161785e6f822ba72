"""Evaluate the best model of a run on a split, and write what was found into its folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.sparse as sp

from engine.decided import decide, describe, with_decided
from engine.memory_plan import scoring_memory
from engine.new_points import NewPoints, PointsFile, points_of_dataset, points_of_file
from engine.report_data import Evaluated, report_data
from models.contract import Ranker
from models.evaluation import check_ks, compare_index, evaluate, kept_labels, spread
from models.loading import check_options, load_ranker
from utils import metrics
from utils.config.config import Config, parse_overrides
from utils.data.dataset import SPLITS, Dataset, load_dataset
from utils.data.held_out import saved_validation_rows
from utils.errors import InputError, NotWrittenError
from utils.files import write_json, write_text, written_whole
from utils.prepare.lines import clean
from utils.reading.saved import answers_of, read_facts
from utils.report.html import report_path, write_report
from utils.run.environment import check_same_data
from utils.run.finding import find_run, warn_unfinished
from utils.run.model_files import own_label_names
from utils.runtime import Runtime

log = logging.getLogger("eval")
COMPARED_POINTS = 1000  # on which an approximate index is compared with exact search


def evaluate_run(
    run: str | Path,
    split: str = "tst",
    overrides: Sequence[str] | None = None,
    points: PointsFile | None = None,
) -> dict[str, float]:
    """Metrics of a run's model on a split, written to its folder; a collective.

    Args:
        split: of the run's data set, or of the one that `--data.name` among the overrides names.
        points: labelled rows to be evaluated instead.
    Raises:
        NotSavedError: the folder cannot be written to; the metrics are in the log, and in the
            error.
        InputError: no finished run, another data set than the run's, an empty split.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    values = parse_overrides(overrides or ())
    other = values.get("data", {}).pop("name", None)
    folder, config = find_run(run, {name: section for name, section in values.items() if section})
    warn_unfinished(folder)
    if points is not None and (other is not None or split != "tst"):
        raise InputError(
            f"{points.path}: its rows are evaluated alone; expected neither --data.name nor a split"
        )
    if other == config.data.name:
        other = None
    with scoring_memory(config):
        return _evaluate(folder, config, Asked(split, other, points))


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated.

    Attributes:
        split: of the run's data set.
        other: name of another data set, whose split is meant.
        points: rows of a file instead.
    """

    split: str
    other: str | None = None
    points: PointsFile | None = None

    def new_points(self, config: Config, folder: Path) -> NewPoints | None:
        """Read what is not the run's own; None where it is."""
        if self.points is None and self.other is None:
            return None
        facts = read_facts(folder / "model" / "method.json", num_labels=int)
        if self.points is not None:
            return points_of_file(config, folder, facts["num_labels"], self.points)
        assert self.other is not None, "one of both is given"
        return points_of_dataset(config, folder, facts["num_labels"], self.other, self.split)


def _evaluate(
    folder: Path,
    config: Config,
    asked: Asked,
) -> dict[str, float]:
    """`evaluate_run` of a run that was found."""
    runtime = Runtime.start(config)
    split = asked.split
    new = asked.new_points(config, folder)
    if new is None:
        data = load_dataset(config, None, saved_validation_rows(folder, config.data))
        check_same_data(folder, data)
    else:
        data = new.data
        split = new.split
    check_split(config, data, split)
    ranker = load_ranker(config, folder, runtime)
    check_fits(ranker, config, data, folder)
    started = time.perf_counter()
    with answers_of(folder):
        evaluation = evaluate(ranker, data, split)
    if evaluation.scores is None:
        return evaluation.metrics
    told_of_labels: dict[str, Any] = {}
    if new is not None:
        evaluation, told_of_labels = new.with_unknown(config, evaluation)
    seconds = time.perf_counter() - started
    log.info(
        "%s, split %s: N = %d, L = %d, data %s, %.1f s\n%s",
        data.name,
        split,
        len(data.splits[split]),
        data.num_labels,
        data.hash,
        seconds,
        metrics.describe(evaluation.metrics),
    )
    decided = decide(ranker, data, split, evaluation.scores)
    log.info("%s", describe(decided, ranker, split))
    told: dict[str, Any] = {
        **evaluation.metrics,
        **evaluation.facts,
        **told_of_labels,
        **decided.metrics,
        **decided.told,
        "points": len(data.splits[split]),
        "labels": data.num_labels,
        "data_hash": data.hash,
        "seconds": round(seconds, 2),
    }
    if config.eval.index != "exact":
        texts = data.splits[split].texts
        sample = texts[spread(len(texts), COMPARED_POINTS)]
        told["index"] = compare_index(ranker, sample, kept_labels(config, data))
    if config.eval.without:
        told["without"] = config.eval.without
    names = own_label_names(folder, config.dataset_folder, data.num_labels)
    evaluated = Evaluated(split, evaluation, seconds, None if new is None else new.ids)
    report = report_data(folder, ranker, data, evaluated)
    written: dict[Path, Callable[[Path], None]] = {
        folder / f"{split}_score_mat.npz": lambda path: _save_scores(path, evaluation.scores),
        folder / f"{split}_metrics.json": lambda path: write_json(path, told),
        labels_path(folder, split): lambda path: decided.labels.write(
            path, data.label_texts, names
        ),
        report_path(folder, split): lambda path: write_report(path, with_decided(report, decided)),
    }
    if new is not None and new.ids is not None:
        lines = "".join(f"{clean(own_id)}\n" for own_id in new.ids)
        written[folder / f"{split}_ids.txt"] = lambda path: write_text(path, lines)
    save_evaluation(folder, written, told)
    log.info("labels: %s, report: %s", labels_path(folder, split), report_path(folder, split))
    return {**evaluation.metrics, **decided.metrics}


def labels_path(folder: Path, split: str) -> Path:
    """Where the labels' table of a split lies in a run folder."""
    return folder / ("labels.csv" if split == "tst" else f"{split}_labels.csv")


def _save_scores(path: Path, scores: sp.csr_matrix) -> None:
    with written_whole(path) as partial:
        sp.save_npz(partial, scores)


def check_split(
    config: Config,
    data: Dataset,
    split: str,
) -> None:
    """InputError for a split without points; a warning for one without labels."""
    if len(data.splits[split]) == 0:
        raise InputError(
            f"split {split} of {data.name} has no points "
            f"(data.val_fraction is {config.data.val_fraction})"
        )
    if data.splits[split].relevance.nnz == 0:
        log.warning("no point of split %s has a label: every metric is 0", split)


def check_fits(
    ranker: Ranker,
    config: Config,
    data: Dataset,
    folder: Path,
) -> None:
    """InputError where a model is of another number of labels, or cannot follow the options."""
    if ranker.num_labels != data.num_labels:
        raise InputError(
            f"{data.folder} has {data.num_labels} labels, the model of {folder} "
            f"{ranker.num_labels}; it is not the data set of this run"
        )
    check_ks(config, data)
    check_options(ranker)


class NotSavedError(NotWrittenError):
    """What was measured could not be written.

    Attributes:
        metrics: as `evaluate_run` would have returned them.
    """

    def __init__(self, message: str, found: dict[str, float]) -> None:
        super().__init__(message)
        self.metrics = found


def save_evaluation(
    folder: Path,
    files: Mapping[Path, Callable[[Path], None]],
    told: dict[str, Any],
) -> None:
    """Write predictions, metrics, labels and report of a split.

    Args:
        files: what writes each.
        told: the metrics, for the error.
    Raises:
        NotSavedError: naming what could not be written; the rest is.
    """
    failed = []
    for path, write in files.items():
        try:
            write(path)
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            failed.append(f"{path.name} ({reason})")
    if failed:
        raise NotSavedError(
            f"{folder}: the metrics above are right, but could not be written: {', '.join(failed)}",
            told,
        )
