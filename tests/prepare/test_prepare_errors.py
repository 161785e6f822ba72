"""utils.prepare: errors name file and line, what was expected and what came, and leave nothing
behind."""

import gzip
import json

import numpy as np
import pytest
from scipy import sparse

from tests.prepare.prepare_examples import (
    Y_TRN,
    check,
    error_of,
    named,
    pecos,
    repository,
    sparse_text,
    write,
)
from utils.errors import InputError
from utils.prepare.columns import Columns
from utils.prepare.command import (
    Source,
    main,
    prepare_csv,
    prepare_jsonl,
    prepare_pecos,
    prepare_sparse_text,
    prepare_xml_repository,
)
from utils.prepare.jsonl import jsonl_reader


def point(**changes: object) -> str:
    return json.dumps({"title": "t", "target_ind": [0], "target_rel": [1.0]} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trn": [point(), "{oops"]}, r"trn.json.gz:2: expected a JSON object, got '\{oops'"),
        ({"trn": [point(), ""]}, r"trn.json.gz:2: expected a JSON object"),
        ({"trn": ["[" * 100_000]}, r"trn.json.gz:1: expected a JSON object"),
        (
            {"trn": ['{"title": "a", "target_ind": [0], "target_rel": [1], "target_ind": [1]}']},
            r"trn.json.gz:1: expected a JSON object, .*the key 'target_ind' stands twice",
        ),
        (
            {"lbl": ['{"title": "a"}', '{"title": "a", "title": "b"}']},
            r"lbl.json.gz:2: .*'title' stands twice",
        ),
        ({"tst": ["[1]"]}, r"tst.json.gz:1: expected a JSON object, got list"),
        (
            {"trn": ['{"title": "t", "target_rel": []}']},
            r"trn.json.gz:1: expected a key 'target_ind'",
        ),
        ({"trn": [point(title=3)]}, r"trn.json.gz:1: expected 'title' to be a str, got int '3'"),
        ({"trn": [point(content=None)]}, r"'content' to be a str, got NoneType"),
        (
            {"trn": [point(target_ind=[4])]},
            r"trn.json.gz:1: expected a label index in \[0, 4\), got 4",
        ),
        ({"trn": [point(target_ind=[-1])]}, r"\[0, 4\), got -1"),
        ({"trn": [point(target_ind=[True])]}, r"\[0, 4\), got True"),
        ({"trn": [point(target_ind=[1.0])]}, r"\[0, 4\), got 1.0"),
        (
            {"trn": [point(target_rel=[float("nan")])]},
            r"trn.json.gz:1: expected a finite relevance .* got nan",
        ),
        ({"trn": [point(target_rel=[-1])]}, r"relevance >= 0, got -1"),
        ({"trn": [point(target_rel=[1e300])]}, r"relevance >= 0, got 1e\+300"),
        ({"trn": [point(target_rel=["1"])]}, r"relevance >= 0, got '1'"),
        (
            {"trn": [point(target_rel=[])]},
            r"trn.json.gz:1: expected target_ind .* of one length, got 1 and 0",
        ),
        (
            {"trn": [point(title="\ud800")]},
            r"trn.json.gz:1: expected Unicode text, got the lone surrogate",
        ),
        (
            {"trn": [point(target_ind=[], target_rel=[])]},
            r"expected training points with labels, got none",
        ),
        ({"tst": []}, r"tst.json.gz: expected at least one line"),
        (
            {"lbl": ['{"uid": "a", "title": "t"}', '{"title": "t"}']},
            r"lbl.json.gz:2: expected a key 'uid'",
        ),
    ],
)
def test_repository_errors(tmp_path, changes, message):
    folder = repository(tmp_path / "in", **changes)
    with pytest.raises(ValueError, match=message):
        prepare_xml_repository(folder, tmp_path / "Datasets" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0", r"filter_labels_train.txt:2: expected a row in \[0, 3\), got 3"),
        ("0 4", r":2: expected a label index in \[0, 4\), got 4"),
        ("0 -1", ":2: expected 'row label', got '0 -1'"),
        ("0", ":2: expected 'row label'"),
        ("", ":2: expected 'row label'"),
        ("0 1.0", ":2: expected 'row label'"),
    ],
)
def test_filter_errors(tmp_path, line, message):
    folder = repository(tmp_path / "in")
    write(folder / "filter_labels_train.txt", ["0 0", line])
    with pytest.raises(ValueError, match=message):
        prepare_xml_repository(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "trn_X_Y.txt",
            ["3 4", "", ""],
            r"trn_X_Y.txt: expected 3 rows after the header, as it says, got 2",
        ),
        ("trn_X_Y.txt", ["3 4", *[""] * 4], r"expected 3 rows after the header, as it says, got 4"),
        ("trn_X_Y.txt", ["3"], r"trn_X_Y.txt:1: expected the header 'N columns', got '3'"),
        ("trn_X_Y.txt", ["0 4"], r"trn_X_Y.txt: expected at least one row"),
        ("trn_X_Y.txt", [f"1 {2**31}", ""], r"trn_X_Y.txt:1: expected a header of numbers up to"),
        ("trn_X_Y.txt", ["1 4", "4:1"], r"trn_X_Y.txt:2: expected an index in \[0, 4\), got 4"),
        (
            "trn_X_Y.txt",
            ["1 4", "1"],
            r"trn_X_Y.txt:2: expected 'index:value', got '' for a number",
        ),
        (
            "trn_X_Y.txt",
            ["1 4", "1:2:3"],
            r"trn_X_Y.txt:2: expected 'index:value', got '2:3' for a number",
        ),
        (
            "trn_X_Y.txt",
            ["1 4", "1:1_0"],
            r"trn_X_Y.txt:2: expected 'index:value', got '1_0' for a number",
        ),
        (
            "trn_X_Y.txt",
            ["1 4", "1:3e38 1:3e38"],
            r"trn_X_Y.txt:2: expected values of index 1 that add up to a number",
        ),
        (
            "trn_X_Y.txt",
            [f"3 {2**31 - 1}", "3:1", "", ""],
            r"as many labels in both splits, got 2147483647 \(trn\) and 4 "
            r"\(tst\); trn_X_Y.txt says 2147483647, its largest index is 3; tst_X_Y.txt says 4, "
            r"its largest index is 3",
        ),
        (
            "trn_X_Y.txt",
            ["1 4", "1:nan"],
            r"trn_X_Y.txt:2: expected a finite relevance >= 0, got nan",
        ),
        (
            "trn_X_Xf.txt",
            ["3 7", "1:inf", "", ""],
            r"trn_X_Xf.txt:2: expected a finite feature, got inf",
        ),
        ("trn_X_Xf.txt", ["2 7", "", ""], r"expected as many rows in X.trn as in Y.trn, 3, got 2"),
        (
            "tst_X_Xf.txt",
            ["2 8", "", ""],
            r"expected as many features in both splits, got 7 .* 8 \(tst\)",
        ),
        (
            "tst_X_Y.txt",
            ["2 5", "", ""],
            r"expected as many labels in both splits, got 4 \(trn\) and 5 \(tst\)",
        ),
        ("trn_X.txt", ["a", "b"], r"trn_X.txt: expected 3 lines, one for each row of Y.trn, got 2"),
        ("lbl.txt", ["a"], r"lbl.txt: expected 4 lines, one for each label, got 1"),
        ("Y.txt", ["a"], r"expected one file of Y.txt, lbl.txt, got all"),
        ("train.txt", ["1 1 1", ""], r"expected one of trn_X_Y.txt, train.txt \(or .gz\), got all"),
    ],
)
def test_sparse_text_errors(tmp_path, name, lines, message):
    folder = sparse_text(tmp_path / "in")
    write(folder / name, lines)
    with pytest.raises(ValueError, match=message):
        prepare_sparse_text(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["tst_X.txt"], "expected texts of both splits or of none, got only trn_X.txt"),
        (["tst_X_Xf.txt"], "expected features of both splits"),
        (["tst_X_Y.txt"], "expected a file tst_X_Y.txt"),
        (
            ["trn_X_Y.txt"],
            r"expected one of trn_X_Y.txt, \*_train.txt, \*_data.txt \(or .gz\), got none",
        ),
        (
            ["trn_X.txt", "tst_X.txt", "trn_X_Xf.txt", "tst_X_Xf.txt"],
            "expected texts or features of the points",
        ),
    ],
)
def test_missing_files(tmp_path, gone, message):
    folder = sparse_text(tmp_path / "in")
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message):
        prepare_sparse_text(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pecos_errors(tmp_path):
    folder = pecos(tmp_path / "in")
    good = (folder / "Y.trn.npz").read_bytes()
    for matrix, message in (
        (sparse.csr_matrix(-Y_TRN), "Y.trn.npz: .*relevance"),
        (sparse.csr_matrix(Y_TRN * np.nan), "Y.trn.npz: .*relevance"),
        (sparse.csr_matrix((0, 4)), "Y.trn.npz: expected at least one row"),
        (sparse.csr_matrix(Y_TRN[:2]), "as many rows in X.trn as in Y.trn, 2, got 3"),
    ):
        sparse.save_npz(folder / "Y.trn.npz", matrix)
        with pytest.raises(ValueError, match=message):
            prepare_pecos(folder, tmp_path / "out")
    for data in (b"no zip", good[:100], b""):
        (folder / "Y.trn.npz").write_bytes(data)
        with pytest.raises(ValueError, match="Y.trn.npz: not a scipy sparse matrix"):
            prepare_pecos(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", ["csc", "bsr", "coo", "csr"])
@pytest.mark.parametrize("name", ["X.tst", "Y.trn", "X.trn", "Y.tst"])
def test_a_broken_matrix_leaves_nothing(tmp_path, name, kind):
    """scipy would follow these pointers out of its memory."""
    folder = pecos(tmp_path / "in")
    matrix = getattr(sparse, f"{kind}_matrix")(sparse.load_npz(folder / f"{name}.npz"))
    (matrix.col if kind == "coo" else matrix.indptr)[1:] += 10**9
    sparse.save_npz(folder / f"{name}.npz", matrix)
    with pytest.raises(InputError, match=f"{name}.npz: expected a valid {kind.upper()} of shape"):
        prepare_pecos(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pecos_features_twice(tmp_path):
    folder = pecos(tmp_path / "in", "tfidf-attnxml")
    sparse.save_npz(folder / "X.tst.npz", sparse.csr_matrix(np.eye(2, 5)))
    with pytest.raises(
        ValueError, match="expected one file of X.tst.npz, tfidf-attnxml/X.tst.npz, got all"
    ):
        prepare_pecos(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trn": ['{"text": "a"}']},
            r"train.jsonl:1: expected a key 'labels', got only \['text'\]",
        ),
        (
            {"trn": ['{"text": "a", "labels": "x"}']},
            r"train.jsonl:1: expected 'labels' to be a list, got str",
        ),
        (
            {"trn": ['{"text": "a", "labels": ["x", 0.5]}']},
            r'expected a label as "name", \["name", relevance\]',
        ),
        (
            {"trn": ['{"text": "a", "labels": [["x", "y"]]}']},
            r"train.jsonl:1: expected a finite relevance",
        ),
        (
            {"trn": ['{"text": "a", "labels": {"x": NaN}}']},
            "jsonl:1: expected a finite relevance .* got nan",
        ),
        ({"trn": ['{"text": "a", "labels": ["\\n"]}']}, r"train.jsonl:1: expected a label name"),
        (
            {"tst": ['{"text": "", "labels": []}', '{"text": 1}']},
            r"test.jsonl:2: expected 'text' to be",
        ),
        (
            {"lbl": ["a\tb", "c\td", "a\te"]},
            r"labels.tsv:3: expected one text .* another for 'a': 'e'",
        ),
        ({"lbl": ["a"]}, r"labels.tsv:1: expected name<TAB>text, got 'a'"),
        ({"lbl": ['{"label": "a"}']}, r"labels.tsv:1: expected a key 'text'"),
        ({"lbl": []}, r"labels.tsv: expected at least one line"),
    ],
)
def test_jsonl_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_jsonl(named(tmp_path / "in", **changes), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "text,tags\na,b\n",
            r"a.csv:1: expected one column 'labels', got the columns \['text', 'tags'\]",
        ),
        ("body,labels\na,b\n", "a.csv:1: expected one column 'text', .*--text-column"),
        ("text,text,labels\n", "a.csv:1: expected one column 'text'"),
        ("text,labels\n", "a.csv: expected at least one line"),
        ("", "a.csv: expected at least one line"),
        ('text,labels\n"a\nb",c\nd\n', r"a.csv:4: expected 2 columns as in the header, got 1"),
        (
            'text,labels\na,b\n"open\n,c\n',
            r"a.csv:3: expected a CSV row, got: unexpected end of data",
        ),
    ],
)
def test_csv_errors(tmp_path, data, message):
    (tmp_path / "a.csv").write_text(data)
    with pytest.raises(ValueError, match=message):
        prepare_csv(Source(tmp_path / "a.csv"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_encoding_gzip_and_missing_file_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    good = b'{"text": "a", "labels": ["b"]}\n'
    for data, message in (
        (
            good + b'{"text": "\xe9"}\n',
            r"a.jsonl: line 2 is not UTF-8 \(byte 11 of the line is 0xe9",
        ),
        (good.decode().encode("utf-16"), r"a.jsonl: line 1 is not UTF-8"),
        (gzip.compress(good * 9)[:-9], r"a.jsonl: expected a whole gzip file"),
        (good, r"a.jsonl: expected enough points for both splits"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            prepare_jsonl(Source(path), tmp_path / "out")
    with pytest.raises(ValueError, match="none.jsonl: expected a file, got nothing there"):
        prepare_jsonl(Source(path, tmp_path / "none.jsonl"), tmp_path / "out")
    with pytest.raises(ValueError, match="expected a test fraction between 0 and 1"):
        Source(path, test_fraction=float("nan"))
    with pytest.raises(ValueError, match="none: expected a folder, got nothing there"):
        prepare_pecos(tmp_path / "none", tmp_path / "out")
    repository(tmp_path / "in", zipped=True)
    repository(tmp_path / "in", zipped=False)
    with pytest.raises(ValueError, match="expected one file of lbl.json, lbl.json.gz, got all"):
        prepare_xml_repository(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_replaced_only_on_demand_and_at_the_end(tmp_path):
    source = named(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    # an empty folder is as good as none
    prepare_jsonl(source, out)
    (out / "mine").write_text("x")
    with pytest.raises(ValueError, match="--overwrite"):
        prepare_jsonl(source, out)
    with pytest.raises(ValueError, match="JSON"):
        prepare_jsonl(named(tmp_path / "in", tst=["?"]), out, overwrite=True)
    assert (out / "mine").exists()
    prepare_jsonl(named(tmp_path / "in"), out, overwrite=True)
    assert not (out / "mine").exists()
    check(out)


def test_dangerous_output_folders_are_refused(tmp_path, monkeypatch):
    source = named(tmp_path / "in")
    with pytest.raises(ValueError, match="beside the input"):
        prepare_jsonl(source, tmp_path / "in", overwrite=True)
    with pytest.raises(ValueError, match="beside the input"):
        prepare_pecos(pecos(tmp_path / "pecos"), tmp_path / "pecos", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="got a file"):
        prepare_jsonl(source, tmp_path / "file", overwrite=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ValueError, match="working folder"):
        prepare_jsonl(source, ".", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "pecos", "work"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparse, "save_npz", full)
    source = named(tmp_path / "in")
    words = ["jsonl", "--train", str(source.train), "--test", str(source.test)]
    assert "No space left" in error_of([*words, "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_debug_shows_all_and_wrong_words_are_argparses(tmp_path):
    words = ["pecos", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]
    assert "gone" in error_of(words)
    with pytest.raises(InputError, match="gone"):
        main([*words, "--debug"])
    with pytest.raises(SystemExit) as stop:
        main(["pecos"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"text":"a","text":"b","labels":[]}',
        '{"text" : "a", "text" : "b", "labels" : []}',
        '{"text": "a", "text"\t: "b", "labels": []}',
        '{"text": "a", "labels": {"x": 1, "x": 2}}',
        '{"text": "a \\": b", "text" : "b", "labels": []}',
    ],
)
def test_a_key_that_stands_twice_is_refused_however_it_is_written(tmp_path, line):
    with pytest.raises(ValueError, match=r"train.jsonl:1: .*stands twice"):
        prepare_jsonl(named(tmp_path / "in", trn=[line]), tmp_path / "out")


@pytest.mark.parametrize(
    "line", ['{"text":"\\uD800","labels":["x"]}', '{"text":"a","labels":["\\udc00x"]}']
)
def test_half_a_character_is_refused_where_it_stands(tmp_path, line):
    reader = jsonl_reader(Columns())
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text":"\\ud83d\\ude00","labels":["x"]}\n' + line + "\n")
    with pytest.raises(InputError, match=r"rows.jsonl:2: expected Unicode text, got the lone"):
        list(reader.points(str(path)))


def test_texts_that_look_like_keys_are_read(tmp_path):
    text = 'say "text": "a" : b'
    trn = [
        json.dumps({"text": text, "labels": {"n0": 1, "n1": 2}}),
        '{"labels" : ["n0"] , "text" : "b" }',
    ]
    out = prepare_jsonl(named(tmp_path / "in", trn=trn), tmp_path / "out")
    assert (out / "raw" / "trn_X.txt").read_text() == f"{text}\nb\n"
