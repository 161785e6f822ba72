"""Who reads each kind of file from outside: what `tests/reading/test_malformed.py` hands damaged
copies to.

Preloaded by the server whose children read one damaged file each, so it imports all that they need.
A target takes a folder of its own, which holds the damaged file, and returns what the file meant.
"""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from models.elias.graph import Graph
from models.loading import load_ranker
from utils.config.config import build_config
from utils.config.legacy_yaml import load_any_config
from utils.config.sections import DataConfig
from utils.data.dataset import load_dataset
from utils.data.texts import ListTexts
from utils.errors import InputError
from utils.features.files import find_features
from utils.prepare import command as preparing
from utils.pretrained.location import load_tokenizer
from utils.report.tables import read_run
from utils.run.environment import check_labels
from utils.run.finding import find_run
from utils.runtime import Runtime

TEXTS = ["the linux tool", "glyph and letter"]


def data_set(folder: Path) -> object:
    """Relevance, filters and tokens of a data set's folder."""
    sections = {
        "data": {"root": str(folder.parent), "name": folder.name, "max_len": 16},
        "method": {"name": "dexml"},
    }
    data = load_dataset(build_config(sections, {}), load_tokenizer("minilm"))
    parts = []
    for split in data.splits.values():
        parts.append(split.relevance.toarray().tolist())
        parts.append(split.filters.toarray().tolist())
        parts.append(split.tokens.take(split.rows)[0].tolist())
    return parts


def features(folder: Path) -> object:
    """TF-IDF features of a data set that came with them."""
    files = find_features(folder, DataConfig())
    return [files.matrix(split).toarray().tolist() for split in ("trn", "tst")]


def graph(folder: Path) -> object:
    """A graph of clusters and labels, as method.graph names it."""
    return Graph.load(folder / "A.npz", 20).to_csr().toarray().tolist()


def run(folder: Path) -> object:
    """Answers of a run folder."""
    found, config = find_run(folder)
    ranker = load_ranker(config, found, Runtime(Accelerator(cpu=True)))
    scores, ids = ranker.open(ListTexts(TEXTS)).best(5)
    assert np.isfinite(scores).all(), "answers that are not finite"
    return [scores.round(3).tolist(), ids.tolist()]


def told(folder: Path) -> object:
    """What a report reads of a run folder."""
    found = read_run(folder, "tst")
    check_labels(folder, Path(find_run(folder)[1].dataset_folder))
    return json.loads(json.dumps(found | {"folder": ""}, default=str))


def config(folder: Path) -> object:
    """A config and its bases."""
    return str(load_any_config(folder / "config.yaml"))


def prepared(layout: str, *words: str) -> Callable[[Path], object]:
    """The data set that `python -m utils.prepare` makes of a folder's files."""

    def read(folder: Path) -> object:
        out = folder / "out"
        named = [str(folder / word[1:]) if word.startswith("@") else word for word in words]
        make, _ = preparing.FORMATS[layout]
        make(preparing._parser().parse_args([layout, *named, "--out", str(out)]))
        return {path.name: path.read_text() for path in sorted(out.rglob("*.txt"))}

    return read


TARGETS: dict[str, Callable[[Path], object]] = {
    "data_set": data_set,
    "features": features,
    "graph": graph,
    "run": run,
    "told": told,
    "config": config,
    "csv": prepared("csv", "--train", "@rows.csv", "--test-fraction", "0.4"),
    "jsonl": prepared("jsonl", "--train", "@rows.jsonl", "--test-fraction", "0.4"),
    "sparse": prepared("sparse-text", "@"),
    "pecos": prepared("pecos", "@"),
}


# -------------------------------- in the child


@dataclass(frozen=True)
class Outcome:
    """How a child ended: `said` is its error, `result` what the file meant."""

    crash: str | None = None
    error: str | None = None
    said: str = ""
    result: object = None
    left: tuple[str, ...] = ()
    memory: int = 0


def read(target: str, folder: str, report: Connection) -> None:
    """In the child: read the folder and send the outcome."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    error = None
    said = ""
    result = None
    before = _files(Path(folder))
    try:
        result = TARGETS[target](Path(folder))
    except InputError as problem:
        said = str(problem)
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
    left = tuple(sorted(_files(Path(folder)) - before))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.send(Outcome(None, error, said, result, left, memory))
    report.close()
    os._exit(0)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
