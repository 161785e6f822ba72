"""Filter files: read under either published name, demanded where a config says so, and part of what
the data is."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from engine.conformance.made import write_dataset
from utils.data.dataset import load_dataset
from utils.data.filters import load_filter, load_filters
from utils.errors import InputError
from utils.report.compare import _check_data
from utils.run.environment import check_same_data, write_environment

SHAPES = {"trn": (60, 20), "tst": (20, 20)}
TRAIN, TEST, MISSPELT = (f"filter_labels_{name}.txt" for name in ("train", "test", "text"))


@pytest.fixture
def folder(tmp_path):
    """A data set with filters of both splits."""
    return write_dataset(tmp_path / "sets" / "tiny")


def pairs(matrix):
    return sorted(zip(*(ids.tolist() for ids in matrix.nonzero()), strict=True))


def test_the_misspelt_name_is_taken(folder, caplog):
    before = load_filters(folder, SHAPES)
    assert before["tst"].nnz > 0
    (folder / TEST).rename(folder / MISSPELT)
    after = load_filters(folder, SHAPES)
    assert {split: pairs(m) for split, m in after.items()} == {
        split: pairs(m) for split, m in before.items()
    }
    assert f"{folder / MISSPELT}: taken as {TEST}" in caplog.text
    (folder / TEST).write_text("".join(reversed((folder / MISSPELT).read_text().splitlines(True))))
    # both, of the same pairs
    assert pairs(load_filters(folder, SHAPES)["tst"]) == pairs(before["tst"])
    (folder / TEST).write_text("0 0\n")
    with pytest.raises(
        InputError, match=rf"{MISSPELT}: expected the pairs of {TEST}, which is there as well"
    ):
        load_filters(folder, SHAPES)


@pytest.mark.parametrize(
    "name",
    [
        "filter_labels_tset.txt",
        "filter_labels.txt",
        "filter_labels_test.csv",
        "filter_labels_test.txt.gz",
        "Filter_Labels_Val.npz",
    ],
)
def test_files_that_are_not_used_are_named(folder, caplog, name):
    load_filters(folder, SHAPES)
    assert not caplog.records
    (folder / name).write_text("0 0\n")
    load_filters(folder, SHAPES)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.text.strip().endswith(
        f"filters are read from {TRAIN} and {TEST} alone; not used: {name} (1)"
    )


@pytest.mark.parametrize("gone", [(TRAIN,), (TEST,), (TRAIN, TEST)])
def test_filters_can_be_demanded(folder, make_config, gone):
    for name in gone:
        (folder / name).rename(folder / name.replace("labels_t", "labels_of_t"))
    config = make_config(data={"root": str(folder.parent), "filters": "required"})
    with pytest.raises(InputError) as error:
        load_dataset(config, None)
    message = str(error.value)
    assert message.startswith(
        f"{folder}: data.filters is required, but there is no {' and no '.join(gone)}; expected "
    )
    assert (
        f"expected {TRAIN} and {TEST} with lines" in message
        and "not used: filter_labels_of_t" in message
    )
    for name in gone:
        (folder / name).write_text("")  # an empty file says that there is nothing to leave out
    assert (load_dataset(config, None).splits["tst"].filters.nnz == 0) == (TEST in gone)


def test_our_configs_of_sets_with_filters_demand_them():
    found = sorted(Path("configs").glob("LF-*/dataset.yaml"))
    assert len(found) == 6
    for path in found:
        assert yaml.safe_load(path.read_text())["data"]["filters"] == "required", path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0 1\n1 \xe9\n", "line 2 is not UTF-8"),
        (b"0 1_0\n", "line 1: expected 'row label', got '0 1_0'"),
        (b"0 -1\n", "line 1: expected"),
        (b"0 1 2\n", "line 1: expected"),
        (b"0\n", "line 1: expected"),
        (b"0 1.0\n", "line 1: expected"),
        ("0 ٣\n".encode(), "line 1: expected"),
        (b"0 " + b"9" * 5000 + b"\n", "line 1: expected"),
        (b"0 99999999999999999\n", "line 1: pair 0 999"),
        (b"0,1\n", "line 1: expected"),
        (b"\0" * 100_000, "line 1: expected"),
        (b"1 " * 100_000, "line 1: expected"),
    ],
)
def test_lines_that_are_no_pair_are_named(tmp_path, data, message):
    (tmp_path / TEST).write_bytes(data)
    with pytest.raises(InputError) as error:
        load_filter(tmp_path / TEST, (20, 20))
    assert str(error.value).startswith(f"{tmp_path / TEST}: {message}")


def test_pairs_that_stand_twice_blanks_and_marks(tmp_path):
    (tmp_path / TEST).write_bytes(b"\xef\xbb\xbf0 1\r\n\n  3\t4 \n0 1")
    assert pairs(load_filter(tmp_path / TEST, (20, 20))) == [(0, 1), (3, 4)]
    assert load_filter(tmp_path / TEST, (20, 20)).data.tolist() == [1, 1]


def test_what_is_there_and_no_file_is_an_error(folder):
    (folder / TEST).unlink()
    (folder / TEST).symlink_to(folder / TEST)
    with pytest.raises(InputError, match="cannot be read"):
        load_filters(folder, SHAPES)


# -------------------------------- the hash


def test_the_hash_covers_filters(folder, make_config):
    config = make_config(data={"root": str(folder.parent)})
    first = load_dataset(config, None)
    lines = (folder / TEST).read_text().splitlines(True)
    (folder / TEST).write_text("".join(reversed(lines)))
    assert load_dataset(config, None).hash == first.hash  # the same pairs
    for name in (TEST, TRAIN):
        (folder / name).write_text("".join((folder / name).read_text().splitlines(True)[1:]))
        changed = load_dataset(config, None)
        assert changed.hash != first.hash and changed.relevance_hash == first.relevance_hash
        first = changed


def test_runs_know_their_data_though_filters_change(folder, make_config, tmp_path, caplog):
    config = make_config(data={"root": str(folder.parent)})
    data = load_dataset(config, None)
    run = tmp_path / "run"
    run.mkdir()
    write_environment(run, data, "", {})
    np.save(run / "val_rows.npy", data.splits["val"].rows)
    check_same_data(run, data)
    assert not caplog.records
    (folder / TEST).write_text("")
    other = load_dataset(config, None)
    check_same_data(run, other)
    assert f"{run} was trained with other filter pairs than those of {folder}" in caplog.text
    told = json.loads((run / "environment.json").read_text())
    # of an older version; of other data
    for hashes in ({"data_hash": data.relevance_hash}, {"data_hash": "feed"}):
        (run / "environment.json").write_text(
            json.dumps({k: v for k, v in told.items() if "hash" not in k} | hashes)
        )
        caplog.clear()
        if hashes["data_hash"] == "feed":
            with pytest.raises(InputError, match="was trained on data feed"):
                check_same_data(run, other)
        else:
            check_same_data(run, other)
            assert not caplog.records


def test_runs_with_other_filters_are_not_compared(folder, make_config, tmp_path):
    config = make_config(data={"root": str(folder.parent)})
    data = load_dataset(config, None)
    (folder / TEST).write_text("")
    without = load_dataset(config, None)

    def run(name, found):
        return {
            "folder": tmp_path / name,
            "metrics": {"data_hash": found},
            "config": {"data": {"name": "tiny"}},
        }

    now, older, other = run("a", data.hash), run("b", data.relevance_hash), run("c", without.hash)
    _check_data([now, older], data)
    _check_data([older, now], data)
    with pytest.raises(
        InputError, match=r"c: evaluated on data .*, and its filters, can be compared"
    ):
        _check_data([now, other], data)
    with pytest.raises(InputError, match="expected the data that the runs were evaluated on"):
        _check_data([now, now], without)
