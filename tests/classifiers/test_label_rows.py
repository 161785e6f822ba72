"""Rows that labels are ranked by, against loops; what is saved is what is loaded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.classifiers.label_rows import ClusterRows, DirectionRows, LabelRows
from utils.errors import InputError

LABELS = 11
DIM = 4
CLUSTERS = 3


def config(cosine=True):
    """What `load` reads of a config."""
    return SimpleNamespace(method=SimpleNamespace(num_clusters=CLUSTERS, cosine=cosine))


def made(kind, equal=False):
    """Rows of a kind; with `equal`, many labels have the same score."""
    generator = torch.Generator().manual_seed(3)
    count = CLUSTERS if kind == "clusters" else LABELS
    weight = torch.randn(count, DIM, generator=generator)
    bias = torch.randn(count, generator=generator)
    if equal:
        weight[:] = weight[0]
        bias[:] = bias[0]
    if kind == "labels":
        return LabelRows(weight, bias)
    if kind == "clusters":
        clusters = torch.randint(CLUSTERS, (LABELS,), generator=generator)
        share = torch.zeros(LABELS) if equal else torch.randn(LABELS, generator=generator)
        return ClusterRows(weight, bias, clusters, share)
    weight[5] = 0  # of no direction
    embeddings = torch.randn(LABELS, DIM, generator=generator).numpy()
    return DirectionRows(weight, bias, embeddings, kind == "directions")


def slow(rows, query):
    """The score of every label by its formula."""
    found = []
    for label in range(LABELS):
        at = label
        extra = 0.0
        if isinstance(rows, ClusterRows):
            at = int(rows.clusters[label])
            extra = float(rows.log_share[label])
        row = rows.weight[at].double().numpy()
        if isinstance(rows, DirectionRows) and rows.cosine:
            length = float(np.sqrt((row**2).sum()))
            row = row / length if length else row
        found.append(float(query @ row) + float(rows.bias[at]) + extra)
    return np.array(found)


KINDS = ("labels", "directions", "plain directions", "clusters")


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_search_gives_the_best_by_the_formula(kind, block):
    rows = made(kind)
    assert rows.num_labels == LABELS
    index = rows.exact_index(block)
    queries = torch.randn(6, DIM, generator=torch.Generator().manual_seed(4))
    values, ids = index.search(queries, 7)
    asked = np.tile(np.arange(LABELS), (6, 1))
    everything = index.of(queries, asked)
    for number, query in enumerate(queries.double().numpy()):
        expected = slow(rows, query)
        order = np.argsort(-expected)[:7]
        assert ids[number].tolist() == order.tolist()
        np.testing.assert_allclose(values[number], expected[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(everything[number], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_rows_have_the_same_scores_as_plain_inner_products(kind):
    rows = made(kind)
    weight, bias = rows.expanded()
    query = torch.ones(DIM)
    np.testing.assert_allclose(weight @ query + bias, slow(rows, query.numpy()), atol=1e-5)


@pytest.mark.parametrize("block", [2, 100])
@pytest.mark.parametrize("kind", ["labels", "clusters"])
def test_equal_scores_come_by_lower_label(kind, block):
    queries = torch.ones(2, DIM)
    _, ids = made(kind, equal=True).exact_index(block).search(queries, 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_given_labels_may_be_none(kind):
    index = made(kind).exact_index(4)
    labels = np.array([[3, -1, 0], [-1, -1, 2]])
    queries = torch.ones(2, DIM)
    found = index.of(queries, labels)
    whole = index.of(queries, np.maximum(labels, 0))
    np.testing.assert_array_equal(found[labels >= 0], whole[labels >= 0])
    assert index.of(queries[:0], labels[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", ["labels", "clusters"])
def test_more_labels_than_there_are_is_a_mistake(kind):
    with pytest.raises(ValueError, match="k must be from 1 to the number of labels, 11; got 12"):
        made(kind).exact_index(4).search(torch.ones(1, DIM), 12)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(tmp_path, kind):
    rows = made(kind)
    rows.save(tmp_path)
    again = type(rows).load(config(kind == "directions"), tmp_path, LABELS, DIM)
    for name, value in vars(rows).items():
        np.testing.assert_array_equal(getattr(again, name), value)


def test_rows_of_another_size_are_refused(tmp_path):
    made("clusters").save(tmp_path)
    with pytest.raises(InputError, match=r"weight: expected shape \(11, 4\), got \(3, 4\)"):
        LabelRows.load(config(), tmp_path, LABELS, DIM)
    with pytest.raises(InputError, match=r"clusters: expected shape \(12\), got \(11,\)"):
        ClusterRows.load(config(), tmp_path, LABELS + 1, DIM)


def test_a_cluster_that_there_is_not_is_refused(tmp_path):
    rows = made("clusters")
    rows.clusters[4] = CLUSTERS
    rows.save(tmp_path)
    with pytest.raises(InputError, match=r"clusters: expected ids in \[0, 3\), got 0 to 3"):
        ClusterRows.load(config(), tmp_path, LABELS, DIM)
