"""eval.py on rows that the run has not seen: of a file, or of another data set."""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
from engine.new_points import _name_of
from tests.helpers import payload_of
from utils.data.label_names import LabelNames
from utils.errors import InputError
from utils.run.folder import clear_run


@pytest.fixture(scope="module")
def run(answering_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("points") / "run"
    shutil.copytree(answering_run, folder)
    return folder


@pytest.fixture(scope="module")
def expected(run):
    """Metrics of the test split."""
    return evaluation.evaluate(run)


@pytest.fixture
def root(tiny_root, tmp_path):
    """A folder with the run's data set and a copy of it, `other`."""
    for name in ("tiny", "other"):
        shutil.copytree(tiny_root / "tiny", tmp_path / "sets" / name)
    return tmp_path / "sets"


def test_a_name_without_points_is_refused(run):
    with pytest.raises(SystemExit, match="error: --name: names files about --points"):
        evaluation.main([str(run), "--name", "new"])


def told(run, name):
    return json.loads((run / f"{name}_metrics.json").read_text())


def own_ids(report):
    return [point.get("own_id") for point in payload_of(report)["points"]]


def on_other(run, root, split="tst"):
    return evaluation.evaluate(run, split, ["--data.root", str(root), "--data.name", "other"])


def test_identical_rows_under_another_name_have_the_same_metrics(run, expected, root):
    before = (run / "tst_metrics.json").read_bytes()
    ids = [f"row {number}" for number in range(20)]
    (root / "other" / "raw" / "tst_ids.txt").write_text("\n".join(ids))
    assert on_other(run, root) == expected
    assert told(run, "other")["P@1"] == expected["P@1"] and "unknown_labels" not in told(
        run, "other"
    )
    assert own_ids(run / "other_report.html") == ids and (run / "other_score_mat.npz").is_file()
    assert (run / "tst_metrics.json").read_bytes() == before
    assert on_other(run, root, "trn").keys() == expected.keys()
    assert (run / "other_trn_metrics.json").is_file()
    with pytest.raises(
        InputError, match=r"split val: another data set \(other\) has no validation"
    ):
        on_other(run, root, "val")


def test_labels_in_another_order_are_the_same_labels(run, expected, root):
    other = root / "other"
    order = np.random.default_rng(0).permutation(20)
    texts = (other / "raw" / "Y.txt").read_text().splitlines()
    (other / "raw" / "Y.txt").write_text("".join(f"{texts[label]}\n" for label in order))
    for split in ("trn", "tst"):
        relevance = sp.load_npz(other / f"Y.{split}.npz")
        sp.save_npz(other / f"Y.{split}.npz", sp.csr_matrix(relevance[:, order]))
    place = np.argsort(order)
    for path in other.glob("filter_labels_*.txt"):
        pairs = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(f"{row} {place[int(label)]}\n" for row, label in pairs))
    found = on_other(run, root)
    assert found == pytest.approx(expected)


def test_a_row_more_and_a_label_less(run, root):
    """Whatever their number, and with fewer labels than the run knows."""
    other = root / "other"
    (other / "raw" / "Y.txt").write_text("shell\nzebra\n")
    (other / "raw" / "tst_X.txt").write_text("the bash tool\nthe zebra tool\n")
    relevance = sp.csr_matrix(np.array([[1.0, 0], [1, 1]], np.float32))
    sp.save_npz(other / "Y.tst.npz", relevance)
    for path in other.glob("filter_labels_*.txt"):
        path.unlink()
    on_other(run, root)
    facts = told(run, "other")
    assert facts["points"] == 2 and facts["labels"] == 20
    assert facts["unknown_labels"] == 1 and facts["unknown_names"] == ["zebra"]


def write_points(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate_file(run, *words):
    evaluation.main([str(word) for word in (run, *words)])


def test_rows_of_a_file(run, expected, tiny_root, tmp_path):
    """The test split as JSON lines and as CSV: without filters, as such rows have none."""
    folder = tiny_root / "tiny"
    names = (folder / "raw" / "Y.txt").read_text().splitlines()
    texts = (folder / "raw" / "tst_X.txt").read_text().splitlines()
    relevance = sp.load_npz(folder / "Y.tst.npz")
    labels = [[names[label] for label in row.indices] for row in relevance]
    rows = [{"text": text, "labels": of_row} for text, of_row in zip(texts, labels, strict=True)]
    evaluate_file(run, "--points", write_points(tmp_path / "my new rows.jsonl", rows))
    of_file = told(run, "my-new-rows")
    table = tmp_path / "new.csv"
    lines = [
        f"{text};{'+'.join(of_row)};r{number}\n"
        for number, (text, of_row) in enumerate(zip(texts, labels, strict=True))
    ]
    table.write_text("body;tags;n\n" + "".join(lines))
    words = ("--text-column", "body", "--labels-column", "tags", "--separator", "+")
    words = (*words, "--id-column", "n")
    evaluate_file(run, "--points", table, *words, "--delimiter", ";", "--name", "again")
    scores = sp.load_npz(run / "my-new-rows_score_mat.npz").toarray()
    np.testing.assert_array_equal(sp.load_npz(run / "again_score_mat.npz").toarray(), scores)
    for key in expected:
        assert told(run, "again")[key] == of_file[key]
    ids = [f"r{number}" for number in range(20)]
    assert (run / "again_ids.txt").read_text().split() == ids
    assert own_ids(run / "again_report.html") == ids
    assert own_ids(run / "my-new-rows_report.html") == [None] * 20
    own = sp.load_npz(run / "tst_score_mat.npz").toarray()
    np.testing.assert_allclose(np.where(own == 0, 0, scores), own, rtol=1e-5)


def test_an_id_stays_on_its_line_and_all_goes_with_a_new_run(run, tmp_path):
    table = tmp_path / "lines.csv"
    table.write_text('text,labels,n\nvim tool,shell,"a\nb"\nvim,shell,c\n')
    evaluate_file(run, "--points", table, "--id-column", "n")
    assert (run / "lines_ids.txt").read_text() == "a b\nc\n"
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    clear_run(copied)
    assert not list(copied.glob("lines_*"))


def test_unknown_labels_count_as_missed_and_are_named(run, tmp_path, capsys):
    rows = [
        {"text": "the bash tool", "labels": ["shell"]},
        {"text": "the vim tool", "labels": ["editor", "zebra", {"gnu": 0}]},
        {"text": "the moa tool", "labels": ["moa", "zebra"]},
    ]
    evaluate_file(run, "--points", write_points(tmp_path / "rows.jsonl", rows))
    facts = told(run, "rows")
    assert facts["unknown_names"] == ["zebra", "moa"]
    assert facts["unknown_labels"] == 2 and facts["unknown_pairs"] == 3
    assert facts["most_recall"] == 40.0
    known = facts["known_labels_only"]
    assert facts["P@1"] == known["P@1"] > 0
    # row 1 has its one label, row 2 one of two, row 3 none of two; of those known 1, 1 and 0
    assert facts["R@10"] <= 50 < known["R@10"] + 1e-9
    assert facts["PSP@5"] < known["PSP@5"]
    log = capsys.readouterr().err
    assert "2 labels (3 of 5 pairs of a row and a label) are unknown to this run" in log
    assert "'zebra', 'moa'" in log


def test_without_the_training_data_there_are_no_propensities(run, tmp_path, capsys):
    rows = [{"text": "the bash tool", "labels": ["shell"]}]
    path = write_points(tmp_path / "rows.jsonl", rows)
    evaluate_file(run, "--points", path, "--data.root", tmp_path)
    assert "the data that the run was trained on is not at hand" in capsys.readouterr().err
    facts = told(run, "rows")
    assert facts["points"] == 1 and "P@1" in facts and "PSP@1" not in facts


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("a.jsonl", "", (), "a.jsonl: the file is empty"),
        ("a.jsonl", '{"text": "x"}\n', (), "a.jsonl:1: expected a key 'labels', got only"),
        ("a.txt", "x\n", (), "a.txt: read as plain text, which has no columns, but labels"),
        ("a.csv", "text,labels\n", (), "a.csv: expected at least one row, got none"),
        ("a.csv", "text,labels\nx,y\n", ("--name", "tst"), "--name: expected letters"),
        ("a.csv", "text,labels\nx,y\n", ("--data.name", "b"), "expected neither --data.name"),
    ],
)
def test_what_is_wrong_with_rows_is_one_line(run, tmp_path, name, content, words, message):
    path = tmp_path / name
    path.write_text(content)
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit) as stop:
        evaluate_file(run, "--points", path, *words)
    assert message in str(stop.value)
    assert sorted(run.iterdir()) == before


def test_names_of_what_is_written():
    assert [_name_of(path) for path in ("x/tst.jsonl.gz", "-", "a b.c.csv", "ü.csv")] == [
        "tst-points",
        "points",
        "a-b",
        "points",
    ]


def test_labels_are_told_by_name_then_by_text(caplog):
    known = LabelNames(4, ["a", "b", "c", "d"], ["one", "two", "two", ""])
    assert [known.find(called) for called in ("b", "one", "x", "")] == [1, 0, -1, -1]
    with pytest.raises(InputError, match="'two' is the text of several labels"):
        known.find("two")
    by_name = LabelNames(3, ["d", "x", "a"], ["three", "one", "four"])
    assert by_name.ids_in(known, "other").tolist() == [3, -1, 0]
    by_text = LabelNames(4, None, ["two", "one", "", "new"])
    assert by_text.ids_in(known, "other").tolist() == [-1, 0, -1, -1]
    assert "other: 1 labels have a name or text that others have too, e.g. 'two'" in caplog.text
    twice = LabelNames(2, None, ["one", "one"])
    assert twice.ids_in(known, "other").tolist() == [-1, -1]
    assert twice.ids_in(LabelNames(2, None, ["one", "one"]), "same").tolist() == [0, 1]
    nothing = LabelNames(3)
    assert nothing.ids_in(LabelNames(3), "same").tolist() == [0, 1, 2]
    assert [nothing.find(called) for called in ("2", "3", "x", "9" * 5000)] == [2, -1, -1, -1]
    with pytest.raises(InputError, match="other: 3 labels that cannot be told from the model's 4"):
        nothing.ids_in(known, "other")
