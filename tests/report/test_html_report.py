"""report.html: its numbers against slow loops, and that no text can break the page."""

import base64
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from tests.helpers import payload_of
from utils.metrics import evaluate
from utils.report import history, html, measured, pictures, point_table
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


def test_tail_torso_and_head_have_a_third_of_the_pairs_each(made):
    scores, relevance, _ = made
    counts = np.array([1] * 12 + [2] * 6 + [4] * 3 + [0, 12])  # 48 pairs
    parts = measured.volume_parts(counts)
    assert [counts[parts[name]].sum() for name in ("tail", "torso", "head")] == [16, 16, 16]
    assert 21 in parts["tail"] and parts["head"].tolist() == [20, 22]
    assert sorted(np.concatenate([*parts.values()])) == list(range(23))
    ids, _ = topk_rows(scores, 5)
    found = measured.by_volume(ids, relevance, counts, (5,))
    assert found["names"] == ["tail", "torso", "head"] and found["labels"] == [15, 6, 2]
    assert (found["fewest"], found["most"]) == ([0, 2, 4], [2, 4, 12])
    assert sum(found["P@5"]) == pytest.approx(evaluate(scores, relevance, ks=(5,))["P@5"])


@pytest.mark.parametrize("counts", [[7], [0, 0], [1, 100]])
def test_parts_without_labels_are_left_out(counts):
    relevance = sp.csr_matrix(np.ones((1, len(counts))))
    found = measured.by_volume(np.array([[0]]), relevance, np.array(counts), (1,))
    assert sum(found["labels"]) == len(counts) and 0 not in found["labels"]
    assert len(found["names"]) == len(found["labels"]) == len(found["recall@1"])


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


def test_each_part_of_the_page_is_put_in_once(tmp_path):
    html.write_report(tmp_path / "r.html", html.ReportData("__STYLE__ __SCRIPT__", {}, {}))
    page = (tmp_path / "r.html").read_text()
    assert payload_of(tmp_path / "r.html")["title"] == "__STYLE__ __SCRIPT__"
    assert page.count("</script>") == 2 and page.count("</style>") == 1
    scripts = {path.stem for path in html.PAGE.glob("*.js")}
    assert scripts == set(html.SCRIPTS)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


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


def written(folder, entries, method="dexml", **finished):
    """A run or stage that has logged these entries."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"method: {{name: {method}}}\n")
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "tr')  # the last one was cut off
    (folder / "finished").write_text(json.dumps(finished))
    return folder


def test_stages_stand_in_the_order_of_the_recipe(tmp_path):
    names = ("zebra", "apple", "fuser")
    stages = "".join(f"- {{name: {name}}}\n" for name in names)
    (tmp_path / "recipe.yaml").write_text(f"stages:\n{stages}")
    for name in ("zebra", "apple", "apple-all", "zebra-all"):
        written(tmp_path / "stages" / name, [], epochs=2, best_epoch=1, train_seconds=3.5)
    written(tmp_path, [], "fusion", epochs=0, best_epoch=0, train_seconds=1.0)
    (tmp_path / "stages" / "zebra" / "val_metrics.json").write_text('{"P@1": 0.0, "R@9": 1}')
    found = history.read_stages(tmp_path)
    assert [stage["name"] for stage in found] == [
        "zebra",
        "apple",
        "zebra-all",
        "apple-all",
        "fuser",
    ]
    assert found[0] == {
        "name": "zebra",
        "method": "dexml",
        "epochs": 2,
        "best_epoch": 1,
        "seconds": 3.5,
        "validation": {"P@1": 0.0},
        "curves": [],
    }
    assert found[-1]["method"] == "fusion"
    assert history.read_origin(tmp_path, found)["seconds of training"] == 15.0


def test_a_run_without_stages_and_one_that_says_nothing(tmp_path):
    (found,) = history.read_stages(tmp_path)
    assert (found["name"], found["method"], found["epochs"], found["curves"]) == (
        "",
        None,
        None,
        [],
    )
    assert history.read_origin(tmp_path, [found]) == {"megabytes of the model": 0.0}
    assert history.read_configs(tmp_path) == {}
    (tmp_path / "finished").write_text("[1]")
    (tmp_path / "environment.json").write_text("{")  # what is damaged is left out
    assert history.read_stages(tmp_path) == [found]


def test_how_a_run_was_made(tmp_path):
    written(tmp_path, [], train_seconds=2.25)
    told = {
        "commit": "abc",
        "dirty": True,
        "python": "3.11",
        "versions": {"torch": "2.13"},
        "mixed_precision": "no",
        "host": "secret",
    }
    (tmp_path / "environment.json").write_text(json.dumps(told))
    (tmp_path / "model" / "members").mkdir(parents=True)
    (tmp_path / "model" / "a.bin").write_bytes(b"x" * 1_500_000)
    (tmp_path / "model" / "members" / "b.bin").write_bytes(b"x" * 500_000)
    stages = history.read_stages(tmp_path)
    assert history.read_origin(tmp_path, stages) == {
        "seconds of training": 2.2,
        "megabytes of the model": 2.0,
        "commit": "abc, with changed files",
        "Python": "3.11",
        "torch": "2.13",
        "precision": "float32",
    }
    assert history.read_configs(tmp_path) == {"resolved": "method: {name: dexml}\n"}
    (tmp_path / "recipe.yaml").write_text("stages: []\n")
    (tmp_path / "given.yaml").write_text("base: [x]\n")
    assert history.read_configs(tmp_path) == {
        "as it was given": "base: [x]\n",
        "resolved": "stages: []\n",
    }


def test_curves_are_over_epochs(tmp_path):
    train = [{"kind": "train", "step": s, "epoch": 2, "loss": 1 / s} for s in range(1, 1201)]
    val = [{"kind": "val", "step": 600 * e, "epoch": e, "P@1": e, "P@9": 1} for e in (2, 1)]
    written(tmp_path, [*train, *val, {"kind": "train", "step": 1, "epoch": 1, "loss": 9.0}])
    loss, precision = history.read_stages(tmp_path)[0]["curves"]
    assert precision == {"kind": "val", "name": "P@1", "points": [[1, 1], [2, 2]]}
    assert (loss["kind"], loss["name"]) == ("train", "loss")
    assert len(loss["points"]) == history.MAX_CURVE
    assert loss["points"][0] == [0.002, 9.0]  # of a step that came again, the later value
    assert loss["points"][-1] == [2.0, 0.00083333]


def test_without_validation_whole_epochs_tell_where_a_step_is():
    entries = [{"kind": "train", "step": 4 * e, "epoch": e, "loss": float(e)} for e in (1, 2, 3)]
    (loss,) = history.read_curves(entries)
    assert loss["points"] == [[1, 1.0], [2, 2.0], [3, 3.0]]
    assert history.read_curves(entries[:1]) == []  # one value is no curve
    assert history.read_curves([{"kind": "train", "loss": 1.0}]) == []
    between = [{"kind": "step", "step": s, "epoch": 1, "loss": 7.0} for s in (2, 4, 6)]
    steps = history.read_curves([*between, *entries])[0]
    assert (steps["kind"], steps["points"]) == ("step", [[0.5, 7.0], [1.0, 7.0], [1.5, 7.0]])


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


def test_ids_of_rows_are_those_of_the_splits_file(tmp_path, caplog):
    (tmp_path / "trn_X.txt").write_text("a\nb\nc\n")
    split = SimpleNamespace(
        file=SimpleNamespace(path=tmp_path / "trn_X.txt"), rows=np.array([2, 0])
    )
    table = [{"id": 0}, {"id": 1}]
    assert point_table.with_own_ids(table, split) == table
    (tmp_path / "trn_ids.txt").write_text("x\ny\nz\n")
    found = point_table.with_own_ids(table, split)
    assert found == [{"id": 0, "own_id": "z"}, {"id": 1, "own_id": "x"}]
    (tmp_path / "trn_ids.txt").write_text("x\n")
    assert point_table.with_own_ids(table, split) == table
    assert "trn_ids.txt has 1 lines, expected one for each of 3" in caplog.text


def test_the_report_of_a_tree_run(make_config):
    folder = train.fit(make_config(method={"name": "xr-linear", "max_leaf": 4, "splits": 2}))
    metrics = evaluation.evaluate(folder)
    found = payload_of(folder / "report.html")
    assert (
        found["facts"]["method"] == "xr-linear"
        and found["num_points"] == len(found["points"]) == 20
    )
    assert (
        found["made"]["megabytes of the model"] > 0
        and "max_leaf: 4" in found["configs"]["resolved"]
    )
    assert found["label_counts"].keys() == found["labels"].keys() and found["members"] == []
    assert [stage["method"] for stage in found["stages"]] == ["xr-linear"]
    assert found["metrics"] == metrics and found["runs"] == [] and found["comparison"] is None
    assert sum(found["deciles"][0]["P@1"]) == pytest.approx(metrics["P@1"])
    assert sum(found["clusters"][0]["counts"]) == found["clusters"][0]["clusters"]
    # every label is in one of few clusters
    assert sum(e["labels"] for e in found["examples"]) == 20
    right = [p["top"][0][2] for p in found["points"]]
    assert 100 * np.mean(right) == pytest.approx(metrics["P@1"])
    point = found["points"][0]
    assert point["text"].startswith("the ") and set(map(str, point["true"])) <= set(found["labels"])
