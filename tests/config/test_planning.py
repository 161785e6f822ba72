"""Recipes on paper: what a later stage cannot do is refused before the first one starts; a repaired
one goes on."""

import json
import logging
import shutil
from functools import partial

import pytest
import yaml
from accelerate import Accelerator

import train
from engine.conformance.answers import no_collectives
from engine.conformance.made import write_dataset
from engine.planning import plan_recipe
from tests.conftest import with_values
from tests.helpers import equal, load, random_start, weights
from tests.settings import SETTINGS
from utils.config.config import ConfigError, load_config
from utils.config.methods import method_class
from utils.errors import InputError
from utils.run import opening
from utils.run.reopened import load_training_config
from utils.run.stages import member_stages, stage_configs
from utils.runtime import Runtime

FITTED = ("fused", "fusion", "xr-linear", "overlap", "elias-ranker")  # without gradients
CPU = Runtime(Accelerator(cpu=True))
ENCODER = {"name": "encoder", "method": {"name": "ova", "tau": 0.1}, "train": {"epochs": 1}}
TREE = {
    "name": "tree",
    "method": {"name": "overlap", "features": ["tfidf", "start"], "max_leaf": 4, "splits": 2},
}
LAST = [ENCODER, TREE]


def refused(config, match):
    """One line, before anything is trained or written."""
    with pytest.raises(InputError, match=match) as error:
        train.fit(config)
    assert "\n" not in str(error.value)
    assert not config.run_folder.exists()


# -------------------------------- parameter groups


@pytest.mark.parametrize("group", ["classifier", "table"])
def test_a_rate_of_a_group_of_another_stage_has_no_effect(make_config, group):
    config = make_config(optim={"group_lr": {group: 1e-3}}, stages=LAST)
    folder = train.fit(config)
    saved = [
        yaml.safe_load((f / "config.yaml").read_text())["optim"]["group_lr"]
        for f in (folder / "stages" / "encoder", folder)
    ]
    assert saved == [{group: 1e-3}, None]


def test_a_rate_of_no_group_is_named_with_those_of_all_stages(make_config):
    config = make_config(optim={"group_lr": {"clasifier": 1e-3}}, stages=LAST)
    refused(
        config,
        "group_lr names clasifier; .* are of stage encoder classifier, encoder, table; of stage "
        "tree none",
    )
    refused(
        make_config(optim={"group_lr": {"edges": 1e-3}}),
        "group_lr names edges; this .* are encoder, table$",
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("residual", [True, False])
def test_group_names_are_known_before_a_method_is_built(make_config, name, residual):
    settings = {key: value for key, value in SETTINGS[name].items() if key != "stages"}
    encoder = {"residual": residual, "pooling": "mean", "normalize": True}
    config = make_config(encoder=encoder, **settings)
    kind = method_class(config.method.name)
    if config.method.name in FITTED:
        assert kind.group_names(config) == frozenset()
        return
    data = load(config)
    start = None
    if config.method.name == "xc":
        start = partial(random_start, config, data, CPU)
    groups = kind(config, data, start, CPU).groups()
    assert {group["name"] for group in groups} == kind.group_names(config)


# -------------------------------- every stage on paper

ELIAS = {
    "name": "elias",
    "method": {"name": "elias-2", "graph": "cluster", "max_leaf": 5, "tau": 0.1},
}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"method": {"name": "overlap", "features": ["tfidf"]}},
            "name `start` among method.features",
        ),
        (
            {"method": {"name": "overlap", "features": ["start", "start"]}},
            "one source or more, none of them twice",
        ),
        (
            {"method": {"name": "overlap", "features": ["tfidf", "start", "no/run"]}},
            "expected tfidf, start, a run",
        ),
        (
            {"method": {"name": "overlap", "features": ["start"], "copies": 9, "max_leaf": 5}},
            "make only 4; lower",
        ),
        (
            {"method": {"name": "xc", "cluster_size": 600}},
            "method.cluster_size is 600, expected at most the batch",
        ),
        (
            {"method": {"name": "xc", "cluster_size": 4}, "run": {"start_from": None}},
            "method xc starts from a trained enc",
        ),
        (
            {"method": {"name": "xc", "cluster_size": 4}, "encoder": {"residual": False}},
            "encoder.residual is True, this",
        ),
        (
            {"method": {"name": "fused"}, "train": {"epochs": 0}},
            "fused starts from an xc run, not from one of ova",
        ),
        (
            {"method": {"name": "surrogate", "num_clusters": 16}},
            "other classes: one a label, this run's 16",
        ),
        (
            {"method": {"name": "dexa", "num_vectors": 6}},
            "num_vectors is 6, expected a power of two",
        ),
        (
            {**ELIAS, "method": {**ELIAS["method"], "graph": "approx"}},
            "need an elias run to start from, got a ova run",
        ),
        (
            {**ELIAS, "method": {**ELIAS["method"], "swa": True, "swa_start": 0}},
            "nothing would be averaged",
        ),
        (
            {**ELIAS, "method": {**ELIAS["method"], "beam": 5}},
            "method.beam is 5, larger than the number of clusters, 4",
        ),
        (
            {**ELIAS, "method": {**ELIAS["method"], "graph": "no.npz"}},
            "no.npz: no such file; expected a graph A",
        ),
        (
            {**ELIAS, "loss": {"name": "triplet"}},
            "loss.name must be one of bce, decoupled-softmax for elias-2",
        ),
        (
            {"method": {"name": "elias-ranker"}},
            "elias-ranker starts from an elias run, not from one of ova",
        ),
        (
            {"method": {"name": "fusion", "members": {"a": "no/run"}}, "run": {"start_from": None}},
            "no/run: not a run fold",
        ),
        (
            {
                "method": {"name": "fusion", "members": {"a": "stage:encoder"}, "memory": "b"},
                "run": {"start_from": None},
            },
            "method.memory is 'b', expected one of the members, a",
        ),
        (
            {"method": {"name": "ova"}, "eval": {"ks": [1, 21]}},
            "eval.ks is 21, larger than the number of labels of tiny",
        ),
        (
            {"method": {"name": "ova"}, "eval": {"top_k": 50}},
            "eval.top_k is 50, larger than the number of labels",
        ),
        (
            {"method": {"name": "ova"}, "train": {"track_metric": "P@7"}},
            "track_metric 'P@7' is not computed; computed",
        ),
        (
            {"method": {"name": "ova"}, "run": {"start_from": "no/such"}},
            "run.start_from: no/such: not a run folder",
        ),
        ({"method": {"name": "ova"}, "data": {"name": "absent"}}, "absent: no such data set"),
    ],
)
def test_what_the_last_stage_cannot_do_is_refused_before_the_first(make_config, stage, message):
    refused(
        make_config(stages=[ENCODER, {**stage, "name": "last"}]),
        f"^stage 'last': .*{message}|^{message}",
    )


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ({"method": {"name": "xr-linear"}}, "method xr-linear fits at once"),
        ({"method": {"name": "ova"}, "train": {"epochs": 0}}, "its train.epochs is 0"),
    ],
)
def test_the_best_epoch_of_a_stage_without_epochs_is_refused_before_any(make_config, first, why):
    second = {"name": "second", "run": {"start_from": None}, "method": {"name": "dexml"}}
    second["train"] = {"stop_epoch": "best:first"}
    problem = f"stage 'second': train.stop_epoch is 'best:first', but stage first has .*: {why}$"
    refused(make_config(stages=[{**first, "name": "first"}, second]), f"^{problem}")


def test_the_best_epoch_of_a_run_to_be_replaced_says_nothing(make_config):
    second = {"name": "second", "train": {"stop_epoch": "best:first"}}
    config = make_config(stages=[{"name": "first", "train": {"epochs": 3}}, second])
    finished = config.run_folder / "stages" / "first" / "finished"
    finished.parent.mkdir(parents=True)
    finished.write_text('{"epochs": 0, "best_epoch": 0}')
    assert stage_configs(config)["second"].train.stop_epoch == 3
    finished.write_text('{"epochs": 3, "best_epoch": 2}')
    assert stage_configs(config)["second"].train.stop_epoch == 2


def test_a_folder_that_the_last_stage_cannot_take_is_refused_before_the_first(
    make_config, tmp_path
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no run"):
        train.fit(make_config(stages=LAST))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_stages_that_fit_are_planned_without_being_trained(make_config):
    stages = [
        ENCODER,
        {"name": "classifiers", "method": {"name": "xc", "cluster_size": 4}},
        {"name": "fused", "method": {"name": "fused"}, "train": {"epochs": 0}},
        TREE,
    ]
    config = make_config(stages=stages)
    planned = plan_recipe(config)
    assert [c.method.name for c in planned.values()] == ["ova", "xc", "fused", "overlap"]
    assert planned["tree"].run.start_from == str(config.run_folder / "stages" / "fused")
    assert not config.run_folder.exists()


# -------------------------------- going on after a repair


def test_a_recipe_whose_last_stage_failed_goes_on_with_a_repaired_config(make_config, monkeypatch):
    config = make_config(stages=LAST)
    original = method_class("overlap").fit
    monkeypatch.setattr(method_class("overlap"), "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.fit(config)
    monkeypatch.setattr(method_class("overlap"), "fit", original)
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
    """What the module that keeps run folders logs; runs take the root's handlers away, pytest's
    too."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("utils.run.opening").addHandler(handler)
    yield messages
    logging.getLogger("utils.run.opening").removeHandler(handler)


def test_a_finished_stage_is_kept_and_what_has_no_effect_on_it_is_said(make_config, said):
    folder = train.fit(make_config(stages=LAST))
    (folder / "finished").unlink()
    train.fit(make_config(stages=[{**ENCODER, "train": {"epochs": 2}}, TREE]), resume=True)
    assert any(
        "encoder is finished and kept as it was trained: train.epochs (1 -> 2) has no effect"
        in message
        for message in said
    )


def test_an_unfinished_run_of_another_config_is_refused(make_config):
    folder = train.fit(make_config(stages=LAST))
    (folder / "finished").unlink()
    other = make_config(stages=[ENCODER, {**TREE, "method": {**TREE["method"], "copies": 1}}])
    with pytest.raises(
        InputError, match=r"holds a run of another config: method.copies \(2 -> 1\)"
    ):
        train.fit(other, resume=True)


def test_config_errors_of_a_stage_name_it(make_config):
    config = make_config(stages=[ENCODER, {"name": "last", "method": {"name": "ova", "tau": -1}}])
    with pytest.raises(
        ConfigError, match="stage 'last': method.tau must be at least 1e-06, got -1"
    ):
        train.fit(config)


# -------------------------------- a run that was moved


def command(config, *words):
    """What `train.py CONFIG words` trains, without a process of its own."""
    resume = "--resume" in words
    words = [word for word in words if word != "--resume"]
    return train.fit(
        load_training_config(config, words, member_stages),
        resume=resume,
    )


def stopped(config, monkeypatch, method, calls=1):
    """Train until the method's `backward` (or `fit`, if it has no steps) was called so
    often."""
    cls = method_class(method)
    name = "fit" if method == "overlap" else "backward"
    original = getattr(cls, name)
    left = iter(range(calls))

    def stop(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(cls, name, stop)
    with pytest.raises(KeyboardInterrupt):
        train.fit(config)
    monkeypatch.setattr(cls, name, original)


def test_a_moved_run_goes_on_where_it_lies(make_config, tmp_path, monkeypatch):
    config = make_config(
        train={"epochs": 3}, run={"dir": str(tmp_path / "old"), "save_minutes": 1e-9}
    )
    whole = train.fit(with_values(config, run={"dir": str(tmp_path / "whole")}))
    stopped(config, monkeypatch, "dexml", calls=4)
    (tmp_path / "old").rename(tmp_path / "new")
    assert command(tmp_path / "new" / "config.yaml", "--resume") == tmp_path / "new"
    assert not (tmp_path / "old").exists()
    assert equal(weights(whole), weights(tmp_path / "new"))


@pytest.mark.parametrize("stage", ["ova", "overlap"])
def test_a_moved_recipe_goes_on_with_all_its_stages(make_config, tmp_path, monkeypatch, stage):
    stopped(
        make_config(run={"dir": str(tmp_path / "old")}, stages=LAST), monkeypatch, stage, calls=0
    )
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere"
    path = folder / ("config.yaml" if stage == "overlap" else "recipe.yaml")
    assert command(path, "--resume") == folder
    assert not (tmp_path / "old").exists()
    assert all((f / "finished").is_file() for f in (folder, folder / "stages" / "encoder"))
    saved = yaml.safe_load((folder / "config.yaml").read_text())["run"]
    assert saved["start_from"] == str(folder / "stages" / "encoder")


def test_a_moved_stage_goes_on_alone(make_config, tmp_path, monkeypatch):
    second = {
        "name": "xc",
        "method": {"name": "xc", "cluster_size": 4},
        "run": {"save_minutes": 1e-9},
    }
    stopped(
        make_config(run={"dir": str(tmp_path / "old")}, stages=[ENCODER, second, TREE]),
        monkeypatch,
        "xc",
        calls=1,
    )
    (tmp_path / "old").rename(tmp_path / "new")
    folder = tmp_path / "new" / "stages" / "xc"
    assert command(folder / "config.yaml", "--resume") == folder
    assert (folder / "finished").is_file()
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_the_config_of_a_run_trains_another_run_where_one_is_named(make_config, tmp_path):
    folder = train.fit(make_config(train={"epochs": 1}))
    with pytest.raises(InputError, match="holds this run already; use --resume"):
        command(folder / "config.yaml")
    other = command(
        folder / "config.yaml", "--run.root", str(tmp_path / "R"), "--run.expname", "again"
    )
    assert other == tmp_path / "R" / "XMCKit" / "tiny" / "again"
    assert (
        command(folder / "config.yaml", "--run.dir", str(tmp_path / "third")) == tmp_path / "third"
    )
    # beside nothing that a run writes: a config file like any other
    copied = tmp_path / "mine" / "config.yaml"
    copied.parent.mkdir()
    copied.write_text((folder / "config.yaml").read_text())
    with pytest.raises(InputError, match="run: .*|run holds this run already"):
        command(copied)


# -------------------------------- going on with other settings


def test_what_does_not_change_the_result_may_be_another_on_the_way(
    make_config, tmp_path, tiny_root, monkeypatch, said
):
    settings = {"train": {"epochs": 3}, "run": {"save_minutes": 1e-9, "dir": str(tmp_path / "run")}}
    whole = train.fit(make_config(**{**settings, "run": {"dir": str(tmp_path / "whole")}}))
    stopped(make_config(**settings), monkeypatch, "dexml", calls=4)
    shutil.copytree(tiny_root / "tiny", tmp_path / "sets" / "tiny")
    other = make_config(
        **settings,
        data={
            "root": str(tmp_path / "sets"),
            "workers": 1,
            "token_cache": str(tmp_path / "tokens"),
        },
    )
    folder = train.fit(other, resume=True)
    assert equal(weights(whole), weights(folder))
    saved = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    assert (saved["root"], saved["workers"]) == (str(tmp_path / "sets"), 1)
    assert any(f"data.root is '{tmp_path / 'sets'}' from here on" in message for message in said)
    assert any("data.workers is 1 from here on; until now it was 0" in message for message in said)
    with pytest.raises(
        InputError, match=r"holds a run of another config: data.max_len \(16 -> 17\)"
    ):
        train.fit(with_values(other, data={"max_len": 17}), resume=True)


def test_other_data_under_the_same_name_is_refused_on_the_way(make_config, tmp_path, monkeypatch):
    settings = {"train": {"epochs": 3}, "run": {"save_minutes": 1e-9, "dir": str(tmp_path / "run")}}
    stopped(make_config(**settings), monkeypatch, "dexml", calls=4)
    write_dataset(tmp_path / "sets" / "tiny", seed=1)
    with pytest.raises(
        InputError, match="run was trained on data .*: other points, or another order of labels"
    ):
        train.fit(make_config(**settings, data={"root": str(tmp_path / "sets")}), resume=True)


def test_a_config_of_an_older_version_lacks_keys_and_goes_on(make_config):
    folder = train.fit(make_config())
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    del saved["data"]["token_cache"], saved["optim"]["eps"], saved["method"]["refresh_interval"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    train.fit(make_config(), resume=True)
    with pytest.raises(InputError, match=r"optim.eps \(1e-08 -> 0.1\)"):
        (folder / "config.yaml").write_text(yaml.safe_dump(saved))
        train.fit(make_config(optim={"eps": 0.1}), resume=True)


def test_more_epochs_are_another_run_and_the_refusal_says_how(make_config, tmp_path):
    folder = train.fit(make_config())
    with pytest.raises(
        InputError,
        match=rf"train.epochs \(2 -> 4\).*--run.start_from {folder} with another run.exp",
    ):
        train.fit(make_config(train={"epochs": 4}), resume=True)
    start = {"start_from": str(folder), "dir": str(tmp_path / "next")}
    train.fit(make_config(train={"epochs": 1}, run=start))  # what it says works


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"pool": "hnm", "refresh_interval": 2},
        {"name": "ngame", "cluster_size": 4, "curr_epochs": [1, 3]},
    ],
)
def test_a_later_stop_goes_on_as_if_it_had_been_asked_for_at_once(make_config, tmp_path, method):
    settings = {"encoder": {"dropout": 0.1}, "method": method}
    whole = train.fit(
        make_config(
            **settings, train={"epochs": 5, "stop_epoch": 4}, run={"dir": str(tmp_path / "w")}
        )
    )
    folder = train.fit(make_config(**settings, train={"epochs": 5, "stop_epoch": 2}))
    assert json.loads((folder / "finished").read_text())["epochs"] == 2
    train.fit(make_config(**settings, train={"epochs": 5, "stop_epoch": 4}), resume=True)
    assert json.loads((folder / "finished").read_text())["epochs"] == 4
    assert equal(weights(whole), weights(folder))
    with pytest.raises(InputError, match="train.stop_epoch is 3, but 4 epochs are begun already"):
        train.fit(make_config(**settings, train={"epochs": 5, "stop_epoch": 3}), resume=True)


def test_a_stop_between_two_evaluations_cannot_be_undone(make_config):
    train.fit(make_config(train={"epochs": 6, "stop_epoch": 3, "eval_interval": 2}))
    with pytest.raises(
        InputError,
        match=r"stop_epoch \(3 -> None\): the run ended with an evaluation after epoch 3",
    ):
        train.fit(make_config(train={"epochs": 6, "eval_interval": 2}), resume=True)


def test_whether_a_run_goes_on_is_looked_at_without_the_other_processes(make_config):
    """They wait for the answer meanwhile."""
    train.fit(make_config(train={"stop_epoch": 1}))
    (later,) = plan_recipe(member_stages(make_config())).values()
    with no_collectives():
        assert opening._refusal(later, resume=True, overwrite=False) is None


# -------------------------------- the folder, and the file of a stage


def test_a_run_folder_that_cannot_be_one(make_config, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for folder, message in (
        (file, f"^{file}: expected a run folder, got a file"),
        ("/dev/null", "^/dev/null: expected a run folder, got a file"),
        (file / "run", f"^{file}/run: the run folder cannot be made"),
    ):
        with pytest.raises(InputError, match=message):
            train.fit(make_config(run={"dir": str(folder)}), overwrite=True)
    assert file.read_text() == "mine"


def test_a_stage_without_a_method_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {name: tiny}\nmethod: {name: dexml}\nstages: [{name: warm, method: {name: null}}]\n"
    )
    with pytest.raises(ConfigError, match=f"^{path}: stage 'warm': method.name is missing"):
        load_config(path)


@pytest.mark.parametrize("section", [{"encoder": {"packing": True}}, {"train": {"compile": True}}])
def test_a_bag_is_neither_packed_nor_compiled(make_config, section):
    refused(make_config(**section), "is true, which is for transformers; encoder.name is bag")
