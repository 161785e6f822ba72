"""predict.py and Predictor: what counts as a text, and output that any reader and any screen
takes."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation
import predict
import train
from engine.chosen_labels import ChosenLabels
from engine.conformance.made import tiny_sections
from predict import Predictor
from tests.commands import run as run_command
from utils import distributed
from utils.answer_files import FORMS, form_of
from utils.config.config import build_config
from utils.console import show_anything
from utils.errors import InputError
from utils.json_lines import json_line, write_records
from utils.prepare.point_files import SUFFIXES
from utils.reading import saved

ROOT = Path(__file__).parents[2]
ANSWER = {
    "text": "naïve \u2028 кот \x85 \u2029 🚀 \x0b",
    "labels": [{"label": 0, "text": "é\u2028", "score": 1.0}],
}


@pytest.fixture(scope="module")
def run(answering_run):
    return answering_run


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run)


def command(run, *, text=None, texts=None, labels=None, out=None, k=2):
    """predict.py in this process."""
    words = {"--texts": texts, "--k": k, "--labels": labels, "--out": out}
    given = [word for name, value in words.items() if value is not None for word in (name, value)]
    each = [word for one in text or () for word in ("--text", one)]
    predict.main([str(word) for word in (run, *given, *each)])


def test_a_damaged_model_too_large_to_be_looked_at_gives_no_answer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "LOOKED_AT", 0)
    own = tmp_path / "run"
    shutil.copytree(run, own)
    path = own / "model" / "label_embeddings.npy"
    embeddings = np.load(path)
    embeddings[3, 2] = np.nan
    np.save(path, embeddings)
    message = f"{own}/model: the model is damaged, .* expected finite numbers, got nan"
    with pytest.raises(InputError, match=message):
        Predictor(own)(["the linux tool"])
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(own)
    assert not (own / "tst_metrics.json").exists()


def test_a_text_alone_is_one_text(run, predictor):
    for text in ("the linux tool", "", np.str_("vim")):
        answer = predictor(text, k=3)
        assert [list(label) for label in answer] == [["label", "text", "score", "probability"]] * 3
        assert predictor([text], k=3) == [answer]
    assert len(Predictor(run, labels="zebra").label_texts) == 1
    assert predictor(iter(["a", "b"])) == predictor(("a", "b")) == predictor(np.array(["a", "b"]))
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"the linux tool", "texts: expected a list of texts, got bytes"),
        ({"text": "x"}, "texts: expected a list of texts, got dict"),
        (None, "texts: expected a list of texts, got NoneType"),
        (7, "texts: expected a list of texts, got int"),
        (np.array([["a", "b"]]), "texts: expected a list of texts, got ndarray"),
        (["a", None], r"texts: expected texts, got None \(NoneType\) at place 1"),
        ([["a", "b"]], r"texts: expected texts, got \['a', 'b'\] \(list\) at place 0"),
        (["a", "b", float("nan")], r"texts: expected texts, got nan \(float\) at place 2"),
    ],
)
def test_what_is_no_text_is_refused(predictor, texts, message):
    with pytest.raises(InputError, match=message):
        predictor(texts)


def test_labels_must_be_texts(run):
    with pytest.raises(InputError, match="labels: expected at least one text, got none"):
        Predictor(run, labels=[])
    with pytest.raises(InputError, match=r"labels: expected texts, got 3 \(int\) at place 0"):
        Predictor(run, labels=[3])


def test_label_texts_that_are_empty_are_said(run, caplog):
    Predictor(run, labels=["a", "", "b", " "])
    assert "2 of 4 label texts are empty, e.g. that of id 1" in caplog.text
    caplog.clear()
    Predictor(run, labels=["a", "b"])
    assert "empty" not in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "came"),
    [
        ("mine.csv", b"text,labels\nthe linux tool,kernel\n", "a .csv file by its name"),
        ("QUERIES.TSV", b"id\ttext\n1\tvim\n", "a .tsv file by its name"),
        ("x.jsonl", b'{"text": "vim"}\n', "a .jsonl file by its name"),
        ("x.npz", b"PK\3\4", "a .npz file by its name"),
        ("texts.txt.gz", b"\x1f\x8b", "a .gz file by its name"),
        ("rows.txt", b'{"uid": "1", "title": "vim"}\n', "JSON"),
        ("rows", b"\xef\xbb\xbf{\n", "JSON"),
        ("rows.txt", b'["a", "b"]\n', "JSON"),
        ("wide.txt", "vim\n".encode("utf-16-le"), "bytes 0, as in binary files and UTF-16"),
    ],
)
@pytest.mark.parametrize("option", ["texts", "labels"])
def test_files_that_are_no_plain_text_are_refused(run, tmp_path, name, content, came, option):
    if option == "texts" and Path(name).suffix.lower() in SUFFIXES:
        pytest.skip("a table of texts is read")
    path = tmp_path / name
    path.write_bytes(content)
    given = {"texts": path} if option == "texts" else {"text": ["x"], "labels": path}
    with pytest.raises(SystemExit) as stop:
        command(run, **given, out=tmp_path / "new" / "out.jsonl")
    assert str(stop.value).startswith(
        f"error: {path}: expected plain text, UTF-8, one text a line and no header; got {came}; "
    )
    assert not (tmp_path / "new").exists()


def test_texts_that_look_a_little_like_json_are_texts(run, tmp_path, capsys):
    path = tmp_path / "odd.txt"
    path.write_text('[SEP] vim {x}\n17\n"quoted"\n{a: 1}\n')
    command(run, texts=path)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["[SEP] vim {x}", "17", '"quoted"', "{a: 1}"]


def test_a_record_is_one_line_for_every_reader():
    for ascii_only in (False, True):
        line = json_line(ANSWER, ascii_only)
        assert json.loads(line) == ANSWER
        assert len(line.splitlines()) == 1 and len(line.encode().splitlines()) == 1
        assert line.isascii() == ascii_only
    assert "кот" in json_line(ANSWER) and "🚀" in json_line(ANSWER)


@pytest.mark.parametrize("text", [b"caf\xe9", b"\xff", b"a \xed\xa0\xbd b"])
def test_words_that_are_not_utf8_are_one_clear_error(run, text):
    word = os.fsdecode(text)
    byte = next(b for b in text if b > 127)
    with pytest.raises(
        SystemExit, match=rf"^error: --text .*: expected UTF-8, got byte 0x{byte:02x} at place \d"
    ):
        command(run, text=["vim", word])


def test_a_failure_leaves_no_folder_behind(run, tmp_path):
    with pytest.raises(SystemExit, match="k must be from 1"):
        command(run, text=["x"], k=99, out=tmp_path / "new" / "deep" / "out.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit, match="folder: is a folder, expected the name of a file"):
        command(run, text=["x"], out=tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_out_follows_links_keeps_modes_and_writes_to_devices(run, tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    command(run, text=["vim"], out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real").read_text())[
        "text"
    ] == "vim"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600
    (tmp_path / "soon").symlink_to(tmp_path / "other" / "place")
    command(run, text=["vim"], out=tmp_path / "soon")
    assert json.loads((tmp_path / "other" / "place").read_text())["text"] == "vim"
    before = os.stat("/dev/null")
    command(run, text=["vim"], out="/dev/null")
    assert os.stat("/dev/null").st_rdev == before.st_rdev and stat.S_ISCHR(
        os.stat("/dev/null").st_mode
    )


def test_out_may_be_the_screen(run):
    """/dev/stdout does not cut off what stands in the file that it goes to."""
    for out in ("/dev/stdout", "/dev/fd/1"):
        got = run_command("predict.py", run, "--text", "кот", "--out", out)
        assert json.loads(got.stdout)["text"] == "кот"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_a_screen_of_any_encoding_shows_every_record(encoding):
    """In an interpreter of its own, whose screen is that of a user's locale."""
    code = (
        "from utils.console import show_anything, shows_unicode\n"
        "import json, sys\n"
        "show_anything()\n"
        "print(json.dumps('кот é', ensure_ascii=not shows_unicode()))\n"
        "print('run: кот ± \\udce9')\n"
    )
    got = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )
    first, second = got.stdout.decode(encoding).splitlines()
    assert json.loads(first) == "кот é" and got.stderr == b""
    assert second == "run: кот ± \udce9".encode(encoding, "backslashreplace").decode(encoding)


def test_predictions_go_to_a_screen_that_is_not_utf8(monkeypatch, tmp_path):
    with open(tmp_path / "screen", "w", encoding="latin-1") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        show_anything()
        write_records([ANSWER, ANSWER], None)
        monkeypatch.undo()
    assert [
        json.loads(line) for line in (tmp_path / "screen").read_text("latin-1").splitlines()
    ] == [ANSWER] * 2


def test_other_processes_print_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    made = []

    def records():
        made.append(True)
        yield from ()

    for form in FORMS:
        for out in (None, str(tmp_path / "answers")):
            write_records(records(), out, form_of(form))
    assert len(made) == 2 * len(FORMS)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_enough_is_no_error(run, tmp_path, monkeypatch):
    """As with `predict.py ... | head -1`."""
    texts = tmp_path / "texts.txt"
    texts.write_text("the linux tool\n" * 300)
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.raises(SystemExit) as stop:
            command(run, texts=texts)
        monkeypatch.undo()
    assert stop.value.code == 1


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, tiny_root, tiny_encoder):
    """A run that had validation points."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    sections = tiny_sections(tiny_root, tiny_encoder, folder, {"train": {"epochs": 3}})
    return train.fit(build_config(sections, {}))


def test_a_threshold_cuts_by_probability(calibrated, capsys):
    predictor = Predictor(calibrated)
    every = predictor("the linux tool", k=20)
    probabilities = [label["probability"] for label in every]
    assert all(0 <= p <= 1 for p in probabilities)
    assert probabilities == sorted(probabilities, reverse=True)
    cut = (probabilities[0] + probabilities[-1]) / 2
    above = [label for label in every if label["probability"] >= cut]
    assert 0 < len(above) < 20
    assert predictor("the linux tool", k=20, threshold=cut) == above
    assert predictor("the linux tool", k=1, threshold=str(cut)) == every[:1]
    assert predictor("the linux tool", k=20, threshold=1.0) == []
    only = ChosenLabels(allowed=[every[5]["label"]])  # as likely as among all labels
    alone = predictor("the linux tool", k=1, chosen=only)
    assert alone[0]["probability"] == pytest.approx(every[5]["probability"], abs=1e-5)
    auto = predictor("the linux tool", k=20, threshold="auto")
    assert auto == every[: len(auto)]
    predict.main([str(calibrated), "--text", "the linux tool", "--threshold", str(cut)])
    row = json.loads(capsys.readouterr().out)
    assert row["labels"] == above and row["score_is"] == "cosine of text and label"
    found = evaluation.evaluate(calibrated)
    told = json.loads((calibrated / "tst_metrics.json").read_text())
    assert told["micro_F1"] == found["micro_F1"] and told["threshold"]["for"] == "micro_f1"
    assert {"ECE", "answered", "coverage_error", "example_F1", "macro_F1"} <= set(told)
    assert len((calibrated / "labels.csv").read_text().splitlines()) == 21


@pytest.mark.parametrize("threshold", ["half", -0.1, 1.5, True, float("nan"), [0.3]])
def test_what_is_no_threshold_is_refused(predictor, threshold):
    with pytest.raises(InputError, match="threshold: expected a probability from 0 to 1 or 'auto'"):
        predictor("vim", threshold=threshold)


def test_other_labels_have_no_probability_and_no_threshold(calibrated):
    predictor = Predictor(calibrated, labels=["zebra", "kernel"])
    assert [label["probability"] for label in predictor("vim", k=2)] == [None, None]
    with pytest.raises(InputError, match=r"threshold is 0.5, but .* gives no probabilities: they "):
        predictor("vim", k=2, threshold=0.5)


def test_a_run_without_validation_points_has_no_probabilities(run, predictor):
    log = (run / "train.log").read_text()
    assert "no validation points: answers have no probabilities" in log
    assert predictor("vim", k=1)[0]["probability"] is None
    with pytest.raises(InputError, match=r"it had none .data.val_fraction 0. or is of an older"):
        predictor("vim", threshold="auto")
    found = evaluation.evaluate(run)
    assert "micro_F1" not in found and found["coverage_error"] >= 1
    assert (run / "labels.csv").read_text().splitlines()[1].split(",")[4:8] == [""] * 4
