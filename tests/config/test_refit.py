"""`refit: true` says in one line what the stages of a fusion on all points say."""

import sys

import pytest

from utils.config import plugins
from utils.config.config import ConfigError, describe, load_config, to_yaml
from utils.run.stages import member_stages, stage_configs

SHORT = """
data: {name: D, val_fraction: 0.2}
method: {name: fusion}
stages:
- name: dual
  method: {name: dexml, tau: 0.03}
  train: {epochs: 8}
- name: rows
  method: {name: xc}
  optim: {lr: 0.002}
- name: given
  run: {start_from: null}
  method: {name: dexml}
  train: {epochs: 0}
- name: unused
  run: {start_from: null}
  method: {name: xr-linear}
- name: sentences
  run: {start_from: "stage:given"}
  method: {name: xc}
- name: trees
  method: {name: overlap, features: [tfidf, start]}
- name: fuser
  run: {start_from: null}
  method:
    name: fusion
    memory: dual
    members: {rows: "stage:rows", trees: "stage:trees"}
"""
LONG = """
- name: dual-all
  run: {start_from: null}
  data: {val_fraction: 0}
  method: {name: dexml, tau: 0.03}
  train: {epochs: 8, stop_epoch: "best:dual"}
- name: rows-all
  data: {val_fraction: 0}
  method: {name: xc}
  optim: {lr: 0.002}
  train: {stop_epoch: "best:rows"}
- name: sentences-all
  run: {start_from: "stage:given"}
  data: {val_fraction: 0}
  method: {name: xc}
  train: {stop_epoch: "best:sentences"}
- name: trees-all
  data: {val_fraction: 0}
  method: {name: overlap, features: [tfidf, start]}
- name: fusion
  run: {start_from: "stage:fuser"}
  data: {val_fraction: 0}
  method:
    name: fusion
    memory: dual
    members: {rows: "stage:rows-all", trees: "stage:trees-all"}
"""

AT_ONCE = """
from models.trees.xr_linear import XrLinear
from utils.config.config import MethodConfig


class Mine(XrLinear):
    Options = MethodConfig
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text, *words):
        path = tmp_path / "fusion.yaml"
        path.write_text(text)
        return load_config(path, words, expand=member_stages)

    return loaded


def by_name(config):
    return {stage["name"]: stage for stage in config.stages}


def test_the_short_form_is_the_long_one(load):
    short = load(SHORT + "refit: true\n")
    long = load(SHORT + LONG)
    assert by_name(short) == by_name(long) and [*by_name(short)] == [*by_name(long)]
    assert stage_configs(short) == stage_configs(long)
    assert stage_configs(short)["trees-all"].run.start_from.endswith("stages/sentences-all")


def test_no_refit_is_the_file_as_it_is(load):
    assert load(SHORT + "refit: false\n") == load(SHORT)


def test_the_saved_config_says_all_stages(load):
    short = load(SHORT + "refit: true\n")
    assert load(to_yaml(short)) == short


def test_an_override_reaches_a_stage_and_its_repetition(load):
    words = ["--stages.rows.optim.lr", "0.5", "--stages.dual-all.train.epochs", "3"]
    stages = stage_configs(load(SHORT + "refit: true\n", *words))
    assert stages["rows"].optim.lr == stages["rows-all"].optim.lr == 0.5
    assert (stages["dual"].train.epochs, stages["dual-all"].train.epochs) == (8, 3)
    apart = ["--stages.rows-all.optim.lr", "0.25"]
    stages = stage_configs(load(SHORT + "refit: true\n", *words, *apart))
    assert (stages["rows"].optim.lr, stages["rows-all"].optim.lr) == (0.5, 0.25)


def test_members_that_are_configs_are_trained_again(load, tmp_path):
    dual = tmp_path / "dual.yaml"
    dual.write_text("data: {name: D}\nmethod: {name: dexml}\ntrain: {epochs: 2}\n")
    config = load(
        f"data: {{name: D}}\nmethod: {{name: fusion, members: {{a: {dual}}}}}\nrefit: true\n"
    )
    assert [*by_name(config)] == ["a", "fusion", "a-all", "fusion-all"]
    assert by_name(config)["fusion-all"]["method"]["members"] == {"a": "stage:a-all"}


def test_a_method_of_ones_own_that_fits_at_once_has_no_best_epoch(load, tmp_path, monkeypatch):
    (tmp_path / "at_once.py").write_text(AT_ONCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_allowed", {"at_once"})
    text = SHORT.replace("{name: xr-linear}", "{name: at_once:Mine}\n  train: {epochs: 0}")
    config = load(text.replace("stage:rows", "stage:unused") + "refit: true\n")
    sys.modules.pop("at_once")
    assert "stop_epoch" not in by_name(config)["unused-all"]["train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHORT + "refit: maybe\n", "`refit:` must be true or false, got 'maybe'"),
        (SHORT + "refti: true\n", "unknown section 'refti'; did you mean 'refit'"),
        ("data: {name: D}\nmethod: {name: ova}\nrefit: true\n", "stages that end in a fusion"),
        (SHORT.replace("stage:rows", "stage:row") + "refit: true\n", "no earlier stage row;"),
        (SHORT.replace("name: unused", "name: dual-all") + "refit: true\n", "must be distinct"),
        (
            SHORT.replace("stage:trees", "stage:given") + "refit: true\n",
            "but member trees is stage given of zero epochs; leave it out, or train it",
        ),
        (
            SHORT.replace("stage:trees", "Results/old") + "refit: true\n",
            "but member trees is Results/old, no stage; make it a stage",
        ),
    ],
)
def test_what_cannot_be_trained_again_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_the_list_of_keys_has_it():
    assert "\nrefit: " in f"\n{describe()}"
    assert "refit" not in describe(["data"])
