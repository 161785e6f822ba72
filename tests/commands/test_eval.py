"""eval.py where the run's folder cannot be written to: the metrics are shown first."""

import errno
import json
import os

import pytest

import eval as evaluation
import train
from engine.evaluator import NotSavedError
from utils import files


@pytest.fixture
def run(make_config):
    folder = train.fit(make_config(train={"epochs": 1}))
    evaluation.evaluate(folder)
    return folder


def evaluate_command(folder, capsys):
    """(exit message, log) of eval.py."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        evaluation.main([str(folder)])
    return str(stop.value), capsys.readouterr().err


def test_a_folder_that_is_read_only_shows_the_metrics(run, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.os, "replace", refuse)
    message, log = evaluate_command(run, capsys)
    metrics = json.loads((run / "tst_metrics.json").read_text())
    row = next(line for line in log.splitlines() if line.split()[0] == "P")
    assert row.split()[1] == f"{metrics['P@1']:.2f}"
    reason = "(Read-only file system)"
    assert message == (
        f"error: {run}: the metrics above are right, but could not be written: tst_score_mat.npz "
        f"{reason}, tst_metrics.json {reason}, labels.csv {reason}, report.html {reason}"
    )
    assert "report:" not in log
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(NotSavedError) as error:
        evaluation.evaluate(run)
    assert error.value.metrics["P@1"] == metrics["P@1"]


@pytest.mark.parametrize("name", ["tst_score_mat.npz", "tst_metrics.json", "report.html"])
def test_one_file_that_cannot_be_written_is_named_and_the_others_are(
    run, capsys, monkeypatch, name
):
    names = {"tst_score_mat.npz", "tst_metrics.json", "report.html"}
    for other in names:
        (run / other).unlink()
    (run / name).mkdir()
    message, log = evaluate_command(run, capsys)
    assert "PSnDCG" in log
    assert (
        f"could not be written: {name} (" in message
        and "is a folder, expected the name of a file" in message
    )
    assert all((run / other).is_file() for other in names - {name})
