"""What every method is checked for is noticed where a method does not do it."""

import itertools

import numpy as np
import pytest
import torch

from engine.conformance.answers import check_answers, check_learning, check_saving
from engine.conformance.case import Case
from engine.conformance.learners import (
    check_evaluation_changes_nothing,
    check_resuming,
    check_steps,
)
from engine.conformance.processes import check_near
from models.dual.dexml import Dexml
from models.dual.ranker import DualRanker
from models.scores import InnerProducts
from utils import distributed


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case.made({"method": {"name": "dexml"}}, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def config(case):
    return case.config("run", train={"epochs": 5})


@pytest.fixture(scope="module")
def run(config):
    return check_learning(config)


def refused(message):
    return pytest.raises(AssertionError, match=message)


def test_what_learns_less_than_asked_for(case):
    with refused("expected more than 100"):
        check_learning(case.config("again", train={"epochs": 2}), at_least=100)


def test_a_loss_that_does_not_fall(case, monkeypatch):
    backward = Dexml.backward
    steps = itertools.count()
    monkeypatch.setattr(
        Dexml, "backward", lambda self, batch: backward(self, batch) + 10 * next(steps)
    )
    with refused("the loss does not fall"):
        check_learning(case.config("rising"))


def test_labels_looked_up_with_other_scores(run, monkeypatch):
    of = InnerProducts.of
    monkeypatch.setattr(InnerProducts, "of", lambda self, labels: of(self, labels) + 1)
    with refused("`of` has other scores than `best`"):
        check_answers(run)


def test_a_label_twice(run, monkeypatch):
    best = InnerProducts.best

    def first_twice(self, k):
        values, ids = best(self, k)
        ids[:, -1:] = ids[:, :1]
        return values, ids

    monkeypatch.setattr(InnerProducts, "best", first_twice)
    with refused("not every label once"):
        check_answers(run)


def test_a_gap_that_moves_the_others(run, monkeypatch):
    of = InnerProducts.of

    def without_gaps(self, labels):
        scores = of(self, labels)
        return np.where((labels < 0).any(1, keepdims=True), np.roll(scores, 1, 1), scores)

    monkeypatch.setattr(InnerProducts, "of", without_gaps)
    with refused("-1 changes the scores"):
        check_answers(run)


def test_a_collective_in_open(run, monkeypatch):
    queries = DualRanker.queries

    def waiting(self, texts):
        distributed.barrier()
        return queries(self, texts)

    monkeypatch.setattr(DualRanker, "queries", waiting)
    with refused("barrier is a collective"):
        check_answers(run)


def test_a_model_that_is_saved_otherwise(run, tmp_path, monkeypatch):
    save = DualRanker.save

    def doubled(self, folder):
        self.label_embeddings = torch.as_tensor(self.label_embeddings) * 2
        save(self, folder)

    monkeypatch.setattr(DualRanker, "save", doubled)
    with refused("saved again answers otherwise"):
        check_saving(run, tmp_path / "again")


def test_a_step_that_changes_nothing(config, run, tmp_path, monkeypatch):
    groups = Dexml.groups

    def copies(self):
        return [
            {**group, "params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]}
            for group in groups(self)
        ]

    monkeypatch.setattr(Dexml, "groups", copies)
    with refused("a step does not change the scores"):
        check_steps(config, tmp_path / "steps")


def test_an_order_that_no_state_knows(case, monkeypatch):
    calls = itertools.count()
    monkeypatch.setattr(
        Dexml,
        "order",
        lambda self, epoch: np.roll(np.arange(len(self.data.splits["trn"])), next(calls)),
    )
    with refused("a resumed run ends with other numbers"):
        check_resuming(case)


def test_an_evaluation_that_changes_training(case, monkeypatch):
    ranker = Dexml.ranker

    def shrinking(self):
        found = ranker(self)
        with torch.no_grad():
            self.module.encoder.table.mul_(0.9)
        return found

    monkeypatch.setattr(Dexml, "ranker", shrinking)
    with refused("evaluation changes training"):
        check_evaluation_changes_nothing(case)


def test_results_of_several_processes_lie_near():
    assert check_near("scores", [np.array([1.0, 50.0]), np.array([1.0, 50.0])], 1e-5) == 5e-4
    check_near("scores", [np.array([1.0, 50.0]), np.array([1.0004, 50.0])], 1e-5)
    with refused("scores on several processes"):
        check_near("scores", [np.array([1.0, 50.0]), np.array([1.001, 50.0])], 1e-5)
    with refused("have another shape"):
        check_near("losses", [np.zeros(2), np.zeros(3)], 1e-5)
