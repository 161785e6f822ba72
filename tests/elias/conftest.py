"""Runs and graphs that the tests of ELIAS share."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator

import train
from models.elias.graph import Graph
from models.loading import load_ranker
from tests.helpers import load
from utils.config.config import build_config
from utils.config.methods import method_class
from utils.run.finding import find_run
from utils.runtime import Runtime

STAGE1 = {"name": "elias-1", "max_leaf": 5, "tau": 0.1, "init": "labels", "init_bias": -3.0}
STAGE2 = {"name": "elias-2", "max_leaf": 5, "tau": 0.1, "init": "labels", "init_bias": -3.0}


def graph_of(rows, num_labels=4):
    """A graph from dicts {label: value}, one a cluster."""
    matrix = sp.lil_matrix((len(rows), num_labels), dtype=np.float32)
    for cluster, row in enumerate(rows):
        for label, value in row.items():
            matrix[cluster, label] = value
    return Graph.from_csr(matrix.tocsr())


def learner_of(config, start=None):
    """What trains a config, its graph still unknown; `start` loads the ranker to start from."""
    runtime = Runtime(Accelerator(cpu=True))
    return method_class(config.method.name)(config, load(config), start, runtime)


def built(config):
    """What trains a config, ready for a step."""
    torch.manual_seed(0)
    config.run_folder.mkdir(parents=True, exist_ok=True)
    learner = learner_of(config)
    learner.prepare(config.run_folder)
    return learner


def ranker_of(run, *overrides):
    """The ranker of a finished run."""
    config = find_run(run, overrides)[1]
    return load_ranker(config, run, Runtime.start(config))


@pytest.fixture(scope="module")
def stage1(tiny_root, tiny_encoder, tmp_path_factory):
    """A finished stage 1; tests add files to it, none changes it."""
    return train.fit(
        build_config(
            {
                "data": {
                    "root": str(tiny_root),
                    "name": "tiny",
                    "max_len": 16,
                    "val_fraction": 0.2,
                },
                "encoder": {"name": "bag", "init": tiny_encoder},
                "method": STAGE1,
                "optim": {"lr": 0.05, "group_lr": {"table": 0.05}},
                "train": {"epochs": 6, "batch_size": 16},
                "run": {
                    "dir": str(tmp_path_factory.mktemp("stage1") / "run"),
                    "tensorboard": False,
                },
            },
            {},
        )
    )
