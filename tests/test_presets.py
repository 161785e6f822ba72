"""Presets: every data set gets a config that can be trained; only what was left open is chosen."""

import dataclasses
import logging

import numpy as np
import pytest
import scipy.sparse as sp

from engine import chosen_values
from engine.choosing import assumed_facts, chosen, holds, leaves_choices
from engine.chosen_values import RULES
from engine.conformance.made import write_dataset
from engine.planning import plan_recipe
from train import fit
from utils.config.__main__ import told
from utils.config.automatic import AUTO, CONDITIONS, takes_auto
from utils.config.config import (
    SECTIONS,
    ConfigError,
    build_config,
    describe,
    load_config,
    stage_config,
    to_mapping,
    to_yaml,
)
from utils.config.methods import METHODS, method_options
from utils.config.presets import FOLDER, PRESETS, preset_path
from utils.data.facts import DataFacts
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.plan.sizes import Assumed
from utils.run.stages import Runs

BASE = FOLDER / "base.yaml"


def facts_of(points=20_000, labels=5000, tokens=20.0, **more):
    return DataFacts(None, points, labels, 4 * points, assumed_tokens=tokens, **more)


@pytest.fixture
def load(tiny_root, tiny_encoder, tmp_path):
    """load(preset, *words) -> its Config for the data set `tiny`, with the made encoder."""

    def loaded(name, *words):
        own = ["--data.root", str(tiny_root), "--run.dir", str(tmp_path / "run")]
        if "--data.name" not in words:
            own += ["--data.name", "tiny"]
        return load_config(preset_path(name), [*own, "--encoder.init", tiny_encoder, *words])

    return loaded


def test_every_preset_has_a_file_and_a_line():
    files = {path.stem for path in FOLDER.glob("*.yaml")} - {BASE.stem}
    assert files == set(PRESETS)
    for name, line in PRESETS.items():
        assert preset_path(name).is_file() and line
    with pytest.raises(ConfigError, match="no preset 'bast'; did you mean 'best'"):
        preset_path("bast")


def test_a_preset_needs_a_data_set():
    with pytest.raises(ConfigError, match=r"data.name is missing.*--data.name"):
        load_config(preset_path("tree"))


def test_a_run_is_named_after_preset_and_data(tiny_root):
    words = ["--data.name", "tiny", "--data.root", str(tiny_root)]
    config = load_config(preset_path("best"), words)
    assert str(config.run_folder) == "Results/XMCKit/tiny/best"


# -------------------------------- every data set


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("points", "labels"), [(40, 1), (40, 3), (600, 30), (15_000, 4000), (3_000_000, 1_000_000)]
)
@pytest.mark.parametrize("has_label_texts", [True, False])
def test_what_is_chosen_can_be_trained(load, preset, points, labels, has_label_texts):
    config = load(preset)
    facts = facts_of(points, labels, has_label_texts=has_label_texts)
    found = chosen(config, facts)
    assert not leaves_choices(found)
    held_out = min(int(0.2 * points), 4000)
    problem = "" if has_label_texts else "Y.txt: no such file"
    sizes = DataSizes(
        "tiny", found.dataset_folder, labels, points - held_out, held_out, labels, problem
    )
    stages = plan_recipe(found, lambda _: sizes, Runs())
    for stage in stages.values():
        assert stage.train.batch_size <= max(points, 16)
        if not has_label_texts:
            assert stage.method.name not in ("dexml", "ngame", "dexa")


def test_best_has_the_members_that_the_data_allows(load):
    config = load("best")

    def members(**more):
        found = chosen(config, facts_of(**more))
        return [*stage_config(found, found.stages[-1]).method.members]

    with_texts = members()
    assert {"encoder", "classifiers", "trees"} <= set(with_texts)
    without = members(has_label_texts=False)
    assert "trees" in without and "encoder" not in without and len(without) >= 2
    features_alone = {"has_texts": False, "has_label_texts": False}
    for facts in (facts_of(points=100), facts_of(**features_alone)):
        stages = chosen(config, facts).stages
        assert {stage["name"] for stage in stages} == {"trees", "trees-all"}


def test_a_preset_of_one_stage_is_a_config_without_stages(load):
    found = chosen(load("encoder"), facts_of())
    assert found.stages == () and found.method.name == "dexa"
    found = chosen(load("encoder"), facts_of(has_label_texts=False))
    assert found.method.name == "ova"


def test_features_alone_are_no_texts(load):
    with pytest.raises(ConfigError, match="none of the stages: encoder needs texts"):
        chosen(load("encoder"), facts_of(has_texts=False, has_label_texts=False))


# -------------------------------- what is chosen


def test_what_is_said_wins(load):
    config = load("best", "--train.epochs", "3", "--data.max_len", "9")
    found = chosen(config, facts_of())
    learners = [
        stage for stage in found.stages if stage_config(found, stage).method.name in ("dexa", "xc")
    ]
    assert len(learners) >= 4
    for stage in learners:
        assert stage_config(found, stage).train.epochs == 3
        assert stage_config(found, stage).data.max_len == 9
    found = chosen(load("best", "--stages.encoder.train.epochs", "2"), facts_of())
    of_stage = {stage["name"]: stage_config(found, stage) for stage in found.stages}
    assert of_stage["encoder"].train.epochs == of_stage["encoder-all"].train.epochs == 2
    assert of_stage["classifiers"].train.epochs > 2


def test_members_are_trained_again_as_the_first_time(load):
    found = chosen(load("best"), facts_of())
    stages = {stage["name"]: stage_config(found, stage) for stage in found.stages}
    again = [name for name in stages if name.endswith("-all")]
    assert again
    for name in again:
        first = stages[name.removesuffix("-all")]
        assert stages[name].train.epochs == first.train.epochs
        assert stages[name].method == first.method
        assert stages[name].data == dataclasses.replace(first.data, val_fraction=0)


def test_a_config_that_leaves_nothing_open_stays(make_config):
    config = make_config()
    assert not leaves_choices(config)
    assert chosen(config) is config


def test_resolved_configs_are_read_back(load, tmp_path):
    found = chosen(load("best"), facts_of())
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(found))
    assert load_config(path) == found and AUTO not in str(found.stages).split("'")


def test_every_key_that_takes_auto_has_a_rule_and_the_other_way_round():
    keys = set()
    kinds = {"method": None, **SECTIONS}
    for section, kind in kinds.items():
        options = [method_options(name) for name in METHODS] if section == "method" else [kind]
        for option in options:
            keys |= {f"{section}.{f.name}" for f in dataclasses.fields(option) if takes_auto(f)}
    assert keys == set(RULES)
    assert all(rule.__doc__ for rule in RULES.values())
    assert "or auto" in describe(["train"])


def test_every_condition_is_known():
    assert {holds(name, facts_of()) for name in CONDITIONS} == {True, False}


def test_conditions_are_checked(make_config):
    with pytest.raises(ConfigError, match="stage 'a': `when:` must be a list of conditions"):
        load_stages(make_config, [{"name": "a", "when": ["label_text"]}])
    with pytest.raises(ConfigError, match="must be a list of conditions"):
        load_stages(make_config, [{"name": "a", "when": "label_texts"}])
    with pytest.raises(ConfigError, match="must be a list of conditions"):
        load_stages(make_config, [{"name": "a", "when": [{"texts": True}]}])


def load_stages(make_config, stages):
    from utils.config.config import finish_config

    merged = to_mapping(make_config())
    return finish_config(merged, {}, (), expname="x", stages=stages)


def test_auto_is_refused_where_no_rule_is(make_config):
    with pytest.raises(
        ConfigError, match="train.patience must be whole number or null, got 'auto'"
    ):
        make_config(train={"patience": "auto"})


def test_a_stage_that_starts_from_one_left_out_is_an_error(make_config):
    config = make_config(
        stages=[
            {"name": "first", "when": ["no_label_texts"]},
            {"name": "second", "run": {"start_from": "stage:first"}},
        ]
    )
    with pytest.raises(ConfigError, match="stage 'second': start_from is 'stage:first'"):
        chosen(config, facts_of())


# -------------------------------- the rules


def config_with(make_config, **sections):
    return make_config(data={"max_len": AUTO, "label_max_len": AUTO}, **sections)


def test_lengths_keep_99_of_100_texts(make_config, monkeypatch):
    config = config_with(make_config)
    lengths = np.concatenate([np.full(9899, 30), np.full(101, 500)])
    monkeypatch.setattr(DataFacts, "token_lengths", lambda *a, **k: lengths)
    assert chosen_values.max_len(config, facts_of()) == 500
    lengths = np.concatenate([np.full(9950, 30), np.full(50, 500)])
    assert chosen_values.max_len(config, facts_of()) == 30
    assert chosen_values.share_cut(lengths, 30) == 0.005
    assert chosen_values.share_cut(lengths[:0], 30) == 0
    lengths = np.array([2])  # an empty text has its special tokens alone
    assert chosen_values.max_len(config, facts_of()) == chosen_values.SHORTEST


def test_lengths_stay_within_the_encoder(make_config, tiny_encoder):
    config = config_with(make_config, encoder={"name": tiny_encoder})  # of 64 positions
    assert chosen_values.max_len(config, facts_of(tokens=500)) == 64
    assert chosen_values.max_len(config_with(make_config), facts_of(tokens=500)) > 1000


def test_batches_and_epochs_go_by_size(make_config):
    def steps(points):
        config = make_config(train={"batch_size": AUTO, "epochs": AUTO})
        found = chosen(config, facts_of(points))
        return found.train.batch_size, found.train.epochs

    assert steps(1) == (16, 30)
    assert steps(10_000_000) == (512, 4)
    sizes = [steps(points) for points in (100, 1000, 10_000, 100_000)]
    assert sizes == sorted(sizes, key=lambda pair: (pair[0], -pair[1]))


def test_trees_have_many_clusters(make_config):
    def leaf(labels):
        config = make_config(method={"name": "xr-linear", "max_leaf": AUTO})
        return chosen(config, facts_of(labels=labels)).method.max_leaf

    assert [leaf(labels) for labels in (1, 640, 1_000_000)] == [5, 20, 200]


def test_facts_are_read_from_the_files(tiny_root, make_config):
    facts = DataFacts.read(make_config())
    assert (facts.points, facts.labels) == (60, 20)
    assert facts.has_texts and facts.has_label_texts
    lengths = facts.token_lengths("Y", "minilm")
    assert len(lengths) == 20 and lengths.min() >= 3


def test_data_without_label_texts_is_looked_into(load, tmp_path, caplog):
    root = tmp_path / "data"
    write_dataset(root / "mine", points=600, filters=False)
    (root / "mine" / "raw" / "Y.txt").unlink()
    config = load("best", "--data.root", str(root), "--data.name", "mine")
    with caplog.at_level(logging.INFO):
        found = chosen(config)
    assert {"surrogate", "deepxml", "trees", "fuser"} <= {s["name"] for s in found.stages}
    assert "% of the texts" in caplog.text and "label texts" not in caplog.text


def test_a_plan_of_data_that_is_not_here(load):
    facts = assumed_facts(Assumed(30_000, 131_000, 12.0))
    found = chosen(load("encoder"), facts)
    assert found.data.max_len == 36 and found.method.pool == "hnm"
    assert assumed_facts(Assumed()) is None


def test_the_config_of_a_preset_is_told_with_what_becomes_of_it(tiny_root, tiny_encoder):
    words = ["--data.root", str(tiny_root), "--data.name", "tiny", "--encoder.init", tiny_encoder]
    there = told(["classifiers", "train"], words)
    assert "batch_size: 16" in there and "epochs: 30" in there
    words[3] = "elsewhere"
    assert "batch_size: auto" in told([str(preset_path("encoder")), "train"], words)


# -------------------------------- whole runs


def test_a_matrix_without_columns_is_refused_before_anything_is_chosen(tmp_path):
    folder = write_dataset(tmp_path / "none", points=6, test_points=3, labels=4)
    sp.save_npz(folder / "Y.trn.npz", sp.csr_matrix((6, 0), dtype=np.float32))
    config = {"data": {"root": str(tmp_path), "name": "none"}, "method": {"name": "xr-linear"}}
    with pytest.raises(InputError, match="Y.trn.npz: expected a column a label, got none"):
        plan_recipe(build_config(config, {}))


def test_a_preset_trains_and_says_what_it_chose(load, tmp_path, caplog):
    root = tmp_path / "data"
    write_dataset(root / "mine", filters=False)
    words = ["--data.root", str(root), "--data.name", "mine", "--train.epochs", "1"]
    words += ["--run.tensorboard", "false", "--run.threads", "2"]
    with caplog.at_level(logging.INFO):
        folder = fit(load("classifiers", *words))
    saved = (folder / "config.yaml").read_text()
    assert "auto" not in [line.split(": ")[-1] for line in saved.splitlines()][:8]
    log = caplog.text
    assert "stage surrogate is left out: it is for data with no_label_texts" in log
    assert "stage encoder: chosen for this data: data.max_len" in log
    assert log.count("% of the texts") == log.count("% of the label texts") == 1
    assert "train.epochs" not in log.split("chosen for this data")[1].split("\n")[0]
