"""`python -m utils.report compare`: the bootstrap against a slow loop, the table, the page, and bad
input."""

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine.conformance.made import write_dataset
from tests.helpers import payload_of
from utils.report.__main__ import main
from utils.report.compare import differing


def test_points_differ_where_true_labels_stand_elsewhere():
    relevance = sp.csr_matrix(np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]))
    one, two = (
        np.array([[0, 1], [0, 1], [0, 1], [0, 1]]),
        np.array([[0, 2], [1, 0], [1, 0], [1, -1]]),
    )
    assert differing([one, two], relevance).tolist() == [False, True, True, False]
    assert differing([one, one, two], relevance).tolist() == [False, True, True, False]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, tiny_root):
    """Folders of two evaluated linear trees, one with a beam that loses labels."""

    from utils.config.config import build_config

    root = tmp_path_factory.mktemp("runs")
    folders = []
    for name, beam in (("wide", 10), ("narrow", 1)):
        folders.append(
            train.fit(
                build_config(
                    {
                        "data": {"root": str(tiny_root), "name": "tiny", "val_fraction": 0.2},
                        "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": beam},
                        "run": {"dir": str(root / name), "tensorboard": False, "threads": 1},
                    },
                    {},
                )
            )
        )
        for split in ("tst", "val"):
            evaluation.evaluate(folders[-1], split)
    return folders


def test_table_and_page(two_runs, tmp_path, capsys):
    folders = [str(f) for f in two_runs]
    main(
        [
            "compare",
            *folders,
            "--metrics",
            "P@1",
            "PSP@5",
            "P@99",
            "--out",
            str(tmp_path / "c.html"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    one, two = (json.loads((f / "tst_metrics.json").read_text()) for f in two_runs)
    assert lines[0] == "| run | P@1 | PSP@5 |"
    assert lines[2] == f"| wide | {one['P@1']:.2f} | {one['PSP@5']:.2f} |"
    assert lines[3] == f"| narrow | {two['P@1']:.2f} | {two['PSP@5']:.2f} |"
    assert (
        lines[4].startswith("| narrow − wide | ")
        and f"{two['PSP@5'] - one['PSP@5']:+.2f}" in lines[4]
    )
    assert "20 points of split tst (10,000 resamples)" in lines[6]
    found = payload_of(tmp_path / "c.html")
    assert found["runs"] == ["wide", "narrow"] and [d["run"] for d in found["deciles"]] == [
        "wide",
        "narrow",
    ]
    # though the second kept fewer labels
    assert found["deciles"][0].keys() == found["deciles"][1].keys()
    value, low, high, clear = found["comparison"]["rows"][1]["differences"][0]
    assert (
        value == pytest.approx(two["P@1"] - one["P@1"])
        and low <= value <= high
        and clear == (high < 0 or low > 0)
    )
    assert 0 < len(found["points"]) == found["num_points"] <= 20
    tops = [sp.load_npz(f / "tst_score_mat.npz") for f in two_runs]
    for point in found["points"]:
        assert len(point["top"]) == 2
        for scores, top in zip(tops, point["top"], strict=True):
            assert top[0][0] == scores[point["id"]].toarray().argmax()
            assert all(bool(hit) == (label in point["true"]) for label, _, hit in top)
    main(["compare", *folders, "--split", "val", "--resamples", "50"])
    assert "12 points of split val (50 resamples)" in capsys.readouterr().out


def test_bad_runs_are_one_clear_line(two_runs, tmp_path, tiny_root):
    one, two = two_runs

    def error(*words):
        with pytest.raises(SystemExit) as found:
            main(["compare", *map(str, words)])
        assert "\n" not in str(found.value)
        return str(found.value)

    assert error(one) == "error: compare: expected two runs or more, got 1"
    assert error(one, two, one / ".." / one.name).endswith("the same run stands twice")
    assert "trn_metrics.json: no such file; make it with: python eval.py trn" in error(
        one, two, "--split", "trn"
    )
    assert "no run has any of the metrics P@77; what runs have: P@1, nDCG@1" in error(
        one, two, "--metrics", "P@77"
    )
    assert "--resamples: expected at least 1, got 0" in error(one, two, "--resamples", "0")
    other = tmp_path / "other"
    shutil.copytree(two, other)
    told = json.loads((two / "tst_metrics.json").read_text())

    def tell(**values):
        (other / "tst_metrics.json").write_text(json.dumps(told | values))

    tell(data_hash="feed")
    assert f"{other}: evaluated on data tiny (feed), but {one} on tiny (" in error(one, other)
    tell(**{"P@1": 99.0})
    assert "its P@1 is " in error(
        one, other
    ) and "but tst_metrics.json says 99.00; make it again" in error(one, other)
    tell()
    sp.save_npz(other / "tst_score_mat.npz", sp.csr_matrix((3, 20)))
    assert "tst_score_mat.npz: expected shape (20, 20), got (3, 20)" in error(one, other)
    broken = sp.csc_matrix((20, 20))
    broken.indptr = broken.indptr - 10**6
    for scores, message in (
        (broken, "expected a valid CSC of shape (20, 20), got indptr from -1000000"),
        (sp.csr_matrix(np.full((20, 20), np.nan)), "expected a score other than NaN, got nan"),
    ):
        sp.save_npz(other / "tst_score_mat.npz", scores)
        assert f"tst_score_mat.npz: {message}" in error(one, other)
    (other / "tst_score_mat.npz").write_bytes(b"cut off")
    assert "not a scipy sparse matrix" in error(one, other)
    (other / "tst_score_mat.npz").unlink()
    assert "tst_score_mat.npz: no such file; make it again with: python eval.py tst" in error(
        one, other
    )
    np.save(other / "val_rows.npy", np.arange(12))
    assert "another validation split than that of" in error(one, other, "--split", "val")
    write_dataset(tmp_path / "sets" / "tiny", seed=9)
    assert "expected the data that the runs were evaluated on" in error(
        one, two, "--root", tmp_path / "sets"
    )


def test_a_run_that_lacks_a_metric_has_a_dash_and_a_note(two_runs, tmp_path, capsys):
    one, two = two_runs
    other = tmp_path / "other"
    shutil.copytree(two, other)
    found = json.loads((two / "tst_metrics.json").read_text())
    del found["P@3"]
    (other / "tst_metrics.json").write_text(json.dumps(found))
    page = tmp_path / "c.html"
    words = ["compare", str(one), str(other), "--metrics", "P@1", "P@3", "--resamples", "50"]
    main([*words, "--out", str(page)])
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == "| run | P@1 | P@3 |"
    assert lines[2].startswith("| wide | ") and " – " not in lines[2]
    assert lines[3].endswith(" | – |") and lines[4].endswith(" | – |")
    assert told.err.startswith(f"{other / 'tst_metrics.json'}: no P@3; ")
    assert payload_of(page)["comparison"]["columns"] == ["P@1"]
    main([*words, "--format", "csv"])
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "P@1", "P@1 low", "P@1 high", "P@3", "P@3 low", "P@3 high"]
    assert rows[1][2:4] == ["", ""] and float(rows[3][2]) <= float(rows[3][1]) <= float(rows[3][3])
    assert rows[3][4:] == ["", "", ""]
    main([*words, "--format", "latex"])
    assert r"other $-$ wide & $" in capsys.readouterr().out
