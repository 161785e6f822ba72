"""A run killed at any instant goes on as if nothing had happened; a full disk or a damaged file
loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from models.dual.dexml import Dexml
from tests.commands import Command
from tests.conftest import with_values
from tests.helpers import equal, weights
from utils.config.config import to_yaml
from utils.training import checkpoint

ROOT = Path(__file__).parents[2]


def log_lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = {"seconds", "points_per_second", "tokens_per_second", "memory_mb"}
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


class Killer:
    """Runs fit in a forked child and kills it with SIGKILL after a random time: no start-up to wait
    for each time."""

    def __init__(self, config, slow):
        self.config, self.slow = config, slow

    def run(self, seconds):
        """True if the child finished before it was killed."""
        child = os.fork()
        if child == 0:
            try:
                original = Dexml.backward

                def slower(learner, batch):
                    time.sleep(self.slow)
                    return original(learner, batch)

                Dexml.backward = slower
                train.fit(self.config, resume=True)
                os._exit(0)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, "a killed run could not be resumed"
                return True
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False


SETTINGS = {
    "encoder": {"dropout": 0.2},
    "method": {"pool": "hnm", "refresh_interval": 2, "gc_batch_size": 8},
    "train": {"epochs": 80, "batch_size": 8},
    "run": {"save_minutes": 0.0005, "threads": 1},
}


def test_twenty_kills_change_nothing(make_config, tmp_path, capfd):
    """Each kill comes at a random instant: while reading, training, evaluating, writing the model
    or a checkpoint."""
    config = make_config(**SETTINGS, data={"val_fraction": 0.2})
    torch.set_num_threads(1)
    whole = train.fit(with_values(config, run={"dir": str(tmp_path / "whole")}))
    rng = random.Random(0)
    kills = 0
    killer = Killer(with_values(config, run={"dir": str(tmp_path / "killed")}), slow=0.015)
    while not killer.run(rng.uniform(0.05, 0.9) if kills < 20 else 300):
        kills += 1
    assert kills >= 20, "the run was over before it was killed twenty times"
    killed = tmp_path / "killed"
    assert equal(weights(whole), weights(killed))
    assert log_lines(whole) == log_lines(killed)
    for name in ("head.safetensors",):
        assert equal(load_file(whole / "model" / name), load_file(killed / "model" / name))
    assert not [p.name for p in killed.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "settings", [{"encoder": {"dropout": 0.2}}, {"method": {"name": "ova", "tau": 0.1}}]
)
def test_signals_save_and_say_how_to_go_on(make_config, tmp_path, settings):
    config = make_config(
        **settings, train={"epochs": 400, "batch_size": 8}, run={"dir": str(tmp_path / "run")}
    )
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        child = Command("train.py", path, "--resume")
        log = tmp_path / "run" / "metrics.jsonl"
        before = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 60
        while (
            not log.exists() or len(log.read_text().splitlines()) <= before
        ) and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        got = child.finish(timeout=60)
        assert got.returncode == code, got.stderr
        assert (
            f"stopped by {number.name} after saving; go on with the same command and --resume"
            in got.stderr
        )
    progress = json.loads((tmp_path / "run" / "last" / "progress.json").read_text())
    assert 0 < progress["step"] < 400 * 6


def test_mid_epoch_checkpoints_go_on_in_the_middle(make_config, tmp_path, monkeypatch):
    config = make_config(encoder={"dropout": 0.3}, train={"epochs": 2, "batch_size": 8})
    whole = train.fit(config)
    cut = with_values(config, run={"dir": str(tmp_path / "cut"), "save_minutes": 1e-9})
    original = Dexml.backward
    calls = []

    def die_at_the_tenth_step(self, batch):
        calls.append(1)
        if len(calls) == 10:
            raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(Dexml, "backward", die_at_the_tenth_step)
    with pytest.raises(MemoryError):
        train.fit(cut)
    progress = json.loads((cut.run_folder / "last" / "progress.json").read_text())
    assert (progress["epoch"], progress["epoch_step"], progress["step"]) == (1, 3, 9)
    train.fit(cut, resume=True)
    assert len(calls) == 10 + 3  # the steps after the ninth, no others
    assert equal(weights(whole), weights(cut.run_folder))
    assert log_lines(whole) == log_lines(cut.run_folder)


def test_a_damaged_checkpoint_is_a_clear_error(make_config):
    config = make_config()
    folder = train.fit(config)
    (folder / "finished").unlink()
    for name in ("shared.safetensors", "process-0.safetensors", "progress.json", "method.npz"):
        path = folder / "last" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="is damaged or of another version of this program"):
            train.fit(config, resume=True)
        path.write_bytes(whole)
    progress = json.loads((folder / "last" / "progress.json").read_text())
    (folder / "last" / "progress.json").write_text(json.dumps({**progress, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this program reads format 1"):
        train.fit(config, resume=True)


def test_another_library_version_is_said(make_config, caplog):
    config = make_config()
    folder = train.fit(config)
    (folder / "finished").unlink()
    path = folder / "last" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "1.0"}))
    records = []
    checkpoint.log.addFilter(lambda record: records.append(record.getMessage()) or True)
    train.fit(config, resume=True)
    assert any("written with torch 1.0" in r for r in records)


def test_a_full_disk_while_saving_keeps_the_previous_checkpoint(make_config, monkeypatch):
    config = make_config(train={"epochs": 3})
    original = checkpoint.save_file
    calls = []

    def full(tensors, path):
        calls.append(1)
        original(tensors, path)
        if len(calls) == 4:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        train.fit(config)
    folder = config.run_folder
    assert json.loads((folder / "last" / "progress.json").read_text())["epoch"] == 1
    assert not list(folder.glob(".last*"))
    monkeypatch.setattr(checkpoint, "save_file", original)
    train.fit(config, resume=True)
    assert [r["epoch"] for r in log_lines(folder) if r["kind"] == "train"] == [1, 2, 3]


def test_a_limit_of_the_file_system_while_saving_is_one_clear_error(make_config, tmp_path):
    """The real thing, in a process that may not write files as large as its second checkpoint."""
    small = make_config(train={"epochs": 1})
    folder = train.fit(small)
    before = (folder / "last" / "shared.safetensors").read_bytes()
    (folder / "finished").unlink()
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(small))
    progress = folder / "last" / "progress.json"
    progress.write_text(
        json.dumps({**json.loads(progress.read_text()), "epoch": 0, "epoch_step": 0, "step": 0})
    )
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); sys.argv = "
        f"['train.py', {str(path)!r}, '--resume']; runpy.run_path('train.py', run_name='__main__')"
    )
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 1
    assert got.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in got.stderr
    assert (folder / "last" / "shared.safetensors").read_bytes() == before
    assert not list(folder.glob(".*partial*"))
    assert [p.name for p in (folder / "model").iterdir()]  # the best model so far is whole, too
    train.fit(small, resume=True)
