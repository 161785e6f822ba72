"""Evaluate a run's best model.

    python eval.py Results/XMCKit/LF-DebianTitles-small/dexml         # test split
    python eval.py val RUN                                            # or trn; RUN = folder or its config.yaml
    python eval.py RUN --data.root ../Datasets                         # what does not change the model is free
    python eval.py RUN --eval.index hnsw                              # approximate search; logs its recall

Writes <split>_metrics.json (percent), <split>_score_mat.npz (scipy CSR, points x labels) and report.html (of the test
split; <split>_report.html of the others) into the run folder.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.command_line import parse_words


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("split", nargs="?", default="tst", help="trn, val or tst (default tst)")
    parser.add_argument("run", help="run folder or its config.yaml")
    return parse_words(parser)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()      # before the imports below, so that --help is instant

import logging  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from models import METHOD_CONFIGS, METHODS, load_method  # noqa: E402
from models.method import Method  # noqa: E402
from models.report_data import report_data  # noqa: E402
from utils import distributed, metrics  # noqa: E402
from utils.config import Config, ConfigError  # noqa: E402
from utils.data import SPLITS, Dataset, Split, load_dataset, saved_validation_rows  # noqa: E402
from utils.data_sizes import DataSizes  # noqa: E402
from utils.environment import check_same_data  # noqa: E402
from utils.files import write_json, written_whole  # noqa: E402
from utils.html_report import report_path, write_report  # noqa: E402
from utils.pretrained import load_tokenizer  # noqa: E402
from utils.run import find_run, start_logging, warn_unfinished  # noqa: E402
from utils.search import Comparison, ExactIndex, HnswIndex  # noqa: E402

log = logging.getLogger("eval")
USUAL_KS = (1, 3, 5, 10, 100)
USUAL_TOP_K = 100
COMPARED_POINTS = 1000      # on which an approximate index is compared with exact search


def metric_ks(config: Config, data: Dataset | DataSizes) -> tuple[int, ...]:
    return config.eval.ks or tuple(k for k in USUAL_KS if k <= data.num_labels)


def kept_labels(config: Config, data: Dataset) -> int:
    """Labels predicted per point: `eval.top_k`, and as many as the metrics need."""
    ks = metric_ks(config, data)
    return max(config.eval.top_k or min(max(USUAL_TOP_K, *ks), data.num_labels), *ks)


def check_ks(config: Config, data: Dataset | DataSizes) -> None:
    """No k may be larger than the number of labels."""
    for key, values in (("eval.ks", config.eval.ks or ()), ("eval.top_k", (config.eval.top_k or 1,))):
        if max(values, default=1) > data.num_labels:
            raise ConfigError(f"{key} is {max(values)}, larger than the number of labels of {data.name}, "
                              f"{data.num_labels}")


def score_split(config: Config, method: Method, data: Dataset, split: str, accelerator: Accelerator,
                ) -> tuple[dict[str, float], sp.csr_matrix | None]:
    """(metrics in percent, top-k score matrix) of a split; ({}, None) on other processes than the main one."""
    points = data.splits[split]
    ks = metric_ks(config, data)
    scores = method.predict(points, kept_labels(config, data), accelerator)
    if scores is None:
        return {}, None
    return metrics.evaluate(scores, points.relevance, data.inverse_propensity(), ks), scores


def evaluate(run: str | Path, split: str = "tst", overrides: list[str] | None = None) -> dict[str, float]:
    """Metrics of a run's model on a split, written to its folder; every process calls it."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    folder, config = find_run(run, METHOD_CONFIGS, overrides or ())
    warn_unfinished(folder)
    accelerator = distributed.start(config.train.mixed_precision)
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    data = load_dataset(config, run_tokenizer(config, folder), saved_validation_rows(folder, config.data))
    check_same_data(folder, data)
    if len(data.splits[split]) == 0:
        raise ValueError(f"split {split} of {data.name} has no points "
                         f"(data.val_fraction is {config.data.val_fraction})")
    if data.splits[split].relevance.nnz == 0:
        log.warning("no point of split %s has a label: every metric is 0", split)
    method = load_method(config, folder).to(accelerator.device)
    if method.num_labels != data.num_labels:
        raise ValueError(f"{data.folder} has {data.num_labels} labels, the model of {folder} {method.num_labels}; "
                         "it is not the data set of this run")
    check_ks(config, data)
    check_options(config, method)
    started = time.perf_counter()
    result, scores = score_split(config, method, data, split, accelerator)
    if scores is not None:
        seconds = time.perf_counter() - started
        index = compare_index(config, method, data.splits[split], kept_labels(config, data), accelerator)
        with written_whole(folder / f"{split}_score_mat.npz") as partial:
            sp.save_npz(partial, scores)
        write_json(folder / f"{split}_metrics.json",
                   {**result, **method.facts(), "points": len(data.splits[split]), "labels": data.num_labels,
                    "data_hash": data.hash, "seconds": round(seconds, 2), **({"index": index} if index else {}),
                    **({"without": config.eval.without} if config.eval.without else {})})
        log.info("%s, split %s: N = %d, L = %d, data %s, %.1f s\n%s", data.name, split, len(data.splits[split]),
                 data.num_labels, data.hash, seconds, metrics.describe(result))
        path = report_path(folder, split)
        write_report(path, report_data(folder, config, method, data, split, scores, result, seconds, accelerator))
        log.info("report: %s", path)
    return result


def run_tokenizer(config: Config, folder: Path) -> Any:
    """The tokenizer in a run's model; None if its method reads no tokens."""
    if METHODS[config.method.name].tokenizer_source(config) is None:
        return None
    return load_tokenizer(str(folder / "model"), config.encoder.trust_remote_code)


def check_options(config: Config, method: Method) -> None:
    """An approximate index, another precision, or members to leave out were asked for: the method must have them."""
    if config.eval.without and config.method.name != "fusion":
        raise ValueError(f"eval.without is {list(config.eval.without)}, but method {config.method.name} has no members "
                         "to leave out; only a fusion has")
    if config.eval.precision != "float32" and not config.method.name.startswith("elias"):
        raise ValueError(f"eval.precision is '{config.eval.precision}', but method {config.method.name} has no graph "
                         "index; it needs eval.precision: float32")
    if config.eval.index != "exact" and not isinstance(vars(method).get("index"), HnswIndex):
        raise ValueError(f"eval.index is '{config.eval.index}', but method {config.method.name} does not search all "
                         "labels by inner product; it needs eval.index: exact")


def compare_index(config: Config, method: Method, split: Split, k: int, accelerator: Accelerator) -> dict:
    """How much of the exact result an approximate index finds on points of the split; {} if the index is exact."""
    if config.eval.index == "exact" or len(split) == 0:
        return {}
    index = method.index
    rows = split.rows[np.linspace(0, len(split) - 1, min(len(split), COMPARED_POINTS)).astype(np.int64)]
    method.index = Comparison(index, ExactIndex(index.labels, index.bias, block=config.eval.label_block))
    try:
        method.score_rows(split.tokens, rows, k, accelerator)
        found = {"name": config.eval.index, **method.index.report()}
    finally:
        method.index = index
    log.info("approximate index: recall@1 %.4f, recall@%d %.4f of the exact result, %d points, build %.1f s, search "
             "%.3f ms/point vs exact %.3f ms/point", found["recall@1"], k, found["recall@k"], found["points"],
             found["build_seconds"], found["search_ms"], found["exact_ms"])
    return found


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
