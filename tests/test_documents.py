"""What CONTRIBUTING.md, CITATION.cff and pyproject.toml say beside what is there."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
if sys.version_info >= (3, 11):
    import tomllib


@pytest.fixture
def project():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def git_files():
    """Tracked paths, relative to the repository; skips where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def pinned(name):
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def test_every_room_is_described():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [folder for parent in ("models", "utils") for folder in (ROOT / parent).iterdir()]
    rooms = [folder for folder in rooms if any(folder.glob("*.py"))]
    assert len(rooms) > 15
    assert not [folder for folder in rooms if f"{folder.relative_to(ROOT)}/" not in page]


def test_every_room_that_is_described_is_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = re.findall(r"\b(?:models|utils|configs|tests|benchmarks)/[\w/]*/", page)
    assert rooms and not [room for room in rooms if not (ROOT / room).is_dir()]


def test_paths_differ_by_more_than_case():
    """On macOS and Windows two paths that differ by case alone are one file."""
    paths = git_files()
    parts = {str(parent) for path in paths for parent in (path, *path.parents)}
    twice = [name for name, count in Counter(map(str.lower, parts)).items() if count > 1]
    assert len(paths) > 300 and not twice


def test_pages_that_are_named_are_there():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += [ROOT / "dexml.ipynb", *(ROOT / "configs").rglob("*.yaml")]
    path = re.compile(r"\b(?:models|utils|tests|losses|benchmarks)/[\w/]+\.py\b")
    named = {(page.name, name) for page in pages for name in path.findall(page.read_text())}
    assert len(named) > 15
    assert not [(page, name) for page, name in named if not (ROOT / name).is_file()]


def test_pinned_packages_lie_in_the_ranges(project):
    ranges = {Requirement(line).name: Requirement(line) for line in project["dependencies"]}
    pins = pinned("requirements.txt")
    assert {pin.name for pin in pins} == ranges.keys()
    for pin in pins:
        (version,) = pin.specifier
        assert ranges[pin.name].specifier.contains(version.version), pin


def test_the_tested_python_is_named(project):
    versions = [line.split(" :: ")[-1] for line in project["classifiers"] if "Python :: 3." in line]
    assert versions and all(
        f"Python {version}" in (ROOT / "CONTRIBUTING.md").read_text() for version in versions
    )


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"] == "XMCKit"
    papers = {paper.get("url") for paper in citation["references"]}
    readme = (ROOT / "README.md").read_text()
    methods = set(re.findall(r"\[paper\]\((https://arxiv.org/abs/[\d.]+)\)", readme))
    assert methods and methods <= papers


def test_another_python_than_that_of_the_environment_is_refused(tmp_path):
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    make = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "-C", str(tmp_path)]
    told = subprocess.run(
        [*make, "same-python", f"PYTHON={other}"], capture_output=True, text=True, check=False
    )
    assert told.returncode != 0
    assert "was made by Python 3." in told.stdout and "not 3.99" in told.stdout
    subprocess.run([*make, "same-python", f"PYTHON={sys.executable}"], check=True)
