"""utils.prepare: every format round-trips a small example, as functions and as a command."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
from scipy import sparse

from tests.prepare.prepare_examples import (
    LABELS,
    ROOT,
    TEXTS,
    Y_TRN,
    Y_TST,
    check,
    error_of,
    named,
    pecos,
    read,
    repository,
    rows_of,
    sparse_text,
    write,
)
from utils.prepare.command import (
    Columns,
    Source,
    main,
    prepare_csv,
    prepare_jsonl,
    prepare_pecos,
    prepare_sparse_text,
    prepare_xml_repository,
)
from utils.prepare.points import split_off


@pytest.mark.parametrize("zipped", [True, False])
def test_xml_repository(tmp_path, zipped):
    folder = repository(tmp_path / "in", zipped)
    write(folder / "filter_labels_train.txt", ["2 3", "0 1"], end="\r\n")
    write(folder / "filter_labels_test.txt", [])
    out = prepare_xml_repository(folder, tmp_path / "Datasets" / "x")
    check(out)
    assert read(out / "raw" / "Y_ids.txt") == ["u0", "u1", "u2", "u3"]
    assert read(out / "filter_labels_train.txt") == ["2 3", "0 1"]
    assert (out / "filter_labels_test.txt").read_bytes() == b""
    stats = json.loads((out / "stats.json").read_text())
    assert [stats[key] for key in ("train_points", "test_points", "labels", "train_pairs")] == [
        3,
        2,
        4,
        3,
    ]
    assert stats["train_points_without_labels"] == 1 and stats["labels_without_train_points"] == 1
    assert stats["avg_labels_per_train_point"] == 1 and stats["format"] == "xml-repository"


def test_xml_repository_fields(tmp_path):
    point = json.dumps({"title": " a ", "content": "b\n\t c", "target_ind": [0], "target_rel": [1]})
    folder = repository(
        tmp_path / "in",
        trn=[point],
        tst=[point],
        lbl=[json.dumps({"title": "t", "content": "c"}), json.dumps({"title": "u"})],
    )
    for fields, label_fields, text, labels in (
        ("title+content", None, "a b c", ["t c", "u"]),
        ("title", None, "a", ["t", "u"]),
        ("title+content", "title", "a b c", ["t", "u"]),
    ):
        out = prepare_xml_repository(folder, tmp_path / "out", fields, label_fields, overwrite=True)
        assert read(out / "raw" / "trn_X.txt") == [text] and read(out / "raw" / "Y.txt") == labels
        assert not (out / "raw" / "Y_ids.txt").exists()
    with pytest.raises(ValueError, match="fields"):
        prepare_xml_repository(folder, tmp_path / "other", "content")


def test_sparse_text(tmp_path):
    out = prepare_sparse_text(sparse_text(tmp_path / "in"), tmp_path / "out")
    check(out)
    features = sparse.load_npz(out / "X.trn.npz")
    assert features.shape == (3, 7)
    np.testing.assert_array_equal(features.toarray()[0], [1.25, 0, 0, 0, 0, 0, -0.5])


def test_sparse_text_without_features(tmp_path):
    out = prepare_sparse_text(sparse_text(tmp_path / "in", features=False), tmp_path / "out")
    check(out)
    assert not (out / "X.trn.npz").exists()


def test_bag_of_words(tmp_path):
    write(
        tmp_path / "in" / "train.txt", ["4 3 2", "1,0 0:.5 2:1e-1", " 1:2", "1:3", "1"], zipped=True
    )
    write(tmp_path / "in" / "test.txt", ["1 3 2", "0 0:1"])
    out = prepare_sparse_text(tmp_path / "in", tmp_path / "out")
    assert sparse.load_npz(out / "Y.trn.npz").toarray().tolist() == [[1, 1], [0, 0], [0, 0], [0, 1]]
    np.testing.assert_array_equal(
        sparse.load_npz(out / "X.trn.npz").toarray(),
        np.array([[0.5, 0, 0.1], [0, 2, 0], [0, 3, 0], [0, 0, 0]], np.float32),
    )
    assert not list((out / "raw").iterdir())


@pytest.mark.parametrize("features", [".", "tfidf-attnxml"])
def test_pecos(tmp_path, features):
    out = prepare_pecos(pecos(tmp_path / "in", features), tmp_path / "out")
    check(out)
    for split, rows in (("trn", 3), ("tst", 2)):
        matrix = sparse.load_npz(out / f"X.{split}.npz")
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix.toarray(), np.eye(rows, 5))
    (tmp_path / "in" / "output-items.txt").unlink()
    out = prepare_pecos(tmp_path / "in", tmp_path / "out", overwrite=True)
    check(out, labels=None)
    assert not (out / "raw" / "Y.txt").exists()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_jsonl(tmp_path, end):
    out = prepare_jsonl(named(tmp_path / "in", end), tmp_path / "out")
    check(out)
    assert read(out / "raw" / "Y_ids.txt") == ["n0", "n1", "n2", "n3"]


def test_jsonl_shapes_of_labels_and_their_order(tmp_path):
    trn = [
        '{"text": "a", "labels": ["z", ["y", 0.5]]}',
        '{"text": "b", "labels": {"x": 2, "z": 0.25}}',
        '{"text": "c", "labels": [{"w": 1}, "w", ["w", 3], "x\\ty"]}',
        '{"text": "d", "labels": []}',
    ]
    tst = ['{"text": "e", "labels": ["v", ["y", 0]]}']
    labels = [
        '{"label": "x", "text": "the\\nx"}',
        '{"label": "q", "text": ""}',
        '{"label": "x", "text": "the x"}',
    ]
    out = prepare_jsonl(named(tmp_path / "in", trn=trn, tst=tst, lbl=labels), tmp_path / "out")
    # by first appearance
    assert read(out / "raw" / "Y_ids.txt") == ["x", "q", "z", "y", "w", "x y", "v"]
    assert read(out / "raw" / "Y.txt") == ["the x", "", "z", "y", "w", "x y", "v"]
    np.testing.assert_array_equal(
        sparse.load_npz(out / "Y.trn.npz").toarray(),
        [[0, 0, 1, 0.5, 0, 0, 0], [2, 0, 0.25, 0, 0, 0, 0], [0, 0, 0, 0, 3, 1, 0], [0] * 7],
    )
    tst = sparse.load_npz(out / "Y.tst.npz")
    assert tst.nnz == 1 and tst[0, 6] == 1  # relevance 0 is no pair
    stats = json.loads((out / "stats.json").read_text())
    assert (stats["train_pairs"], stats["train_pairs_read"], stats["test_pairs_read"]) == (6, 8, 2)


def test_labels_without_a_text_and_without_a_point_are_said(tmp_path, caplog, capsys):
    labels = write(tmp_path / "labels.tsv", ["x\tthe x", "q\t", "mistyped\tthe y", "r\t "])
    train = write(tmp_path / "all.jsonl", ['{"text": "a", "labels": ["x", "q", "r"]}'] * 4)
    words = ["jsonl", "--train", str(train), "--test", str(train), "--labels", str(labels)]
    main([*words, "--out", str(tmp_path / "out")])
    assert "2 of 4 labels have an empty text in the file of label texts, e.g. 'q'" in caplog.text
    assert "note: 1 of 4 labels have no training point" in capsys.readouterr().out


def test_split_is_deterministic_and_of_the_right_size(tmp_path):
    lines = [json.dumps({"text": f"t{i}", "labels": [f"l{i % 7}"]}) for i in range(101)]
    train = write(tmp_path / "all.jsonl.gz", lines, zipped=True)

    def texts(name: str, seed: int) -> tuple[list[str], list[str], list[str]]:
        out = prepare_jsonl(Source(train, test_fraction=0.3, seed=seed), tmp_path / name)
        return tuple(read(out / "raw" / f"{stem}.txt") for stem in ("trn_X", "tst_X", "Y"))

    first, again, other = texts("a", 1), texts("b", 1), texts("c", 2)
    assert (
        first == again
        and first[1] != other[1]
        and first[2] == other[2] == [f"l{i}" for i in range(7)]
    )
    assert sorted(first[0] + first[1]) == sorted(f"t{i}" for i in range(101)) and len(first[1]) in (
        30,
        31,
    )
    for fraction in (0.01, 0.37, 0.5, 0.9):
        splits = list(islice(split_off(fraction, 5), 2000))
        assert abs(splits.count("tst") - 2000 * fraction) <= 2


def test_csv(tmp_path):
    def table(path, split, matrix):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "labels", "text"])
            for text, row in zip(TEXTS[split], rows_of(np.ceil(matrix)), strict=True):
                writer.writerow([1, "|".join(f" n{j} " for j, _ in row), text and f" {text}\r\n"])
        return path

    source = Source(
        table(tmp_path / "a.csv", "trn", Y_TRN),
        table(tmp_path / "b.csv", "tst", Y_TST),
        write(tmp_path / "l.tsv", [f"n{i}\t{text}" for i, text in enumerate(LABELS)]),
    )
    out = prepare_csv(source, tmp_path / "out")
    np.testing.assert_array_equal(sparse.load_npz(out / "Y.trn.npz").toarray(), np.ceil(Y_TRN))
    assert read(out / "raw" / "trn_X.txt") == TEXTS["trn"] and read(out / "raw" / "Y.txt") == LABELS


def test_csv_quotes_columns_and_long_fields(tmp_path):
    long = "x" * 200_000  # more than the csv module takes by default
    limit = csv.field_size_limit()
    rows = ["body;tags", '"two\nlines; ""quoted""";a, b,', "", f"{long};b"]
    train, test = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", ["tags;body", "c;t"])
    out = prepare_csv(Source(train, test), tmp_path / "out", Columns("body", "tags", ",", ";"))
    assert read(out / "raw" / "trn_X.txt") == ['two lines; "quoted"', long]
    assert read(out / "raw" / "Y_ids.txt") == ["a", "b", "c"]
    assert sparse.load_npz(out / "Y.trn.npz").toarray().tolist() == [[1, 1, 0], [0, 1, 0]]
    assert csv.field_size_limit() == limit


def test_lines_end_at_newlines_alone(tmp_path):
    odd = "a\u2028b\u2029c\x85d\x0ce\x1cf\rg\u00a0h\u3000i"
    trn = [
        json.dumps({"text": odd, "labels": ["l"]}, ensure_ascii=False).replace("\\r", "\\u000d"),
        '{"text": " a \\n \\t b\\u0000 ", "labels": []}',
    ]
    out = prepare_jsonl(named(tmp_path / "in", trn=trn, lbl=["l\tx\u2028y"]), tmp_path / "out")
    assert read(out / "raw" / "trn_X.txt") == ["a b c d e f g\u00a0h\u3000i", "a b"]
    assert read(out / "raw" / "Y.txt")[0] == "x y"
    folder = sparse_text(tmp_path / "sparse")
    write(folder / "trn_X.txt", [odd, "\t", "\ufeffz"])
    out = prepare_sparse_text(folder, tmp_path / "out2")
    assert read(out / "raw" / "trn_X.txt") == ["a b c d e f g\u00a0h\u3000i", "", "\ufeffz"]


def test_hash_is_that_of_the_matrix(tmp_path):
    out = prepare_jsonl(named(tmp_path / "in"), tmp_path / "out")
    matrix = sparse.load_npz(out / "Y.trn.npz")
    parts = (
        np.array(matrix.shape, "<i8"),
        matrix.indptr.astype("<i8"),
        matrix.indices.astype("<i8"),
        matrix.data,
    )
    expected = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert json.loads((out / "stats.json").read_text())["sha256_Y.trn"] == expected


def test_command(tmp_path, capsys):
    named(tmp_path / "in")
    files = [
        f"--{key}={tmp_path / 'in' / name}"
        for key, name in (
            ("train", "train.jsonl"),
            ("test", "test.jsonl"),
            ("labels", "labels.tsv"),
        )
    ]
    main(["jsonl", *files, "--out", str(tmp_path / "Datasets" / "x")])
    check(tmp_path / "Datasets" / "x")
    said = capsys.readouterr().out
    assert (
        "3 training and 2 test points, 4 labels" in said and "1 train points without labels" in said
    )
    assert f"data: {{root: {tmp_path / 'Datasets'}, name: x}}" in said
    assert "--overwrite" in error_of(["jsonl", *files, "--out", str(tmp_path / "Datasets" / "x")])


@pytest.mark.parametrize("make", [repository, sparse_text, pecos])
def test_command_for_folders(tmp_path, make):
    name = {repository: "xml-repository", sparse_text: "sparse-text", pecos: "pecos"}[make]
    main([name, str(make(tmp_path / "in")), "--out", str(tmp_path / "out")])
    check(tmp_path / "out")


def test_csv_command_with_tabs(tmp_path):
    write(tmp_path / "a.tsv", ["x\ty", *[f"text {i}\tl{i % 3}" for i in range(10)]])
    words = ["--text-column", "x", "--labels-column", "y", "--delimiter", "\\t"]
    main(["csv", "--train", str(tmp_path / "a.tsv"), *words, "--out", str(tmp_path / "out")])
    assert sparse.load_npz(tmp_path / "out" / "Y.tst.npz").shape == (2, 3)


def test_help_shows_an_example_of_each_format():
    run = subprocess.run(
        [sys.executable, "-m", "utils.prepare", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("xml-repository", "sparse-text", "pecos", "jsonl", "csv"):
        assert f"python -m utils.prepare {name} " in run.stdout


MEMORY = """
import re
from utils.prepare.command import Source, prepare_jsonl
peaks = []
for name in ("small", "large"):     # the small one loads every module
    prepare_jsonl(Source(f"{name}.jsonl"), f"out/{name}")
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
print((peaks[1] - peaks[0]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_text(tmp_path):
    line = '{"text": "' + "word " * 60 + '", "labels": ["l%d", "m"]}\n'
    for name, lines in (("small", 1000), ("large", 300_000)):
        with open(tmp_path / f"{name}.jsonl", "w") as file:
            file.writelines(line % (i % 50) for i in range(lines))
    run = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    text = (tmp_path / "large.jsonl").stat().st_size
    pairs = 600_000
    points = 300_000
    assert text > 90e6
    # bytes; the finished CSR and its copy on the way to disk, hashes of texts and what sorting them
    # takes
    assert int(run.stdout) < 32 * (pairs + points)


def test_a_killed_command_leaves_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", ['{"text": "a", "labels": ["b"]}'] * 1_000_000)
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "utils.prepare",
            "jsonl",
            "--train",
            str(path),
            "--out",
            str(tmp_path / "Datasets" / "x"),
        ],
        cwd=ROOT,
    )
    partial = tmp_path / "Datasets" / f"x.partial-{run.pid}"
    while not partial.exists() and run.poll() is None:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("pairs", "total"), [([(2, 100), (2, 100)], 200), ([(1, 0.5), (1, 0.25), (1, 0.25)], 1)]
)
def test_a_repeated_pair_is_the_same_in_text_and_in_npz(tmp_path, pairs, total):
    """Numbered entries add up, in every format of numbers; a name that is said twice counts
    once."""
    column = pairs[0][0]
    values = [value for _, value in pairs]
    text, repo, binary = (tmp_path / name for name in ("text", "repo", "binary"))
    sparse_text(text, features=False)
    write(text / "trn_X_Y.txt", ["3 4", " ".join(f"{c}:{v}" for c, v in pairs), "0:1", "1:1"])
    record = {"title": "t", "target_ind": [column] * len(values), "target_rel": values}
    repository(
        repo,
        trn=[
            json.dumps(record),
            *[json.dumps(record | {"target_ind": [0], "target_rel": [1]})] * 2,
        ],
    )
    pecos(binary)
    dtype = np.int8 if total > 1 else np.float16
    matrix = sparse.csr_matrix(
        (
            np.array([*values, 1, 1], dtype),
            [column] * len(values) + [0, 1],
            np.cumsum([0, len(values), 1, 1]),
        ),
        (3, 4),
    )
    sparse.save_npz(binary / "Y.trn.npz", matrix)
    expected = np.zeros(4)
    expected[column] = total
    for number, made in enumerate(
        (
            prepare_sparse_text(text, tmp_path / "1"),
            prepare_pecos(binary, tmp_path / "2"),
            prepare_xml_repository(repo, tmp_path / "3"),
        )
    ):
        np.testing.assert_array_equal(
            sparse.load_npz(made / "Y.trn.npz").toarray()[0], expected, str(number)
        )
