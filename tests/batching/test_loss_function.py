"""The loss of a config: its options bound, or a function of a module outside."""

import json
import sys

import pytest
import torch

import train
from losses import Positives, decoupled_softmax, soft_topk, triplet
from models.batching.losses import loss_function
from tests.conftest import with_values
from utils.config import plugins
from utils.config.config import ConfigError, LossConfig, load_config, to_yaml

MINE = """
import torch


def softmax(*, queries, labels, positives, bias=None, tau=1.0):
    scores = queries @ labels.T / tau  # [B, K]
    if bias is not None:
        scores = scores + bias
    absent = torch.zeros(scores.shape, dtype=torch.bool)
    absent[positives.rows, positives.cols] = ~positives.counted
    logs = torch.log_softmax(scores.masked_fill(absent, -torch.inf), 1)
    terms = (-positives.weights * logs[positives.rows, positives.cols])[positives.counted]
    return terms.sum() / len(queries)


number = 3
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A module `mine` in the current directory, allowed to nobody."""
    monkeypatch.setattr(plugins, "_allowed", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def inputs():
    """Queries, labels and positives of a loss."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([0, 1, 2, 2])
    columns = torch.tensor([4, 0, 1, 3])
    return {
        "queries": torch.randn(3, 4, generator=generator),
        "labels": torch.randn(6, 4, generator=generator),
        "positives": Positives.build(rows, columns, num_queries=3),
        "tau": 0.5,
    }


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("decoupled-softmax", {}, decoupled_softmax),
        ("soft-topk", {"k": 2, "alpha": 1.5}, soft_topk),
        (
            "triplet",
            {
                "margin": 0.7,
                "hardest_negatives": 2,
                "hardest_positives": 1,
                "hardness_tau": 0.3,
            },
            triplet,
        ),
    ],
)
def test_options_of_the_loss_are_bound(inputs, name, options, plain):
    others = {} if name == "triplet" else {"margin": 0.9}
    found = loss_function(LossConfig(name=name, **options, **others))(**inputs)
    assert found == plain(**inputs, **options)
    for option in options:
        rest = {key: value for key, value in options.items() if key != option}
        assert found != plain(**inputs, **rest), option


@pytest.mark.parametrize("method", ["dexml", "ova"])
def test_a_loss_of_ones_own_trains_as_the_same_of_ours(make_config, tmp_path, method):
    ours = make_config(method={"name": method, "tau": 0.2}, loss={"name": "softmax"})
    folder = tmp_path / "theirs"
    theirs = with_values(ours, loss={"name": "mine:softmax"}, run={"dir": str(folder)})
    (tmp_path / "mine.yaml").write_text(to_yaml(theirs))
    losses = []
    for config in (ours, load_config(tmp_path / "mine.yaml", trusted=True)):
        lines = (train.fit(config) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        losses.append([record["loss"] for record in records if record["kind"] == "train"])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_loss_outside_is_imported_where_it_was_allowed():
    with pytest.raises(ConfigError, match=r"loss.name: 'mine:softmax' is code .*--plugin mine"):
        loss_function(LossConfig(name="mine:softmax"))
    assert "mine" not in sys.modules
    plugins.allow("mine")
    with pytest.raises(ConfigError, match="loss.name: expected a function, mine:number is 3"):
        loss_function(LossConfig(name="mine:number"))


def test_an_option_that_a_loss_of_ones_own_is_not_told_is_named(caplog):
    plugins.allow("mine")
    loss_function(LossConfig(name="mine:softmax", sample=True, weighted=True))
    assert caplog.messages == []
    loss_function(LossConfig(name="mine:softmax", alpha=3.0))
    assert caplog.messages == ["loss.alpha has no effect: it is not handed to mine:softmax"]


def test_a_loss_that_is_neither_ours_nor_of_a_module_is_refused(make_config):
    with pytest.raises(ConfigError, match="bce, triplet or module:name, got 'hinge'"):
        make_config(loss={"name": "hinge"})
