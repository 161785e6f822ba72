"""Evaluate a run's best model.

    python eval.py Results/XMCKit/LF-DebianTitles-small/dexml         # test split
    # or trn; RUN = folder or its config.yaml
    python eval.py val RUN
    # what does not change the model is free
    python eval.py RUN --data.root ../Datasets
    # approximate search; logs its recall
    python eval.py RUN --eval.index hnsw

Writes <split>_metrics.json (percent), <split>_score_mat.npz (scipy CSR, points x labels) and
report.html (of the test split; <split>_report.html of the others) into the run folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("split", nargs="?", default="tst", help="trn, val or tst (default tst)")
    parser.add_argument("run", help="run folder or its config.yaml")
    add_plugin_option(parser)
    return parse_words(parser)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports below, so that --help is instant

import logging  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from models.eval_options import check_options, compare_index  # noqa: E402
from models.loading import load_method  # noqa: E402
from models.method import Method  # noqa: E402
from models.report_data import report_data  # noqa: E402
from utils import distributed, metrics  # noqa: E402
from utils.config.config import Config, ConfigError  # noqa: E402
from utils.config.methods import method_class  # noqa: E402
from utils.data.dataset import SPLITS, Dataset, Split, load_dataset  # noqa: E402
from utils.data.held_out import saved_validation_rows  # noqa: E402
from utils.data.sizes import DataSizes  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.files import write_json, written_whole  # noqa: E402
from utils.pretrained.location import load_tokenizer  # noqa: E402
from utils.reading.saved import answers_of  # noqa: E402
from utils.report.html import ReportData, report_path, write_report  # noqa: E402
from utils.run.environment import check_same_data  # noqa: E402
from utils.run.folder import find_run, start_logging, warn_unfinished  # noqa: E402

log = logging.getLogger("eval")
USUAL_KS = (1, 3, 5, 10, 100)
USUAL_TOP_K = 100
COMPARED_POINTS = 1000  # on which an approximate index is compared with exact search


def metric_ks(config: Config, data: Dataset | DataSizes) -> tuple[int, ...]:
    return config.eval.ks or tuple(k for k in USUAL_KS if k <= data.num_labels)


def kept_labels(config: Config, data: Dataset) -> int:
    """Labels predicted per point: `eval.top_k`, and as many as the metrics need."""
    ks = metric_ks(config, data)
    return max(config.eval.top_k or min(max(USUAL_TOP_K, *ks), data.num_labels), *ks)


def check_ks(config: Config, data: Dataset | DataSizes) -> None:
    """No k may be larger than the number of labels."""
    for key, values in (
        ("eval.ks", config.eval.ks or ()),
        ("eval.top_k", (config.eval.top_k or 1,)),
    ):
        if max(values, default=1) > data.num_labels:
            raise ConfigError(
                f"{key} is {max(values)}, larger than the number of labels of {data.name}, "
                f"{data.num_labels}"
            )


def score_split(
    config: Config,
    method: Method,
    data: Dataset,
    split: str,
    accelerator: Accelerator,
) -> tuple[dict[str, float], sp.csr_matrix | None]:
    """(metrics in percent, top-k score matrix) of a split; ({}, None) on other processes than the
    main one."""
    points = data.splits[split]
    ks = metric_ks(config, data)
    scores = method.predict(points, kept_labels(config, data), accelerator)
    if scores is None:
        return {}, None
    return metrics.evaluate(scores, points.relevance, data.inverse_propensity(), ks), scores


def evaluate(
    run: str | Path, split: str = "tst", overrides: list[str] | None = None
) -> dict[str, float]:
    """Metrics of a run's model on a split, written to its folder; every process calls it.

    Raises:
        NotSavedError: the folder cannot be written to; the metrics are in the log, and in the
        error.
        InputError: no finished run, another data set than the run's, an empty split.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    folder, config = find_run(run, overrides or ())
    warn_unfinished(folder)
    accelerator = distributed.start(config.train.mixed_precision)
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    data = load_dataset(
        config, run_tokenizer(config, folder), saved_validation_rows(folder, config.data)
    )
    check_same_data(folder, data)
    if len(data.splits[split]) == 0:
        raise InputError(
            f"split {split} of {data.name} has no points (data.val_fraction is "
            f"{config.data.val_fraction})"
        )
    if data.splits[split].relevance.nnz == 0:
        log.warning("no point of split %s has a label: every metric is 0", split)
    method = load_method(config, folder).to(accelerator.device)
    if method.num_labels != data.num_labels:
        raise InputError(
            f"{data.folder} has {data.num_labels} labels, the model of {folder} "
            f"{method.num_labels}; it is not the data set of this run"
        )
    check_ks(config, data)
    check_options(config, method)
    started = time.perf_counter()
    with answers_of(folder):
        result, scores = score_split(config, method, data, split, accelerator)
    if scores is None:
        return result
    seconds = time.perf_counter() - started
    log.info(
        "%s, split %s: N = %d, L = %d, data %s, %.1f s\n%s",
        data.name,
        split,
        len(data.splits[split]),
        data.num_labels,
        data.hash,
        seconds,
        metrics.describe(result),
    )
    index = recall_of_index(
        config, method, data.splits[split], kept_labels(config, data), accelerator
    )
    told = {
        **result,
        **method.facts(),
        "points": len(data.splits[split]),
        "labels": data.num_labels,
        "data_hash": data.hash,
        "seconds": round(seconds, 2),
    }
    if index:
        told["index"] = index
    if config.eval.without:
        told["without"] = config.eval.without
    report = report_data(folder, config, method, data, split, scores, result, seconds, accelerator)
    save_evaluation(folder, split, scores, told, report)
    log.info("report: %s", report_path(folder, split))
    return result


class NotSavedError(OSError):
    """What was measured could not be written. Attributes: metrics, as `evaluate` would have
    returned them."""

    def __init__(self, message: str, metrics: dict[str, float]) -> None:
        super().__init__(message)
        self.metrics = metrics


def save_evaluation(
    folder: Path, split: str, scores: sp.csr_matrix, told: dict[str, Any], report: ReportData
) -> None:
    """Write predictions, metrics and report of a split; NotSavedError names what could not be, the
    rest is written."""

    def save_scores(path: Path) -> None:
        with written_whole(path) as partial:
            sp.save_npz(partial, scores)

    failed = []
    for path, write in (
        (folder / f"{split}_score_mat.npz", save_scores),
        (folder / f"{split}_metrics.json", lambda path: write_json(path, told)),
        (report_path(folder, split), lambda path: write_report(path, report)),
    ):
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


def run_tokenizer(config: Config, folder: Path) -> Any:
    """The tokenizer in a run's model; None if its method reads no tokens."""
    if method_class(config.method.name).tokenizer_source(config) is None:
        return None
    return load_tokenizer(str(folder / "model"), config.encoder.trust_remote_code)


def recall_of_index(
    config: Config, method: Method, split: Split, k: int, accelerator: Accelerator
) -> dict:
    """How much of the exact result an approximate index finds on points of the split; {} if the
    index is exact."""
    if config.eval.index == "exact" or len(split) == 0:
        return {}
    rows = split.rows[
        np.linspace(0, len(split) - 1, min(len(split), COMPARED_POINTS)).astype(np.int64)
    ]
    return compare_index(method, lambda: method.score_rows(split.tokens, rows, k, accelerator))


def main(options: argparse.Namespace, words: list[str]) -> None:
    start_logging()
    try:
        evaluate(options.run, options.split, words)
        distributed.stop()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; files that were begun are not kept")


if __name__ == "__main__":
    main(*ARGUMENTS)
