"""Damaged files of every kind that comes from outside: refused by name, or they mean the same.

Each input is read by a child of one preloaded server, so that a crash is the child's alone. It must
end with our own error that names the file, or with the result of the whole file; leave nothing
behind; take neither long nor much memory.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import train
from engine.conformance.made import write_dataset
from eval import evaluate
from models.elias.graph import graph_of_clusters
from tests.commands import SERVER
from tests.reading.malformed_targets import Outcome, read
from tests.reading.mutations import mutations

SECONDS = 30
MOST_MEMORY = 1 << 30


# -------------------------------- one input in one child


def outcome_of(target: str, folder: Path) -> Outcome:
    """What becomes of one folder in a child of the server."""
    here, there = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=read, args=(target, str(folder), there))
    child.start()
    there.close()
    try:
        got = here.recv() if here.poll(SECONDS) else Outcome(crash=f"no answer in {SECONDS} s")
    except EOFError:
        got = None
    child.kill() if got and got.crash else None
    child.join(SECONDS)
    if got is None:
        code = child.exitcode or 0
        got = Outcome(crash=signal.Signals(-code).name if code < 0 else f"exit status {code}")
    return got


# -------------------------------- what there is to damage


@dataclass(frozen=True)
class Subject:
    """A file of a whole folder, and who reads it."""

    target: str
    folder: Path
    file: str
    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.target}:{self.folder.name}/{self.file}"

    @property
    def may_differ(self) -> bool:
        """Other metrics, and other settings of a library, are as valid."""
        return self.target == "told" or Path(self.file).name.startswith("tokenizer")


KIND_OF = {
    ".npz": "npz",
    ".npy": "npy",
    ".safetensors": "safetensors",
    ".json": "json",
    ".jsonl": "lines",
    ".txt": "lines",
    ".csv": "lines",
    ".yaml": "lines",
}
UNREAD = {"README.md", "modules.json", "special_tokens_map.json"}  # for other programs


def subject(target: str, folder: Path, file: str, count: int) -> Subject:
    return Subject(target, folder, file, KIND_OF[Path(file).suffix], count)


def saved_files(folder: Path) -> list[str]:
    """Files of a saved model that its loading reads."""
    return sorted(
        str(path.relative_to(folder))
        for path in (folder / "model").rglob("*")
        if path.suffix in KIND_OF and path.name not in UNREAD
    )


RECIPES = {
    "fusion": {
        "method": {"name": "fusion", "memory": "dual"},
        "stages": [
            {"name": "encoder", "method": {"name": "dexml"}},
            {
                "name": "tree",
                "run": {"start_from": None},
                "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8},
            },
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "members": {"dual": "stage:encoder", "tree": "stage:tree"},
                },
            },
        ],
    },
    "fused": {
        "method": {"name": "fused"},
        "stages": [
            {"name": "encoder", "method": {"name": "dexml"}},
            {"name": "classifiers", "method": {"name": "xc", "tau": 0.05, "cluster_size": 4}},
            {"name": "fused", "train": {"epochs": 0}},
        ],
    },
    "ranker": {
        "method": {"name": "elias-ranker", "candidates": 20},
        "stages": [
            {"name": "search", "method": {"name": "elias-1", "max_leaf": 5, "tau": 0.1}},
            {"name": "rank"},
        ],
    },
    "dexa": {
        "method": {"name": "dexa", "num_vectors": 8},
        "loss": {"name": "triplet", "sample": True},
    },
    "surrogate": {"method": {"name": "surrogate", "num_clusters": 16, "tau": 0.05}},
    "ova": {"method": {"name": "ova", "tau": 0.05}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_root, tiny_encoder) -> dict[str, Path]:
    """A finished run of each recipe."""

    from utils.config.config import build_config

    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, recipe in RECIPES.items():
        sections = {
            "data": {"root": str(tiny_root), "name": "tiny", "val_fraction": 0.2},
            "encoder": {"name": "bag", "init": tiny_encoder},
            "train": {"epochs": 2, "batch_size": 16},
            **recipe,
            "run": {"dir": str(root / name), "tensorboard": False, "threads": 1},
        }
        stages = sections.pop("stages", ())
        found[name] = train.fit(build_config(sections, {}, stages))
    evaluate(found["ova"])
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Whole files of the layouts that are not runs, a folder each."""
    root = tmp_path_factory.mktemp("inputs")
    data = write_dataset(root / "data_set", points=30, test_points=10)
    rng = np.random.default_rng(0)
    shutil.copytree(data, root / "features")
    for split, points in (("trn", 30), ("tst", 10)):
        features = sp.random(points, 12, 0.4, "csr", np.float32, rng=rng)
        sp.save_npz(root / "features" / f"X.{split}.npz", features)
    shutil.copytree(
        root / "features", root / "pecos", ignore=shutil.ignore_patterns("raw", "filter*")
    )
    (root / "graph").mkdir()
    graph_of_clusters(np.arange(20) % 4, 4).save(root / "graph" / "A.npz")
    (root / "config").mkdir()
    (root / "config" / "config.yaml").write_text(CONFIG)
    (root / "csv").mkdir()
    (root / "csv" / "rows.csv").write_text(
        "text,labels\n"
        + "".join(f"text {i} of some words,{'red|blue' if i % 2 else 'green'}\n" for i in range(12))
    )
    (root / "jsonl").mkdir()
    (root / "jsonl" / "rows.jsonl").write_text(
        "".join(
            json.dumps({"text": f"text {i}", "labels": ["red", "blue"][: 1 + i % 2]}) + "\n"
            for i in range(12)
        )
    )
    (root / "sparse").mkdir()
    for split in ("train", "test"):
        (root / "sparse" / f"{split}.txt").write_text(
            "6 9 4\n" + "".join(f"{i % 4},{(i + 1) % 4} {i}:0.5 {i + 1}:1.25\n" for i in range(6))
        )
    return root


CONFIG = """\
data: {name: tiny, max_len: 16}
method: {name: dexml, pool: all}
train: {epochs: 3, batch_size: 16}
optim: {lr: 0.05, group_lr: {encoder: 0.01}}
stages:
  - {name: warm, train: {epochs: 2}}
  - {name: main, method: {pool: hnm}}
"""


def subjects(runs: dict[str, Path], inputs: Path) -> Iterator[Subject]:
    """Every file that is damaged, and how often: more than 600 inputs in all."""
    for file in ("Y.trn.npz", "Y.tst.npz"):
        yield subject("data_set", inputs / "data_set", file, 30)
    for file in ("filter_labels_train.txt", "raw/trn_X.txt", "raw/Y.txt"):
        yield subject("data_set", inputs / "data_set", file, 10)
    yield subject("features", inputs / "features", "X.trn.npz", 30)
    yield subject("graph", inputs / "graph", "A.npz", 30)
    yield subject("config", inputs / "config", "config.yaml", 40)
    yield subject("csv", inputs / "csv", "rows.csv", 20)
    yield subject("jsonl", inputs / "jsonl", "rows.jsonl", 20)
    yield subject("sparse", inputs / "sparse", "train.txt", 20)
    for file in ("X.trn.npz", "Y.trn.npz"):
        yield subject("pecos", inputs / "pecos", file, 20)
    for file in ("tst_metrics.json", "environment.json"):
        yield subject("told", runs["ova"], file, 12)
    for folder in runs.values():
        for file in saved_files(folder):
            yield subject("run", folder, file, 4)


# -------------------------------- the test


def alike(one: object, other: object) -> bool:
    """Equal, numbers to three digits."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=2e-3)
    return one == other


def fault(may_differ: bool, file: str, got: Outcome, whole: object) -> str | None:
    """What is wrong with how a damaged file was met; None if nothing is."""
    if got.crash:
        return f"crashed: {got.crash}"
    if got.error:
        return f"another error than ours: {got.error[:300]}"
    if got.memory > MOST_MEMORY:
        return f"took {got.memory >> 20} MB"
    if got.said and got.left:
        return f"refused, but left {got.left}"
    if got.said and Path(file).name not in got.said and Path(file).stem not in got.said:
        return f"the message does not name the file: {got.said[:300]}"
    if not got.said and not may_differ and not alike(got.result, whole):
        return "accepted with another meaning"
    return None


def test_damaged_files_are_refused_by_name_or_mean_the_same(runs, inputs, tmp_path):
    faults = []
    count = 0
    meanings: dict[tuple[str, Path], object] = {}
    for number, subject in enumerate(subjects(runs, inputs)):
        source = subject.target, subject.folder
        if source not in meanings:
            whole = outcome_of(subject.target, _copy(subject.folder, tmp_path / f"whole{number}"))
            assert whole.crash is whole.error is None and not whole.said, f"{subject}: {whole}"
            meanings[source] = whole.result
        original = (subject.folder / subject.file).read_bytes()
        for mutation in mutations(subject.kind, number, subject.count):
            damaged = mutation.of(original)
            if damaged == original:
                continue
            folder = _copy(subject.folder, tmp_path / "damaged" / subject.folder.name)
            (folder / subject.file).unlink()  # it may be a link to the whole file
            (folder / subject.file).write_bytes(damaged)
            got = outcome_of(subject.target, folder)
            may_differ = mutation.may_differ or subject.may_differ
            if problem := fault(may_differ, subject.file, got, meanings[source]):
                faults.append(f"{subject} {mutation}: {problem}")
            count += 1
            shutil.rmtree(folder)
    assert not faults, f"{len(faults)} of {count} inputs:\n" + "\n".join(faults)
    assert count >= 600


def _copy(folder: Path, to: Path) -> Path:
    """A folder of links: only the damaged file is written anew."""
    shutil.copytree(folder, to, copy_function=os.link)
    return to
