import json
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks import compare
from benchmarks.compare_linear import as_csr
from benchmarks.synthetic_tree import write_problem
from engine.conformance.made import write_dataset
from eval import evaluate
from train import fit
from utils.config.config import load_config

XR_LINEAR = "data: {name: any}\nmethod: {name: xr-linear}\n"


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "tiny", points=200, test_points=60)


def config_file(path, text):
    path.write_text(text)
    return path


def table(capsys):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]


def run(folder, tmp_path, *words):
    compare.main([str(folder), "--rows", str(tmp_path / "rows"), *map(str, words)])


def test_ours_has_the_metrics_of_train_and_eval_and_is_measured(
    tmp_path, folder, tiny_encoder, capsys
):
    text = (
        f"data: {{name: any, max_len: 16}}\nencoder: {{name: bag, init: {tiny_encoder}}}\nmethod: "
        f"{{name: dexml}}\n"
        "optim: {lr: 0.05}\ntrain: {epochs: 2, batch_size: 16}\n"
    )
    config = config_file(tmp_path / "bag.yaml", text)
    run(folder, tmp_path, "--ours", config, "--only", "bag", "--out", tmp_path / "table.json")
    lines = table(capsys)
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert lines[0] == list(compare.COLUMNS) and [line[0] for line in lines[2:]] == ["XMCKit bag"]
    overrides = {
        "data": {"root": str(folder.parent), "name": folder.name, "val_fraction": 0.05},
        "run": {"dir": str(tmp_path / "bag"), "tensorboard": False, "threads": 1},
    }
    expected = evaluate(fit(load_config(config, overrides)))
    assert row["P@1"] == pytest.approx(expected["P@1"]) and row["P@5"] == pytest.approx(
        expected["P@5"]
    )
    assert row["R@100"] is None  # there are only 20 labels
    assert row["peak MB"] > 50 and min(row[name] for name in ("CPU s", "train s", "model MB")) > 0
    assert row["text ms"] > 0 and row["batch ms"] > 0


def test_rows_are_taken_again_only_if_they_were_measured_with_the_same_settings(
    tmp_path, folder, capsys, monkeypatch
):
    config = config_file(tmp_path / "linear.yaml", XR_LINEAR)
    words = ("--ours", config, "--only", "linear")
    calls = []

    def measure(system, python, data, threads, minutes):
        calls.append(threads)
        return {
            **dict.fromkeys(compare.COLUMNS),
            "system": system.name,
            "threads": threads,
            "notes": len(calls),
        }

    monkeypatch.setattr(compare, "measure", measure)
    run(folder, tmp_path, *words)
    run(folder, tmp_path, *words, "--resume", "--threads", 1, 2)
    assert calls == [1, 2]
    assert [row[-1] for row in table(capsys)] == ["notes", "---", "1", "notes", "---", "1", "2"]
    config.write_text(XR_LINEAR.replace("xr-linear", "xr-linear, beam: 5"))
    run(folder, tmp_path, *words, "--resume")
    run(folder, tmp_path, *words)
    assert calls == [1, 2, 1, 1]


def test_a_system_that_fails_is_one_line_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    """On data without texts: a tree has its quality, though no latency of texts."""
    write_problem(tmp_path / "made", fraction=0.002)
    nobody = compare.System("a peer", "peer", "venv", ("x",), "x")
    static = compare.peers()[-2]
    monkeypatch.setattr(compare, "peers", lambda: [nobody, static])
    monkeypatch.setattr(compare.System, "python", lambda self, peers: sys.executable)
    encoder = config_file(tmp_path / "encoder.yaml", "data: {name: any}\nmethod: {name: dexml}\n")
    linear = config_file(tmp_path / "linear.yaml", XR_LINEAR)
    with pytest.raises(SystemExit, match="1"):
        run(
            tmp_path / "made",
            tmp_path,
            "--ours",
            encoder,
            linear,
            "--out",
            tmp_path / "table.md",
            "--resume",
        )
    failed, tree, peer, sentence = table(capsys)[2:]
    assert (
        failed[0] == "XMCKit encoder"
        and failed[2:14] == ["-"] * 12
        and "Y.txt: no such file" in failed[-1]
    )
    # by chance: 0.4
    assert tree[0] == "XMCKit linear" and float(tree[2]) > 20 and tree[-3:-1] == ["-", "-"]
    assert "KeyError: 'peer'" in peer[-1] and "have no texts" in sentence[-1]
    # the others are tried again
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["linear-1.json"]
    assert len((tmp_path / "table.md").read_text().splitlines()) == 6


def test_filter_pairs_are_removed_for_all_alike(tmp_path):
    write_problem(tmp_path, fraction=0.002)
    relevance = sp.load_npz(tmp_path / "Y.tst.npz")
    data = compare.Data.load(tmp_path, 0.6, 2.6)
    assert data.metrics(relevance)["P@1"] == 100 and data.top == 100
    rows, labels = relevance[:10].nonzero()
    (tmp_path / "filter_labels_test.txt").write_text(
        "".join(f"{r} {c}\n" for r, c in zip(rows, labels, strict=True))
    )
    filtered = compare.Data.load(tmp_path, 0.6, 2.6)
    assert filtered.metrics(relevance)["P@1"] == pytest.approx(100 * (1 - 10 / relevance.shape[0]))
    assert filtered.top == 100 + np.bincount(rows).max()


def test_memory_of_children_counts():
    holds = "import time; x = b'1' * {} ; time.sleep(1)"
    child = [sys.executable, "-c", holds.format(60 << 20)]
    alone = compare.watch(child)
    both = compare.watch(
        [
            sys.executable,
            "-c",
            f"import subprocess; x = b'1' * (50 << 20); subprocess.run({child!r})",
        ]
    )
    assert 60 < alone < 100 and both > alone + 50


def test_a_process_that_was_killed_says_so():
    with pytest.raises(ValueError, match="(?s)last words.*ended by SIGKILL$"):
        compare.watch(
            [sys.executable, "-uc", "import os; print('last words'); os.kill(os.getpid(), 9)"]
        )


def test_an_interruption_ends_the_child(tmp_path, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    mark = tmp_path / "mark"
    monkeypatch.setattr(compare.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        compare.watch(
            [sys.executable, "-c", f"import time; time.sleep(2); open({str(mark)!r}, 'w')"]
        )
    monkeypatch.undo()
    time.sleep(2.5)
    assert not mark.exists()


def test_ranked_lists_become_scores():
    ranked = [[(3, 0.5), (0, 0.25)], [], [(1, 1.0)]]
    np.testing.assert_array_equal(
        as_csr(ranked, 4).toarray(), [[0.25, 0, 0, 0.5], [0] * 4, [0, 1, 0, 0]]
    )


def test_wrong_arguments_are_one_error(tmp_path, folder, capsys):
    for words, message in (
        ((folder, "--only", "nobody"), "--only nobody: expected one of"),
        ((tmp_path / "none",), "Y.trn.npz: no such file"),
        ((folder, "--out", "table.txt"), "ends in .md or .json"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare.main([*map(str, words)])
        assert message in capsys.readouterr().err


def test_what_others_import_needs_neither_torch_nor_yaml():
    code = (
        "import sys, benchmarks.compare_worker; print(*{'torch', 'yaml', 'numba'} & {*sys.modules})"
    )
    got = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=compare.ROOT, capture_output=True, text=True
    )
    assert got.stdout.split() == []
