"""How commands end: a user's mistake is one line, a bug shows where it is."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import predict
from engine.evaluator import NotSavedError
from utils.commands import command
from utils.config import plugins
from utils.config.__main__ import main as config_command
from utils.config.config import to_yaml
from utils.errors import ConfigError, InputError, NotWrittenError
from utils.run.stages import of_stage

REPOSITORY = Path(__file__).resolve().parents[2]
MINE = """
from models.dual.dexml import Dexml


class Mine(Dexml):
    def backward(self, batch):
        raise ValueError("my own bug")
"""
BUGGY = """
from models.dual.dexml import Dexml


class Answers(Dexml.Answers):
    @classmethod
    def load(cls, config, folder, num_labels, runtime):
        raise bug


class Mine(Dexml):
    Answers = Answers
"""


def run_train(folder, *words):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(monkeypatch, capsys):
    """As with `python -m utils.config | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.raises(SystemExit) as stop:
            config_command(["optim"])
        monkeypatch.undo()
    assert stop.value.code == 1
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stdout", None)  # closed before the start
    config_command(["optim"])
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError), command(debug=False):
        raise BrokenPipeError  # of another pipe: a bug


@pytest.mark.parametrize(
    "error",
    [
        InputError("what came"),
        ConfigError("what came"),
        NotWrittenError("what came"),
        NotSavedError("what came", {}),
    ],
)
def test_own_errors_are_one_line(error):
    with pytest.raises(SystemExit, match="^error: what came$"), command(debug=False):
        raise error


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "gone", "x.txt"), OSError(errno.ENOSPC, "")]
)
def test_files_and_full_disks_are_one_line(error):
    with pytest.raises(SystemExit, match="^error: "), command(debug=False):
        raise error


@pytest.mark.parametrize("error", [ValueError("bug"), OSError("bug"), KeyError("bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match="bug"), command(debug=False):
        raise error


def test_debug_shows_all():
    with pytest.raises(InputError), command(debug=True):
        raise InputError("what came")


def test_an_interrupt_says_what_is_kept(capsys):
    with pytest.raises(SystemExit) as stop, command(False, "nothing was written", code=130):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "nothing was written\n"


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "some.yaml"],
        ["eval.py", "run"],
        ["predict.py", "run", "--text", "a"],
        ["elias_utils.py", "report", "run"],
        ["-m", "utils.export", "run", "folder"],
        ["-m", "utils.features", "folder"],
        ["-m", "utils.report", "seeds", "run"],
    ],
)
def test_an_interrupt_while_libraries_are_loaded_is_one_line(words, tmp_path):
    for library in ("torch", "numpy", "scipy", "transformers"):
        (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode in (1, 130)
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1


def test_errors_that_a_command_names_are_its_own():
    with pytest.raises(SystemExit), command(debug=False, also=(FloatingPointError,)):
        raise FloatingPointError("the loss became nan")


def test_a_users_bug_in_training_shows_its_traceback(make_config, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    text = to_yaml(make_config(train={"epochs": 1})).replace("name: dexml", "name: mine:Mine")
    (tmp_path / "my.yaml").write_text(text)
    done = run_train(tmp_path, "my.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "mine.py" in done.stderr
    assert done.stderr.endswith("ValueError: my own bug\n")


@pytest.fixture
def buggy_run(make_config, tmp_path, monkeypatch):
    """A run of a method whose ranker cannot be loaded; its module, to be given a bug."""
    (tmp_path / "buggy.py").write_text(BUGGY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_allowed", {"buggy"})
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "method.json").write_text('{"method": "buggy:Mine", "num_labels": 20}')
    text = to_yaml(make_config()).replace("name: dexml", "name: buggy:Mine")
    (folder / "config.yaml").write_text(text)
    yield folder, importlib.import_module("buggy")
    sys.modules.pop("buggy")


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, KeyError])
def test_a_users_bug_in_loading_is_not_taken_for_a_damaged_model(buggy_run, kind):
    folder, module = buggy_run
    module.bug = kind("my own bug")
    with pytest.raises(kind, match="my own bug") as error:
        predict.Predictor(folder)
    assert error.value is module.bug


@pytest.mark.parametrize("error", [InputError("rows.npy: damaged"), OSError(2, "gone", "rows.npy")])
def test_a_file_that_a_users_method_cannot_read_is_one_of_the_model(buggy_run, error):
    folder, module = buggy_run
    module.bug = error
    with pytest.raises(InputError, match=f"^{folder / 'model'}: the model cannot .*rows.npy"):
        predict.Predictor(folder)


def test_a_users_mistake_is_one_line_and_debug_says_more(tmp_path):
    done = run_train(tmp_path, "gone.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = run_train(tmp_path, "gone.yaml", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_stages_name_the_users_mistakes_alone():
    with pytest.raises(InputError, match="stage 'a': wrong"), of_stage("a"):
        raise InputError("wrong")
    with pytest.raises(ValueError, match="^bug$"), of_stage("a"):
        raise ValueError("bug")
