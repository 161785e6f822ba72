"""Saved models whose numbers are NaN or infinite: an answer that is none is refused with the name
of the run.

What is looked at when a model is opened has its tests elsewhere; here the files are larger than
that.
"""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import train
from eval import evaluate
from predict import Predictor
from tests.settings import SETTINGS
from utils.errors import InputError
from utils.reading import saved
from utils.search import HnswIndex

TEXTS = ["the vim and bash tool", "the socket tool"]
GRAPH = {"method": {"name": "elias-1", "max_leaf": 4}}
FUSION = {"method": {"name": "fusion", "candidates": 5}}


@pytest.fixture
def unseen(monkeypatch):
    """No mapped array is small enough to be looked at when it is opened."""
    monkeypatch.setattr(saved, "LOOKED_AT", -1)


def damage(path, value):
    """A third of an array's numbers become `value`."""
    rows = np.load(path)
    rows.reshape(-1)[: max(rows.size // 3, 1)] = value
    path.unlink()
    np.save(path, rows)


def refused(run, *overrides):
    """By predict and by eval, with the name of the run; nothing is written."""
    words = [str(run).replace("\\", ".") + "/model", "finite|NaN"]
    for ask in (
        lambda: Predictor(run, overrides=overrides)(TEXTS, 3),
        lambda: evaluate(run, "tst", list(overrides)),
    ):
        with pytest.raises(InputError, match=words[1]) as error:
            ask()
        assert words[0] in str(error.value)
        assert "\n" not in str(error.value)
    assert not (run / "tst_metrics.json").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_label_vectors(make_config, unseen, value):
    run = train.fit(make_config(train={"epochs": 1}))
    damage(run / "model" / "label_embeddings.npy", value)
    refused(run)
    pytest.importorskip("faiss")
    refused(run, "--eval.index", "hnsw")


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_weights_of_a_transformer(make_config, tiny_encoder, index):
    if index == "hnsw":
        pytest.importorskip("faiss")
    run = train.fit(
        make_config(encoder={"name": tiny_encoder, "init": "minilm"}, train={"epochs": 0})
    )
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.bias"][3] = float("nan")
    path.unlink()
    save_file(weights, path)
    refused(run, "--eval.index", index)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parts_of_a_graph_of_clusters(make_config, unseen, tmp_path, value):
    run = train.fit(make_config(**GRAPH, train={"epochs": 1}))
    for name in ("bias", "clusters", "labels", "log_edges"):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        damage(copy / "model" / f"{name}.npy", value)
        for precision in ("float32", "bfloat16", "int8"):
            refused(copy, "--eval.precision", precision)


def test_members_of_a_fusion(make_config, unseen, tmp_path):
    runs = {
        name: train.fit(make_config(**settings, run={"dir": str(tmp_path / name)}))
        for name, settings in (("encoder", {}), ("other", SETTINGS["ova"]))
    }
    members = {name: str(folder) for name, folder in runs.items()}
    run = train.fit(
        make_config(
            method={**FUSION["method"], "members": members}, run={"dir": str(tmp_path / "fusion")}
        )
    )
    damage(run / "model" / "members" / "encoder" / "model" / "label_embeddings.npy", np.nan)
    refused(run)


def test_a_graph_of_near_neighbours_takes_finite_vectors_alone():
    pytest.importorskip("faiss")
    import torch

    labels = torch.eye(5)
    found = HnswIndex(labels)
    assert found.search(torch.eye(5), 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        saved.NotFiniteError, match="query embeddings: expected finite numbers, got nan at place 0"
    ):
        found.search(torch.full((1, 5), float("nan")), 1)
    labels[2, 1] = float("inf")
    with pytest.raises(
        saved.NotFiniteError, match="label vectors: expected finite numbers, got inf at place 11"
    ):
        HnswIndex(labels).search(torch.eye(5), 1)


def test_minus_infinity_is_no_answer_and_not_refused():
    saved.check_answers(np.array([[0.5, -np.inf]]), "scores")
    saved.check_answers(np.empty((0, 3)), "scores")
    saved.check_answers(np.empty((3, 0)), "scores")
    with pytest.raises(saved.NotFiniteError, match="scores: expected finite numbers, got inf"):
        saved.check_answers(np.array([[np.inf, 0.5]]), "scores")
