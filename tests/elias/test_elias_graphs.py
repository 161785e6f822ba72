"""ELIAS's graphs: clusters, parents, the approximation, files, figures."""

import numpy as np
import pytest
import scipy.sparse as sp

import train
from models.elias.first_graph import positive_parents
from models.elias.graph import Graph, approximate_graph, cluster_count, cluster_graph
from models.elias.report import draw, graph_arrays, graph_facts
from tests.elias.conftest import STAGE1, STAGE2, graph_of


@pytest.mark.parametrize(
    ("labels", "max_leaf", "clusters"),
    [(1, 100, 1), (100, 100, 1), (101, 100, 2), (670091, 100, 8192), (6491, 100, 128), (7, 2, 4)],
)
def test_number_of_clusters(labels, max_leaf, clusters):
    assert cluster_count(labels, max_leaf) == clusters


def test_a_graph_survives_saving(tmp_path):
    graph = graph_of([{0: 1, 2: 0.5}, {1: 0.25}])
    graph.save(tmp_path / "A.npz")
    again = Graph.load(tmp_path / "A.npz", 4)
    assert (again.labels == graph.labels).all()
    assert (again.values == graph.values).all()
    assert graph.labels.tolist() == [[0, 2], [1, -1]]
    assert graph.lengths.tolist() == [2, 1]


def test_parents_are_the_strongest_clusters():
    graph = graph_of([{0: 1, 1: 0.5, 2: 0.3}, {0: 0.2, 1: 0.5}, {1: 0.1, 2: 0.4}], 5)
    assert graph.parents().tolist() == [0, 0, 2, -1, -1]  # equal values: the lower cluster
    assert graph.parents(np.array([[1, 2, 3], [4, 5, 0], [6, 1, 0]], np.float32)).tolist() == [
        1,
        2,
        0,
        -1,
        -1,
    ]
    assert graph.unreachable() == 2


def test_clusters_are_balanced_and_hold_every_label_once():
    rows = sp.random(37, 20, 0.4, "csr", np.float32, random_state=0)
    graph = cluster_graph(rows, 5, seed=0)
    assert graph.num_clusters == 8
    assert set(graph.lengths.tolist()) <= {4, 5}
    assert sorted(graph.labels[graph.labels >= 0].tolist()) == list(range(37))
    assert (cluster_graph(rows, 5, seed=0).labels == graph.labels).all()


def slow_approximation(relevance, matching, before, kappa):
    """Clusters' labels by loops: each label's best cluster first, then by count."""
    counts = {}
    for point in range(relevance.shape[0]):
        for label in relevance[point].indices:
            for cluster in matching[point].indices:
                counts[label, cluster] = counts.get((label, cluster), 0) + matching[point, cluster]
    for label, parent in enumerate(before.parents()):
        if parent >= 0 and not any((label, c) in counts for c in range(before.num_clusters)):
            counts[label, parent] = 0  # keeps its old place
    rows = []
    for cluster in range(before.num_clusters):
        claims = []
        for (label, other), count in counts.items():
            if other == cluster:
                own = max(
                    (c for (k, c) in counts if k == label),
                    key=lambda c, k=label: (counts[k, c], -c),
                )
                claims.append((own != cluster, -count, label))
        rows.append({label for _, _, label in sorted(claims)[:kappa]})
    return rows


@pytest.mark.parametrize("kappa", [2, 3, 20])
def test_approximate_graph_equals_the_loops(kappa):
    rng = np.random.default_rng(kappa)
    relevance = sp.random(30, 12, 0.15, "csr", np.float32, random_state=1)
    relevance = relevance.multiply(np.arange(12) != 5).tocsr()  # a label without points
    relevance.eliminate_zeros()
    matching = sp.random(30, 4, 0.5, "csr", np.float32, random_state=2)
    matching.data = rng.uniform(0.1, 1, matching.nnz).astype(np.float32)
    before = graph_of(
        [{0: 1, 1: 1, 2: 1}, {3: 1, 4: 1, 5: 1}, {6: 1, 7: 1, 8: 1}, {9: 1, 10: 1, 11: 1}], 12
    )
    got = approximate_graph(relevance, matching, before, kappa)
    for cluster, expected in enumerate(slow_approximation(relevance, matching, before, kappa)):
        assert set(got.labels[cluster][got.labels[cluster] >= 0].tolist()) == expected
    assert got.lengths.max() <= kappa
    assert (got.values.max(1) == 1).all()
    if kappa == 20:
        assert got.unreachable() == 0


def test_a_cluster_that_no_point_visits_keeps_its_labels():
    relevance = sp.csr_matrix(np.array([[1, 0, 0], [0, 1, 0]], np.float32))
    matching = sp.csr_matrix(np.array([[1, 0], [0.5, 0]], np.float32))
    got = approximate_graph(relevance, matching, graph_of([{0: 1, 1: 1}, {2: 1, 1: 0.5}], 3), 2)
    assert got.labels.tolist() == [[0, 1], [2, -1]]  # label 1 is in the cluster that is visited
    assert got.unreachable() == 0


def test_parents_of_positives():
    relevance = sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32))
    assert positive_parents(relevance, np.array([4, -1, 2])).tolist() == [
        [4, 2],
        [-1, -1],
        [-1, -1],
    ]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            np.array([[1, 0], [0, 0]]),
            r"at least one label in each of 2 clusters; cluster 1 \(1 in all\) has none",
        ),
        (np.array([[1, 2]]), r"edge values in \(0, 1\], got 1.0 to 2.0"),
        (np.array([[1, -1]]), r"edge values in \(0, 1\], got -1.0"),
        (np.zeros((0, 2)), r"at least one label in each of 0 clusters"),
    ],
)
def test_bad_graphs(tmp_path, matrix, message):
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(matrix.astype(np.float32)))
    with pytest.raises(ValueError, match=message):
        Graph.load(tmp_path / "A.npz", 2)


def test_a_graph_of_another_size(tmp_path, make_config, stage1):
    sp.save_npz(tmp_path / "A.npz", sp.csr_matrix(np.ones((3, 7), np.float32)))
    with pytest.raises(
        ValueError, match=r"A.npz: the graph has 7 labels, expected the 20 of the data set"
    ):
        train.fit(
            make_config(
                method={**STAGE1, "graph": str(tmp_path / "A.npz")},
                run={"dir": str(tmp_path / "x")},
            )
        )
    sp.save_npz(tmp_path / "B.npz", sp.csr_matrix(np.ones((3, 20), np.float32)))
    run = {"dir": str(tmp_path / "x"), "start_from": str(stage1)}
    with pytest.raises(ValueError, match="run.start_from: it has 4 clusters, this run 3 "):
        train.fit(make_config(method={**STAGE2, "graph": str(tmp_path / "B.npz")}, run=run))
    with pytest.raises(ValueError, match="run.start_from: it has 4 clusters, this run 2 "):
        train.fit(make_config(method={**STAGE2, "max_leaf": 10}, run=run))
    with pytest.raises(ValueError, match=r"no\.npz: no such file; expected a graph A"):
        train.fit(
            make_config(method={**STAGE1, "graph": "no.npz"}, run={"dir": str(tmp_path / "x")})
        )
    (tmp_path / "C.npz").write_text("not one")
    with pytest.raises(ValueError, match=r"C\.npz: not a scipy sparse matrix"):
        train.fit(
            make_config(
                method={**STAGE1, "graph": str(tmp_path / "C.npz")},
                run={"dir": str(tmp_path / "x")},
            )
        )
    assert not (tmp_path / "x").exists()


def test_figures_of_a_graph(tmp_path):
    class Index:
        edges = np.array([[0, 1, 2], [1, 3, -1]], np.int32)
        log_edges = np.log(np.array([[0.5, 0.5, 1.0], [0.04, 1.0, 1.0]], np.float32))

    arrays = graph_arrays(Index, 5)
    expected = -sum(p * np.log(p) for p in (0.25, 0.25, 0.5))
    assert arrays["entropy"][0] == pytest.approx(expected, rel=1e-5)
    assert arrays["labels"].tolist() == [3, 2]
    # label 1's second edge is too weak to count
    assert arrays["clusters"].tolist() == [1, 1, 1, 1, 0]
    facts = graph_facts(arrays)
    assert (facts["labels_unreachable"], facts["labels_in_several_clusters"]) == (1, 0)
    with pytest.raises(ValueError, match="no such file; the run is no finished elias run"):
        draw(tmp_path)
