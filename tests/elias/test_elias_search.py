"""ELIAS's search, pool and losses against loops over clusters, edges and labels."""

import math

import numpy as np
import pytest
import torch

from models.elias import label_scores
from models.elias.formulas import top_clusters
from models.elias.index import GraphIndex
from models.elias.label_scores import pool_gradient, pool_scores
from models.elias.options import SearchSettings
from models.elias.search import forced_clusters, select_labels, sorted_selection
from utils.row_store import PRECISIONS, RowStore


def random_graph(rng, clusters, width, num_labels):
    """labels [C, W] int32, -1 behind the last."""
    labels = np.full((clusters, width), -1, np.int32)
    for row in labels:
        count = rng.integers(1, min(width, num_labels) + 1)
        row[:count] = np.sort(rng.choice(num_labels, count, replace=False))
    return labels


def slow_selection(clusters, log_scores, labels, log_edges, rows, size):
    """For each query {label: (path, edge)} of its shortlist, by loops over clusters and edges."""
    found = []
    for query in range(len(clusters)):
        best = {}
        for slot, cluster in enumerate(clusters[query].tolist()):
            for place, label in enumerate(labels[cluster].tolist() if cluster >= 0 else []):
                if label < 0:
                    continue
                path = (log_scores[query, slot] + log_edges[rows[query, slot], place]).item()
                if label not in best or path > best[label][0]:
                    best[label] = path, slot * labels.shape[1] + place
        kept = sorted(best, key=lambda label: (-best[label][0], label))[:size]
        found.append({label: best[label] for label in sorted(kept)})
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("select", [select_labels, sorted_selection])
def test_selection_equals_the_loops(select, seed):
    """Duplicates, padding, clusters that are not there, ties of whole numbers, shortlists larger
    than what is there."""
    rng = np.random.default_rng(seed)
    clusters, width, num_labels = (int(rng.integers(1, n)) for n in (8, 9, 20))
    labels = torch.from_numpy(random_graph(rng, clusters, width, num_labels))
    slots = int(rng.integers(1, clusters + 1))
    chosen = torch.from_numpy(np.stack([rng.permutation(clusters)[:slots] for _ in range(6)]))
    rows = chosen.clone()
    chosen[torch.from_numpy(rng.random(chosen.shape) < 0.2)] = -1
    log_scores = torch.from_numpy(rng.integers(-3, 1, chosen.shape)).float()
    log_edges = torch.from_numpy(rng.integers(-3, 1, labels.shape)).float()
    size = min(int(rng.integers(1, 15)), slots * width)
    got = select(chosen, log_scores, labels, log_edges, rows, size=size)
    for query, expected in enumerate(
        slow_selection(chosen, log_scores, labels, log_edges, rows, size)
    ):
        ids = got.labels[query]
        assert ids[: len(expected)].tolist() == list(expected)
        assert (ids[len(expected) :] == -1).all()
        assert got.log_paths[query, len(expected) :].isneginf().all()
        for place, (path, edge) in enumerate(expected.values()):
            assert (got.log_paths[query, place].item(), got.edges[query, place].item()) == (
                path,
                edge,
            )


def test_no_queries_and_no_clusters():
    labels = torch.tensor([[0, 1]], dtype=torch.int32)
    none = torch.zeros(0, 1, dtype=torch.long)
    assert select_labels(
        none, torch.zeros(0, 1), labels, torch.zeros(1, 2), none, size=2
    ).labels.shape == (0, 2)
    nowhere = torch.full((1, 1), -1)
    got = select_labels(
        nowhere, torch.zeros(1, 1), labels, torch.zeros(1, 2), nowhere.clamp(min=0), size=2
    )
    assert got.labels.tolist() == [[-1, -1]]


# -------------------------------- the whole search


def slow_search(x, weights, s, k):
    """The definition: softmax, clip, products, maximum, top K, sigmoid; one number at a time."""
    clusters, labels, bias, edges, log_edges = weights
    logits = [
        sum(a * b for a, b in zip(x, row, strict=True)) / s.cluster_tau for row in clusters.tolist()
    ]
    total = sum(math.exp(z - max(logits)) for z in logits)
    score = [min(max(s.alpha * math.exp(z - max(logits)) / total, 0), 1) for z in logits]
    beam = sorted(range(len(score)), key=lambda c: -logits[c])[: s.beam]
    path = {}
    for cluster in beam:
        for place, label in enumerate(edges[cluster].tolist()):
            if label >= 0:
                path[label] = max(
                    path.get(label, 0), score[cluster] * math.exp(log_edges[cluster, place])
                )
    kept = sorted(path, key=lambda label: (-path[label], label))[: s.size]
    final = {}
    for label in kept:
        z = sum(a * b for a, b in zip(x, labels[label].tolist(), strict=True)) / s.tau + bias[label]
        final[label] = path[label] / (1 + math.exp(-z))
    best = sorted(final, key=lambda label: (-final[label], label))[:k]
    return best, [final[label] for label in best]


def random_weights(rng, clusters=16, width=12, num_labels=60, dim=5):
    edges = random_graph(rng, clusters, width, num_labels)
    return (
        rng.normal(size=(clusters, dim)).astype(np.float32),
        rng.normal(size=(num_labels, dim)).astype(np.float32),
        rng.normal(size=num_labels).astype(np.float32),
        edges,
        np.log(rng.uniform(0.05, 1, edges.shape)).astype(np.float32),
    )


def index_of(weights, settings, precision="float32"):
    clusters, labels, *rest = weights
    return GraphIndex(
        RowStore.of(clusters, precision), RowStore.of(labels, precision), *rest, settings
    )


@pytest.mark.parametrize(("beam", "size", "k"), [(4, 10, 5), (16, 200, 60), (1, 3, 7), (5, 1, 1)])
def test_search_equals_the_definition(beam, size, k):
    rng = np.random.default_rng(beam)
    weights = random_weights(rng)
    settings = SearchSettings(3.0, 0.7, 0.9, beam, size)
    queries = torch.from_numpy(rng.normal(size=(9, 5)).astype(np.float32))
    scores, ids = index_of(weights, settings).search(queries, k)
    assert scores.shape == ids.shape == (9, k)
    for query, row, found in zip(queries.tolist(), scores, ids, strict=True):
        best, expected = slow_search(query, weights, settings, k)
        assert found[: len(best)].tolist() == best
        np.testing.assert_allclose(row[: len(best)], expected, rtol=2e-6, atol=1e-6)
        assert (found[len(best) :] == -1).all()
        assert row[len(best) :].isneginf().all()


@pytest.mark.parametrize(("beam", "size"), [(3, 8), (16, 200)])
def test_scores_of_given_labels_equal_the_search(beam, size, monkeypatch):
    """Labels that the search returns have its scores; others those of a search through all
    clusters."""
    rng = np.random.default_rng(beam)
    clusters, labels, bias, edges, log_edges = random_weights(rng)
    edges[edges == 7] = -1  # label 7 is in no cluster
    weights = (clusters, labels, bias, *packed(edges, log_edges))
    settings = SearchSettings(3.0, 0.7, 0.9, beam, size)
    index = index_of(weights, settings)
    queries = torch.from_numpy(rng.normal(size=(9, 5)).astype(np.float32))
    monkeypatch.setattr("models.elias.index.SCORES_AT_ONCE", 64)  # four queries at a time
    given = np.concatenate(
        [np.full((9, 1), -1), rng.permuted(np.tile(np.arange(60), (9, 1)), axis=1)], 1
    )
    got = index.score_labels(queries, given)
    assert got.dtype == np.float32
    assert np.isneginf(got[(given == -1) | (given == 7)]).all()
    scores, ids = index.search(queries, size)
    everywhere = SearchSettings(3.0, 0.7, 0.9, 16, 200)
    for row, query in enumerate(queries.tolist()):
        found = dict(zip(given[row].tolist(), got[row].tolist(), strict=True))
        for label, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True):
            if label >= 0:
                assert found[label] == pytest.approx(score, rel=2e-5)
        reached = {
            label
            for cluster in top_clusters(
                queries[row : row + 1] @ torch.from_numpy(clusters).T / 0.7, 3.0, beam
            )[0][0].tolist()
            for label in weights[3][cluster].tolist()
        }
        for label, score in zip(*slow_search(query, weights, everywhere, 60), strict=True):
            if label not in reached:
                assert found[label] == pytest.approx(score, rel=2e-5)


def packed(edges, log_edges):
    """Edges with those of id -1 behind the others."""
    order = np.argsort(edges < 0, axis=1, kind="stable")
    return np.take_along_axis(edges, order, 1), np.take_along_axis(log_edges, order, 1)


def test_search_on_a_gpu_finds_the_same(monkeypatch):
    """Its operations, here on the CPU: sorts in the place of hash tables, gathered rows in that of
    compiled loops."""
    rng = np.random.default_rng(2)
    index = index_of(random_weights(rng), SearchSettings(3.0, 0.8, 0.9, 5, 12))
    queries = torch.from_numpy(rng.normal(size=(20, 5)).astype(np.float32))
    expected = index._on_cpu(queries, queries)
    monkeypatch.setattr("models.elias.index.select_labels", sorted_selection)
    got = index._on_gpu(queries, queries)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])
    assert isinstance(index.bias, np.ndarray)  # what is on disk stays as it was


def test_search_does_not_depend_on_the_batch(monkeypatch):
    rng = np.random.default_rng(0)
    index = index_of(random_weights(rng), SearchSettings(3.0, 1.0, 1.0, 4, 10))
    queries = torch.from_numpy(rng.normal(size=(7, 5)).astype(np.float32))
    whole = index.search(queries, 5)
    monkeypatch.setattr("models.elias.index.SCORES_AT_ONCE", 32)  # two queries at a time
    for got in (
        index.search(queries, 5),
        [torch.cat(p) for p in zip(*(index.search(q[None], 5) for q in queries), strict=True)],
    ):
        assert torch.equal(got[1], whole[1])
        torch.testing.assert_close(got[0], whole[0])
    assert index.search(queries[:0], 5)[1].shape == (0, 5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_index_on_disk(tmp_path, precision):
    """Saved, mapped and searched in each precision; what is close to float32 is found."""
    rng = np.random.default_rng(1)
    weights = random_weights(rng, 64, 30, 500, 24)
    settings = SearchSettings(3.0, 1.0, 1.0, 8, 100)
    exact = index_of(weights, settings)
    exact.save(tmp_path)
    made = GraphIndex.load(tmp_path, settings, precision)  # of the float32 files
    made.labels.save(tmp_path, "labels")
    made.clusters.save(tmp_path, "clusters")
    mapped = GraphIndex.load(tmp_path, settings, precision)
    assert isinstance(mapped.labels.rows, np.memmap)
    assert (
        mapped.labels.rows.dtype
        == {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[precision]
    )
    queries = torch.from_numpy(rng.normal(size=(40, 24)).astype(np.float32))
    (scores, ids), (expected, exact_ids) = mapped.search(queries, 10), exact.search(queries, 10)
    assert torch.equal(made.search(queries, 10)[1], ids)
    one = mapped.search(queries[:1], 10)
    torch.testing.assert_close(one[0], scores[:1], rtol=1e-4, atol=1e-5)
    agreement = (
        np.mean(
            [len(set(a) & set(b)) for a, b in zip(ids.tolist(), exact_ids.tolist(), strict=True)]
        )
        / 10
    )
    assert agreement == 1 if precision == "float32" else agreement > 0.93
    torch.testing.assert_close(
        scores, expected, rtol=1e-6 if precision == "float32" else 0.1, atol=0.01
    )


def test_rows_in_every_precision():
    rows = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    rows[3] = 0
    for precision, error in (("float32", 0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)):
        store = RowStore.of(rows, precision)
        limit = error * (
            np.abs(rows) if precision == "bfloat16" else np.abs(rows).max(1, keepdims=True)
        )
        assert (np.abs(store.floats(slice(None)) - rows) <= limit + 1e-7).all()
        assert not store.floats(slice(3, 4)).any()
        queries = rows[:2] + 1
        expected = queries @ store.floats(slice(None)).T
        np.testing.assert_allclose(store.products(queries), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(store.products(queries[:1]), expected[:1], rtol=1e-4, atol=1e-4)
        ids = np.array([[4, -1, 0], [8, 8, 3]])
        got = store.dots(queries, ids, lambda work, rows: work(0, rows))
        np.testing.assert_allclose(
            got,
            np.where(ids < 0, 0, np.take_along_axis(expected, ids.clip(0), 1)),
            rtol=1e-4,
            atol=1e-4,
        )
    assert torch.equal(
        torch.from_numpy(RowStore.of(rows, "bfloat16").floats(slice(None))),
        torch.from_numpy(rows).bfloat16().float(),
    )
    with pytest.raises(
        ValueError, match="unknown precision 'int4'; known: float32, bfloat16, int8"
    ):
        RowStore.of(rows, "int4")


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    settings = SearchSettings(3.0, 1.0, 1.0, 4, 10)
    index_of(random_weights(np.random.default_rng(0)), settings).save(tmp_path)
    edges = np.load(tmp_path / "edges.npy")
    whole = edges.copy()
    for bad in (60, -2, 1_000_000):
        edges[1, 0] = bad
        np.save(tmp_path / "edges.npy", edges)
        with pytest.raises(ValueError, match=r"an edge leads to label .*there are 60 labels"):
            GraphIndex.load(tmp_path, settings)
    np.save(tmp_path / "edges.npy", whole.astype(np.float64))
    with pytest.raises(ValueError, match=r"edges.npy: expected values of int32, got float64"):
        GraphIndex.load(tmp_path, settings)
    np.save(tmp_path / "edges.npy", whole)
    with pytest.raises(ValueError, match=r"labels.npy: no such file"):
        RowStore.load(tmp_path / "bias.npy", "labels", "float32")
    np.save(tmp_path / "bias.npy", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"bias.npy: expected shape \(60\), got \(3,\)"):
        GraphIndex.load(tmp_path, settings)


# -------------------------------- teacher forcing


def test_parents_join_and_duplicates_become_random_clusters():
    log_scores = torch.log_softmax(torch.arange(10.0), 0)[None].repeat(3, 1)  # top 2: 9, 8
    parents = torch.tensor([[0, 1, -1], [9, 8, 9], [-1, -1, -1]])
    fill = torch.tensor([[5, 6, 7, 4, 3]]).repeat(3, 1)
    noise = torch.zeros(3, 2 + 3 + 5)
    got = forced_clusters(log_scores, 2, parents, fill, noise)
    assert [set(row) for row in got.tolist()] == [{9, 8, 0, 1, 7}, {9, 8, 7, 6, 5}, {9, 8, 7, 6, 5}]


def test_more_parents_than_room_are_drawn_by_score():
    log_scores = torch.log(torch.tensor([0.7, 0.25, 0.05]))[None]
    parents = torch.tensor([[1, 2]])
    drawn = np.zeros(3)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        noise = torch.from_numpy(rng.gumbel(size=(1, 1 + 2 + 1))).float()
        drawn[forced_clusters(log_scores, 1, parents, torch.tensor([[0]]), noise)[0].item()] += 1
    np.testing.assert_allclose(drawn / 400, [0.7, 0.25, 0.05], atol=0.06)


def test_fewer_clusters_than_places():
    got = forced_clusters(
        torch.zeros(1, 2), 2, torch.tensor([[1]]), torch.tensor([[0, 0, 1]]), torch.zeros(1, 6)
    )
    assert sorted(got[0].tolist()) == [-1, 0, 1]


def test_top_clusters_are_those_of_the_clipped_softmax():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    clusters, log_scores = top_clusters(logits.clone(), 3.0, 5)
    expected = (3 * logits.softmax(1)).clamp(0, 1)
    torch.testing.assert_close(log_scores.exp(), expected.gather(1, clusters))
    assert torch.equal(clusters, logits.topk(5).indices)


# -------------------------------- the pool


@pytest.mark.parametrize(("labels", "reads"), [(7, True), (4000, True), (4000, False)])
def test_pool_equals_autograd(labels, reads, monkeypatch):
    """One product with all labels, rows read in place, and rows gathered in chunks as on a GPU."""
    monkeypatch.setattr(label_scores, "CHUNK_FLOATS", 40)
    monkeypatch.setattr(label_scores, "_reads", lambda queries: reads)
    torch.manual_seed(0)
    weight, bias = torch.randn(labels, 4), torch.randn(labels, 1)
    queries = torch.randn(5, 4, requires_grad=True)
    ids = torch.randint(labels, (5, 6))
    inside = torch.rand(5, 6) < 0.8
    rows = weight.clone().requires_grad_()
    plain = queries.detach().clone().requires_grad_()
    expected = (rows[ids] * plain[:, None]).sum(-1) + bias[ids, 0]
    (torch.where(inside, expected, 0.0) ** 2).sum().backward()
    got = pool_scores(queries, weight, ids)
    got.retain_grad()
    (torch.where(inside, got + bias[ids, 0], 0.0) ** 2).sum().backward()
    torch.testing.assert_close(got + bias[ids, 0], expected)
    torch.testing.assert_close(queries.grad, plain.grad)
    outer = pool_gradient(ids, inside, got.grad, queries)
    torch.testing.assert_close(
        outer.to_sparse(weight.shape).to_dense(), rows.grad, rtol=1e-4, atol=1e-5
    )


def test_pool_holds_no_copies():
    """512 x 400 rows of 64 are 52 MB; a step's pool holds scores and blocks of gradients."""
    torch.manual_seed(0)
    weight, queries = torch.randn(20_000, 64), torch.randn(512, 64, requires_grad=True)
    ids = torch.randint(20_000, (512, 400))
    peak = []

    def measured():
        scores = pool_scores(queries, weight, ids)
        scores.retain_grad()
        scores.square().sum().backward()
        for _, values in pool_gradient(ids, ids >= 0, scores.grad, queries).blocks(2048):
            peak.append(values.numel() * 4)

    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        measured()
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert largest <= 4 << 20
    assert max(peak) <= 2048 * 64 * 4
