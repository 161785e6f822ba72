"""A trained run that answers, for all tests of commands."""

import pytest

import train
from engine.conformance.made import tiny_sections
from utils.config.config import build_config


@pytest.fixture(scope="session")
def answering_run(tmp_path_factory, tiny_root, tiny_encoder):
    """Folder of a dual encoder on the data set `tiny`; whoever changes it makes a copy."""
    folder = tmp_path_factory.mktemp("answering") / "run"
    sections = {"train": {"epochs": 1}, "data": {"val_fraction": 0.0}}
    return train.fit(build_config(tiny_sections(tiny_root, tiny_encoder, folder, sections), {}))
