"""Every method on a GPU that is pretended (tests/pretend): trained, stopped, resumed, evaluated and
asked, on one and on two processes, it finds what it finds on a CPU; and how often a step waits."""

from functools import cache, cached_property

import pytest
import torch
import torch.distributed as dist

from engine.conformance.case import Case, answered, losses_of, scores_of_test
from engine.conformance.processes import DIGIT, STEADY, check_near, train_and_ask
from tests import commands
from tests.pretend.device import pretended_gpu
from tests.pretend.marks import DeviceError
from tests.pretend.training import train_on_gpu, waits_of
from tests.pretend.waits import READ, UPLOAD
from tests.settings import EACH, FITTED, brief, sections_of
from utils.config.config import to_yaml

MORE = {
    "dexml-transformer": {"method": {"name": "dexml", "gc_batch_size": 5}},
    "dexml-packed-transformer": {
        "method": {"name": "dexml", "micro_batch_tokens": 40},
        "encoder": {"packing": True},
    },
    "dexa-transformer": sections_of("dexa"),
    "soft-topk": sections_of("dexml-soft-topk"),
    "xc-in-batch": sections_of("xc-in-batch"),
}
METHODS = {method: sections_of(name) for method, name in EACH.items()}
SECTIONS = {name: brief(sections) for name, sections in {**METHODS, **MORE}.items()}
TRAINED = [name for name in SECTIONS if name not in FITTED]
TOLERANCE = 1e-3
# How often a step may wait for a value or a size of the GPU.
BUDGET = dict.fromkeys(TRAINED, 2) | {"soft-topk": 4}


class Runs:
    """The configs of a method, by where it runs; each pair goes on after the first epoch."""

    def __init__(self, name, folder, encoder, root):
        sections = dict(SECTIONS[name])
        if name.endswith("transformer"):
            more = sections.get("encoder", {})
            sections["encoder"] = {"name": encoder, "dropout": 0.0, **more}
        case = Case(sections, root, encoder, folder / name)
        self._whole = case.with_last_stage(
            train={"epochs": 2, "batch_size": 17}, optim=STEADY["optim"]
        )
        self._stopped = self._whole
        if name not in FITTED:
            self._stopped = self._whole.with_last_stage(train={"stop_epoch": 1})

    @cached_property
    def cpu(self):
        """The folder of a run there."""
        config = self._whole.config("cpu", run={"threads": 1})
        train_and_ask(config)
        return config.run_folder

    def pair(self, where):
        run = {"threads": 1}
        return self._stopped.config(where, run=run), self._whole.config(where, run=run)


@pytest.fixture(scope="module")
def runs_of(tiny_root, small_encoder, tmp_path_factory):
    """runs_of(name) -> the Runs of a method, whose run on the CPU serves several tests."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda name: Runs(name, folder, small_encoder, tiny_root))


def check_same(name, folder, expected):
    """A run's losses, scores and answers are those of another."""
    folders = (expected, folder)
    check_near(f"{name}: losses", map(losses_of, folders), TOLERANCE)
    check_near(f"{name}: scores of test points", map(scores_of_test, folders), TOLERANCE)
    for first, second in zip(*map(answered, folders), strict=True):
        assert first.keys() == second.keys(), name
        scores = [[answer[label] for label in first] for answer in (first, second)]
        check_near(f"{name}: scores of answers", scores, TOLERANCE, DIGIT)


@pytest.mark.parametrize("name", SECTIONS)
def test_one_gpu_finds_what_a_cpu_finds(name, runs_of):
    runs = runs_of(name)
    stopped, whole = runs.pair("gpu")
    train_on_gpu(stopped, whole)
    check_same(name, whole.run_folder, runs.cpu)
    if name in TRAINED:
        check_waits(name, whole.run_folder)


def check_waits(name, folder):
    """A step reads from the GPU as often as the tables allow, and waits for no upload."""
    reads = waits_of(folder, READ)
    assert sum(reads.values()) <= BUDGET[name], reads
    assert waits_of(folder, UPLOAD) == {}  # batches are pinned, and copied while it computes


def test_two_gpus_find_what_a_cpu_finds(runs_of, tmp_path):
    """All methods in two processes, which need seconds to start."""
    runs = {name: runs_of(name) for name in METHODS}
    paths = []
    for name, own in runs.items():
        for number, config in enumerate(own.pair("gpus")):
            paths.append(tmp_path / f"{name}-{number}.yaml")
            paths[-1].write_text(to_yaml(config))
    commands.launch(2, "-m", "tests.pretend.training", *paths)
    for name, own in runs.items():
        check_same(name, own.pair("gpus")[1].run_folder, own.cpu)


# -------------------------------- what is pretended


def refused(message):
    return pytest.raises(DeviceError, match=message)


def test_a_pretended_gpu_refuses_what_cuda_refuses(monkeypatch):
    host = torch.ones(3)
    with pretended_gpu():
        gpu = host.to("cuda")
        assert gpu.is_cuda and gpu.device.type == "cuda" and not host.is_cuda
        assert (gpu + 1).is_cuda and (gpu + torch.tensor(1.0)).is_cuda
        with refused("add: tensors of two devices"):
            gpu + host
        with refused("numpy"):
            gpu.numpy()
        with refused("NCCL: all_reduce of a tensor on the host"):
            dist.all_reduce(host)
        parameter = torch.nn.Parameter(gpu)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        parameter.sum().backward()
        optimizer.step()
        optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].cpu()
        with refused("_fused_adamw_: tensors of two devices"):
            optimizer.step()
    assert not host.is_cuda


def test_waits_are_counted_where_they_are():
    with pretended_gpu() as waits:
        gpu = torch.arange(4, device="cuda")
        assert not waits
        gpu[gpu > 1].sum().item()
        assert waits.count(READ) == 2
        gpu.to("cpu")
        assert gpu.tolist() == [0, 1, 2, 3]
        assert waits.count(READ) == 4
        torch.tensor([1], device="cuda")
        torch.ones(2).to("cuda")
        assert waits.count(UPLOAD) == 2
        torch.ones(2).to("cuda", non_blocking=True)
        torch.where(gpu > 1, gpu, 0).unique(sorted=True)
        assert (waits.count(READ), waits.count(UPLOAD)) == (5, 2)
    here = "in tests/training/test_pretend_device.py:test_waits_are_counted_where_they_are"
    assert waits[READ, f"index by a mask {here}"] == waits[READ, f"to {here}"] == 1
