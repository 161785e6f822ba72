"""A process that forks after it loaded a run, as gunicorn --preload does: its children answer."""

import os
import signal
import time
import traceback

import numpy as np
import pytest
import torch

import train
from engine.conformance.made import write_dataset
from predict import Predictor
from utils import distributed

LABELS = 400
WIDE = {"name": "bag", "init": "minilm"}  # 384 dimensions: enough work for torch to divide
DUAL = {"name": "dual", "method": {"name": "dexml"}}
TREE = {
    "name": "tree",
    "run": {"start_from": None},
    "method": {"name": "xr-linear", "max_leaf": 50, "splits": 2},
}
FUSION = {
    "name": "fusion",
    "run": {"start_from": None},
    "method": {
        "name": "fusion",
        "memory": "dual",
        "fuser": "linear",
        "members": {"dual": "stage:dual", "tree": "stage:tree"},
    },
}
TEXTS = [
    f"the {a} and {b} tool"
    for a in ("vim", "bash", "photo", "socket", "sound", "movie", "chess", "linux")
    for b in ("snake", "coffee", "gcc", "glyph", "letter", "web", "table", "zip")
]
SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_encoder):
    """A fusion of a bag and a tree, with both as stages."""

    from utils.config.config import build_config

    root = tmp_path_factory.mktemp("fork")
    write_dataset(root / "many", points=100, labels=LABELS)
    return train.fit(
        build_config(
            {
                "data": {"root": str(root), "name": "many", "max_len": 16, "val_fraction": 0.2},
                "encoder": WIDE,
                "method": {"name": "fusion"},
                "train": {"epochs": 1, "batch_size": 32},
                "run": {"dir": str(root / "run"), "tensorboard": False, "threads": 2},
            },
            {},
            [DUAL, TREE, FUSION],
        )
    )


def in_child(work) -> None:
    """Run `work` in a forked child, which must end well and in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    for _ in range(SECONDS * 100):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the child gave no answer within {SECONDS} s")


def busy() -> None:
    """Start the pools of threads that a child does not have."""
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1 << 20).exp()


@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("stages/dual", ()),
        ("stages/dual", ("--eval.index", "hnsw")),
        ("stages/tree", ()),
        (".", ()),
    ],
)
def test_a_forked_child_answers_as_its_parent(folder, part, overrides):
    predictor = Predictor(folder / part, overrides=overrides)
    busy()
    expected = predictor(TEXTS)

    def answer():
        found = predictor(TEXTS)
        assert [[e["label"] for e in row] for row in found] == [
            [e["label"] for e in row] for row in expected
        ]
        scores = [[[e["score"] for e in row] for row in rows] for rows in (found, expected)]
        np.testing.assert_allclose(*scores, atol=1e-5)

    in_child(answer)
    in_child(lambda: in_child(answer))
    assert torch.get_num_threads() == 2


def test_a_run_may_be_loaded_in_the_child(folder):
    busy()

    def answer():
        assert Predictor(folder / "stages" / "dual", overrides=("--run.threads", "2"))(TEXTS)
        assert torch.get_num_threads() == distributed.cpu_threads(2) == 1

    in_child(answer)
