"""New labels are ranked together with a run's own."""

import json

import numpy as np
import pytest

import predict
import train
from models.scores import KnownAlone, Reached
from predict import Predictor
from utils.errors import InputError

TEXTS = ["the vim tool", "the zebra tool", ""]


def test_old_labels_keep_their_scores_and_new_ones_have_theirs(answering_run):
    known = Predictor(answering_run)
    new = Predictor(answering_run, labels=["zebra", "moa"])
    both = Predictor(answering_run, add_labels=["zebra", "moa"])
    assert len(both.label_texts) == 22 and both.label_texts[20] == "zebra"
    for text in TEXTS:
        scores = {label["label"]: label["score"] for label in both(text, k=22)}
        for label in known(text, k=20):
            assert scores[label["label"]] == pytest.approx(label["score"], abs=2e-6)
        for label in new(text, k=2):
            assert scores[20 + label["label"]] == pytest.approx(label["score"], abs=2e-6)
    assert both("the zebra tool")[0]["text"] == "zebra"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "added labels: expected at least one text, got none"),
        (["zebra", " "], "added labels: number 2 is empty"),
        (["shell"], "added labels: number 1, 'shell', is the run's label 1 already"),
        (["zebra", "moa", "zebra "], "number 3, 'zebra', is number 1 already"),
        ([3], r"added labels: expected texts, got 3"),
    ],
)
def test_labels_that_cannot_be_added_are_named(answering_run, labels, message):
    with pytest.raises(InputError, match=message):
        Predictor(answering_run, add_labels=labels)


def test_the_command(answering_run, tmp_path, capsys):
    path = tmp_path / "more.txt"
    path.write_text("zebra\n")
    words = ("--text", "the zebra tool", "--k", "1", "--add-labels", path)
    predict.main([str(word) for word in (answering_run, *words)])
    assert json.loads(capsys.readouterr().out)["labels"][0]["label"] == 20


def test_a_member_that_does_not_know_a_label_does_not_reach_it():
    import scipy.sparse as sp

    opened = KnownAlone(Reached(sp.csr_matrix(np.array([[0.5, 0.25, 0.75]], np.float32))), 3)
    values, ids = opened.best(5)
    assert ids.tolist() == [[2, 0, 1, -1, -1]] and np.isneginf(values[0, 3:]).all()
    assert opened.of(np.array([[2, 4, 1]])).tolist() == [[0.75, 0.25, 0.25]]


def test_a_fusion_ranks_new_labels_by_the_members_that_can(make_config, tmp_path):
    members = {"encoder": "stage:encoder", "trees": "stage:trees"}
    stages = [
        {"name": "encoder", "method": {"name": "dexml"}},
        {"name": "trees", "method": {"name": "xr-linear"}, "run": {"start_from": None}},
        {
            "name": "fuser",
            "method": {"name": "fusion", "fuser": "linear", "members": members},
            "run": {"start_from": None},
        },
    ]
    folder = train.fit(make_config(stages=stages))
    both = Predictor(folder, add_labels=["zebra", "moa"])
    answer = both("the zebra tool", k=22)
    assert {label["label"] for label in answer} >= {20, 21}
    assert all(np.isfinite(label["score"]) for label in answer)
    with pytest.raises(InputError, match="method xr-linear knows labels by their training points"):
        Predictor(folder / "stages" / "trees", add_labels=["zebra"])
