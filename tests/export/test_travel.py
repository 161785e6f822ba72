"""Every method's run leaves as a folder that answers the same where neither data nor run are."""

import json
import os
import shutil

import numpy as np
import pytest

import train
from engine.conformance.made import WORDS, tiny_sections, write_dataset
from engine.exporter import export
from engine.predictor import Predictor
from tests.helpers import make_old
from utils.config.config import build_config
from utils.errors import InputError
from utils.export.portable_config import portable
from utils.files import size_of
from xmckit import XMC

ALONE = {"start_from": None}
TEXTS = ["the vim and bash tool", "socket", "", "unknownword ünïcödé"]
STAGES = {
    "dexml": {},
    "xc": {"method": {"name": "xc", "tau": 0.05, "cluster_size": 4}},
    "fused": {"method": {"name": "fused"}},
    "ova": {"method": {"name": "ova"}, "run": ALONE},
    "surrogate": {"method": {"name": "surrogate", "num_clusters": 16}, "run": ALONE},
    "dexa": {"method": {"name": "dexa", "num_vectors": 8}, "run": ALONE},
    "xr-linear": {"method": {"name": "xr-linear", "max_leaf": 4}, "run": ALONE},
    "overlap": {
        "method": {"name": "overlap", "max_leaf": 4, "features": ["tfidf", "stage:dexml"]},
        "run": ALONE,
    },
    "elias-1": {"method": {"name": "elias-1", "max_leaf": 5, "init": "labels"}, "run": ALONE},
    "elias-ranker": {"method": {"name": "elias-ranker", "candidates": 20}},
    "fusion": {
        "method": {
            "name": "fusion",
            "memory": "dexml",
            "members": {
                name: f"stage:{name}" for name in ("dexml", "overlap", "xc", "elias-ranker")
            },
        },
        "run": ALONE,
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def trained(place, tiny_encoder):
    """Folders of finished runs by their methods."""
    shutil.copytree(tiny_encoder, place / "encoders" / "bag")  # a name that means something else
    write_dataset(place / "sets" / "tiny")
    stages = [{"name": name, **stage} for name, stage in STAGES.items()]
    sections = {"train": {"epochs": 1}, "data": {"token_cache": str(place / "tokens")}}
    encoder = str(place / "encoders" / "bag")
    merged = tiny_sections(place / "sets", encoder, place / "run", sections)
    whole = train.fit(build_config(merged, {}, stages))
    return {name: whole / "stages" / name for name in STAGES} | {"fusion": whole}


@pytest.fixture(scope="module")
def away(trained, place, tmp_path_factory):
    """(exported folders, what their runs had answered, texts of their labels) of all methods."""
    there = tmp_path_factory.mktemp("there")
    answers = {}
    for name, run in trained.items():
        answers[name] = Predictor(run)(TEXTS, k=6)
        found = export(run, there / name)
        assert found["XMCKit"] == 0
    return there, answers


@pytest.fixture
def nothing_left(place, away, monkeypatch):
    """Neither the runs nor their data nor their encoder are there."""
    there, _ = away
    hidden = place.with_name("hidden")
    place.rename(hidden)
    monkeypatch.chdir(there)
    yield
    hidden.rename(place)


@pytest.mark.parametrize("name", STAGES)
def test_an_exported_run_answers_as_the_run_did(away, nothing_left, name):
    there, answers = away
    predictor = Predictor(name)
    assert predictor(TEXTS, k=6) == answers[name]
    assert list(predictor.label_texts) == list(WORDS)


@pytest.mark.parametrize("name", ["fusion", "xr-linear"])
def test_python_opens_it_too(away, nothing_left, name):
    _, answers = away
    best = [answer[0]["text"] for answer in answers[name]]
    found = XMC.load(name).predict(TEXTS, k=1, threshold=None)
    assert [labels[0] for labels in found] == best


def test_no_file_names_a_place_of_this_machine(away, place):
    there, _ = away
    files = [path for path in there.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [path for path in files if str(place).encode() in path.read_bytes()] == []
    config = (there / "dexml" / "config.yaml").read_text()
    assert "init: ./bag" in config and "root: Datasets" in config


def test_only_what_answers_is_taken_and_takes_the_disk_once(away, trained):
    there, _ = away
    names = {path.name for path in (there / "xr-linear").iterdir()}
    assert names == {"README.md", "config.yaml", "finished", "model"}
    for name in ("fusion", "dexml"):
        together = size_of(there / name) + size_of(trained[name] / "model")
        both = [*(there / name).rglob("*"), *(trained[name] / "model").rglob("*")]
        once = {path.stat().st_ino: path.stat().st_size for path in both if path.is_file()}
        assert sum(once.values()) < 0.7 * together
    linked = there / "fusion" / "model" / "fuser.npz"
    assert os.path.samefile(linked, trained["fusion"] / "model" / "fuser.npz")


def test_stages_keep_a_frozen_encoder_once(trained):
    for name in ("head.safetensors", "tokenizer.json"):
        first = trained["dexml"] / "model" / name
        for stage in ("xc", "fused"):
            assert os.path.samefile(trained[stage] / "model" / name, first)
    first = trained["dexml"] / "model" / "head.safetensors"
    assert not os.path.samefile(trained["ova"] / "model" / "head.safetensors", first)
    members = trained["fusion"] / "model" / "members"
    assert os.path.samefile(members / "xc" / "model" / "head.safetensors", first)


def test_the_runs_own_files_stay_as_they_were(away, trained, place):
    member = trained["fusion"] / "model" / "members" / "overlap" / "config.yaml"
    assert str(place) in member.read_text()


def test_cards_of_methods_without_encoder(away):
    there, _ = away
    card = (there / "fusion" / "README.md").read_text()
    assert "library_name: xmckit" in card and "python serve.py FOLDER" in card
    assert "sentence" not in card and "Finds the best of 20 labels for a text" in card


def test_the_command_lines_settings_go_along(trained, tmp_path):
    export(trained["xr-linear"], tmp_path / "out", overrides=["--eval.batch_size", "7"])
    assert "batch_size: 7" in (tmp_path / "out" / "config.yaml").read_text()
    with pytest.raises(InputError, match="--onnx: method xr-linear has no encoder"):
        export(trained["xr-linear"], tmp_path / "new", onnx=True)
    assert not (tmp_path / "new").exists()


def test_an_older_run_gets_what_it_lacks(trained, tmp_path):
    shutil.copytree(trained["xr-linear"], tmp_path / "old")
    make_old(tmp_path / "old")
    export(tmp_path / "old", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "model" / "method.json").read_text())
    assert facts["format"] == 1
    assert (tmp_path / "out" / "model" / "labels.txt").read_text().split() == list(WORDS)
    assert "format" not in json.loads((tmp_path / "old" / "model" / "method.json").read_text())


def test_what_an_estimator_keeps_goes_along_without_places(trained, tmp_path):
    shutil.copytree(trained["xr-linear"], tmp_path / "run")
    facts = {
        "format": 1,
        "parameters": {"config": "/home/me/tree.yaml"},
        "names": list(WORDS),
        "label_counts": [3] * 20,
        "num_points": 60,
    }
    (tmp_path / "run" / "estimator.json").write_text(json.dumps(facts))
    export(tmp_path / "run", tmp_path / "out")
    model = XMC.load(tmp_path / "out")
    assert (model.config, model.num_points_) == ("./tree.yaml", 60)


def test_a_run_that_answers_no_new_texts_is_not_exported(place, make_config, tmp_path):
    for split, points in (("trn", 60), ("tst", 20)):
        np.save(tmp_path / f"X.{split}.npy", np.eye(points, 8, dtype=np.float32))
    method = {"name": "xr-linear", "features": [str(tmp_path / "X.npy")]}
    run = train.fit(make_config(method=method))
    with pytest.raises(InputError, match="precomputed features, .*, which new texts do not have"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_that_changed_are_not_exported(trained, tmp_path, monkeypatch):
    original = Predictor.__call__
    calls = []

    def other(predictor, texts, *arguments, **options):
        calls.append(1)
        answers = original(predictor, texts, *arguments, **options)
        if len(calls) == 2:
            answers[0][0]["score"] += 0.1
        return answers

    monkeypatch.setattr(Predictor, "__call__", other)
    with pytest.raises(InputError, match="what was written answers otherwise: scores of 'the"):
        export(trained["ova"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_places_in_a_config():
    sections = {
        "data": {"name": "set", "root": "/home/me", "max_len": 8, "feature_cache": "cache"},
        "encoder": {"name": "/models/bag", "init": "minilm", "point_prompt": "/query"},
        "method": {"members": {"one": "/runs/one"}, "features": ["tfidf", "/runs/two"], "k": 3},
        "stages": [1],
    }
    assert portable(sections) == {
        "data": {
            "name": "set",
            "root": "Datasets",
            "max_len": 8,
            "token_cache": None,
            "feature_cache": None,
        },
        "encoder": {"name": "./bag", "init": "minilm", "point_prompt": "/query"},
        "method": {"members": {"one": "./one"}, "features": ["tfidf", "./two"], "k": 3},
        "run": {"root": "Results", "dir": None, "start_from": None},
    }
