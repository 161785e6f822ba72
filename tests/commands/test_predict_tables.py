"""predict.py reads tables and streams, and writes JSON lines, CSV and TSV."""

import csv
import io
import json
import os
import threading

import pytest

import predict
from predict import Predictor

ROWS = [("a7", "the linux tool"), ("b8", "vim, a photo\nand more"), ("c9", "")]


@pytest.fixture(scope="module")
def expected(answering_run):
    """Answers of the texts of ROWS."""
    return Predictor(answering_run)([" ".join(text.split()) for _, text in ROWS], k=2)


def ask(run, *words):
    predict.main([str(word) for word in (run, "--k", 2, *words)])


def json_rows(text):
    return [json.loads(line) for line in text.splitlines()]


def write_table(path, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["number", "other", "body"])
        writer.writerows([own_id, 1, text] for own_id, text in ROWS)
    return path


def write_jsonl(path):
    lines = [json.dumps({"body": text, "number": own_id, "x": 1}) for own_id, text in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


NAMED = ("--text-column", "body", "--id-column", "number")


def test_ids_of_a_table_stand_beside_its_answers(answering_run, expected, tmp_path, capsys):
    csv_table = write_table(tmp_path / "table.csv")
    tsv_table = write_table(tmp_path / "table.TSV", "\t")
    tsv_words = ("--quote", '"')  # a field of it spans lines
    semicolons = write_table(tmp_path / "table.txt", ";")
    for path, words in (
        (csv_table, ()),
        (tsv_table, tsv_words),
        (semicolons, ("--texts-format", "csv", "--delimiter", ";")),
        (write_jsonl(tmp_path / "rows.jsonl"), ()),
    ):
        ask(answering_run, "--texts", path, *NAMED, *words)
        rows = json_rows(capsys.readouterr().out)
        assert [row["id"] for row in rows] == ["a7", "b8", "c9"]
        assert [row["text"] for row in rows] == ["the linux tool", "vim, a photo and more", ""]
        assert [row["labels"] for row in rows] == expected


def test_a_number_as_id_stays_one(answering_run, tmp_path, capsys):
    path = tmp_path / "rows.ndjson"
    path.write_text('{"text": "vim", "n": 17}\n{"text": "vim", "n": "017"}\n')
    ask(answering_run, "--texts", path, "--id-column", "n")
    assert [row["id"] for row in json_rows(capsys.readouterr().out)] == [17, "017"]


def test_answers_as_csv_have_a_row_a_label(answering_run, expected, tmp_path, capsys):
    path = write_table(tmp_path / "table.csv")
    out = tmp_path / "answers.csv"
    ask(answering_run, "--texts", path, *NAMED, "--out", out)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "rank", "label", "label_text", "score", "probability"]
    assert [row["id"] for row in rows] == ["a7", "a7", "b8", "b8", "c9", "c9"]
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    labels = [label for answer in expected for label in answer]
    assert [int(row["label"]) for row in rows] == [label["label"] for label in labels]
    assert [row["label_text"] for row in rows] == [label["text"] for label in labels]
    assert [float(row["score"]) for row in rows] == [label["score"] for label in labels]
    ask(answering_run, "--text", "vim", "--text", "chess", "--format", "tsv", "--no-text")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "id\trank\tlabel\tlabel_text\tscore\tprobability"
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["0", "1"],
        ["0", "2"],
        ["1", "1"],
        ["1", "2"],
    ]
    ask(answering_run, "--text", "vim", "--no-text")
    assert list(json_rows(capsys.readouterr().out)[0]) == ["score_is", "labels"]


@pytest.mark.parametrize("option", ["--texts", "--labels", "--add-labels"])
def test_answers_replace_no_file_that_is_read(tmp_path, option):
    read = tmp_path / "read.txt"
    read.write_text("a\n")
    (tmp_path / "link").symlink_to(read)
    texts = () if option == "--texts" else ("--text", "a")
    with pytest.raises(SystemExit, match=f"error: --out: .*link is the file of {option}, expected"):
        predict.main(["run", *texts, option, str(read), "--out", str(tmp_path / "link")])
    assert read.read_text() == "a\n"


def test_a_pipe_is_answered_as_it_comes(answering_run, tmp_path, capsys):
    """Written line by line, each after the answer to the one before."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    texts = ["the linux tool", "vim"]

    def write():
        with open(pipe, "w") as file:
            file.writelines(f"{text}\n" for text in texts)

    writer = threading.Thread(target=write)
    writer.start()
    ask(answering_run, "--texts", pipe, "--at-once", 1)
    writer.join()
    assert [row["text"] for row in json_rows(capsys.readouterr().out)] == texts


def test_standard_input(answering_run, tmp_path, capsys, monkeypatch):
    table = write_table(tmp_path / "table.csv")
    read, write = os.pipe()
    kept = os.dup(0)
    os.write(write, table.read_bytes())
    os.close(write)
    os.dup2(read, 0)
    try:
        ask(answering_run, "--texts", "-", "--texts-format", "csv", *NAMED)
    finally:
        os.dup2(kept, 0)
    assert [row["id"] for row in json_rows(capsys.readouterr().out)] == ["a7", "b8", "c9"]


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("a.csv", "id,body\n1,x\n", (), ":1: expected one column 'text', got the columns"),
        ("a.csv", "text,body\n1\n", (), ":2: expected 2 columns as in the header, got 1"),
        ("a.csv", "text\n", (), ": expected at least one text, got none"),
        ("a.jsonl", '{"body": "x"}\n', (), ":1: expected a key 'text', got only"),
        ("a.jsonl", '{"text": 3}\n', (), ":1: expected 'text' to be a str, got int '3'"),
        ("a.txt", "vim\n", ("--id-column", "n"), ": read as plain text, which has no columns"),
        ("a.txt", "", (), ": the file is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_before_a_model_is_loaded(
    tmp_path, name, content, words, message
):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        ask(tmp_path / "no-run", "--texts", path, *words, "--out", tmp_path / "out.csv")
    assert str(stop.value).startswith(f"error: {path}{message}")
    assert not (tmp_path / "out.csv").exists()


def test_an_error_far_below_leaves_no_file(answering_run, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,n\nvim,1\n" + "chess,2\n" * 3 + "one\n")
    with pytest.raises(SystemExit, match="a.csv:6: expected 2 columns"):
        ask(answering_run, "--texts", path, "--at-once", 2, "--out", tmp_path / "out.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_json_on_a_stream_of_plain_text_is_refused(answering_run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('{"text": "x"}\n'))
    writer.start()
    with pytest.raises(SystemExit, match="expected plain text, one a line, got JSON; "):
        ask(answering_run, "--texts", pipe)
    writer.join()


def test_fewer_than_one_text_at_once_is_refused(answering_run):
    with pytest.raises(SystemExit, match="--at-once: expected at least 1, got 0"):
        ask(answering_run, "--text", "x", "--at-once", 0)


def test_rows_of_a_data_set_have_their_own_ids(answering_run, tmp_path, capsys):
    path = tmp_path / "tst_X.txt"
    path.write_text("vim\nchess\n")
    (tmp_path / "tst_ids.txt").write_text("T-1\nT-2\n")
    ask(answering_run, "--texts", path)
    assert [row["id"] for row in json_rows(capsys.readouterr().out)] == ["T-1", "T-2"]
    (tmp_path / "tst_ids.txt").write_text("T-1\n")
    with pytest.raises(SystemExit, match="tst_ids.txt has 1 lines, expected one for each of 2"):
        ask(answering_run, "--texts", path)


def test_no_rows_of_a_text_without_labels():
    from utils.answer_files import form_of

    records = [{"text": "a", "labels": []}, {"text": "b", "labels": [LABEL]}]
    table = "".join(form_of("csv")(records, False))
    assert list(csv.reader(io.StringIO(table)))[1:] == [["1", "b", "1", "4", "x", "0.5", "0.25"]]


LABEL = {"label": 4, "text": "x", "score": 0.5, "probability": 0.25}
