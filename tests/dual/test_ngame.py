"""NGAME's report: the share of in-batch negatives that violate the margin, against loops."""

import json
from pathlib import Path

import pytest

import train
from predict import Predictor
from tests.helpers import load

ONE_BATCH = {
    "method": {"name": "ngame", "num_positives": 3},  # all positives are in the pool
    "train": {"epochs": 1, "batch_size": 60},
}


def logged_share(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line.get("violating_share") for line in lines if line["kind"] == "train")


def slow_share(config, margin):
    """Violating pairs of a positive and a negative in the pool, of all, before the first step."""
    data = load(config)
    split = data.splits["trn"]
    relevance, filters = split.relevance, split.filters
    folder = train.fit(config, overwrite=True)
    raw = (Path(config.data.root) / config.data.name / "raw" / "trn_X.txt").read_text().splitlines()
    answers = Predictor(folder)([raw[row] for row in split.rows], k=data.num_labels)
    pool = set(relevance.indices.tolist())
    violating = pairs = 0
    for point, answer in enumerate(answers):
        cosine = {found["label"]: found["score"] for found in answer}
        own = relevance[[point]].indices.tolist()
        barred = {*own, *filters[[point]].indices.tolist()}
        for positive in own:
            for negative in pool - barred:
                pairs += 1
                violating += cosine[negative] > cosine[positive] - margin
    return violating / pairs


@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_the_violating_share_is_that_of_loops(make_config, tmp_path, margin):
    loss = {"name": "triplet", "margin": margin}
    trained = train.fit(make_config(**ONE_BATCH, loss=loss))
    untrained = make_config(
        **{**ONE_BATCH, "train": {"epochs": 0}}, loss=loss, run={"dir": str(tmp_path / "before")}
    )
    expected = slow_share(untrained, margin)
    assert 0.01 < expected < 0.99
    assert logged_share(trained) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "ngame", "pool": "all"}},
        {"encoder": {"normalize": False}},  # no cosines: the margin says nothing
    ],
)
def test_without_in_batch_cosines_nothing_is_said_of_violations(make_config, changes):
    settings = {**ONE_BATCH, "loss": {"name": "triplet"}, **changes}
    assert logged_share(train.fit(make_config(**settings))) is None
