"""python -m utils.metrics: anybody's score matrix."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
from engine.conformance.made import write_dataset
from utils.metrics.__main__ import main

NAMES = ("P", "nDCG", "PSP", "PSnDCG", "R", "MRR")


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "tiny")


def score(capsys, *words):
    main([*map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_matrix_of_a_run_has_the_metrics_of_its_evaluation(answering, tiny_root, capsys):
    expected = evaluation.evaluate(answering)
    found = score(capsys, answering / "tst_score_mat.npz", tiny_root / "tiny")
    of_ranking = {key: value for key, value in expected.items() if "@" in key}
    assert found["metrics"] == pytest.approx(of_ranking, rel=1e-6)
    assert found["points"] == 20 and found["labels"] == 20
    groups = found["groups"]
    assert groups["names"] == ["tail", "torso", "head"] and sum(groups["labels"]) == 20
    assert sum(groups["P@1"]) == pytest.approx(expected["P@1"])
    assert groups["most"][0] <= groups["fewest"][2]


@pytest.fixture
def answering(answering_run, tmp_path):
    import shutil

    return shutil.copytree(answering_run, tmp_path / "run")


def test_filter_pairs_are_removed_before_ranking(folder, tmp_path, capsys):
    relevance = sp.load_npz(folder / "Y.tst.npz")
    scores = sp.lil_matrix(relevance.shape, dtype=np.float64)
    scores[0, relevance[0].indices[0]] = 0.5
    row, label = map(int, (folder / "filter_labels_test.txt").read_text().split("\n")[0].split())
    assert row == 0
    scores[0, label] = 0.9  # above the right one
    path = tmp_path / "scores.npz"
    sp.save_npz(path, scores.tocsr())
    assert score(capsys, path, folder)["metrics"]["P@1"] == pytest.approx(100 / 20)
    assert score(capsys, path, folder, "--no-filters")["metrics"]["P@1"] == 0
    main([str(path), str(folder), "--ks", "1,3"])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "N = 20, L = 20, percent" and table[1].split() == ["@k", "1", "3"]
    assert [line.split()[0] for line in table[2:8]] == list(NAMES)
    assert table[9].split() == ["tail", "torso", "head"]
    assert "recall@3" in table[-1]


def test_one_label_and_no_positives(tmp_path, capsys):
    folder = write_dataset(tmp_path / "one", labels=1, filters=False)
    sp.save_npz(folder / "Y.tst.npz", sp.csr_matrix((20, 1), dtype=np.float32))
    path = tmp_path / "scores.npz"
    sp.save_npz(path, sp.csr_matrix(np.ones((20, 1))))
    found = score(capsys, path, folder)
    assert set(found["metrics"].values()) == {0.0} and found["groups"]["names"] == ["head"]
    main([str(path), str(folder)])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["recall@1", "-"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected scores of shape (20, 20), as"),
        (("--ks", "0"), "--ks: expected whole numbers from 1 between commas, got '0'"),
        (("--ks", "21"), "--ks: 21: there are only 20 labels"),
        (("--a", "-1"), "--a and --b: expected numbers above 0, a up to 100 and b up"),
        (("--a", "inf"), "got inf and 1.5"),
        (("--b", "1e308"), "got 0.55 and 1e+308"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, tmp_path, words, message):
    path = tmp_path / "scores.npz"
    sp.save_npz(path, sp.csr_matrix((20, 20 if words else 19), dtype=np.float32))
    with pytest.raises(SystemExit) as stop:
        main([str(path), str(folder), *words])
    assert message in str(stop.value)
