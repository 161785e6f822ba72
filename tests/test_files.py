"""What is written replaces what a name stands for: links stay, devices are written to, modes are
kept."""

import os
import stat
import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import save_file

import train
from models.elias.graph import Graph
from utils.errors import InputError
from utils.files import (
    clear_folder,
    folder_written_whole,
    settled_folder,
    share_disk,
    size_of,
    write_json,
    write_text,
    written_whole,
)
from utils.prepare.command import main as prepare
from utils.run.folder import clear_run
from utils.tokenization_utils import Tokenizer, tokenize_file


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_links_stay_and_their_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.txt").write_text("old")
    (tmp_path / "one").symlink_to("far/real.txt")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "absent").symlink_to("far/new.txt")
    write_text(tmp_path / "two", "new")
    write_json(tmp_path / "absent", [1])
    assert (
        (tmp_path / "one").is_symlink()
        and (tmp_path / "two").is_symlink()
        and (tmp_path / "absent").is_symlink()
    )
    assert (tmp_path / "far" / "real.txt").read_text() == "new"
    assert (tmp_path / "far" / "new.txt").read_text() == "[\n 1\n]\n"
    with pytest.raises(OSError, match="disk"), written_whole(tmp_path / "two") as partial:
        partial.write_text("half")
        raise OSError("disk")
    assert (tmp_path / "one").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "far")) == ["new.txt", "real.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "mine.npz"
    path.write_text("old")
    path.chmod(mode)
    with written_whole(path) as partial:
        assert mode_of(partial) == mode  # from the first byte on
        sp.save_npz(partial, sp.eye(3, format="csr"))
    assert mode_of(path) == mode
    assert sp.load_npz(path).nnz == 3


def test_new_files_and_folders_follow_the_umask(tmp_path, umask):
    write_text(tmp_path / "text", "x")
    with written_whole(tmp_path / "weights.safetensors") as partial:
        save_file({"x": torch.ones(2)}, partial)
    with folder_written_whole(tmp_path / "model") as partial:
        (partial / "inner").mkdir()
        save_file({"x": torch.ones(2)}, partial / "a.safetensors")
        save_file({"x": torch.ones(2)}, partial / "inner" / "b.safetensors")
        np.save(partial / "c.npy", np.ones(2))
    files = [
        tmp_path / "text",
        tmp_path / "weights.safetensors",
        *(p for p in (tmp_path / "model").rglob("*") if p.is_file()),
    ]
    assert len(files) == 5
    assert {mode_of(path) for path in files} == {0o666 & ~umask}
    assert {mode_of(path) for path in (tmp_path / "model", tmp_path / "model" / "inner")} == {
        0o777 & ~umask
    }


def test_devices_and_pipes_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(tmp_path / "link", "through")
    reader.join()
    assert (
        read == ["through"]
        and stat.S_ISFIFO(pipe.stat().st_mode)
        and (tmp_path / "link").is_symlink()
    )
    (tmp_path / "null").symlink_to(os.devnull)
    before = os.stat(os.devnull)
    write_json(tmp_path / "null", {"a": 1})
    write_text(tmp_path / "null", "x")
    assert os.stat(os.devnull) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "null", "pipe"]


def test_a_folder_and_a_circle_of_links_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).symlink_to(other)
    with (
        pytest.raises(InputError, match="folder: is a folder, expected the name of a file"),
        written_whole(tmp_path / "folder"),
    ):
        pytest.fail("must not be entered")
    with pytest.raises(OSError, match="symbolic links"), written_whole(tmp_path / "a"):
        pytest.fail("must not be entered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "folder"]


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "disk" / "big").chmod(0o750)
    (tmp_path / "disk" / "big" / "x").write_text("one")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "disk" / "big")
    with folder_written_whole(tmp_path / "run" / "model") as partial:
        (partial / "x").write_text("two")
    assert (tmp_path / "run" / "model").is_symlink()
    assert (tmp_path / "disk" / "big" / "x").read_text() == "two"
    assert mode_of(tmp_path / "disk" / "big") == 0o750
    assert os.listdir(tmp_path / "run") == ["model"] and os.listdir(tmp_path / "disk") == ["big"]
    # it died between two renames
    (tmp_path / "disk" / "big").rename(tmp_path / "disk" / ".big.old")
    assert (settled_folder(tmp_path / "run" / "model") / "x").read_text() == "two"
    clear_folder(tmp_path / "run" / "model")
    assert (tmp_path / "run" / "model").is_symlink() and os.listdir(tmp_path / "disk" / "big") == []


def test_files_of_two_folders_keep_their_mode(tmp_path):
    """A fusion's members are second names of the files of their runs."""
    (tmp_path / "source").write_text("x")
    (tmp_path / "source").chmod(0o600)
    with folder_written_whole(tmp_path / "model") as partial:
        os.link(tmp_path / "source", partial / "source")
    assert mode_of(tmp_path / "source") == 0o600


def test_a_run_whose_parts_are_links(make_config, tmp_path):
    """Its folder and its model lie on other disks; all that it wrote is what the umask says."""
    before = os.umask(0o027)
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    config = make_config(train={"epochs": 1})
    try:
        folder = train.fit(config)
        (folder / "model").rename(tmp_path / "elsewhere")
        (folder / "model").symlink_to(tmp_path / "elsewhere")
        written = (tmp_path / "elsewhere" / "method.json").stat().st_ino
        train.fit(config, overwrite=True)
    finally:
        os.umask(before)
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "model").is_symlink()
    assert (tmp_path / "elsewhere" / "method.json").stat().st_ino != written
    files = [
        p
        for top in ("disk", "elsewhere")
        for p in (tmp_path / top).rglob("*")
        if not p.is_symlink()
    ]
    assert not [p for p in files if ".partial" in p.name or ".old" in p.name]
    assert {mode_of(p) for p in files if p.is_file()} == {0o640}
    clear_run(folder)
    assert os.listdir(tmp_path / "disk") == ["model"] and os.listdir(tmp_path / "elsewhere") == []


def test_writers_that_seek_or_name_their_files_write_to_pipes_and_plain_names(tmp_path):
    graph = Graph(np.array([[0, 1], [2, -1]]), np.ones((2, 2), np.float32), 3)
    graph.save(tmp_path / "plain")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    graph.save(pipe)
    reader.join()
    assert len(read[0]) == (tmp_path / "plain").stat().st_size
    assert np.array_equal(Graph.load(tmp_path / "plain", 3).labels, graph.labels)
    graph.save(os.devnull)
    assert sorted(os.listdir(tmp_path)) == ["pipe", "plain"]
    assert not os.path.exists("/dev/null.npz")


def test_token_files_may_be_links(tmp_path, tiny_root):
    for name in ("tokens", "store"):
        (tmp_path / name).mkdir()
    text = tmp_path / "x.txt"
    text.write_text("a b\nc\n")
    tokenizer = Tokenizer("minilm", 8)
    tokenize_file(text, tokenizer, tmp_path / "tokens")
    for file in list((tmp_path / "tokens").iterdir()):
        file.rename(tmp_path / "store" / file.name)
        file.symlink_to(tmp_path / "store" / file.name)
    text.write_text("a b\nc d e\nf\n")
    rows = tokenize_file(text, tokenizer, tmp_path / "tokens")
    assert len(rows) == 3
    assert (
        len(list((tmp_path / "tokens").iterdir())) == 3 == len(list((tmp_path / "store").iterdir()))
    )
    assert all(file.is_symlink() for file in (tmp_path / "tokens").iterdir())


def test_a_data_set_made_again_keeps_its_folders_mode(tmp_path):
    (tmp_path / "a.csv").write_text("text,labels\ncat meow,cats\ndog bark,dogs\n")
    source = str(tmp_path / "a.csv")
    words = [
        "csv",
        "--train",
        source,
        "--test",
        source,
        "--out",
        str(tmp_path / "mine"),
        "--overwrite",
    ]
    prepare(words)
    (tmp_path / "mine").chmod(0o700)
    prepare(words)
    assert mode_of(tmp_path / "mine") == 0o700


def test_files_of_equal_bytes_share_the_disk(tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for path, content in ((one, "a"), (two, "a"), (other, "b")):
        path.write_text(content)
        os.utime(path, (1, 1))
    share_disk(two, [tmp_path / "none", other, one])
    assert os.path.samefile(one, two) and size_of(tmp_path) == 2
    other.write_text("a")  # with the size and time that it had when it was another
    os.utime(other, (1, 1))
    share_disk(other, [one])
    assert os.path.samefile(one, other)
    two.unlink()
    two.write_text("c")
    os.utime(two, (1, 1))
    share_disk(two, [one])
    assert not os.path.samefile(one, two) and two.read_text() == "c"
