"""Fixtures: small made data sets and configs that train in a second."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests, and the processes that they start, compute on the CPU, whatever else the machine has.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["ACCELERATE_USE_CPU"] = "true"

import pytest
import torch

from engine.conformance.made import tiny_sections, write_dataset, write_encoder
from tests.encoders.tiny_encoders import write_tiny
from utils.config.config import Config, build_config, to_mapping


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail tests of pages that found no browser, where XMCKIT_BROWSER_TESTS is `required`."""
    report = yield
    required = os.environ.get("XMCKIT_BROWSER_TESTS") == "required"
    if required and report.skipped and item.get_closest_marker("browser"):
        report.outcome = "failed"
        report.longrepr = (
            f"XMCKIT_BROWSER_TESTS is `required`, but it was skipped: {report.longrepr}"
        )
    return report


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """Folder with the data set `tiny`: 60 training points, 20 labels."""
    root = tmp_path_factory.mktemp("Datasets")
    write_dataset(root / "tiny")
    return root


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """Folder of a made transformer of one layer and 16 dimensions, with the tokenizer of minilm."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory):
    """Folder of a made transformer of few words, which is loaded and saved at once."""
    return str(write_tiny("bert", tmp_path_factory.mktemp("few") / "words"))


@pytest.fixture
def make_config(tiny_root, tmp_path, tiny_encoder):
    """make_config({section: {key: value}}, **sections) -> Config on the tiny data set."""

    def make(**sections) -> Config:
        stages = sections.pop("stages", ())
        merged = tiny_sections(tiny_root, tiny_encoder, tmp_path / "run", sections)
        return build_config(merged, {}, stages)

    return make


def with_values(config: Config, **sections) -> Config:
    """A copy of a config with some keys changed."""
    mapping = to_mapping(config)
    stages = mapping.pop("stages", ())
    for section, values in sections.items():
        mapping[section] = {**mapping[section], **values}
    return build_config(mapping, {}, stages)
