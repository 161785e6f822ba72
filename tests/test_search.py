import json
import sys
import typing

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import eval as evaluation
import train
from engine.conformance.made import write_dataset
from models.evaluation import predict
from models.loading import load_ranker
from predict import Predictor
from tests.conftest import with_values
from tests.helpers import load
from utils import search
from utils.config.config import EvalConfig
from utils.config.methods import method_class
from utils.errors import InputError
from utils.metrics import evaluate
from utils.runtime import Runtime
from utils.search import INDEXES, Comparison, Copies, ExactIndex, HnswIndex, build_index, exact_topk


def by_full_sort(queries, labels, bias, k):
    """(scores, ids) of the definition, in numpy."""
    full = queries @ labels.T + bias
    ids = np.argsort(-full, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(full, ids, 1), ids


def random_vectors(queries=6, labels=10, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=shape).astype(np.float32) for shape in ((queries, 5), (labels, 5), labels)
    )


@pytest.mark.parametrize("block", [1, 3, 7, 10, 100])
@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("as_array", [False, True])
def test_equals_a_full_sort(block, k, as_array):
    queries, labels, bias = random_vectors()
    expected_scores, expected = by_full_sort(queries, labels, bias, k)
    got_labels = labels if as_array else torch.from_numpy(labels)
    index = ExactIndex(got_labels, torch.from_numpy(bias), block=block)
    scores, ids = index.search(torch.from_numpy(queries), k)
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-5)


# products by BLAS, of the last block alone, all in place
@pytest.mark.parametrize("most", [0, 50, 1 << 22])
def test_one_query_equals_a_full_sort(most, monkeypatch):
    monkeypatch.setattr(search, "ONE_THREAD", most)
    queries, labels, bias = random_vectors(queries=1, labels=23)
    expected_scores, expected = by_full_sort(queries, labels, bias, 9)
    scores, ids = exact_topk(
        torch.from_numpy(queries), labels, 9, bias=torch.from_numpy(bias), block=20
    )
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-5)


@pytest.mark.parametrize("block", [2, 5, 100])
@pytest.mark.parametrize("k", range(1, 13))
def test_equal_scores_go_by_label_id(block, k):
    rng = np.random.default_rng(k)
    # three different scores: ties at every k
    labels = rng.integers(0, 3, size=(12, 1)).astype(np.float32)
    queries = np.array([[1], [-1], [0]], np.float32)
    expected = by_full_sort(queries, labels, 0, k)[1]
    _, ids = exact_topk(torch.from_numpy(queries), torch.from_numpy(labels), k, block=block)
    assert np.array_equal(ids.numpy(), expected)


def test_labels_stay_on_disk_and_half_precision_stays_outside(tmp_path):
    queries, labels, bias = random_vectors(labels=300)
    np.save(tmp_path / "labels.npy", labels)
    index = ExactIndex(
        np.load(tmp_path / "labels.npy", mmap_mode="c"), torch.from_numpy(bias), block=64
    )
    with torch.autocast("cpu", torch.bfloat16):
        scores, ids = index.search(torch.from_numpy(queries), 20)
    assert isinstance(index.labels, np.memmap)
    expected_scores, expected = by_full_sort(queries, labels, bias, 20)
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-5)


def test_one_label_and_no_queries():
    scores, ids = exact_topk(torch.zeros(0, 2), torch.ones(1, 2), 1)
    assert scores.shape == ids.shape == (0, 1)


@pytest.mark.parametrize("k", [0, 7])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match="k must be from 1 to the number of labels, 6; got"):
        exact_topk(torch.ones(1, 2), torch.ones(6, 2), k)


def test_registry():
    assert set(typing.get_args(typing.get_type_hints(EvalConfig)["index"])) == set(INDEXES)
    assert isinstance(
        build_index("exact", torch.ones(6, 2), settings=EvalConfig(label_block=7)), ExactIndex
    )
    with pytest.raises(ValueError, match="unknown index 'annoy'; known: exact, hnsw"):
        build_index("annoy", torch.ones(6, 2), settings=EvalConfig())


@pytest.mark.parametrize("name", ["dexml", "ova"])
def test_scores_do_not_depend_on_the_label_block(make_config, name):
    config = make_config(method={"name": name}, train={"epochs": 3})
    folder = train.fit(config)
    expected, got = (predictions(config, folder, label_block=block) for block in (65536, 4))
    assert np.array_equal(got.indices, expected.indices)
    np.testing.assert_allclose(got.data, expected.data, rtol=1e-5, atol=1e-6)


def predictions(config, folder, **settings):
    """A saved model's top 7 of the test split."""
    config = with_values(config, eval=settings)
    ranker = load_ranker(config, folder, Runtime(Accelerator(cpu=True)))
    split = load(config).splits["tst"]
    return predict(ranker, split.texts, 7, split.filters)[0]


# -------------------------------- approximate


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss")


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_hnsw_that_looks_at_everything_is_exact(faiss, with_bias, as_array):
    queries, labels, bias = random_vectors(queries=50, labels=200, seed=1)
    bias = 3 * bias if with_bias else np.zeros_like(bias)
    index = HnswIndex(
        labels if as_array else torch.from_numpy(labels),
        torch.from_numpy(bias) if with_bias else None,
        m=64,
        ef_construction=200,
        ef=200,
    )
    expected_scores, expected = by_full_sort(queries, labels, bias, 30)
    scores, ids = index.search(torch.from_numpy(queries), 30)
    assert scores.dtype == torch.float32
    assert ids.dtype == torch.long
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-4, atol=1e-5)


def test_hnsw_in_pieces(faiss, monkeypatch):
    monkeypatch.setattr("utils.search.ROWS_AT_ONCE", 7)
    queries, labels, bias = (torch.from_numpy(a) for a in random_vectors(labels=40))
    scores, ids = HnswIndex(labels, bias, ef=40).search(queries, 40)
    assert ids.sort(dim=1).values.tolist() == [list(range(40))] * 6
    assert (scores.diff(dim=1) <= 0).all()


def with_copies(labels, width, groups, seed=0):
    """Vectors [L, D], and a bias [L], of which each group (first, count) shares one."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(labels, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bias = rng.normal(size=labels).astype(np.float32)
    ids = rng.permutation(labels)
    for first, count in groups:
        same = ids[first : first + count]
        vectors[same], bias[same] = vectors[same[0]], bias[same[0]]
    queries = vectors[rng.choice(labels, 60)] + 0.05 * rng.normal(size=(60, width)).astype(
        np.float32
    )
    return torch.from_numpy(queries), vectors, torch.from_numpy(bias)


@pytest.mark.parametrize(
    ("labels", "width", "groups"),
    [
        (1900, 16, [(0, 1500)]),
        (700, 8, [(0, 300), (300, 300), (650, 2)]),
        (300, 4, [(0, 300)]),
        (50, 3, []),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_copies_of_a_label_are_found_as_by_exact_search(faiss, labels, width, groups, with_bias):
    queries, vectors, bias = with_copies(labels, width, groups)
    bias = bias if with_bias else None
    distinct = labels - sum(count - 1 for _, count in groups)
    index = HnswIndex(vectors, bias, m=32, ef_construction=distinct, ef=distinct)
    # [L, B]
    exact = vectors @ queries.numpy().T + (0 if bias is None else bias.numpy()[:, None])
    for k in (1, 5, 40, labels):
        scores, ids = (a.numpy() for a in index.search(queries, k))
        expected = -np.sort(-exact, axis=0)[:k].T
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(exact.T, ids, 1), expected, atol=1e-5)
        assert all(len(set(row)) == k for row in ids.tolist())
        equal = scores[:, 1:] == scores[:, :-1]
        assert (ids[:, 1:] > ids[:, :-1])[equal].all()  # equal scores by lower id
    assert index._built[0].ntotal == distinct


def test_which_labels_are_copies(monkeypatch):
    monkeypatch.setattr("utils.search.ROWS_AT_ONCE", 3)
    rows = np.array([[1, 2], [0, 0], [1, 2], [3, 4], [-0.0, 0], [1, 2], [2, 1]], np.float32)
    kept = rows.copy()
    found = Copies.find(rows, None)
    assert found.first.tolist() == [0, 1, 3, 6] and found.starts.tolist() == [0, 3, 5, 6, 7]
    assert found.members.tolist() == [0, 2, 5, 1, 4, 3, 6]
    assert np.array_equal(rows, kept) and np.array_equal(np.signbit(rows), np.signbit(kept))
    bias = torch.tensor([0, 0, 1, 0, 0, 0, 0.0])
    assert Copies.find(torch.from_numpy(rows), bias).first.tolist() == [0, 1, 2, 3, 6]


@pytest.mark.parametrize("k", range(1, 9))
def test_expanded_copies_are_those_of_a_full_sort(k):
    """Places of equal scores are joined by label id, and no more than k copies of a place are
    looked at."""
    rng = np.random.default_rng(k)
    place = rng.integers(0, 5, 30)
    # numbered by first appearance
    place = np.unique(place, return_index=True)[1].argsort().argsort()[place]
    copies = Copies(place)
    of_place = rng.integers(0, 3, (4, 5)).astype(np.float32)  # ties between places
    order = np.argsort(-of_place, axis=1, kind="stable")
    scores, ids = copies.expand(
        torch.from_numpy(np.take_along_axis(of_place, order, 1)), torch.from_numpy(order), k
    )
    for row in range(4):
        full = of_place[row][place]
        expected = np.argsort(-full, kind="stable")[:k]
        assert ids[row].tolist() == expected.tolist()
        assert scores[row].tolist() == full[expected].tolist()


def test_expanding_what_was_not_found_gives_none():
    copies = Copies(np.array([0, 1, 1, 0]))
    scores, ids = copies.expand(
        torch.tensor([[2.0, -torch.inf], [-torch.inf, -torch.inf]]),
        torch.tensor([[1, -1], [-1, -1]]),
        3,
    )
    assert ids.tolist() == [[1, 2, -1], [-1, -1, -1]]
    assert scores.tolist() == [[2, 2, -torch.inf], [-torch.inf] * 3]
    scores, ids = copies.expand(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long), 3)
    assert scores.shape == ids.shape == (0, 3)


@pytest.mark.parametrize("name", ["dexml", "ova"])
def test_predict_warns_of_an_index_that_finds_little(faiss, make_config, capsys, monkeypatch, name):
    folder = train.fit(make_config(method={"name": name}, train={"epochs": 2}))

    def warned(*overrides):
        capsys.readouterr()
        Predictor(folder, overrides=overrides)
        return [
            line for line in capsys.readouterr().err.splitlines() if "of the exact best" in line
        ]

    assert warned() == warned("--eval.index", "hnsw") == []
    monkeypatch.setitem(INDEXES, "hnsw", lambda labels, bias, settings: Half(labels, bias))
    [line] = warned("--eval.index", "hnsw")
    assert " eval.index hnsw finds 50 % of the exact best 10 labels of 20 points; " in line


class Half(HnswIndex):
    """Finds every other one of the best labels."""

    def search(self, queries, k):
        scores, ids = ExactIndex(self.labels, self.bias).search(queries, min(2 * k, 20))
        return scores[:, ::2], ids[:, ::2]


def test_predict_refuses_an_index_that_its_method_does_not_have(make_config):
    folder = train.fit(make_config(method={"name": "xr-linear", "max_leaf": 4, "splits": 2}))
    with pytest.raises(
        ValueError, match="eval.index is 'hnsw', but method xr-linear does not search all labels"
    ):
        Predictor(folder, overrides=["--eval.index", "hnsw"])


def test_labels_of_equal_texts_keep_their_score_with_hnsw(faiss, make_config, tmp_path):
    """As reported: of many labels with one text the graph lost nearly everything."""
    folder = write_dataset(tmp_path / "sets" / "same", points=120, labels=400, filters=False)
    path = folder / "raw" / "Y.txt"
    names = path.read_text().splitlines()
    path.write_text(
        "".join(f"{name if i % 4 == 0 else 'one text'}\n" for i, name in enumerate(names))
    )
    run = train.fit(
        make_config(data={"root": str(tmp_path / "sets"), "name": "same"}, train={"epochs": 3})
    )
    exact = evaluation.evaluate(run)
    assert evaluation.evaluate(run, overrides=["--eval.index", "hnsw"]) == pytest.approx(
        exact, abs=1
    )
    index = json.loads((run / "tst_metrics.json").read_text())["index"]
    assert index["recall@1"] > 0.99 and index["recall@k"] > 0.99


def test_hnsw_edges(faiss):
    index = HnswIndex(torch.ones(6, 2), m=2, ef_construction=1, ef=1)
    with pytest.raises(ValueError, match="k must be from 1 to the number of labels, 6; got 7"):
        index.search(torch.ones(1, 2), 7)
    scores, ids = index.search(torch.zeros(0, 2), 3)
    assert scores.shape == ids.shape == (0, 3)
    assert HnswIndex(torch.ones(1, 2)).search(torch.ones(2, 2), 1)[1].tolist() == [[0], [0]]


def test_hnsw_that_finds_too_few_fills_up(faiss):
    index = HnswIndex(torch.eye(4), m=2, ef_construction=4, ef=4)
    graph, copies = index._built

    class Graph:  # faiss's answer: ids -1 with any score, and equal scores in any order
        hnsw = graph.hnsw
        ntotal = 4

        def search(self, rows, k):
            return (np.array([[0.5, 0.5, 3.4e38]], np.float32), np.array([[3, 1, -1]]))

    index._built = Graph(), copies
    scores, ids = index.search(torch.ones(1, 4), 3)
    assert ids.tolist() == [[1, 3, -1]]
    assert scores.tolist() == [[0.5, 0.5, -torch.inf]]


@pytest.mark.parametrize("name", ["dexml", "ova"])
def test_evaluation_with_hnsw(faiss, make_config, name):
    config = make_config(method={"name": name}, train={"epochs": 15})
    folder = train.fit(config)
    exact = evaluation.evaluate(folder)
    assert "index" not in json.loads((folder / "tst_metrics.json").read_text())
    assert evaluation.evaluate(folder, overrides=["--eval.index", "hnsw"]) == pytest.approx(exact)
    index = json.loads((folder / "tst_metrics.json").read_text())["index"]
    assert {
        "name": "hnsw",
        "recall@1": 1,
        "k": 20,
        "recall@k": 1,
        "points": 20,
    }.items() <= index.items()
    assert index.keys() >= {"build_seconds", "search_ms", "exact_ms"}
    one = Predictor(folder, overrides=["--eval.index", "hnsw"])(["the linux tool"], k=3)
    assert [p["label"] for p in one[0]] == [
        p["label"] for p in Predictor(folder)(["the linux tool"], k=3)[0]
    ]


def test_training_searches_exactly_whatever_the_index(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # would fail if it were asked for
    settings = {
        "method": {"name": "dexml", "pool": "hnm"},
        "eval": {"index": "hnsw"},
        "train": {"epochs": 1},
    }
    assert (train.fit(make_config(**settings)) / "val_metrics.json").is_file()


def test_missing_faiss_is_named(make_config, monkeypatch):
    folder = train.fit(make_config(train={"epochs": 1}))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ValueError, match="eval.index: hnsw needs the package faiss-cpu.*`pip install faiss-cpu`"
    ):
        evaluation.evaluate(folder, overrides=["--eval.index", "hnsw"])


def test_a_method_without_an_index_says_so(make_config):
    config = make_config(
        encoder={}, method={"name": "xr-linear", "max_leaf": 5}, train={"epochs": 0}
    )
    folder = train.fit(config)
    with pytest.raises(
        InputError, match="eval.index is 'hnsw', but method xr-linear does not search all labels"
    ):
        evaluation.evaluate(folder, overrides=["--eval.index", "hnsw"])


class FindsTwo:
    """An index that finds only the best two labels and, for the query of largest first entry,
    none."""

    def __init__(self, labels):
        self.exact = ExactIndex(labels)
        self.build_seconds = 0.0

    def search(self, queries, k):
        scores, ids = self.exact.search(queries, k)
        scores[:, 2:], ids[:, 2:] = -torch.inf, -1
        none = queries[:, 0].argmax()
        scores[none], ids[none] = -torch.inf, -1
        return scores, ids


def test_comparison_counts_by_hand():
    rng = np.random.default_rng(0)
    labels = torch.eye(4)
    queries = torch.from_numpy(rng.random((8, 4), np.float32))
    both = Comparison(FindsTwo(labels), ExactIndex(labels))
    for part in queries.split(4):  # in each part of 4 queries one finds nothing
        both.search(part, 4)
    report = both.report()
    assert (report["points"], report["k"]) == (8, 4)
    assert report["recall@1"] == 6 / 8
    assert report["recall@k"] == 6 * 2 / 32


def test_rows_that_are_not_full_are_predicted_short(make_config):
    config = make_config()
    data = load(config)
    ranker = method_class("dexml")(config, data, None, Runtime.start(config)).ranker()
    test = data.splits["tst"]
    full, _ = predict(ranker, test.texts, 5, test.filters)
    ranker.index = FindsTwo(ranker.label_embeddings)
    few, _ = predict(ranker, test.texts, 5, test.filters)
    assert np.diff(full.indptr).tolist() == [5] * 20
    lengths = np.diff(few.indptr)
    assert lengths.min() == 0
    assert lengths.max() == 2
    assert np.isfinite(few.data).all()
    hits = sum(
        len(set(few[i].indices) & set(data.splits["tst"].relevance[i].indices)) for i in range(20)
    )
    # of 20 x 5
    assert evaluate(few, data.splits["tst"].relevance, None, (1, 5))["P@5"] == pytest.approx(hits)
