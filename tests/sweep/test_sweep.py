"""Sweeps on the tiny data set: drawn again as they were, pruned, interrupted, gone on with; a trial
that fails or is killed ends no sweep; the best config trains what the best trial was."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

import train
from engine.sweep import child as children
from engine.sweep import loop
from engine.sweep.child import FAILED, FINISHED, Child, Ended, Reached, Task
from engine.sweep.loop import Asked, Sweep
from engine.sweep.study import Study
from tests import commands
from utils.config.config import ConfigError, load_config, to_yaml
from utils.errors import InputError
from utils.run.lock import locked
from utils.sweep.__main__ import main
from utils.sweep.ranges import parse_tries


@pytest.fixture(autouse=True)
def one_server(monkeypatch):
    """Trials come from the server that commands of tests come from: it has imported everything."""
    assert commands.SERVER.get_start_method() == "forkserver"
    monkeypatch.setattr(children.CONTEXT, "set_forkserver_preload", lambda modules: None)


@pytest.fixture
def config(make_config, tmp_path):
    """A file of a tree, which is fitted in a moment."""
    path = tmp_path / "tree.yaml"
    sections = {"method": {"name": "xr-linear", "max_leaf": 4, "splits": 2}}
    path.write_text(to_yaml(make_config(**sections, run={"threads": 1})))
    return path


@pytest.fixture
def encoder_config(make_config, tmp_path):
    """A file of a dual encoder of two epochs."""
    path = tmp_path / "dual.yaml"
    path.write_text(to_yaml(make_config(train={"epochs": 2}, run={"threads": 1})))
    return path


class FakeChild:
    """A trial without a process: what `script` says of a config, thing by thing."""

    script: ClassVar = None
    answers: ClassVar = []

    def __init__(self, task):
        self.connection = self
        self.task = task
        self.said = iter(FakeChild.script(load_config(task.config)))

    def receive(self):
        return next(self.said)

    def go_on(self, pruned):
        FakeChild.answers.append(pruned)
        if pruned:
            self.said = iter([Ended(children.PRUNED)])

    def stop(self):
        FakeChild.answers.append("stopped")

    def join(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    """fake(script): trials are no processes but what script(config) says."""

    def use(script):
        FakeChild.script = staticmethod(script)
        FakeChild.answers = []
        monkeypatch.setattr(loop, "Child", FakeChild)
        monkeypatch.setattr(loop, "wait", lambda connections: connections[:1])

    return use


def finished(value):
    return Ended(FINISHED, value, {"best_epoch": 1, "train_seconds": 2.0})


# -------------------------------- real trials


def test_the_best_config_trains_what_the_best_trial_was(config, tmp_path, capsys):
    folder = tmp_path / "sweep"
    main([str(config), "--try", "method.beam=3", "--dir", str(folder)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "| trial | method.beam | nDCG@5 | best epoch | seconds | state |"
    assert lines[2].startswith("| 1 | 3 | ") and lines[2].endswith(" | finished |")
    assert out.endswith(f"config: {folder / 'best.yaml'}\n")
    assert (folder / "trials.csv").read_text().startswith("trial,method.beam,nDCG@5")
    best = load_config(folder / "best.yaml")
    assert best.run.dir is None and best.run.expname.endswith("-best")
    saved = json.loads((folder / "trial-001" / "val_metrics.json").read_text())
    assert lines[2].split()[5] == f"{saved['nDCG@5']:.2f}"
    again = train.fit(load_config(folder / "best.yaml", ["--run.dir", str(tmp_path / "again")]))
    measured = json.loads((again / "val_metrics.json").read_text())
    assert {k: v for k, v in measured.items() if "@" in k} == {
        k: v for k, v in saved.items() if "@" in k
    }
    # nothing is owed any more: the same command tells the same at once
    main([str(config), "--try", "method.beam=3", "--dir", str(folder)])
    assert capsys.readouterr().out == out


def test_a_trial_that_fails_is_told_and_ends_no_sweep(config, tmp_path, fake):
    def script(config):
        if config.method.beam == 1:
            yield Ended(FAILED, problem="OutOfMemoryError: CUDA out of memory | 3 GiB")
        yield finished(float(config.method.beam))

    fake(script)
    folder = tmp_path / "sweep"
    outcome = Sweep(Asked(config, ["method.beam=1,2"], folder=folder)).run()
    assert (outcome.number, outcome.failed) == (2, 1)
    table = (folder / "trials.md").read_text().splitlines()
    assert table[2].endswith(" | finished |")
    assert table[3] == (
        "| 1 | 1 |  |  |  | failed: OutOfMemoryError: CUDA out of memory \\| 3 GiB |"
    )


def test_a_killed_process_is_a_failed_trial(tmp_path, config):
    task = Task(tmp_path / "no.yaml", tmp_path / "out.txt", "")
    child = Child(task)
    ended = child.receive()
    child.join()
    assert ended.state == FAILED and "no.yaml" in ended.problem
    child = Child(Task(config, tmp_path / "out2.txt", ""))
    os.kill(child._process.pid, signal.SIGKILL)
    ended = child.receive()
    child.join()
    assert ended.problem == (
        "its process was killed by SIGKILL; the machine's memory may have been full"
    )


# -------------------------------- what is drawn


def drawn(folder, number, values=float, seed=0):
    folder.mkdir(exist_ok=True)
    tries = parse_tries(["optim.lr=log:1e-5:1e-1", "train.epochs=int:1:9"])
    found = []
    for _ in range(number):
        study = Study(folder, tries, seed, 20)  # opened anew, as after an interruption
        trial, tried = study.begin()
        study.end(trial, Ended(FINISHED, float(tried["optim.lr"])))
        found.append(tried)
    return found


def test_a_seed_draws_the_same_trials_interrupted_or_not(tmp_path):
    tries = parse_tries(["optim.lr=log:1e-5:1e-1", "train.epochs=int:1:9"])
    whole = tmp_path / "whole"
    whole.mkdir()
    study = Study(whole, tries, 0, 20)
    uninterrupted = []
    for _ in range(12):  # the first ten are random
        trial, tried = study.begin()
        study.end(trial, Ended(FINISHED, float(tried["optim.lr"])))
        uninterrupted.append(tried)
    assert drawn(tmp_path / "cut", 12) == uninterrupted
    assert drawn(tmp_path / "other", 3, seed=1) != uninterrupted[:3]
    assert len({tried["optim.lr"] for tried in uninterrupted}) == 12


def test_a_trial_below_the_median_is_pruned(config, tmp_path, fake):
    def script(config):
        value = 50.0 if config.method.beam <= 6 else 1.0
        yield Reached("", 1, 1, value, False)
        yield Reached("", 2, 2, value, True)
        yield finished(value)

    fake(script)
    asked = Asked(config, ["method.beam=1,2,3,4,5,6,7"], folder=tmp_path / "sweep")
    outcome = Sweep(asked).run()
    assert FakeChild.answers == [False] * 12 + [True]
    assert outcome.shown.rows[-1][-1] == "pruned" and outcome.shown.rows[-1][2] == "1.00"
    fake(script)
    Sweep(Asked(config, asked.tries, folder=tmp_path / "all", prune=False)).run()
    assert FakeChild.answers == [False] * 14


def test_equal_values_are_not_trained_twice(config, tmp_path, fake):
    trained = []

    def script(config):
        trained.append(config.method.beam)
        yield finished(float(config.method.beam))

    fake(script)
    # of three combinations four trials cannot be drawn without one that was there
    tries = ["method.beam=int:1:3"]
    outcome = Sweep(Asked(config, tries, trials=6, folder=tmp_path / "sweep")).run()
    assert len(outcome.shown.rows) == 6
    assert sorted(trained) == sorted(set(trained))
    assert outcome.value == max(trained)


# -------------------------------- interruptions


def test_what_was_interrupted_goes_on_and_what_is_owed_is_trained(config, tmp_path, fake):
    folder = tmp_path / "sweep"
    trained = []

    def stopped(config):
        trained.append(config.method.beam)
        if len(trained) == 2:
            yield Reached("", 1, 1, 3.0, False)
            yield Ended(children.INTERRUPTED)
        yield finished(float(config.method.beam))

    fake(stopped)
    asked = Asked(config, ["method.beam=1,2,3"], folder=folder)
    with pytest.raises(KeyboardInterrupt):
        Sweep(asked).run()
    assert trained == [1, 2]
    assert "| 1 | 1.00 |" in (folder / "trials.md").read_text()
    assert (folder / "best.yaml").is_file()
    outcome = Sweep(asked).run()
    assert trained == [1, 2, 2, 3]
    assert [row[0] for row in outcome.shown.rows] == ["3", "2", "1"]
    more = Sweep(Asked(config, asked.tries, trials=50, folder=folder)).run()
    assert trained == [1, 2, 2, 3] and more.number == 3


def test_ctrl_c_stops_trials_and_keeps_their_checkpoints(encoder_config, tmp_path):
    """A real one: SIGTERM reaches the sweep while its trial trains; then it goes on."""
    folder = tmp_path / "sweep"
    words = ["--train.epochs", "300", "--train.batch_size", "8"]
    asked = Asked(encoder_config, ["optim.lr=0.01"], words, folder=folder)

    def stop_when_it_trains():
        log = folder / "trial-001" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_trains).start()
    with pytest.raises(loop.Stopped):
        Sweep(asked).run()
    progress = json.loads((folder / "trial-001" / "last" / "progress.json").read_text())
    assert 0 < progress["step"] < 300 * 6
    assert not (folder / ".lock").exists()
    assert Study(folder, parse_tries(asked.tries), 0, 1).interrupted() == [1]


def test_a_trial_that_was_not_drawn_to_the_end_has_failed(tmp_path):
    tries = parse_tries(["optim.lr=lin:0:1"])
    study = Study(tmp_path, tries, 0, 3)
    study._study.ask()  # without a value
    assert study.interrupted() == []
    assert [trial.state.name for trial in study.trials()] == ["FAIL"]
    number, _ = study.begin()
    assert (number, study.interrupted(), study.owed()) == (2, [2], 1)


# -------------------------------- what is refused


@pytest.mark.parametrize("line", ["junk", "{}", "[]", '"a"'])
def test_a_damaged_log_of_trials_is_one_line(tmp_path, line):
    tries = parse_tries(["optim.lr=lin:0:1"])
    Study(tmp_path, tries, 0, 3)
    log = tmp_path / "study.log"
    log.write_text(line + "\n" + log.read_text())
    with pytest.raises(InputError, match="study.log: expected the trials of a sweep"):
        Study(tmp_path, tries, 0, 3)


def test_what_cannot_be_tried_is_refused_before_the_first_trial(config, tmp_path):
    folder = tmp_path / "sweep"

    def problem(*tries, **more):
        with pytest.raises(InputError) as found:
            Sweep(Asked(config, tries, folder=folder, **more))
        assert not folder.exists()
        return str(found.value)

    assert "--try optim.lrr=1: unknown key 'optim.lrr'; did you mean 'lr'" in problem("optim.lrr=1")
    assert "--try method.beam=x: method.beam must be whole number, got 'x'" in problem(
        "method.beam=1,x"
    )
    assert "--try method.beam=0: method.beam must be at least 1" in problem("method.beam=int:0:3")
    assert "'P@7' is not computed; did you mean 'P@" in problem("method.beam=1", metric="P@7")
    assert "--trials: expected at least 1, got 0" in problem("method.beam=1", trials=0)
    assert "--jobs: expected at least 1, got 0" in problem("method.beam=1", jobs=0)
    assert "--seed: expected 0 or more, got -1" in problem("method.beam=1", seed=-1)
    assert "there are none (data.val_fraction is 0.0)" in problem(
        "method.beam=1", words=["--data.val_fraction", "0"]
    )
    assert "nothing" in problem("method.beam=1", words=["--data.name", "nothing"])


def test_a_folder_of_another_sweep_is_refused(config, tmp_path, fake):
    folder = tmp_path / "sweep"
    fake(lambda config: iter([finished(1.0)]))
    Sweep(Asked(config, ["method.beam=1"], folder=folder)).run()
    for change, message in (
        ({"tries": ["method.beam=2"]}, r"other values \(--try method.beam=1\)"),
        ({"seed": 1}, r"another seed \(0, now 1\)"),
        ({"words": ["--method.max_leaf", "5"]}, r"another config \(method.max_leaf\)"),
    ):
        values = {"tries": ["method.beam=1"], **change}
        with pytest.raises(InputError, match=f"holds a sweep of {message}; name another"):
            Sweep(Asked(config, folder=folder, **values))
    with locked(folder), pytest.raises(InputError, match="another process works on this sweep"):
        Sweep(Asked(config, ["method.beam=1"], folder=folder))
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        Sweep(Asked(config, ["method.beam=1"], folder=tmp_path))


def test_a_launcher_and_a_missing_package_are_told(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="it starts its trials itself"):
        Sweep(Asked(config, ["method.beam=1"]))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="pip install 'optuna>=4'"):
        Sweep(Asked(config, ["method.beam=1"]))


def test_where_no_trial_finished_the_command_fails(config, tmp_path, fake, capsys):
    fake(lambda config: iter([Ended(FAILED, problem="OutOfMemoryError: CUDA out of memory")]))
    words = [str(config), "--try", "method.beam=1,2", "--dir", str(tmp_path / "sweep")]
    with pytest.raises(SystemExit, match="error: no trial has finished"):
        main(words)
    assert capsys.readouterr().out.count("failed: OutOfMemoryError: CUDA out of memory |") == 2
    assert not Path(tmp_path / "sweep" / "best.yaml").exists()


def test_trials_beside_each_other(config, tmp_path, fake):
    threads = []

    def script(config):
        threads.append(config.run.threads)
        yield finished(float(config.method.beam))

    fake(script)
    words = ["--run.threads", "null"]
    asked = Asked(config, ["method.beam=1,2,3"], words, folder=tmp_path / "sweep", jobs=2)
    assert Sweep(asked).run().number == 3
    assert threads == [max(len(os.sched_getaffinity(0)) // 2, 1)] * 3
