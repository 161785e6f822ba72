"""`train.deterministic`: what a GPU may compute by, and that a run may go on with or without it."""

import os

import pytest
import torch

from engine.conformance.case import state_of
from engine.trainer import fit
from tests.conftest import with_values
from utils.runtime import Runtime, choose_algorithms

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Leaves the process as it was."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_gpu_may_compute_by_deterministic_algorithms_alone():
    choose_algorithms(GPU, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[WORKSPACE] == ":4096:8"


def test_a_workspace_of_the_users_own_is_kept(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    choose_algorithms(GPU, deterministic=True)
    assert os.environ[WORKSPACE] == ":16:8"


def test_what_an_earlier_config_of_the_process_asked_for_does_not_hold():
    choose_algorithms(GPU, deterministic=True)
    choose_algorithms(GPU, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_is_left_alone(make_config):
    """It computes the same at every run, and its numbers stay those without the option."""
    Runtime.start(make_config(train={"deterministic": True}))
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ


def test_the_device_of_the_run_is_asked(make_config, monkeypatch):
    monkeypatch.setattr("utils.distributed.start", lambda _: FakeAccelerator())
    Runtime.start(make_config(train={"deterministic": True}))
    assert torch.are_deterministic_algorithms_enabled()
    Runtime.start(make_config())
    assert not torch.are_deterministic_algorithms_enabled()


class FakeAccelerator:
    """Of a GPU, as far as the start of a run asks."""

    device = GPU
    mixed_precision = "no"
    native_amp = True


def test_a_run_may_go_on_with_it(make_config):
    whole = make_config(train={"epochs": 2}, run={"threads": 1})
    half = with_values(whole, train={"stop_epoch": 1})
    expected = state_of(fit(whole))
    folder = fit(half, overwrite=True)
    fit(with_values(whole, train={"deterministic": True}), resume=True)
    found = state_of(folder)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
