"""docs/extending.md: its method and its loss, taken from the page, run outside of the repository as
the page says."""

import json
import os
import re
import shlex
import sys

import pytest

from engine.conformance.made import write_dataset
from tests import commands
from tests.commands import ROOT
from utils.config import plugins

PAGE = (ROOT / "docs" / "extending.md").read_text()
LINES = {"my_method.py": 60, "my_learner.py": 60, "my_loss.py": 20}  # at most, empty ones aside
DATA = "LF-DebianTitles-small"


def files_of(page):
    """Files that a page shows: its name in backquotes, then what is in it."""
    blocks = re.findall(r"^`(\w+\.\w+)`[^\n]*\n\n```\w+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return dict(blocks)


def lines_of(page):
    """Command lines that a page shows."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


FILES = files_of(PAGE)


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    """No module of another test, nor ours afterwards."""
    monkeypatch.setattr(plugins, "_allowed", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in LINES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder outside of the repository with the files of the page, and a data set of its name."""
    folder = tmp_path / "mine"
    write_dataset(folder / "Datasets" / DATA)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    return folder


def run(line, folder):
    """Run a command line of the page, by the server of processes."""
    words = shlex.split(os.path.expandvars(line), comments=True)
    scripts = [place for place, word in enumerate(words) if word.startswith(f"{ROOT}/")]
    script = scripts[-1]  # behind the configuration of accelerate
    words[script] = str(os.path.relpath(words[script], ROOT))
    if words[0] == "accelerate":
        number = int(words[words.index("--num_processes") + 1])
        return commands.launch(number, *words[script:], check=False, folder=folder)
    assert words[:script] == ["python"], line
    return commands.run(*words[script:], check=False, folder=folder)


def metrics_of(folder):
    """P@k and the like that an evaluation has written."""
    found = json.loads((folder / "tst_metrics.json").read_text())
    return {name: value for name, value in found.items() if "@" in name}


@pytest.mark.parametrize(("name", "most"), LINES.items())
def test_a_page_is_short(name, most):
    lines = [line for line in FILES[name].splitlines() if line.strip()]
    assert 0 < len(lines) <= most
    assert max(map(len, lines)) <= 100


def test_the_commands_of_the_page(mine, monkeypatch):
    monkeypatch.setenv("XMCKIT", str(ROOT))
    lines = [line for line in lines_of(PAGE) if "$XMCKIT/" in line and "PYTHONPATH" not in line]
    lines = [line for line in lines if not line.startswith("ln ")]
    assert len(lines) == 10
    for line in lines:
        _, _, expected = line.partition("# error: ")
        done = run(line, mine)
        assert bool(done.returncode) == bool(expected), f"{line}\n{done.stderr}"
        for part in filter(None, (part.strip() for part in expected.split("..."))):
            assert part in done.stderr
        if "predict.py" in line:
            answers = json.loads(done.stdout)["labels"]
            assert len(answers) == 3
    results = mine / "Results"
    found = metrics_of(results / "centroids")
    assert metrics_of(results / "two") == pytest.approx(found)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("test_")])
def test_the_tests_of_the_page(name, mine, tmp_path):
    space = {}
    exec(compile(FILES[name], name, "exec"), space)
    (check,) = (value for key, value in space.items() if key.startswith("test_"))
    check(tmp_path / "checked")
