"""The overlap paper's experiments: merged labels, Variation of Information, and the command on a
small run."""

import itertools
import json
from math import log

import numpy as np
import pytest
import scipy.sparse as sp

import train
from benchmarks.overlap import merge_pairs, run_experiments, summary, variation_of_information
from benchmarks.synthetic_tree import write_problem
from benchmarks.tree_scale import run as run_at_scale
from tests.helpers import small_tree


def slow_vi(one, two):
    """H(one) + H(two) - 2 I(one; two) by sums over the pairs of values."""
    n = len(one)
    total = 0.0
    for a, b in itertools.product((0, 1), (0, 1)):
        joint = sum(x == a and y == b for x, y in zip(one, two, strict=True)) / n
        if joint:
            total -= joint * (
                log(joint / (sum(x == a for x in one) / n))
                + log(joint / (sum(y == b for y in two) / n))
            )
    return total


def test_variation_of_information():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 2, 30), rng.integers(0, 2, 30)
    assert variation_of_information(one, two) == pytest.approx(slow_vi(one, two))
    assert variation_of_information(one, one) == pytest.approx(0, abs=1e-12)
    # names of the parts do not matter
    assert variation_of_information(one, 1 - one) == pytest.approx(0, abs=1e-12)
    assert variation_of_information(
        np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    ) == pytest.approx(2 * log(2))


def test_pairs_are_merged_inside_their_super_clusters():
    _, _, skeleton, _ = small_tree(labels=23, max_leaf=3, splits=3)
    merged = merge_pairs(skeleton, 25, seed=1)  # labels 23 and 24 have no points
    assert (np.asarray(merged.sum(axis=1)) == 1).all()
    sizes = np.asarray(merged.sum(axis=0)).ravel()
    assert set(sizes) == {1, 2}
    above = skeleton.child_ptrs[-2]
    group = dict(
        zip(
            skeleton.node_labels.tolist(),
            np.repeat(np.arange(len(above) - 1), np.diff(above))[skeleton.node_clusters].tolist(),
            strict=True,
        )
    )
    for column in np.flatnonzero(sizes == 2):
        one, two = merged[:, [column]].nonzero()[0]
        assert group[one] == group[two]
    for label in (23, 24):
        assert sizes[merged[[label]].indices[0]] == 1


def test_summary():
    rows = [
        {"vi": 0.2, "random_vi_coin": 0.9, "random_vi_sizes": 0.1},
        {"vi": 0.4, "random_vi_coin": 0.8, "random_vi_sizes": 0.5},
    ]
    got = summary(rows)
    assert (got["pairs"], got["better_than_coin"], got["better_than_sizes"]) == (2, 100.0, 50.0)
    assert got["mean_vi"] == pytest.approx(0.3)
    assert summary([]) == {"pairs": 0}


def test_experiments_of_a_run(make_config):
    folder = train.fit(make_config(method={"name": "overlap", "max_leaf": 3, "splits": 2}))
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "model").iterdir()}
    run_experiments(folder, [2], "val")
    saved = json.loads((folder / "experiments" / "overlap.json").read_text())
    assert set(saved["binned"]) == {"original", "merged"}
    assert set(saved["binned"]["merged"]) == {"1", "2"}
    assert saved["labels"]["merged"] < saved["labels"]["original"] == 20
    assert saved["disentanglement"]["pairs"] == len(saved["pairs"])
    assert (folder / "experiments" / "overlap.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "model").iterdir()} == before
    other = train.fit(make_config(train={"epochs": 1}, run={"dir": str(folder.parent / "other")}))
    with pytest.raises(ValueError, match="a dexml run; the experiments need xr-linear or overlap"):
        run_experiments(other, [2], "val")


def test_a_made_problem_is_learned(tmp_path, capsys):
    write_problem(tmp_path, 0.002)
    rows, metrics = run_at_scale(tmp_path, threads=2, max_leaf=50)
    assert [row[0].split(":")[0] for row in rows][:4] == [
        "read",
        "label centroids",
        "clusters",
        "rankers",
    ]
    frequent = np.bincount(sp.load_npz(tmp_path / "Y.trn.npz").indices).argmax()
    share = (sp.load_npz(tmp_path / "Y.tst.npz")[:, [frequent]] > 0).mean() * 100
    assert metrics["P@1"] > 2 * share
    assert "peak MB" in capsys.readouterr().out
