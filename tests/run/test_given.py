"""given.yaml of a run is what its user wrote, comments too, and the command line."""

import pytest
import yaml

import train
from engine.conformance.made import tiny_sections
from utils.config.given import given_text
from utils.config.yaml_text import dump_yaml
from utils.run.folder import clear_run

MINE = """\
# what I think of it
base: [more/data.yaml]   # common to all
train: {epochs: 0}
method: {name: dexml}
stages:
- name: one        # the first
- name: two
  method: {name: ova}
"""


@pytest.fixture
def written(tmp_path, tiny_root, tiny_encoder):
    """A config with a base, of a run of two stages."""
    sections = tiny_sections(tiny_root, tiny_encoder, tmp_path / "run", {})
    for name in ("method", "train"):
        del sections[name]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "data.yaml").write_text(f"# base\n{dump_yaml(sections)}")
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path / "mine.yaml"


def test_a_run_keeps_its_config_as_it_was_given(written, tmp_path):
    train.main([str(written), "--train.batch_size", "8", "--run.expname=a b"])
    text = (tmp_path / "run" / "given.yaml").read_text()
    base = tmp_path / "more" / "data.yaml"
    assert text == (
        f"# given: python train.py {written} --train.batch_size 8 '--run.expname=a b'\n"
        f"--- # {base}\n{base.read_text()}--- # {written}\n{MINE}"
    )
    first, second = yaml.safe_load_all(text)
    assert first["data"]["name"] == "tiny" and [s["name"] for s in second["stages"]] == [
        "one",
        "two",
    ]
    assert not (tmp_path / "run" / "stages" / "one" / "given.yaml").exists()
    train.main([str(tmp_path / "run" / "config.yaml"), "--resume"])
    assert (tmp_path / "run" / "given.yaml").read_text() == text
    clear_run(tmp_path / "run")
    assert not (tmp_path / "run" / "given.yaml").exists()


def test_a_file_that_two_name_stands_once(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {name: x}")
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("base: c.yaml\n")
    (tmp_path / "top.yaml").write_text("base: [a.yaml, b.yaml]\n")
    text = given_text(tmp_path / "top.yaml", [])
    files = [line.rpartition("/")[2] for line in text.splitlines() if line.startswith("---")]
    assert files == ["c.yaml", "a.yaml", "b.yaml", "top.yaml"]
    assert len([*yaml.safe_load_all(text)]) == 4


def test_files_of_the_older_code_name_theirs_otherwise(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1\n")
    (tmp_path / "top.yaml").write_text("__dependency__: base.yaml\nbsz: 2\n")
    first, _ = yaml.safe_load_all(given_text(tmp_path / "top.yaml", []))
    assert first == {"lr": 1}
