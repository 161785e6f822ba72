import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.ragged import Ragged
from utils.text import TextLines, count_lines, iter_lines
from utils.tokenization_utils import Tokenizer, tokenize_file, tokenize_texts

ROOT = Path(__file__).parents[2]
TEXTS = ["a small text", "", "another one, with ünïcode", "x " * 100, "the last line"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("minilm", 12)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "raw" / "texts.txt"
    path.parent.mkdir()
    path.write_text("\n".join(TEXTS), encoding="utf-8")  # no line end at the end
    return path


def rows_of(ragged):
    return [
        ragged.ids[a:b].tolist()
        for a, b in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    ]


def test_rows_are_those_of_the_plain_tokenizer(text_file, tokenizer, tmp_path):
    expected = tokenizer.hf(TEXTS, truncation=True, max_length=12)["input_ids"]
    ragged = tokenize_file(text_file, tokenizer, tmp_path / "cache")
    assert rows_of(ragged) == expected
    assert ragged.ids.dtype == np.uint16
    assert rows_of(tokenize_texts(TEXTS, tokenizer)) == expected
    assert max(map(len, expected)) == 12


def test_take_gathers_any_rows_in_any_order(tokenizer):
    ragged = tokenize_texts(TEXTS, tokenizer)
    for rows in ([3, 0, 0, 4], [], [1], list(range(5))):
        ids, lengths = ragged.take(np.array(rows, int))
        expected = [rows_of(ragged)[r] for r in rows]
        assert np.split(ids, np.cumsum(lengths)[:-1])[0].tolist() == (
            expected[0] if expected else []
        )
        assert ids.tolist() == [i for row in expected for i in row]
        assert lengths.tolist() == [len(r) for r in expected]


def test_a_current_file_is_opened_not_made_again(text_file, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    tokenize_file(text_file, tokenizer, cache)
    made = {p.name: p.stat().st_mtime_ns for p in cache.iterdir()}
    assert len(made) == 3
    assert isinstance(tokenize_file(text_file, tokenizer, cache).ids, np.memmap)
    os.utime(text_file)  # another time, the same text
    tokenize_file(text_file, tokenizer, cache)
    assert {p.name: p.stat().st_mtime_ns for p in cache.iterdir()} == made


def test_another_text_or_length_or_a_damaged_file_is_made_again(text_file, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    tokenize_file(text_file, tokenizer, cache)
    same_size = text_file.read_bytes().replace(b"small", b"large")
    text_file.write_bytes(same_size)
    changed = tokenize_file(text_file, tokenizer, cache)
    assert rows_of(changed)[0] == tokenizer.hf("a large text")["input_ids"]
    assert max(map(len, rows_of(tokenize_file(text_file, Tokenizer("minilm", 5), cache)))) == 5
    before = rows_of(changed)
    ids = next(p for p in cache.glob("*.ids") if p.stat().st_size == changed.ids.nbytes)
    ids.write_bytes(ids.read_bytes()[:-2])
    assert rows_of(tokenize_file(text_file, tokenizer, cache)) == before


def test_two_lengths_may_share_one_tokenizer(tokenizer):
    short = Tokenizer(tokenizer.hf, 4)
    assert len(tokenizer(TEXTS[3:4])[0]) == 12
    assert len(short(TEXTS[3:4])[0]) == 4
    assert len(tokenizer(TEXTS[3:4])[0]) == 12
    assert short.fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"good\nbad \xff\xfe\n", "line 2 is not UTF-8"),
    ],
)
def test_bad_text_files_leave_nothing_behind(tmp_path, tokenizer, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tokenize_file(path, tokenizer, tmp_path / "cache")
    assert list(tmp_path.glob("cache/*")) == []
    with pytest.raises(ValueError, match="no such file"):
        tokenize_file(tmp_path / "none.txt", tokenizer, tmp_path / "cache")


def test_only_line_feeds_end_lines(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes("one\u2028still one\r\n\x0btwo\x0c\n\nfour".encode())
    lines = list(iter_lines(path))
    assert lines == ["one\u2028still one", "\x0btwo\x0c", "", "four"]
    assert count_lines(path) == 4
    access = TextLines(path)
    assert [access[i] for i in range(4)] == lines
    assert access[-1] == "four"
    with pytest.raises(IndexError):
        access[4]


def test_command(text_file):
    got = subprocess.run(
        [
            sys.executable,
            "utils/tokenization_utils.py",
            "--data-path",
            str(text_file),
            "--tf-max-len",
            "8",
            "--tf-token-type",
            "minilm",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "5 lines" in got.stdout
    assert len(list((text_file.parent.parent / "tokens").iterdir())) == 3


def test_command_says_what_was_tried_for_an_unknown_tokenizer(text_file, monkeypatch):
    got = subprocess.run(
        [
            sys.executable,
            "utils/tokenization_utils.py",
            "--data-path",
            str(text_file),
            "--tf-token-type",
            "no/such-model",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert got.returncode == 1
    assert got.stderr.splitlines()[-1].startswith(
        "error: encoder 'no/such-model' cannot be loaded: tried the folder"
    )
    assert "`minilm` and `bag` need no network" in got.stderr


def test_int32_where_the_vocabulary_is_large(tokenizer):
    class Large:
        backend_tokenizer = tokenizer.hf.backend_tokenizer
        truncation_side = "right"
        num_special_tokens_to_add = tokenizer.hf.num_special_tokens_to_add

        def __len__(self):
            return 70_000

    assert Tokenizer(Large(), 8).dtype is np.int32
    assert Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64)).take(np.array([], int))[0].size == 0
