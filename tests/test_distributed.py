"""Two and three processes take the same steps as one, with sizes that do not divide; and what
happens when one dies."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from engine.conformance.made import write_dataset
from tests import commands, distributed_worker
from utils import distributed
from utils.arrays import map_arrays
from utils.config.config import build_config, to_yaml
from utils.config.methods import method_class
from utils.data.batches import training_batches
from utils.data.dataset import load_dataset
from utils.pretrained.location import load_tokenizer
from utils.runtime import Runtime

ROOT = Path(__file__).parent.parent
LOSSES = ("softmax", "decoupled-softmax", "soft-topk", "bce")
SETTINGS = {
    **{
        f"all-{name}": {"method": {"tau": 0.2, "gc_batch_size": 3}, "loss": {"name": name}}
        for name in LOSSES
    },
    **{
        f"ova-{name}": {"method": {"name": "ova", "tau": 0.2}, "loss": {"name": name}}
        for name in LOSSES
    },
    "all-sample-weighted": {"loss": {"sample": True, "weighted": True}},
    "hnm": {"method": {"pool": "hnm", "num_negatives": 2}},
    "in-batch": {"method": {"pool": "in-batch"}, "loss": {"sample": True}},
    "transformer": {"encoder": {"name": None, "dropout": 0.0}, "method": {"gc_batch_size": 4}},
    "tokens": {
        "encoder": {"name": None, "dropout": 0.0, "packing": True},
        "method": {"micro_batch_tokens": 30},
    },
    # A last batch of one query, and fewer labels than processes: some own nothing.
    "lone-query": {"encoder": {"name": None, "dropout": 0.0}, "train": {"batch_size": 47}},
    "few-labels": {
        "data": {"name": "few"},
        "encoder": {"name": None, "dropout": 0.0},
        "train": {"batch_size": 16},
    },
    "few-labels-rows": {
        "data": {"name": "few"},
        "train": {"batch_size": 16},
        "method": {"name": "xc", "dropout": 0.0, "batches": "random"},
        "loss": {"name": "triplet"},
        "stages": [{"name": "first", "method": {"name": "dexml"}}, {"name": "rows"}],
    },
    "elias-1": {
        "method": {"name": "elias-1", "max_leaf": 5, "tau": 0.1, "init": "labels"},
        "loss": {"name": "bce"},
    },
    "elias-2": {
        "method": {
            "name": "elias-2",
            "graph": "cluster",
            "max_leaf": 5,
            "beam": 2,
            "K": 9,
            "tau": 0.1,
            "accumulation_steps": 2,
            "swa": True,
            "swa_start": 1,
            "swa_step": 1,
        }
    },
    # One micro-batch: of labels without gradient, frequent under the triplet loss, whole
    # micro-batches are skipped, and whether lazy Adam counts their tokens as touched would depend
    # on the others in them.
    "dexa-triplet": {
        "method": {"name": "dexa", "num_vectors": 8, "num_head_vectors": 3, "cluster_size": 4},
        "loss": {"name": "triplet", "sample": True},
    },
    "fused-of-sharded-rows": {
        "method": {"name": "fused", "candidates": 5, "min_leaf": 2},
        "stages": [
            {"name": "first", "method": {"name": "surrogate", "num_clusters": 7, "tau": 0.2}},
            {
                "name": "rows",
                "method": {"name": "xc", "cluster_size": 4, "dropout": 0.0},
                "loss": {
                    "name": "triplet",
                    "hardest_positives": 3,
                    "hardest_negatives": 5,
                    "margin": 0.2,
                },
            },
            {"name": "fused", "train": {"epochs": 0}},
        ],
    },
    "overlap": {"method": {"name": "overlap", "max_leaf": 4, "splits": 2}},
    "fusion": {
        "method": {"name": "fusion"},
        "stages": [
            {"name": "dual", "method": {"name": "dexml", "tau": 0.2}},
            {
                "name": "tree",
                "method": {"name": "xr-linear", "max_leaf": 4},
                "run": {"start_from": None},
            },
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "fuser": "linear",
                    "memory": "dual",
                    "candidates": 20,
                    "members": {"dual": "stage:dual", "tree": "stage:tree"},
                },
            },
        ],
    },
    # 48 points
    "last-batch-of-one": {"method": {"pool": "in-batch"}, "train": {"batch_size": 47}},
}


def build(root, encoder, folder, sections, **more):
    """A config on the tiny data set.

    eps: where a gradient is 0 but for rounding (the weight of the only token of a text, under
    normalisation), Adam with a tiny eps turns the sign of a rounding error into a whole step.
    """
    base = {
        "data": {"root": str(root), "name": "tiny", "max_len": 16, "val_fraction": 0.2},
        "encoder": {"name": "bag", "init": encoder},
        "method": {"name": "dexml"},
        "optim": {"lr": 0.01, "eps": 1e-4},
        "train": {"epochs": 2, "batch_size": 17},
        "run": {"dir": str(folder), "tensorboard": False, "threads": 1, "keep_last": True},
    }
    merged = {
        s: {**base.get(s, {}), **sections.get(s, {}), **more.get(s, {})}
        for s in {*base, *sections, *more} - {"stages"}
    }
    merged["encoder"]["name"] = merged["encoder"]["name"] or encoder
    return build_config(merged, {}, sections.get("stages", ()))


def launch(processes, *words, check=True, machine=(), module="-m"):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "configs/accelerate_cpu.yaml",
        "--num_processes",
        str(processes),
        *(machine or ("--main_process_port", "0")),
    ]
    got = subprocess.run(
        [*command, *([module] if module else []), *map(str, words)],
        cwd=ROOT,
        timeout=300,
        capture_output=True,
        text=True,
    )
    if check:
        assert got.returncode == 0, got.stderr
    return got


@pytest.fixture(scope="module")
def run_all(tiny_root, tiny_encoder, tmp_path_factory):
    """run_all(G) -> {setting: run folder} with G processes; all settings in one launch."""
    done = {}
    few_root = tmp_path_factory.mktemp("few")
    write_dataset(few_root / "few", points=41, labels=2)  # 33 training points

    def run(processes):
        if processes not in done:
            folder = tmp_path_factory.mktemp(f"processes{processes}")
            for name, sections in SETTINGS.items():
                root = few_root if "data" in sections else tiny_root
                config = build(root, tiny_encoder, folder / name, sections)
                (folder / f"{name}.yaml").write_text(to_yaml(config))
                if processes == 1:
                    distributed_worker.run(config)
            words = "tests.distributed_worker", *(folder / f"{n}.yaml" for n in SETTINGS)
            if processes > 1:
                commands.launch(processes, "-m", *words)
            done[processes] = {name: folder / name for name in SETTINGS}
        return done[processes]

    return run


def parameters(folder):
    """Those of the last training; a fitted stage or tree has none and what it saved is looked at
    instead."""
    if trees := sorted((folder / "model").glob("tree*.npz")):
        return {
            f"{path.stem}|{name}": torch.from_numpy(array)
            for path in trees
            for name, array in map_arrays(path).items()
        }
    # its features depend on each other: many weights say the same
    if (folder / "model" / "fuser.npz").exists():
        scores = sp.load_npz(folder / "tst_score_mat.npz")
        return {"scores": torch.from_numpy(scores.toarray())}
    fitted = not (folder / "last").exists()
    saved = load_file(
        folder / ("model/classifier.safetensors" if fitted else "last/shared.safetensors")
    )
    return {n: v for n, v in saved.items() if fitted or n.startswith("parameter|")}


def metrics(folder):
    return {
        k: v for k, v in json.loads((folder / "tst_metrics.json").read_text()).items() if "@" in k
    }


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_processes_take_the_same_steps(run_all, name, processes):
    one, many = run_all(1)[name], run_all(processes)[name]
    steps = [json.loads((f / "steps.json").read_text()) for f in (one, many)]
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-5, atol=1e-7)
    first, second = parameters(one), parameters(many)
    assert first.keys() == second.keys()
    for parameter, value in first.items():
        torch.testing.assert_close(second[parameter], value, rtol=1e-4, atol=1e-4)
    assert metrics(many) == pytest.approx(metrics(one), abs=1e-3)


def test_classifier_shards_are_saved_as_one(run_all):
    one, many = (
        load_file(run_all(n)["ova-bce"] / "model" / "classifier.safetensors") for n in (1, 3)
    )
    assert many["weight"].shape == one["weight"].shape == (20, 16)
    torch.testing.assert_close(many["weight"], one["weight"], rtol=1e-4, atol=1e-5)
    last = run_all(3)["ova-bce"] / "last"
    rows = [len(load_file(last / f"process-{r}.safetensors")["parameter|weight"]) for r in range(3)]
    assert rows == [6, 7, 7]


@pytest.mark.parametrize("name", ["all-decoupled-softmax", "ova-bce"])
def test_resuming_on_another_number_of_processes(run_all, tiny_root, tiny_encoder, tmp_path, name):
    """One epoch on three processes, the second on one, then against two epochs on one."""
    short = build(tiny_root, tiny_encoder, tmp_path / "run", SETTINGS[name])
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(short))
    # 3 steps an epoch
    commands.launch(3, "-m", "tests.distributed_worker", "--die", "0", "4", path, check=False)
    assert json.loads((tmp_path / "run" / "last" / "progress.json").read_text())["epoch"] == 1
    distributed_worker.run(short, resume=True)
    one = run_all(1)[name]
    for parameter, value in parameters(one).items():
        torch.testing.assert_close(
            parameters(tmp_path / "run")[parameter], value, rtol=1e-4, atol=1e-4
        )
    assert metrics(tmp_path / "run") == pytest.approx(metrics(one), abs=1e-3)
    assert "written by 3 processes, this run has 1" in (tmp_path / "run" / "train.log").read_text()


def test_a_process_that_dies_stops_the_others(tiny_root, tiny_encoder, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        to_yaml(build(tiny_root, tiny_encoder, tmp_path / "run", {}, train={"epochs": 2000}))
    )
    started = time.monotonic()
    got = launch(2, "tests.distributed_worker", "--die", "1", "5", path, check=False)
    assert got.returncode != 0
    assert time.monotonic() - started < 60
    assert (
        "SIGKILL" in got.stderr
        or "Signal 9" in got.stderr
        or "exitcode: -9" in got.stderr.replace(" ", "")
    )


def start_long_run(tiny_root, tiny_encoder, tmp_path):
    """A launcher whose two processes are past their first epoch, with far more to go."""
    path, log = tmp_path / "c.yaml", tmp_path / "run" / "metrics.jsonl"
    path.write_text(
        to_yaml(build(tiny_root, tiny_encoder, tmp_path / "run", {}, train={"epochs": 100_000}))
    )
    with open(tmp_path / "stderr", "w") as stderr:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                "configs/accelerate_cpu.yaml",
                "--num_processes",
                "2",
                "--main_process_port",
                "0",
                "train.py",
                str(path),
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    deadline = time.monotonic() + 100
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    return child, tmp_path / "run"


def test_a_signal_to_the_launcher_saves_the_same_step_on_all(tiny_root, tiny_encoder, tmp_path):
    child, folder = start_long_run(tiny_root, tiny_encoder, tmp_path)
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=60)
    message = "stopped by SIGTERM after saving; go on with the same command and --resume"
    assert (tmp_path / "stderr").read_text().count(message) == 1
    progress = json.loads((folder / "last" / "progress.json").read_text())
    assert progress["processes"] == 2
    assert 0 < progress["step"] < 100_000 * 3
    assert {p.name for p in (folder / "last").glob("process-*")} == {
        "process-0.safetensors",
        "process-1.safetensors",
    }


def test_processes_without_their_launcher_save_and_stop(tiny_root, tiny_encoder, tmp_path):
    child, folder = start_long_run(tiny_root, tiny_encoder, tmp_path)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 60
    while (folder / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (folder / ".lock").exists()  # they ended, and let go of the folder
    assert json.loads((folder / "last" / "progress.json").read_text())["step"] > 0


def test_two_machines(run_all, tiny_root, tiny_encoder, tmp_path):
    """Two launchers on this host, as on two machines with a process each."""
    path = tmp_path / "c.yaml"
    path.write_text(
        to_yaml(build(tiny_root, tiny_encoder, tmp_path / "run", SETTINGS["all-softmax"]))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "configs/accelerate_cpu.yaml",
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        str(port),
    ]
    children = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), "-m", "tests.distributed_worker", str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for child in children:
        _, stderr = child.communicate(timeout=200)
        assert child.returncode == 0, stderr
    one = run_all(1)["all-softmax"]
    steps = [json.loads((f / "steps.json").read_text()) for f in (one, tmp_path / "run")]
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-5)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2


def test_commands_under_launch(run_all, tmp_path):
    """predict.py and eval.py on two processes give what one gives; a batch smaller than the
    processes is refused."""
    folder = run_all(1)["all-softmax"]
    texts = tmp_path / "texts.txt"
    texts.write_text("the linux tool\n\nglyph and letter\n")
    outs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    commands.run("predict.py", folder, "--texts", texts, "--out", outs[0])
    commands.launch(2, "predict.py", folder, "--texts", texts, "--out", outs[1])
    rows = [[json.loads(line) for line in out.read_text().splitlines()] for out in outs]
    assert [r["text"] for r in rows[1]] == ["the linux tool", "", "glyph and letter"]
    for one, two in zip(*rows, strict=True):
        assert [p["label"] for p in one["labels"]] == [p["label"] for p in two["labels"]]
    got = commands.launch(2, "predict.py", folder, "--text", "the linux tool")
    assert len(got.stdout.splitlines()) == 1
    before = metrics(folder)
    commands.launch(2, "eval.py", folder)
    assert metrics(folder) == pytest.approx(before, abs=1e-4)
    got = commands.launch(
        2,
        "train.py",
        folder / "config.yaml",
        "--run.dir",
        tmp_path / "new",
        "--train.batch_size",
        "1",
        check=False,
    )
    assert got.returncode != 0
    assert "train.batch_size is 1, smaller than the number of processes, 2" in got.stderr
    assert not (tmp_path / "new").exists()


def test_a_port_in_use_is_said():
    """Alone, the launcher finds another port and says so; of two machines both must know it, so
    that is an error."""
    two = ("--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1")
    # on all addresses, as the launcher itself listens
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        alone = launch(2, "this", check=False, machine=("--main_process_port", port))
        of_two = launch(2, "this", check=False, machine=(*two, "--main_process_port", port))
    assert alone.returncode == 0
    assert f"Port `{port}` is already in use" in alone.stderr
    assert of_two.returncode != 0
    assert f"on port `{port}`, but another process is utilizing it" in of_two.stderr


def _bytes_of_a_step(labels, batch_size, loss, tiny_encoder, tmp_path, monkeypatch):
    """Bytes that one process hands to collectives in a step of `dexml` all, as process 0 of 2."""
    root = tmp_path / f"sets{labels}"
    if not root.exists():
        write_dataset(root / "tiny", points=80, labels=labels)
    config = build(
        root,
        tiny_encoder,
        tmp_path / "unused",
        {"loss": {"name": loss}},
        train={"batch_size": batch_size},
    )
    data = load_dataset(config, load_tokenizer(tiny_encoder))
    learner = method_class("dexml")(config, data, None, Runtime(Accelerator(cpu=True)))
    sent = []

    def all_reduce(tensor, *_, **__):
        sent.append(tensor.numel() * tensor.element_size())

    def all_gather(whole, tensor, *_, **__):
        sent.append(tensor.numel() * tensor.element_size())
        for part in whole.split(len(tensor)):
            part.copy_(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 0)
        patch.setattr(dist, "all_reduce", all_reduce)
        patch.setattr(distributed, "_gather_into", all_gather)
        batch = next(training_batches(data.splits["trn"], None, config, 0))
        learner.backward(batch)
    return sum(sent)


@pytest.mark.parametrize("loss", ["softmax", "decoupled-softmax", "bce"])
def test_a_step_exchanges_queries_and_row_statistics_only(
    tiny_encoder, tmp_path, monkeypatch, loss
):
    measure = [
        _bytes_of_a_step(n, b, loss, tiny_encoder, tmp_path, monkeypatch)
        for n, b in ((20, 32), (500, 32), (500, 64))
    ]
    assert measure[0] == measure[1]  # the number of labels does not matter
    width, statistics = 16, 8
    # gather, its backward, statistics
    assert 0 < measure[2] <= 64 * 4 * (0.5 * width + width + 2 * statistics)
    assert measure[2] <= 2 * measure[1]


class Allocations(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(found, torch.Tensor):
            given = [each for each in args if isinstance(each, torch.Tensor)]
            if found.untyped_storage().data_ptr() not in [
                each.untyped_storage().data_ptr() for each in given
            ]:
                self.bytes += found.nbytes
        return found


@pytest.mark.parametrize("total", [6000, 6001])
def test_gathering_makes_nothing_but_what_it_returns(monkeypatch, total):
    """As process 0 of 2, whose rows come back from the other one; [L, D] is a card's largest."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "AT_ONCE_BYTES", 1000)
    own = torch.randn(len(distributed.share(total)), 4)

    class Done:
        def wait(self):
            pass

    def broadcast(part, source, async_op):
        if source == 1:
            part[: len(own)] = own
        return Done()

    monkeypatch.setattr(dist, "broadcast", broadcast)
    with Allocations() as made:
        whole = distributed.gather_rows(own, total)
    assert made.bytes == whole.nbytes == total * 16
    assert torch.equal(whole[:3000], own)
    assert torch.equal(whole[-len(own) :], own) or total % 2


@pytest.mark.parametrize("processes", [2, 3])
def test_rows_come_from_all_processes(processes):
    """Equal shares and unequal ones, small and large, none at all; the worker compares."""
    commands.launch(processes, "-m", "tests.gathering_worker")


@pytest.mark.parametrize("total", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shares_partition_any_total(total, parts):
    shares = [distributed.share(total, r, parts) for r in range(parts)]
    assert [i for s in shares for i in s] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_the_identity():
    rows = torch.randn(3, 2)
    assert distributed.gather_rows(rows, 3) is rows
    assert distributed.share_arrays(rows.numpy(), 3).tolist() == rows.tolist()
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    assert distributed.agree(3) == 3
    assert distributed.is_main()
