import sys

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks import linear
from benchmarks.linear_peers import _as_csr
from benchmarks.synthetic_tree import write_problem


def test_a_system_is_trained_ranked_and_measured_in_its_own_processes(tmp_path):
    write_problem(tmp_path, fraction=0.002)
    data = linear.Data.load(tmp_path, 0.6, 2.6)
    numbers = linear.measure("xmckit", sys.executable, data, threads=2)
    assert numbers["system"] == "xmckit" and numbers["threads"] == 2
    assert numbers["P@1"] > 20      # by chance: 0.4
    assert numbers["R@100"] >= numbers["R@10"] > 0
    assert numbers["train_cpu_s"] >= 0 and numbers["model_mb"] > 0 and numbers["peak_mb"] >= numbers["before_mb"]
    assert numbers["single_ms"] > 0


def test_filter_pairs_are_removed_for_all_alike(tmp_path):
    write_problem(tmp_path, fraction=0.002)
    relevance = sp.load_npz(tmp_path / "Y.tst.npz")
    perfect = linear.Data.load(tmp_path, 0.6, 2.6).metrics(relevance)
    assert perfect["P@1"] == 100
    rows, labels = relevance[:10].nonzero()
    (tmp_path / "filter_labels_test.txt").write_text("".join(f"{r} {c}\n" for r, c in zip(rows, labels, strict=True)))
    filtered = linear.Data.load(tmp_path, 0.6, 2.6).metrics(relevance)
    assert filtered["P@1"] == pytest.approx(100 * (1 - 10 / relevance.shape[0]))


def test_ranked_lists_become_scores():
    ranked = [[(3, 0.5), (0, 0.25)], [], [(1, 1.0)]]
    np.testing.assert_array_equal(_as_csr(ranked, 4).toarray(), [[0.25, 0, 0, 0.5], [0] * 4, [0, 1, 0, 0]])


def test_missing_files_and_failing_systems_are_one_error(tmp_path):
    with pytest.raises(ValueError, match=r"X.trn.npz: no such file; python -m utils.features"):
        linear.Data.load(tmp_path, 0.6, 2.6)
    write_problem(tmp_path, fraction=0.001)
    data = linear.Data.load(tmp_path, 0.6, 2.6)
    (tmp_path / "X.trn.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"linear_peers.py xmckit train .* failed"):
        linear.measure("xmckit", sys.executable, data, threads=1)
