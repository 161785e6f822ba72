"""Text files with one text a line, strict UTF-8: counted, indexed and read without being held."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.reading.input_files import check_file, present

_BLOCK = 1 << 24
_START = 1 << 16  # bytes that tell another format
OTHER_FORMATS = frozenset(
    ".csv .tsv .json .jsonl .ndjson .yaml .yml .xml .html .npz .npy .pt .pkl .pickle "
    ".safetensors .h5 .hdf5 .parquet .feather .arrow .gz .bz2 .xz .zst .zip .tar .tgz .xls .xlsx "
    ".ods .doc .docx .pdf .svm .libsvm".split()
)


def check_text_file(path: Path) -> None:
    """Raise InputError unless `path` is a non-empty file."""
    check_file(path, "one text a line, UTF-8")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (expected one text a line, UTF-8)")


def check_plain_text(path: Path) -> None:
    """Raise InputError for another format, by a file's name or by how it begins."""
    check_text_file(path)
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        start = file.read(_START)
    came = f"a {suffix} file by its name" if suffix in OTHER_FORMATS else other_format(start)
    if came:
        raise InputError(
            f"{path}: expected plain text, UTF-8, one text a line and no header; got {came}; "
            "write the texts alone into a .txt file"
        )


def other_format(start: bytes) -> str:
    """Say what text is that begins so, where it is no plain text; empty where it may be."""
    if b"\0" in start:
        return "bytes 0, as in binary files and UTF-16"
    return "JSON" if _is_json(start) else ""


def _is_json(start: bytes) -> bool:
    """Does a file begin with a JSON object, whole in its first line or opened in it?"""
    first = start.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0].strip()
    if first in (b"{", b"["):
        return True
    try:
        return isinstance(json.loads(first), (dict, list))
    except (ValueError, RecursionError):
        return False


def text_list(texts: Iterable[str], what: str) -> list[str]:
    """Texts as a list; a text alone is a list of one.

    Args:
        what: names the texts in a message.
    Raises:
        InputError: no texts, but bytes, numbers, a table, a mapping.
    """
    if isinstance(texts, str):
        return [texts]
    if (
        isinstance(texts, (bytes, Mapping))
        or getattr(texts, "ndim", 1) != 1
        or not isinstance(texts, Iterable)
    ):
        raise InputError(f"{what}: expected a list of texts, got {type(texts).__name__}")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(
                f"{what}: expected texts, got {text!r} ({type(text).__name__}) at place {number}"
            )
    check_unicode(listed, what)
    return listed


def check_unicode(texts: Sequence[str], what: str) -> None:
    """Raise InputError for a text that UTF-8 cannot hold: one with half of a surrogate pair."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise InputError(
                f"{what}: expected Unicode, got {text[:60]!r} at place {number}, which has a lone "
                f"surrogate, {half}, at its character {error.start + 1}: it was read from bytes "
                "that are not UTF-8, or cut inside a character"
            ) from None


def decode_line(
    raw: bytes,
    path: Path,
    number: int,
) -> str:
    """Bytes of line `number` (from 1) -> text without its line end.

    Raises:
        InputError: it is not UTF-8.
    """
    encoding = "utf-8-sig" if number == 1 else "utf-8"  # some editors begin with a mark
    try:
        return raw.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number} is not UTF-8 (byte {error.start + 1} of the line is "
            f"0x{raw[error.start]:02x}); convert the file to UTF-8"
        ) from None


def iter_lines(path: str | Path) -> Iterator[str]:
    """The lines of `path` in order.

    Only \\n ends a line: str.splitlines would also cut at U+2028 or form feeds.
    """
    path = Path(path)
    check_text_file(path)
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            yield decode_line(raw, path, number)


def line_offsets(path: str | Path) -> np.ndarray:
    """Byte offset of every line's start, plus the file's size: int64 [lines + 1]."""
    path = Path(path)
    starts = [np.zeros(1, np.int64)]
    position = 0
    check_text_file(path)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + position + 1)
            position += len(block)
    offsets = np.concatenate(starts)
    return offsets if offsets[-1] == position else np.append(offsets, position)


def count_lines(path: str | Path) -> int:
    """Number of lines; a last line without line end counts."""
    return len(line_offsets(path)) - 1


def lines_hash(path: str | Path) -> str:
    """Hash the lines of a text file.

    Other line ends, a lost last one or a byte order mark change nothing.
    """
    digest = hashlib.sha256()
    for line in _undecorated(Path(path)):
        digest.update(line + b"\n")
    return digest.hexdigest()[:16]


def byte_hashes(path: str | Path) -> set[str]:
    """Hash the bytes of a text file, for each way in which its lines can be written.

    Runs of before `lines_hash` recorded one of them.
    """
    marks = (b"", codecs.BOM_UTF8)
    ends = (b"\n", b"\r\n")
    digests = {way: hashlib.sha256(way[0]) for way in itertools.product(marks, ends)}
    hashes = set()
    line = b""
    for number, line in enumerate(_undecorated(Path(path))):
        for (_, end), digest in digests.items():
            digest.update(line if number == 0 else end + line)
    for (_, end), digest in digests.items():
        if line:  # an empty last line without an end would be none
            hashes.add(digest.hexdigest()[:16])
        digest.update(end)
        hashes.add(digest.hexdigest()[:16])
    return hashes


def _undecorated(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, without their ends and the first one's mark."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file):
            line = raw.rstrip(b"\r\n")
            yield line if number else line.removeprefix(codecs.BOM_UTF8)


class TextLines(Sequence[str]):
    """Random access to the lines of a file by number; holds 8 bytes a line, not the text."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offsets = line_offsets(self.path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[str]:
        """All lines in order, the file opened once."""
        return iter_lines(self.path)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        index = range(len(self))[index]
        start = int(self._offsets[index])
        stop = int(self._offsets[index + 1])
        with open(self.path, "rb") as file:
            file.seek(start)
            return decode_line(file.read(stop - start), self.path, index + 1)


def text_of(path: Path, rows: Sequence[int]) -> list[str]:
    """The lines `rows` of a file, or `point 17` where a data set has no texts."""
    if not present(path):
        return [f"point {row}" for row in rows]
    lines = TextLines(path)
    return [lines[row] for row in rows]
