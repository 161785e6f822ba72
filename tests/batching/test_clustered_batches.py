"""NGAME's batches: curriculum, memory bank, order; a run cut off in the middle of an epoch keeps
them."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train
from models.batching import clustered_batches
from models.batching.clustered_batches import ClusteredBatches, check_curriculum
from models.encoders.reader import embed_all
from tests.conftest import with_values
from tests.helpers import counted_encodings
from utils.clustering.clustering import balanced_hierarchy
from utils.config.config import ConfigError
from utils.config.methods import method_class
from utils.data.batches import Batch, TextBatch, training_batches
from utils.data.dataset import load_dataset
from utils.pretrained.location import load_tokenizer
from utils.runtime import Runtime

NGAME = {
    "method": {"name": "ngame", "cluster_size": 4, "curr_epochs": [1, 4, 6], "cluster_interval": 2},
    "loss": {"name": "triplet", "sample": True},
    "train": {"epochs": 8},
}


@pytest.fixture
def batches(make_config):
    return ClusteredBatches(make_config(**NGAME), 48)


@pytest.fixture
def built(make_config, tiny_encoder):
    """built(**sections) -> learner."""

    def build(**sections):
        config = make_config(**sections)
        torch.manual_seed(0)
        data = load_dataset(config, load_tokenizer(tiny_encoder))
        runtime = Runtime(Accelerator(cpu=True))
        return method_class(config.method.name)(config, data, None, runtime)

    return build


def test_clusters_start_and_double_at_the_epochs_of_the_curriculum(batches):
    assert [batches.size(e) for e in range(8)] == [None, 4, 4, 4, 8, 8, 16, 16]
    # each interval, and each doubling
    assert [e for e in range(10) if batches.due(e)] == [1, 3, 4, 5, 6, 7, 9]


def test_clusters_are_made_again_after_each_interval(make_config):
    batches = ClusteredBatches(
        make_config(method={**NGAME["method"], "curr_epochs": [1], "cluster_interval": 3}), 48
    )
    assert [e for e in range(10) if batches.due(e)] == [1, 4, 7]


@pytest.mark.parametrize(
    ("first", "epochs", "kind", "warned"),
    [
        (2, 2, "clustered", True),
        (3, 2, "clustered", True),
        (1, 1, "clustered", True),
        (1, 2, "clustered", False),
        (2, 2, "random", False),
        (1, 0, "clustered", False),
        (0, 0, "clustered", False),
    ],
)
def test_a_curriculum_that_is_never_reached_is_said(
    make_config, caplog, first, epochs, kind, warned
):
    method = {**NGAME["method"], "batches": kind, "curr_epochs": [first, 9]}
    ClusteredBatches(make_config(method=method, train={"epochs": epochs}), 48)
    said = [r.message for r in caplog.records if "all batches are random" in r.message]
    assert len(said) == warned


def recorded(batches, epoch, points, rows):
    """What a training step of `epoch` hands over."""
    empty = sp.csr_matrix((len(points), 20), dtype=np.float32)
    tokens = TextBatch(torch.zeros(0, dtype=torch.int32), np.zeros(len(points), np.int64))
    batch = Batch(points, empty, empty, tokens, (7, epoch, 9))
    batches.record(batch, torch.from_numpy(rows[points]))


def test_only_the_epoch_before_a_clustering_fills_the_bank(batches):
    rows = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    kept = []
    for epoch in range(9):
        recorded(batches, epoch, np.array([3, 1]), rows)
        if batches.state():
            kept.append(epoch)
        batches._points, batches._embeddings = [], []
    assert kept == [e for e in range(9) if batches.due(e + 1)] == [0, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize(("count", "epoch", "clusters"), [(48, 1, 12), (50, 4, 6), (5, 6, 1)])
def test_queries_are_cut_by_the_bank_into_clusters_of_the_epochs_size(
    make_config, monkeypatch, count, epoch, clusters
):
    """From a full bank, put together from a checkpoint and what followed; else they are encoded."""
    config = make_config(**NGAME, run={"seed": 5})
    rows = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    points = np.random.default_rng(1).permutation(count)
    asked = []

    def cut(given, numbers, **options):
        asked.append((given, numbers, options["seed"]))
        return balanced_hierarchy(given, numbers, **options)

    monkeypatch.setattr(clustered_batches, "balanced_hierarchy", cut)
    first = ClusteredBatches(config, count)
    recorded(first, epoch - 1, points[:3], rows)
    state = first.state()
    assert sorted(state) == ["bank_embeddings", "bank_points"]
    for full in (True, False):
        batches = ClusteredBatches(config, count)
        batches.load_state(state)
        if full:
            recorded(batches, epoch - 1, points[3:], rows)
        batches.start_epoch(epoch, lambda f=full: pytest.fail("encoded") if f else rows)
        given, numbers, seed = asked.pop()
        np.testing.assert_array_equal(given, rows)
        assert (numbers, seed) == ([clusters], 5 + epoch)
        assert sorted(batches.state()) == ["clusters"]  # the bank is empty again
        again = ClusteredBatches(config, count)
        again.load_state(batches.state())
        assert np.array_equal(again.order(epoch), batches.order(epoch))
        of_points = batches.state()["clusters"][batches.order(epoch)]
        assert 1 + np.count_nonzero(np.diff(of_points)) == clusters  # each stands together


def test_random_batches_have_no_clusters(make_config):
    batches = ClusteredBatches(
        make_config(method={"name": "ngame", "batches": "random", "cluster_size": 999}), 48
    )
    assert [batches.size(e) for e in range(3)] == [None] * 3
    batches.start_epoch(0, embed=None)
    assert batches.order(0) is None


def test_the_order_keeps_clusters_together_and_similar_queries_in_one_cluster(batches):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 4))
    embeddings = np.eye(12, dtype=np.float32)[groups] + 0.01
    batches.start_epoch(1, lambda: embeddings)
    order = batches.order(1)
    assert sorted(order) == list(range(48))
    # of a random four: 3.6
    assert np.mean([len(set(groups[order[i : i + 4]])) for i in range(0, 48, 4)]) < 2
    assert not np.array_equal(order, batches.order(2))  # other clusters meet in the next epoch
    assert np.array_equal(order, batches.order(1))


def test_the_bank_that_training_fills_is_used_instead_of_encoding(built):
    learner = built(**NGAME)
    split = learner.data.splits["trn"]
    clusters = []
    learner.begin(0)
    assert learner.order(0) is None
    for batch in training_batches(split, None, learner.config, 0):
        learner.backward(batch)
    # nothing was updated, so they agree
    expected = embed_all(learner.reader, split.texts).numpy()
    for embed in (lambda: pytest.fail("encoded again"), lambda: expected):
        learner.clustered.start_epoch(1, embed)
        clusters.append(learner.clustered._clusters)
    assert np.array_equal(*clusters)
    assert learner.clustered._points == []


def test_a_run_that_starts_with_clusters_encodes_its_queries_once(built):
    learner = built(**{**NGAME, "method": {**NGAME["method"], "curr_epochs": [0]}})
    with counted_encodings() as calls:
        learner.begin(0)
    assert len(learner.order(0)) == sum(calls) == 48


def test_hard_batches_violate_the_margin_more_often_and_it_is_logged(make_config):
    """In clustered batches queries share labels' words: their positives are harder for each
    other."""
    logged = {}
    for name in ("random", "clustered"):
        config = make_config(
            **{
                **NGAME,
                "method": {**NGAME["method"], "batches": name, "curr_epochs": [1]},
                "loss": {**NGAME["loss"], "margin": 0.1},
                "train": {"epochs": 6, "batch_size": 4},
                "optim": {"lr": 0.005},
            }
        )
        folder = train.fit(config, overwrite=True)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logged[name] = [line["violating_share"] for line in lines if line["kind"] == "train"]
    assert all(0 <= share <= 1 for shares in logged.values() for share in shares)
    # the same random order before the first clusters
    assert logged["clustered"][0] == logged["random"][0]
    assert np.mean(logged["clustered"][1:]) > np.mean(logged["random"][1:])


XC = {
    "method": {"name": "xc", "tau": 0.1, "cluster_size": 2, "curr_epochs": [0, 1], "freeze": False},
    "stages": [
        {"name": "first", "method": {"name": "dexml"}, "train": {"epochs": 1}},
        {"name": "second"},
    ],
}
DEXA = {**NGAME, "method": {**NGAME["method"], "name": "dexa", "num_vectors": 4}}


@pytest.mark.parametrize("settings", [NGAME, DEXA, XC], ids=["ngame", "dexa", "xc"])
@pytest.mark.parametrize("die_at", [2, 10])
def test_a_run_cut_off_goes_on_with_the_same_clusters_and_bank(
    make_config, tmp_path, monkeypatch, settings, die_at
):
    config = make_config(
        **{**settings, "encoder": {"dropout": 0.2}, "train": {"epochs": 6, "batch_size": 8}}
    )
    whole = train.fit(config)
    cut = with_values(config, run={"dir": str(tmp_path / "cut"), "save_minutes": 1e-9})
    kind = method_class(config.method.name)
    original = kind.backward
    calls = []

    def die(self, batch):
        if type(self) is kind:
            calls.append(1)
            if len(calls) == die_at:
                raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(kind, "backward", die)
    with pytest.raises(MemoryError):
        train.fit(cut)
    assert (
        json.loads((tmp_path / "cut" / "last" / "progress.json").read_text())["step"] == die_at - 1
    )
    train.fit(cut, resume=True)
    for name in ("shared", "process-0"):
        first, second = (
            load_file(f / "last" / f"{name}.safetensors") for f in (whole, tmp_path / "cut")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[n], second[n]) for n in first)
    shares = [
        [
            json.loads(line).get("violating_share")
            for line in (f / "metrics.jsonl").read_text().splitlines()
        ]
        for f in (whole, tmp_path / "cut")
    ]
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("size", "curriculum", "epochs"),
    [
        (4, [0], 8),
        (16, [1], 8),  # a whole batch
        (4, [0, 1, 2], 8),  # doubles to a whole batch
        (8, [1, 2, 8], 8),  # the last doubling is after the end
        (16, [0, 1], 0),
        (16, [5], 2),
    ],
)
def test_curricula_whose_clusters_fit_a_batch(make_config, size, curriculum, epochs):
    method = {**NGAME["method"], "cluster_size": size, "curr_epochs": curriculum}
    check_curriculum(make_config(method=method, train={"epochs": epochs}))
    longer = {"epochs": max(epochs, max(curriculum) + 1)}
    doubled = {**method, "curr_epochs": curriculum, "cluster_size": 2 * size}
    if size << (len(curriculum) - 1) >= 16:
        with pytest.raises(ConfigError, match="the batch, train.batch_size 16"):
            check_curriculum(make_config(method=doubled, train=longer))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"curr_epochs": [4, 2]}, r"curr_epochs must be ascending epochs from 0, got \[4, 2\]"),
        ({"curr_epochs": [1, 1]}, r"curr_epochs must be ascending epochs from 0, got \[1, 1\]"),
        ({"curr_epochs": []}, r"curr_epochs must be ascending epochs from 0, got \[\]"),
        (
            {"cluster_size": 32},
            "cluster_size is 32, expected at most the batch, train.batch_size 16",
        ),
        (
            {"cluster_size": 8},
            "cluster_size is 8 and doubles to 32 .*more than the batch, train.batch_size 16",
        ),
    ],
)
def test_a_curriculum_that_cannot_run_is_one_clear_error(make_config, method, message):
    config = make_config(**{**NGAME, "method": {**NGAME["method"], **method}})
    with pytest.raises(ConfigError, match=message):
        train.fit(config)
    assert not config.run_folder.exists()
