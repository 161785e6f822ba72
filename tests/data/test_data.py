import json
import logging
import os
import threading
import traceback

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import train
from engine.conformance.made import write_dataset
from tests.conftest import with_values
from utils import distributed
from utils.data.batches import (
    AHEAD,
    Batch,
    TextBatch,
    moved,
    ready_batches,
    sequential_batches,
    steps_per_epoch,
    training_batches,
)
from utils.data.dataset import load_dataset
from utils.data.held_out import validation_rows
from utils.errors import InputError
from utils.pretrained.location import load_tokenizer
from utils.ragged import Ragged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


@pytest.fixture
def broken(tmp_path, make_config, tokenizer):
    """broken(change) -> the error of loading a data set after `change(folder)`."""

    def load(change):
        folder = write_dataset(tmp_path / "sets" / "tiny")
        change(folder)
        config = make_config(data={"root": str(tmp_path / "sets"), "name": "tiny"})
        with pytest.raises(ValueError) as error:
            load_dataset(config, tokenizer)
        assert "\n" not in str(error.value)
        return str(error.value)

    return load


def edit(folder, split, change):
    matrix = sp.load_npz(folder / f"Y.{split}.npz").tolil()
    change(matrix)
    sp.save_npz(folder / f"Y.{split}.npz", matrix.tocsr())


def test_splits_cover_the_training_points_once(make_config, tokenizer):
    data = load_dataset(make_config(), tokenizer)
    trn, val, tst = (data.splits[s] for s in ("trn", "val", "tst"))
    assert (len(trn), len(val), len(tst), data.num_labels) == (48, 12, 20, 20)
    assert sorted([*trn.rows, *val.rows]) == list(range(60))
    whole = sp.load_npz(data.folder / "Y.trn.npz")
    assert (trn.relevance != whole[trn.rows]).nnz == 0
    assert data.label_counts.tolist() == np.bincount(whole.indices, minlength=20).tolist()
    again = load_dataset(make_config(run={"seed": 5}), tokenizer)
    assert np.array_equal(again.splits["val"].rows, val.rows)  # the same for every seed
    assert again.hash == data.hash
    assert data.label_texts[19] == "robot"
    assert len(trn.filters.indices) + len(val.filters.indices) == 12


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"val_fraction": 0.05, "val_max_points": 4000}, 50),
        ({"val_max_points": 7}, 7),
        ({"val_fraction": 0.0}, 0),
    ],
)
def test_validation_size_is_bounded(make_config, tmp_path, values, rows):
    config = make_config(data={"val_fraction": 0.05, **values}).data
    assert len(validation_rows(sp.csr_matrix(np.eye(1000)), config, tmp_path)) == rows
    # one point is needed for training
    assert len(validation_rows(sp.csr_matrix(np.eye(1)), config, tmp_path)) == 0


@pytest.mark.parametrize(("fraction", "rows"), [(0.1, 16), (0.05, 8), (0.01, 0), (0.0, 0)])
def test_groups_of_similar_texts_are_held_out_together(make_config, tmp_path, fraction, rows):
    words = np.arange(160) % 20  # twenty words, eight texts of each
    features = sp.csr_matrix((np.ones(160, np.float32), (np.arange(160), words)))
    relevance = sp.csr_matrix(np.ones((160, 1)))
    for name, matrix in (
        ("X.trn", features),
        ("X.tst", features),
        ("Y.trn", relevance),
        ("Y.tst", relevance),
    ):
        sp.save_npz(tmp_path / f"{name}.npz", matrix)
    config = make_config(data={"val_fraction": fraction, "val_group_size": 8}).data
    held_out = validation_rows(relevance, config, tmp_path)
    assert len(held_out) == rows
    groups = np.bincount(words[held_out], minlength=20)
    assert np.array_equal(held_out, validation_rows(relevance, config, tmp_path))
    # together: single draws would give less than 2 a row
    assert np.square(groups).sum() >= 4 * rows


def test_points_without_labels_are_skipped_in_training_and_kept_in_test(
    tmp_path, make_config, tokenizer, caplog
):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    for split in ("trn", "tst"):
        edit(folder, split, lambda m: m.__setitem__((slice(0, 3), slice(None)), 0))
    with caplog.at_level(logging.INFO):
        data = load_dataset(make_config(data={"root": str(tmp_path / "sets")}), tokenizer)
    assert len(data.splits["trn"]) + len(data.splits["val"]) == 57
    assert not set(data.splits["trn"].rows) & {0, 1, 2}
    assert len(data.splits["tst"]) == 20
    assert "3 training points without labels are skipped" in caplog.text


def test_empty_texts_are_allowed(tmp_path, make_config, tokenizer):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    lines = (folder / "raw" / "trn_X.txt").read_text().split("\n")
    (folder / "raw" / "trn_X.txt").write_text("\n".join(["", *lines[1:]]))
    data = load_dataset(make_config(data={"root": str(tmp_path / "sets")}), tokenizer)
    assert data.splits["trn"].tokens.lengths[0] == 2  # the special tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "raw" / "trn_X.txt").unlink(), "trn_X.txt: no such file"),
        (lambda f: (f / "raw" / "Y.txt").write_text(""), "Y.txt: the file is empty"),
        (lambda f: (f / "Y.tst.npz").unlink(), "Y.tst.npz: no such file"),
        (
            lambda f: (f / "Y.trn.npz").write_bytes(b"not a matrix"),
            "Y.trn.npz: not a scipy sparse matrix",
        ),
        (lambda f: (f / "raw" / "tst_X.txt").write_text("a\nb\n"), "has 20 rows but"),
        (lambda f: (f / "raw" / "Y.txt").write_text("a\nb\n"), "has 20 columns but"),
        (lambda f: edit(f, "trn", lambda m: m.__setitem__((7, 3), -1.0)), "Y.trn.npz"),
        (lambda f: edit(f, "trn", lambda m: m.__setitem__((7, 3), np.nan)), "Y.trn.npz"),
        (
            lambda f: edit(f, "trn", lambda m: m.__setitem__((slice(None), slice(None)), 0)),
            "no training point has a label",
        ),
        (
            lambda f: (f / "filter_labels_train.txt").write_text("0 1\n0 20\n"),
            "line 2: pair 0 20 is out of range",
        ),
        (
            lambda f: (f / "filter_labels_test.txt").write_text("20 0\n"),
            "line 1: pair 20 0 is out of range",
        ),
        (
            lambda f: (f / "filter_labels_test.txt").write_text("1 0\n\nx\n"),
            "line 3: expected 'row label', got 'x'",
        ),
        (
            lambda f: (f / "raw" / "trn_X.txt").write_bytes(b"ok\n" * 58 + b"\xe9t\xe9\nok\n"),
            "line 59 is not UTF-8",
        ),
    ],
)
def test_bad_data_gets_one_clear_error(broken, change, message):
    assert message in broken(change)


def test_bad_relevance_names_row_and_label(broken):
    message = broken(lambda f: edit(f, "trn", lambda m: m.__setitem__((7, 3), np.nan)))
    assert "7" in message
    assert "3" in message


def test_an_index_out_of_range_is_refused(broken):
    def change(folder):
        matrix = sp.load_npz(folder / "Y.trn.npz")
        matrix.indices[5] = 99
        np.savez(
            folder / "Y.trn.npz",
            format=b"csr",
            shape=matrix.shape,
            data=matrix.data,
            indices=matrix.indices,
            indptr=matrix.indptr,
        )

    assert "Y.trn.npz" in broken(change)


def test_a_missing_data_set_lists_those_that_are_there(make_config, tokenizer):
    config = make_config(data={"name": "tinny"})
    (config.dataset_folder.parent / ".git").mkdir()
    with pytest.raises(ValueError, match=r"tinny: no such data set .* found in .*: tiny\. "):
        load_dataset(config, tokenizer)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 48, 100])
def test_an_epoch_sees_every_point_once_and_no_batch_is_empty(make_config, tokenizer, batch_size):
    config = make_config(train={"batch_size": batch_size})
    split = load_dataset(config, tokenizer).splits["trn"]
    batches = list(training_batches(split, None, config, epoch=3))
    assert len(batches) == steps_per_epoch(split, batch_size)
    assert sorted(np.concatenate([b.points for b in batches])) == list(range(48))
    assert all(0 < len(b.points) <= batch_size for b in batches)
    first = batches[0]
    assert (first.relevance != split.relevance[first.points]).nnz == 0
    assert (
        first.queries.host_lengths.tolist()
        == split.tokens.lengths[split.rows[first.points]].tolist()
    )


def test_batches_depend_on_seed_and_epoch_and_can_start_in_the_middle(make_config, tokenizer):
    config = make_config()
    split = load_dataset(config, tokenizer).splits["trn"]

    def points(config, epoch, first=0):
        return [b.points.tolist() for b in training_batches(split, None, config, epoch, first)]

    assert points(config, 0) == points(config, 0)
    assert points(config, 0) != points(config, 1)
    assert points(config, 0) != points(with_values(config, run={"seed": 1}), 0)
    assert points(config, 2, first=2) == points(config, 2)[2:]
    keys = [b.key for b in training_batches(split, None, config, 2, 1)]
    assert keys == [(0, 2, 1), (0, 2, 2)]


def test_worker_processes_give_the_same_batches(make_config, tokenizer):
    config = make_config()
    split = load_dataset(config, tokenizer).splits["trn"]
    plain = list(training_batches(split, None, config, 0))
    worked = list(training_batches(split, None, with_values(config, data={"workers": 2}), 0))
    assert [b.points.tolist() for b in plain] == [b.points.tolist() for b in worked]
    assert all(
        torch.equal(a.queries.ids, b.queries.ids) for a, b in zip(plain, worked, strict=True)
    )


@pytest.fixture
def other_device(monkeypatch):
    """A device that is no CPU, whose copies are the same tensors."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: (1,).index(device))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    return torch.device("cuda")


def test_batches_for_a_gpu_are_made_ahead_in_a_thread(make_config, tokenizer, other_device):
    split = load_dataset(make_config(), tokenizer).splits["trn"]
    config = make_config(train={"batch_size": 4})
    makers = set()
    made = []

    def ahead(batch):
        makers.add(threading.get_ident())
        made.append(batch.key)
        return batch.points[:1]

    plain = list(ready_batches(training_batches(split, None, config, 0), ahead, CPU))
    assert makers == {threading.get_ident()}
    made.clear()
    found = []
    for batch in ready_batches(training_batches(split, None, config, 0), ahead, other_device):
        found.append(batch)
        assert len(made) <= len(found) + AHEAD
    assert len(makers) == 2
    for one, other in zip(plain, found, strict=True):
        assert one.key == other.key
        assert one.ahead.tolist() == other.ahead.tolist() == one.points[:1].tolist()
        assert torch.equal(one.queries.ids, other.queries.ids)


def test_what_fails_ahead_fails_where_the_batch_is_asked_for(make_config, tokenizer, other_device):
    config = make_config()
    split = load_dataset(config, tokenizer).splits["trn"]

    def ahead(batch):
        if batch.key[-1] == 1:
            raise ValueError("my own bug")

    batches = ready_batches(training_batches(split, None, config, 0), ahead, other_device)
    assert next(batches).key[-1] == 0
    with pytest.raises(ValueError, match="my own bug"):
        next(batches)


def test_tensors_move_in_dataclasses_and_lists():
    texts = TextBatch.take(ragged([2, 3]), np.array([0, 1]))
    ahead = {"rows": (torch.ones(2), 3)}
    value = [texts, Batch(np.arange(2), None, None, texts, (0,), ahead=ahead)]
    seen = []

    def move(tensor):
        seen.append(tensor.numel())
        return tensor + 1

    first, batch = moved(value, move)
    assert first.ids.tolist() == (texts.ids + 1).tolist()
    assert batch.ahead["rows"][0].tolist() == [2, 2]
    assert batch.ahead["rows"][1] == 3
    assert seen == [5, 3, 5, 3, 2]


def ragged(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(np.arange(1, offsets[-1] + 1, dtype=np.uint16), offsets)


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 0, 1], [0, 0], [5]])
def test_padding_reaches_the_longest_text_and_no_further(lengths):
    rows = ragged(lengths)
    ids, mask = TextBatch.take(rows, np.arange(len(lengths))).padded(pad_id=0)
    assert ids.shape == mask.shape == (len(lengths), max(lengths))
    for i, n in enumerate(lengths):
        assert ids[i].tolist() == rows.ids[rows.offsets[i] : rows.offsets[i + 1]].tolist() + [0] * (
            max(lengths) - n
        )
        assert mask[i].tolist() == [1] * n + [0] * (max(lengths) - n)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_split_batches_hold_the_same_texts(size):
    batch = TextBatch.take(ragged([3, 0, 4, 1, 2]), np.array([4, 2, 0, 1, 3]))
    parts = batch.split(size)
    assert [len(p) for p in parts] == [
        len(c) for c in np.array_split(np.arange(5), range(size, 5, size))
    ]
    assert torch.cat([p.ids for p in parts]).tolist() == batch.ids.tolist()
    for part in parts:
        assert part.offsets.tolist() == [0, *np.cumsum(part.host_lengths)]
        assert part.longest == part.host_lengths.max()


def test_sequential_batches_are_sorted_by_length_and_complete():
    rows = np.array([0, 2, 3, 4])
    tokens = ragged([3, 9, 4, 1, 2])
    seen = list(sequential_batches(tokens, rows, 2))
    assert sorted(np.concatenate([p for p, _ in seen])) == [0, 1, 2, 3]
    assert [b.host_lengths.tolist() for _, b in seen] == [[4, 3], [2, 1]]


def test_token_document_counts_count_texts_not_occurrences(make_config, tokenizer):
    data = load_dataset(make_config(), tokenizer)
    counts, texts = data.token_document_counts(len(tokenizer))
    assert texts == 80
    assert counts[tokenizer.cls_token_id] == 80
    trn, labels = (
        (data.folder / "raw" / f"{n}.txt").read_text().splitlines() for n in ("trn_X", "Y")
    )
    word = tokenizer.convert_tokens_to_ids("kernel")
    assert counts[word] == sum("kernel" in t.split() for t in trn + labels)


# -------------------------------- files that are not what they seem


def _matrix_of(folder, name, kind, change):
    """The matrix of a file in another format, its raw arrays changed; scipy's own checks never see
    them."""
    matrix = getattr(sp, f"{kind}_matrix")(sp.load_npz(folder / f"{name}.npz"))
    names = {"coo": ("row", "col"), "dia": ("offsets",)}.get(kind, ("indices", "indptr"))
    arrays = {part: getattr(matrix, part).copy() for part in ("data", *names)}
    shape = change(arrays) or matrix.shape
    np.savez(folder / f"{name}.npz", format=kind.encode(), shape=shape, **arrays)


def _far(name):
    def change(arrays):
        arrays[name][-1] = 10**9

    return change


def _negative(name):
    def change(arrays):
        arrays[name] = -arrays[name] - 1

    return change


def _of_type(dtype):
    def change(arrays):
        arrays["data"] = arrays["data"].astype(np.int64).astype(dtype)

    return change


BROKEN = {
    **{
        f"{kind}, {name} far": (kind, _far(name))
        for kind in ("csr", "csc", "bsr")
        for name in ("indices", "indptr")
    },
    **{
        f"{kind}, {name} negative": (kind, _negative(name))
        for kind in ("csr", "csc", "bsr")
        for name in ("indices", "indptr")
    },
    **{f"coo, {name}": ("coo", _far(name)) for name in ("row", "col")},
    "dia, a far diagonal": ("dia", _far("offsets")),
    **{
        f"values of {dtype}": ("csr", _of_type(dtype))
        for dtype in ("S4", "U4", "M8[s]", "m8[s]", "c8")
    },
    "a huge shape": ("csc", lambda arrays: (2**60, 20)),
    "a shape below zero": ("csr", lambda arrays: (-60, 20)),
}


def test_broken_matrices_are_one_error_and_no_crash(tmp_path, make_config):
    """In a child: the pointers of these ended the process where scipy followed them."""
    config = make_config(data={"root": str(tmp_path / "sets"), "name": "tiny"})
    folder = write_dataset(tmp_path / "sets" / "tiny")

    def messages():
        found = []
        for name in ("Y.trn", "Y.tst"):
            good = (folder / f"{name}.npz").read_bytes()
            for case, (kind, change) in BROKEN.items():
                (folder / f"{name}.npz").write_bytes(good)
                _matrix_of(folder, name, kind, change)
                try:
                    load_dataset(config, None)
                    found.append(f"{case}: accepted")
                except InputError as error:
                    if not str(error).startswith(f"{folder / name}.npz: ") or "\n" in str(error):
                        found.append(f"{case}: {error}")
            (folder / f"{name}.npz").write_bytes(good)
        return found

    assert in_child(messages) == []


@pytest.mark.parametrize("kind", ["csc", "coo", "dia"])
def test_rows_are_counted_before_a_matrix_of_so_many_is_made(
    tmp_path, make_config, kind, monkeypatch
):
    """A header of a few bytes asks for 2^31 rows: pointers of 8 GB in a CSR."""
    config = make_config(data={"root": str(tmp_path / "sets"), "name": "tiny"})
    folder = write_dataset(tmp_path / "sets" / "tiny")
    _matrix_of(folder, "Y.tst", kind, lambda arrays: (2**31 - 1, 20))
    monkeypatch.setattr(
        "utils.data.relevance.read_matrix", lambda path, values: sp.load_npz(folder / "Y.trn.npz")
    )
    with pytest.raises(
        InputError, match=r"Y.tst.npz has 2,147,483,647 rows but .*tst_X.txt has 20 lines"
    ):
        load_dataset(config, None)


def in_child(work):
    """What `work` returns in a forked child; a child that a signal ends is seen."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0, "the child was ended by a signal"
    return json.loads(said)


@pytest.mark.parametrize(
    "name",
    ["X.trn.npz", "X.tst.npz", "Y.trn.npz", "raw/trn_X.txt", "raw/Y.txt", "filter_labels_test.txt"],
)
@pytest.mark.parametrize("kind", ["fifo", "loop", "device", "folder", "lost"])
def test_what_is_there_and_cannot_be_read_is_not_absent(tmp_path, make_config, name, kind):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path, "device": "/dev/zero", "lost": folder / "gone"}[kind])
    config = make_config(
        data={"root": str(folder.parent), "name": "tiny"}, method={"name": "xr-linear"}
    )
    with pytest.raises(InputError) as error:
        train.fit(config)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not config.run_folder.exists()


def test_small_integers_with_repeated_entries_keep_their_labels(tmp_path, make_config):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    whole = sp.load_npz(folder / "Y.trn.npz")
    for dtype, value in ((np.int8, 100), (np.uint8, 128)):  # twice: -56 and 0 in their own type
        twice = np.repeat(whole.indices, 2)
        sp.save_npz(
            folder / "Y.trn.npz",
            sp.csr_matrix(
                (np.full(len(twice), value, dtype), twice, whole.indptr * 2), whole.shape
            ),
        )
        data = load_dataset(make_config(data={"root": str(folder.parent), "name": "tiny"}), None)
        assert data.label_counts.tolist() == np.bincount(whole.indices, minlength=20).tolist()
        assert set(data.splits["trn"].relevance.data.tolist()) == {2.0 * value}


def test_a_number_of_labels_that_only_a_header_says(tmp_path, make_config):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    (folder / "raw" / "Y.txt").unlink()
    for split in ("trn", "tst"):
        matrix = sp.load_npz(folder / f"Y.{split}.npz")
        matrix.resize(matrix.shape[0], 2**31 - 1)
        sp.save_npz(folder / f"Y.{split}.npz", matrix)
    with pytest.raises(
        InputError, match=r"Y\.trn\.npz: expected a number of columns that its .* got 2,147,483,647"
    ):
        load_dataset(make_config(data={"root": str(folder.parent), "name": "tiny"}), None)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20, 1e300])
@pytest.mark.parametrize("split", ["trn", "tst"])
def test_features_that_no_tree_can_read_leave_no_run(tmp_path, make_config, split, value):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    for name, points in (("trn", 60), ("tst", 20)):
        matrix = sp.random(points, 30, 0.3, "csr", np.float64, random_state=1)
        if name == split:
            matrix.data[3] = value
        sp.save_npz(folder / f"X.{name}.npz", matrix)
    config = make_config(
        data={"root": str(folder.parent), "name": "tiny"}, method={"name": "xr-linear"}
    )
    with pytest.raises(
        InputError,
        match=rf"X\.{split}\.npz: expected a feature from -1e15 to 1e15, got .* at row 0",
    ):
        train.fit(config)
    assert not config.run_folder.exists()


def test_so_many_threads_that_none_would_start(caplog):
    most = distributed.THREADS_A_CORE * os.cpu_count()
    assert distributed.cpu_threads(1_000_000) == most
    assert f"run.threads is 1000000; {most} are used" in caplog.text
    assert distributed.cpu_threads(2) == 2
