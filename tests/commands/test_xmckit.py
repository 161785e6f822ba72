"""`python -m xmckit`: every command by one name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import xmckit
from tests.commands import ROOT, run
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages


def test_every_command_is_there():
    for module, _ in xmckit.COMMANDS.values():
        assert importlib.util.find_spec(module), module


def test_version_and_help_are_instant(capsys):
    with pytest.raises(SystemExit) as end:
        xmckit.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"xmckit {xmckit.__version__}\n"
    code = "import sys, xmckit; xmckit.parse_arguments(['train']); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0
    assert not {"torch", "numpy", "sklearn"} & set(told.stdout.split())


def test_a_command_gets_its_words_and_its_name():
    told = run("-m", "xmckit", "train", "--help")
    assert told.stdout.startswith("usage: xmckit train ")
    told = run("-m", "xmckit", "train", "nowhere.yaml", check=False)
    assert told.returncode == 1
    assert told.stderr.startswith("error: nowhere.yaml: no such config file")
    told = run("-m", "xmckit", "tarin", check=False)
    assert told.returncode == 2
    assert "invalid choice: 'tarin'" in told.stderr


def test_what_the_module_has_not_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'XCM'"):
        xmckit.XCM  # noqa: B018


def test_a_preset_is_trained_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_training_config("tree", ["--data.name", "Mine"], member_stages)
    assert config.run_folder == Path("Results/XMCKit/Mine/tree")
    Path("tree").write_text("method: {name: dexml}\n")  # a file of this name comes first
    config = load_training_config("tree", ["--data.name", "Mine"], member_stages)
    assert config.method.name == "dexml"
