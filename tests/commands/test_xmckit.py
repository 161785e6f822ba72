"""`python -m xmckit`: every command by one name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import xmckit
from tests.commands import ROOT
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages


def test_every_command_is_there():
    for module, _ in xmckit.COMMANDS.values():
        assert importlib.util.find_spec(module), module
    modules = {module for module, _ in xmckit.COMMANDS.values()}
    packages = {f"utils.{path.parent.name}" for path in ROOT.glob("utils/*/__main__.py")}
    assert packages <= modules


def test_version_and_help_are_instant(capsys):
    with pytest.raises(SystemExit) as end:
        xmckit.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"xmckit {xmckit.__version__}\n"
    code = "import sys, xmckit; xmckit.parse_arguments(['train']); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0
    assert not {"torch", "numpy", "sklearn"} & set(told.stdout.split())


def ended(monkeypatch, *words):
    """Exit code of a command, or what it says in its place."""
    monkeypatch.setattr(sys, "argv", ["xmckit"])
    with pytest.raises(SystemExit) as end:
        xmckit.main(words)
    return end.value.code


def test_a_command_gets_its_words_and_its_name(monkeypatch, capsys):
    assert ended(monkeypatch, "train", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: xmckit train ")
    told = ended(monkeypatch, "train", "nowhere.yaml")
    assert told.startswith("error: nowhere.yaml: no such config file")
    assert ended(monkeypatch, "tarin") == 2
    assert "invalid choice: 'tarin'" in capsys.readouterr().err


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
