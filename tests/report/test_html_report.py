"""report.html: its numbers against slow loops, and that no text can break the page."""

import base64
import json
import math

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from tests.helpers import payload_of
from utils.metrics import evaluate
from utils.report import html, measured, pictures, point_table
from utils.sparse import topk_rows


@pytest.fixture
def made():
    """(scores, relevance, label counts): 40 points, 23 labels; some points without predictions or
    labels."""
    rng = np.random.default_rng(0)
    scores, relevance = (
        sp.csr_matrix(rng.random((40, 23)) * (rng.random((40, 23)) < share))
        for share in (0.5, 0.15)
    )
    return scores, relevance, rng.integers(0, 9, 23)


def test_deciles_by_loops_and_they_add_up_to_precision(made):
    scores, relevance, counts = made
    ids, _ = topk_rows(scores, 7)
    found = measured.by_decile(ids, relevance, counts, (1, 5), groups=10)
    order = sorted(range(23), key=lambda label: (counts[label], label))
    parts = [list(part) for part in np.array_split(order, 10)]
    truth = [set(relevance[i].indices) for i in range(40)]
    for g, part in enumerate(parts):
        pairs = sum(len(t & set(part)) for t in truth)
        assert (found["labels"][g], found["pairs"][g]) == (len(part), pairs)
        assert (found["fewest"][g], found["most"][g]) == (counts[part[0]], counts[part[-1]])
        for k in (1, 5):
            hits = sum(len(truth[i] & set(part) & set(ids[i][:k])) for i in range(40))
            assert found[f"P@{k}"][g] == pytest.approx(100 * hits / (k * 40))
            assert found[f"recall@{k}"][g] == (pytest.approx(100 * hits / pairs) if pairs else None)
    metrics = evaluate(scores, relevance, ks=(1, 5))
    assert [sum(found[f"P@{k}"]) for k in (1, 5)] == pytest.approx([metrics["P@1"], metrics["P@5"]])
    with pytest.raises(ValueError, match="at most the 7 predictions kept of a point, got 9"):
        measured.by_decile(ids, relevance, counts, (9,))


def test_fewer_labels_than_groups():
    relevance = sp.csr_matrix([[1.0, 0, 0]])
    found = measured.by_decile(np.array([[0]]), relevance, np.array([3, 1, 2]), (1,))
    assert (
        found["labels"] == [1, 1, 1]
        and found["P@1"] == [0, 0, 100]
        and found["recall@1"] == [None, None, 100]
    )


def test_confused_pairs_by_loops(made):
    scores, relevance, _ = made
    ids, _ = topk_rows(scores, 3)
    slow = {}
    for i in range(40):
        truth = set(relevance[i].indices)
        row = ids[i].tolist()
        if row[0] >= 0 and row[0] not in truth:
            for label in truth - set(row):
                slow[label, row[0]] = slow.get((label, row[0]), 0) + 1
    found = measured.confused_pairs(ids, relevance, limit=1000)
    assert {(true, wrong): times for true, wrong, times in found} == slow and len(slow) > 5
    assert [f[2] for f in found] == sorted(slow.values(), reverse=True)
    assert measured.confused_pairs(ids, relevance, limit=4) == found[:4]


def test_histogram_and_examples_of_clusters():
    found = measured.cluster_histogram(np.array([3, 3, 5, 9]))
    assert (found["clusters"], found["smallest"], found["largest"], sum(found["counts"])) == (
        4,
        3,
        9,
        4,
    )
    assert len(found["edges"]) == len(found["counts"]) + 1 == 7
    assert measured.cluster_histogram(np.array([4, 4]))["counts"] == [2]
    tree = sp.csr_matrix([[1.0, 0, 0, 1], [0, 1, 1, 0]])
    graph = sp.csr_matrix([[0.2, 0.9, 0.2, 0.2]])
    first, second, third = measured.cluster_examples(
        {"tree 1": tree, "graph": graph}, np.array([1, 6, 2, 3]), ["a", "b", "c", "d" * 99]
    )
    assert first == {"name": "1, tree 1", "labels": 2, "pairs": 8, "texts": ["b", "c"]}
    assert second["texts"] == ["d" * measured.MAX_NAME, "a"]  # by frequency
    assert third["texts"] == ["b", "d" * measured.MAX_NAME, "c", "a"]  # the strongest edge first


def test_no_text_can_end_the_script_and_no_number_break_the_json(tmp_path):
    text = 'a</script><script>alert(1)</script><!-- \u2028 & "quoted" \ud800 \U0001f600'
    html.write_report(
        tmp_path / "r.html",
        html.ReportData(
            title=text,
            facts={text: np.float32(0.5), "n": np.int64(3), "none": None, "list": (1, np.inf)},
            metrics={"P@1": math.nan, "P@5": -math.inf, "R@1": 2.0},
            labels={3: text, 5: "__PAYLOAD__"},
        ),
    )
    found = payload_of(tmp_path / "r.html")
    assert found["title"] == found["labels"]["3"] == text
    assert found["facts"] == {text: 0.5, "n": 3, "none": None, "list": [1, None]}
    assert (
        found["metrics"] == {"P@1": None, "P@5": None, "R@1": 2.0}
        and found["labels"]["5"] == "__PAYLOAD__"
    )
    assert "<" not in html.to_payload(text)


def test_curves_of_a_run_and_its_stages(tmp_path):
    (tmp_path / "stages" / "first").mkdir(parents=True)
    lines = [{"kind": "train", "step": s, "loss": 1 / (s + 1), "note": "x"} for s in range(1200)]
    # again
    lines += [{"kind": "val", "step": 7, "P@1": 1.0}, {"kind": "train", "step": 0, "loss": 9.0}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in lines) + '{"kind": "tr'
    )
    (tmp_path / "stages" / "first" / "metrics.jsonl").write_text(
        "".join(json.dumps({"kind": "val", "step": s, "P@5": s}) + "\n" for s in (2, 1))
    )
    stage, loss = pictures.read_curves(tmp_path)  # one value of P@1 is no curve
    assert stage == {"stage": "first", "kind": "val", "name": "P@5", "points": [[1, 1], [2, 2]]}
    assert (loss["stage"], loss["kind"], loss["name"]) == ("", "train", "loss")
    assert len(loss["points"]) == pictures.MAX_CURVE
    assert loss["points"][0] == [0, 9.0] and loss["points"][-1] == [1199, 1 / 1200]
    assert pictures.read_curves(tmp_path / "none") == []


def test_plots_and_peers_and_places(tmp_path):
    for place in ("plots", "stages/one/plots"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "plots" / "graph.png").write_bytes(b"png")
    (tmp_path / "stages" / "one" / "plots" / "other.png").write_bytes(b"two")
    first, second = pictures.read_plots(tmp_path)
    assert (first["name"], base64.b64decode(first["data"])) == ("plots/graph", b"png")
    assert "recall of the shortlists" in first["alt"] and second["alt"] == "plot other"
    assert pictures.peers_of("Debtags", "tst")[0]["PECOS XR-Linear"]["P@1"] == 80.65
    assert pictures.peers_of("Debtags", "val") == pictures.peers_of("mine", "tst") == ({}, "")
    assert [html.report_path(tmp_path, s).name for s in ("tst", "val")] == [
        "report.html",
        "val_report.html",
    ]


def test_the_table_holds_what_a_loop_would():
    assert point_table.chosen_points(0).tolist() == []
    assert point_table.chosen_points(3).tolist() == [0, 1, 2]
    assert point_table.chosen_points(9, 3).tolist() == [0, 4, 8]
    scores = sp.csr_matrix(np.array([[0.123456, 0.9, 0, 0.5], [0, 0, 0, 0]]))
    relevance = sp.csr_matrix(np.array([[1.0, 0, 1, 0], [0, 0, 0, 0]]))
    view = point_table.PointViews(
        "m", np.array([[2, 1], [-1, -1]]), np.array([[0.25, -1.0, 2.0, 7], [0, 0, 0, 0]])
    )
    first, second = point_table.points_table(
        np.array([4, 8]), ["x" * 600, "short"], scores, relevance, [view]
    )
    assert first == {
        "id": 4,
        "text": "x" * 500,
        "more": True,
        "true": [0, 2],
        "hidden": 0,
        "top": [[1, 0.9, 0], [3, 0.5, 0], [0, 0.1235, 1]],
        "views": [[[[2, 1], [1, 0]], [0.25, -1.0, 2.0]]],
    }
    assert (second["top"], second["true"], second["views"], second["more"]) == (
        [],
        [],
        [[[], []]],
        False,
    )
    assert point_table.used_labels([first, second]) == [0, 1, 2, 3]
    many = point_table.points_table(
        np.array([0]), [""], sp.csr_matrix((1, 60)), sp.csr_matrix(np.ones((1, 60)))
    )[0]
    assert len(many["true"]) == point_table.MAX_TRUE
    assert many["hidden"] == 10 and "views" not in many


def test_the_report_of_a_tree_run(make_config):
    folder = train.fit(make_config(method={"name": "xr-linear", "max_leaf": 4, "splits": 2}))
    metrics = evaluation.evaluate(folder)
    found = payload_of(folder / "report.html")
    assert (
        found["facts"]["method"] == "xr-linear"
        and found["num_points"] == len(found["points"]) == 20
    )
    assert found["metrics"] == metrics and found["runs"] == [] and found["comparison"] is None
    assert sum(found["deciles"][0]["P@1"]) == pytest.approx(metrics["P@1"])
    assert sum(found["clusters"][0]["counts"]) == found["clusters"][0]["clusters"]
    # every label is in one of few clusters
    assert sum(e["labels"] for e in found["examples"]) == 20
    right = [p["top"][0][2] for p in found["points"]]
    assert 100 * np.mean(right) == pytest.approx(metrics["P@1"])
    point = found["points"][0]
    assert point["text"].startswith("the ") and set(map(str, point["true"])) <= set(found["labels"])
