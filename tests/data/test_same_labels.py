"""Label texts of a run and of the data set now: another order is refused, other line ends are the
same labels."""

import codecs
import hashlib
import json
import shutil
from pathlib import Path

import pytest

import eval as evaluation
import train
from engine.exporter import export
from models.fusion.members import check_member
from predict import Predictor
from tests.helpers import make_old
from utils.data.dataset import load_dataset
from utils.report.__main__ import main as report
from utils.run.finding import find_run
from utils.text import byte_hashes, lines_hash

LINES = ("b", "", "é\u2028ü\x85x", "d \x0b", "")


@pytest.fixture
def run(make_config, tiny_root, tmp_path):
    """(folder of a run, Y.txt of its data set)."""
    shutil.copytree(tiny_root / "tiny", tmp_path / "sets" / "tiny")
    config = make_config(data={"root": str(tmp_path / "sets")}, train={"epochs": 1})
    return train.fit(config), tmp_path / "sets" / "tiny" / "raw" / "Y.txt"


def old_hash(data: bytes) -> str:
    """As recorded before line ends were left out."""
    return hashlib.sha256(data).hexdigest()[:16]


def record(folder, labels_hash):
    path = folder / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels_hash": labels_hash}))


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("closed", [True, False])
def test_the_same_lines_have_the_same_hash_however_they_are_written(tmp_path, mark, end, closed):
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    lines = LINES if closed else LINES[:-1]  # an empty last line without an end would be none
    plain.write_bytes("".join(f"{line}\n" for line in lines).encode())
    other.write_bytes(mark + (end.join(lines) + (end if closed else "")).encode())
    assert lines_hash(other) == lines_hash(plain) == old_hash(plain.read_bytes())
    assert old_hash(other.read_bytes()) in byte_hashes(plain)
    assert old_hash(plain.read_bytes()) in byte_hashes(other)


@pytest.mark.parametrize("changed", [["a", "b"], ["b", "a", ""], ["b", "a "], ["b"], ["ba"]])
def test_other_lines_have_another_hash(tmp_path, changed):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("b\na\n")
    two.write_text("".join(f"{line}\n" for line in changed))
    assert lines_hash(one) != lines_hash(two)
    assert not byte_hashes(one) & byte_hashes(two)


def test_reordered_labels_are_refused_by_every_command(run, tmp_path, capsys):
    folder, path = run
    evaluation.evaluate(folder)
    report_before = (folder / "report.html").read_bytes()
    shutil.copytree(folder, tmp_path / "second")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[3:], *lines[:3]]) + "\n")
    message = r"Y.txt is not what .* was trained with .*: an id would be another label"
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(folder)
    assert (folder / "report.html").read_bytes() == report_before
    assert list(Predictor(folder).label_texts) == lines  # the model's own
    make_old(folder)
    with pytest.raises(ValueError, match=message):
        Predictor(folder)
    with pytest.raises(ValueError, match=message):
        export(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(SystemExit, match=message):
        report(["compare", str(folder), str(tmp_path / "second")])
    data = load_dataset(find_run(folder)[1], None)
    with pytest.raises(ValueError, match=r"method.members: one: .*" + message):
        check_member("one", folder, data)


def test_line_ends_do_not_matter_and_hashes_of_old_runs_stay_valid(run):
    folder, path = run
    make_old(folder)
    plain = path.read_bytes()
    windows = plain.replace(b"\n", b"\r\n")
    forms = (plain, windows, plain[:-1], windows[:-2], codecs.BOM_UTF8 + plain)
    now = json.loads((folder / "environment.json").read_text())["labels_hash"]
    for recorded in (now, None, *map(old_hash, forms)):
        record(folder, recorded)
        for form in forms:
            path.write_bytes(form)
            assert Predictor(folder).label_texts[19] == "robot"
    evaluation.evaluate(folder)
    path.unlink()
    with pytest.raises(
        ValueError, match=r"Y.txt: no such file; expected the label texts that .* was trained with"
    ):
        Predictor(folder)


def test_data_sets_are_checked_out_byte_for_byte():
    attributes = Path(__file__).parents[2] / ".gitattributes"
    assert "Datasets/** -text" in attributes.read_text().splitlines()
