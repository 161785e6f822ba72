"""Fixtures: a dual encoder and a fusion on the tiny data set, trained once for all tests."""

import pytest

import train
from engine.conformance.made import tiny_sections
from utils.config.config import build_config

ENCODER = {"name": "dual", "method": {"name": "dexml"}, "train": {"epochs": 8}}
TREE = {
    "name": "tree",
    "run": {"start_from": None},
    "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2},
}
FUSION = {
    "name": "fusion",
    "run": {"start_from": None},
    "method": {
        "name": "fusion",
        "fuser": "linear",
        "members": {"dual": "stage:dual", "tree": "stage:tree"},
    },
}


def trained(sections, stages=()):
    """Folder of a trained run."""
    return train.fit(build_config(sections, {}, stages))


@pytest.fixture(scope="session")
def fusion_run(tiny_root, tiny_encoder, tmp_path_factory):
    """A fusion of a dual encoder and a tree, which also stand alone in its stages."""
    folder = tmp_path_factory.mktemp("served") / "fusion"
    sections = tiny_sections(tiny_root, tiny_encoder, folder, {"method": {"name": "fusion"}})
    return trained(sections, [ENCODER, TREE, FUSION])


@pytest.fixture(scope="session")
def dual_run(fusion_run):
    """The dual encoder of the fusion."""
    return fusion_run / "stages" / "dual"


@pytest.fixture(scope="session")
def tree_run(fusion_run):
    """The tree of the fusion."""
    return fusion_run / "stages" / "tree"
