"""Two and three processes take the same steps as one, with sizes that do not divide."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eval as evaluation
import train
from utils import distributed
from utils.config import to_yaml

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "all": {"method": {"gc_batch_size": 3}},
    "all-softmax": {"loss": {"name": "softmax"}},
    "all-soft-topk": {"method": {"tau": 0.2}, "loss": {"name": "soft-topk", "k": 3}},
    "hnm": {"method": {"pool": "hnm", "num_negatives": 2}},
    "in-batch": {"method": {"pool": "in-batch"}, "loss": {"sample": True}},
    "ova": {"method": {"name": "ova", "tau": 0.1}, "loss": {"name": "bce"}},
    "transformer": {"encoder": {"name": None, "dropout": 0.0}, "method": {"gc_batch_size": 4}},
}


@pytest.fixture(scope="module")
def run_all(tiny_root, tiny_encoder, tmp_path_factory):
    """run_all(G) -> {setting: run folder} with G processes."""
    from models import METHOD_CONFIGS
    from utils.config import build_config
    done = {}

    def configs(folder):
        for name, sections in SETTINGS.items():
            base = {"data": {"root": str(tiny_root), "name": "tiny", "max_len": 16, "val_fraction": 0.2},
                    "encoder": {"name": "bag", "init": tiny_encoder}, "method": {"name": "dexml"},
                    "optim": {"lr": 0.01}, "train": {"epochs": 2, "batch_size": 17},
                    "run": {"dir": str(folder / name), "tensorboard": False, "threads": 1}}
            merged = {s: {**base.get(s, {}), **sections.get(s, {})} for s in {*base, *sections}}
            merged["encoder"]["name"] = merged["encoder"]["name"] or tiny_encoder
            yield name, build_config(merged, METHOD_CONFIGS, {})

    def run(processes):
        if processes in done:
            return done[processes]
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        paths = []
        for name, config in configs(folder):
            paths.append(folder / f"{name}.yaml")
            paths[-1].write_text(to_yaml(config))
            if processes == 1:
                evaluation.evaluate(train.fit(config))
        if processes > 1:
            subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                            "configs/accelerate_cpu.yaml", "--num_processes", str(processes),
                            "--main_process_port", "0", "-m", "tests.distributed_worker", *map(str, paths)],
                           check=True, cwd=ROOT, timeout=300, capture_output=True, text=True)
        done[processes] = {name: folder / name for name in SETTINGS}
        return done[processes]
    return run


def epoch_losses(folder):
    return [r["loss"] for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if r["kind"] == "train"]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_processes_take_the_same_steps(run_all, name, processes):
    one, many = run_all(1)[name], run_all(processes)[name]
    np.testing.assert_allclose(epoch_losses(many), epoch_losses(one), rtol=1e-5)
    first, second = (load_file(f / "last" / "shared.safetensors") for f in (one, many))
    for parameter in [n for n in first if n.startswith("parameter|")]:
        value = first[parameter]
        torch.testing.assert_close(second[parameter], value, rtol=1e-4, atol=1e-4)
    a, b = (json.loads((f / "tst_metrics.json").read_text()) for f in (one, many))
    assert {k: v for k, v in a.items() if "@" in k} == pytest.approx({k: v for k, v in b.items() if "@" in k}, abs=1e-3)
    assert a["data_hash"] == b["data_hash"]


def test_classifier_shards_are_saved_as_one(run_all):
    one, many = (load_file(run_all(n)["ova"] / "model" / "classifier.safetensors") for n in (1, 3))
    assert many["weight"].shape == one["weight"].shape == (20, 16)
    torch.testing.assert_close(many["weight"], one["weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("total", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shares_partition_any_total(total, parts):
    shares = [distributed.share(total, r, parts) for r in range(parts)]
    assert [i for s in shares for i in s] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_the_identity():
    rows = torch.randn(3, 2)
    assert distributed.gather_rows(rows, 3) is rows
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    assert distributed.is_main()
