"""Recipes on paper: what a later stage cannot do is refused before the first one starts; a repaired one goes on."""
import json
import logging

import pytest
import yaml

import train
from models import METHODS
from models.recipe import plan_recipe
from tests.test_methods import SETTINGS, load
from utils.config import ConfigError
from utils.errors import InputError

ENCODER = {"name": "encoder", "method": {"name": "ova", "tau": 0.1}, "train": {"epochs": 1}}
TREE = {"name": "tree", "method": {"name": "overlap", "features": ["tfidf", "start"], "max_leaf": 4, "splits": 2}}
LAST = [ENCODER, TREE]


def refused(config, match):
    """One line, before anything is trained or written."""
    with pytest.raises(InputError, match=match) as error:
        train.fit(config)
    assert "\n" not in str(error.value)
    assert not config.run_folder.exists()


# ---------------------------------------------------------------- parameter groups

@pytest.mark.parametrize("group", ["classifier", "table"])
def test_a_rate_of_a_group_of_another_stage_has_no_effect(make_config, group):
    config = make_config(optim={"group_lr": {group: 1e-3}}, stages=LAST)
    folder = train.fit(config)
    saved = [yaml.safe_load((f / "config.yaml").read_text())["optim"]["group_lr"]
             for f in (folder / "stages" / "encoder", folder)]
    assert saved == [{group: 1e-3}, None]


def test_a_rate_of_no_group_is_named_with_those_of_all_stages(make_config):
    config = make_config(optim={"group_lr": {"clasifier": 1e-3}}, stages=LAST)
    refused(config, "group_lr names clasifier; .* are of stage encoder classifier, encoder, table; of stage tree none")
    refused(make_config(optim={"group_lr": {"edges": 1e-3}}), "group_lr names edges; this .* are encoder, table$")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("residual", [True, False])
def test_group_names_are_known_before_a_method_is_built(make_config, name, residual):
    settings = SETTINGS[name]
    if settings["method"]["name"] in ("fusion", "elias-ranker"):      # their members must be there
        assert not METHODS[settings["method"]["name"]].group_names(make_config(method=settings["method"]))
        return
    settings = {key: value for key, value in settings.items() if key != "stages"}
    config = make_config(encoder={"residual": residual, "pooling": "mean", "normalize": True}, **settings)
    if settings["method"]["name"] == "xr-linear" or settings["method"]["name"] == "overlap":
        assert METHODS[config.method.name].group_names(config) == frozenset()
        return
    groups = METHODS[config.method.name].build(config, load(config)).parameter_groups()
    assert {group["name"] for group in groups} == METHODS[config.method.name].group_names(config)


# ---------------------------------------------------------------- every stage on paper

ELIAS = {"name": "elias", "method": {"name": "elias-2", "graph": "cluster", "max_leaf": 5, "tau": 0.1}}


@pytest.mark.parametrize(("stage", "message"), [
    ({"method": {"name": "overlap", "features": ["tfidf"]}}, "name `start` among method.features"),
    ({"method": {"name": "overlap", "features": ["start", "start"]}}, "one source or more, none of them twice"),
    ({"method": {"name": "overlap", "features": ["tfidf", "start", "no/run"]}}, "expected tfidf, start or a run"),
    ({"method": {"name": "overlap", "features": ["start"], "copies": 9, "max_leaf": 5}}, "make only 4; lower"),
    ({"method": {"name": "xc", "cluster_size": 600}}, "method.cluster_size is 600, expected at most the batch"),
    ({"method": {"name": "xc", "cluster_size": 4}, "run": {"start_from": None}}, "method xc starts from a trained enc"),
    ({"method": {"name": "xc", "cluster_size": 4}, "encoder": {"residual": False}}, "encoder.residual is True, this"),
    ({"method": {"name": "fused"}, "train": {"epochs": 0}}, "fused starts from an xc run, not from one of ova"),
    ({"method": {"name": "surrogate", "num_clusters": 16}}, "other classes: one a label, this run's 16"),
    ({"method": {"name": "dexml"}}, "a dexml run cannot start from a ova run"),
    ({"method": {"name": "dexa", "num_vectors": 6}}, "num_vectors is 6, expected a power of two"),
    ({**ELIAS, "method": {**ELIAS["method"], "graph": "approx"}}, "need an elias run to start from, got a ova run"),
    ({**ELIAS, "method": {**ELIAS["method"], "swa": True, "swa_start": 0}}, "nothing would be averaged"),
    ({**ELIAS, "method": {**ELIAS["method"], "beam": 5}}, "method.beam is 5, larger than the number of clusters, 4"),
    ({**ELIAS, "method": {**ELIAS["method"], "graph": "no.npz"}}, "no.npz: no such file; expected a graph A"),
    ({**ELIAS, "loss": {"name": "triplet"}}, "loss.name must be one of bce, decoupled-softmax for elias-2"),
    ({"method": {"name": "elias-ranker"}}, "elias-ranker starts from an elias run, not from one of ova"),
    ({"method": {"name": "fusion", "members": {"a": "no/run"}}, "run": {"start_from": None}}, "no/run: not a run fold"),
    ({"method": {"name": "fusion", "members": {"a": "stage:encoder"}, "memory": "b"}, "run": {"start_from": None}},
     "method.memory is 'b', expected one of the members, a"),
    ({"method": {"name": "ova"}, "eval": {"ks": [1, 21]}}, "eval.ks is 21, larger than the number of labels of tiny"),
    ({"method": {"name": "ova"}, "eval": {"top_k": 50}}, "eval.top_k is 50, larger than the number of labels"),
    ({"method": {"name": "ova"}, "train": {"track_metric": "P@7"}}, "track_metric 'P@7' is not computed; computed"),
    ({"method": {"name": "ova"}, "run": {"start_from": "no/such"}}, "run.start_from: no/such: not a run folder"),
    ({"method": {"name": "ova"}, "data": {"name": "absent"}}, "absent: no such data set"),
])
def test_what_the_last_stage_cannot_do_is_refused_before_the_first(make_config, stage, message):
    refused(make_config(stages=[ENCODER, {**stage, "name": "last"}]), f"^stage 'last': .*{message}|^{message}")


def test_a_folder_that_the_last_stage_cannot_take_is_refused_before_the_first(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no run"):
        train.fit(make_config(stages=LAST))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_stages_that_fit_are_planned_without_being_trained(make_config):
    stages = [ENCODER, {"name": "classifiers", "method": {"name": "xc", "cluster_size": 4}},
              {"name": "fused", "method": {"name": "fused"}, "train": {"epochs": 0}}, TREE]
    config = make_config(stages=stages)
    planned = plan_recipe(config)
    assert [c.method.name for c in planned.values()] == ["ova", "xc", "fused", "overlap"]
    assert planned["tree"].run.start_from == str(config.run_folder / "stages" / "fused")
    assert not config.run_folder.exists()


# ---------------------------------------------------------------- going on after a repair

def test_a_recipe_whose_last_stage_failed_goes_on_with_a_repaired_config(make_config, monkeypatch):
    config = make_config(stages=LAST)
    original = METHODS["overlap"].prepare
    monkeypatch.setattr(METHODS["overlap"], "prepare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.fit(config)
    monkeypatch.setattr(METHODS["overlap"], "prepare", original)
    encoder = config.run_folder / "stages" / "encoder"
    before = (encoder / "finished").stat().st_mtime_ns
    repaired = make_config(stages=[ENCODER, {**TREE, "method": {**TREE["method"], "copies": 1}}])
    with pytest.raises(InputError, match="holds a run of another config|holds this run already"):
        train.fit(repaired)
    folder = train.fit(repaired, resume=True)
    assert (encoder / "finished").stat().st_mtime_ns == before
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["copies"] == 1
    assert json.loads((folder / "finished").read_text())["epochs"] == 0


@pytest.fixture
def said():
    """What the module that keeps run folders logs; runs take the root's handlers away, pytest's too."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("utils.run").addHandler(handler)
    yield messages
    logging.getLogger("utils.run").removeHandler(handler)


def test_a_finished_stage_is_kept_and_what_has_no_effect_on_it_is_said(make_config, said):
    folder = train.fit(make_config(stages=LAST))
    (folder / "finished").unlink()
    train.fit(make_config(stages=[{**ENCODER, "train": {"epochs": 2}}, TREE]), resume=True)
    assert any("encoder is finished and kept as it was trained: train.epochs (1 -> 2) has no effect" in message
               for message in said)


def test_an_unfinished_run_of_another_config_is_refused(make_config):
    folder = train.fit(make_config(stages=LAST))
    (folder / "finished").unlink()
    other = make_config(stages=[ENCODER, {**TREE, "method": {**TREE["method"], "copies": 1}}])
    with pytest.raises(InputError, match=r"holds a run of another config: method.copies \(2 -> 1\)"):
        train.fit(other, resume=True)


def test_config_errors_of_a_stage_name_it(make_config):
    config = make_config(stages=[ENCODER, {"name": "last", "method": {"name": "ova", "tau": -1}}])
    with pytest.raises(ConfigError, match="stage 'last': method.tau must be above 0, got -1"):
        train.fit(config)
