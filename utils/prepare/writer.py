"""Reading lines and writing a data set folder: what all formats of utils/prepare/command.py share.

Memory holds no text: lines stream from input to output; label matrices grow in flat arrays, 8 bytes
a pair, and of a text stays a hash.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import logging
import operator
import os
import re
import shutil
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError
from utils.files import take_access
from utils.prepare.checks import warn_of_texts
from utils.prepare.folder import Folder, existing
from utils.progress import tqdm
from utils.reading.input_files import FILTER_FILES
from utils.reading.matrix_limits import FLOAT32_MAX
from utils.text import decode_line

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)
LONGEST_LINE = 1 << 26  # bytes: an endless line stops here, not where the memory ends
# short name in Y.trn.npz, long name in filter_labels_train.txt
SPLITS = {"trn": "train", "tst": "test"}
# Control characters, and the two separators of Unicode at which str.splitlines would cut a text.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def lines(path: str | Path, latin: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, line without end) of a UTF-8 file, gzipped or not, cut at \\n alone; shows
    progress.

    With `latin`, lines that are no UTF-8 are read as latin-1, as some published files need, and
    counted in the log.
    """
    path = existing(path)
    bad: list[str] = []  # lines that are no UTF-8: the first, and how many
    with (
        open(path, "rb") as raw,
        tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=path.name,
            disable=None,
            leave=False,
        ) as bar,
    ):
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18) if zipped else raw
        try:
            for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise InputError(
                        f"{path}:{number}: expected lines of at most {LONGEST_LINE:,} bytes, got "
                        "a longer one"
                    )
                try:
                    text = decode_line(line, path, number)
                except InputError:
                    if not latin or b"\0" in line:  # a zero byte: UTF-16, not latin-1
                        raise
                    text = line.rstrip(b"\r\n").decode("latin-1")
                    bad.append("" if bad else f"line {number}, {text[:60]!r}")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                if number % 4096 == 0:
                    bar.update(raw.tell() - bar.n)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected a whole gzip file, got: {error}") from error
    if bad:
        log.warning(
            "%s: %d lines are not UTF-8 and were read as latin-1, e.g. %s", path, len(bad), bad[0]
        )


def consume(
    path: str | Path, items: Iterable[tuple[int, object]], handle: Callable, empty: bool = False
) -> int:
    """Calls `handle(item)` for each (line, item) and counts; an InputError gains file and line."""
    count = 0
    for number, item in items:
        try:
            handle(item)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        count += 1
    if not count and not empty:
        raise InputError(f"{path}: expected at least one line of data, got an empty file")
    return count


def clean(text: str) -> str:
    """`text` on one line: control characters, with blanks around them, become one blank; ends
    stripped."""
    # isprintable is fast and spares most texts
    if not text.isprintable() and _BREAKS.search(text):
        text = " ".join(filter(None, (part.strip(" ") for part in _BREAKS.split(text))))
    return text.strip(" ")


def check_index(value: object, size: int, what: str = "a label index") -> None:
    """InputError unless `value` is an integer in [0, size)."""
    if type(value) is not int or not 0 <= value < size:  # a bool is an int to isinstance
        raise InputError(f"expected {what} in [0, {size}), got {value!r}")


def check_relevance(value: object) -> None:
    """InputError unless `value` is a number >= 0 that float32 can hold; NaN fails the
    comparison."""
    if type(value) not in (int, float) or not 0 <= value <= FLOAT32_MAX:
        raise InputError(f"expected a finite relevance >= 0, got {value!r}")


class Rows:
    """A sparse matrix [N, columns] that grows row by row in flat arrays.

    Args:
        merge: what becomes of two values of one column in a row. They add up, as in a scipy matrix;
            a label that is named twice is no more relevant than its largest value, so formats of
                names give `max`.
    """

    def __init__(self, merge: Callable[[float, float], float] = operator.add) -> None:
        self.merge = merge
        self.starts, self.columns, self.values = array("q", [0]), array("i"), array("f")
        self.read = 0  # pairs before repeated ones are merged

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, columns: list[int], values: list[float]) -> None:
        """One more row; values of a column that comes twice are merged."""
        self.read += len(columns)
        if len(set(columns)) != len(columns):
            merged: dict[int, float] = {}
            for column, value in zip(columns, values, strict=True):
                merged[column] = self.merge(merged[column], value) if column in merged else value
                if abs(merged[column]) > FLOAT32_MAX:
                    raise InputError(
                        f"expected values of index {column} that add up to a number of float32, "
                        f"got {merged[column]!r}"
                    )
            columns, values = list(merged), list(merged.values())
        self.columns.extend(columns)
        self.values.extend(values)
        self.starts.append(len(self.columns))

    def csr(self, width: int):
        """The rows as a canonical scipy CSR [N, width], float32, no explicit zeros; shares this
        memory."""
        from scipy import sparse

        matrix = sparse.csr_matrix(
            tuple(map(np.asarray, (self.values, self.columns, self.starts))),
            shape=(len(self), width),
        )
        matrix.sort_indices()
        matrix.eliminate_zeros()
        return matrix


class Writer:
    """Builds a data set in `<out>.partial-<pid>`, renamed to `out` by `finish`, removed on any
    error.

    with Writer(out, "jsonl", inputs=[path], overwrite=False) as writer:
        writer.write("raw/trn_X.txt", text)
        writer.put("Y.trn", matrix, pairs_read)
        return writer.finish()
    """

    def __init__(
        self, out: str | Path, source: str, inputs: Iterable[str | Path], overwrite: bool = False
    ) -> None:
        self.name = Path(out)
        self.source = source
        self.overwrite = overwrite
        # a link keeps pointing at the folder that is replaced
        self.out = Path(out).resolve()
        self.partial = self.out.with_name(f"{self.out.name}.partial-{os.getpid()}")
        self.inputs = [Path(path).resolve() for path in inputs]
        self.matrices = {}
        self.pairs_read = {}
        self._files = {}
        self._created = []
        self.read_from: dict[str, Path | None] = {}
        self.facts: dict[str, object] = {}  # more lines for stats.json
        self._text_hashes = {f"raw/{split}_X.txt": array("q") for split in SPLITS}

    def __enter__(self) -> Writer:
        self._check_out()
        self._created = [path for path in self.partial.parents if not path.exists()]
        # left by a killed process that had this process's number
        if self.partial.exists():
            shutil.rmtree(self.partial)
        try:
            (self.partial / "raw").mkdir(parents=True)
        # a signal too: the `with` that would clean up is not entered yet
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk would only fail once more
                file.close()
        if self.partial.exists():
            shutil.rmtree(self.partial)
            # innermost first, up to one that others have filled meanwhile
            with contextlib.suppress(OSError):
                for path in self._created:
                    path.rmdir()

    def _check_out(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.name}: expected a folder or nothing there, got a file")
        if Path.cwd().is_relative_to(self.out):
            raise InputError(
                f"{self.name}: expected a new folder, got the working folder or one above it"
            )
        for path in self.inputs:
            if path.is_relative_to(self.out):
                raise InputError(
                    f"{self.name}: expected an output folder beside the input, got one that holds "
                    f"{path}"
                )
        if not self.overwrite and self.out.exists() and any(self.out.iterdir()):
            raise InputError(
                f"{self.name}: expected a new or empty folder, got one with files; --overwrite "
                "replaces it"
            )

    def write(self, name: str, text: str) -> None:
        """One more line for the text file `name`."""
        if name not in self._files:
            self._files[name] = open(self.partial / name, "wb", buffering=1 << 16)  # noqa: SIM115
        line = clean(text)
        hashes = self._text_hashes.get(name)
        if hashes is not None:
            hashes.append(hash(line))
        try:
            self._files[name].write(line.encode() + b"\n")
        except UnicodeEncodeError as error:
            raise InputError(
                f"expected Unicode text, got the lone surrogate {error.object[error.start]!r}"
            ) from None

    def copy_texts(self, path: Path, stem: str, rows: int, what: str, latin: bool = False) -> None:
        """`path` to raw/<stem>.txt, which must have `rows` lines, one for each of `what`."""
        count = consume(path, lines(path, latin), lambda text: self.write(f"raw/{stem}.txt", text))
        if count != rows:
            raise InputError(f"{path}: expected {rows} lines, one for each {what}, got {count}")

    def put(
        self, name: str, matrix: csr_matrix, read: int | None = None, path: Path | None = None
    ) -> None:
        """The CSR of `<name>.npz`, read from `path`; `read` counts its pairs before repeated ones
        and zeros went."""
        self.matrices[name] = matrix
        self.pairs_read[name] = matrix.nnz if read is None else read
        self.read_from[name] = path

    def copy_filters(self, folder: Folder) -> None:
        """filter_labels_{train,test}.txt, where present: pairs 'row label' within the shape of Y.

        `filter_labels_text.txt`, so misspelt in a published manual, is the one of the test points.
        """
        for split, names in FILTER_FILES.items():
            if path := folder.find(*names, required=False):
                name = names[0]
                shape = self.matrices[f"Y.{split}"].shape
                (self.partial / name).touch()  # an empty list stays an empty list
                consume(path, lines(path), partial(self._filter, name, shape), empty=True)

    def _filter(self, name: str, shape: tuple[int, int], line: str) -> None:
        pair = line.split()
        if len(pair) != 2 or not all(number.isdecimal() for number in pair):
            raise InputError(f"expected 'row label', got {line[:80]!r}")
        row, label = map(int, pair)
        check_index(row, shape[0], "a row")
        check_index(label, shape[1])
        self.write(name, f"{row} {label}")

    def finish(self, folder: Folder | None = None) -> Path:
        """Matrices and stats.json, then the rename; names what was not read of a folder. Returns
        the output folder."""
        from scipy import sparse  # here: --help is instant

        if "raw/trn_X.txt" not in self._files and "X.trn" not in self.matrices:
            raise InputError(
                f"{self.source}: expected texts or features of the points, got neither"
            )
        if not self.matrices["Y.trn"].nnz:
            raise InputError(f"{self.source}: expected training points with labels, got none")
        for file in self._files.values():
            file.close()
        for name, matrix in self.matrices.items():
            sparse.save_npz(self.partial / f"{name}.npz", matrix)
        (self.partial / "stats.json").write_text(json.dumps(self._stats(), indent=1) + "\n")
        warn_of_texts(self.partial / "raw", *self._text_hashes.values(), self.matrices["Y.trn"])
        self._publish()
        if folder is not None and (unread := folder.unread()):
            log.warning(
                "%s: %d files were not read: %s", folder.path, len(unread), ", ".join(unread[:8])
            )
        return self.name

    def _stats(self) -> dict:
        targets = {split: self.matrices[f"Y.{split}"] for split in SPLITS}
        # what the file says: nothing of that size is made here
        labels = targets["trn"].shape[1]
        stats = {
            "format": self.source,
            "labels": labels,
            "labels_without_train_points": labels - len(np.unique(targets["trn"].indices)),
            **self.facts,
        }
        if "X.trn" in self.matrices:
            stats["features"] = self.matrices["X.trn"].shape[1]
        for split, long in SPLITS.items():
            matrix = targets[split]
            stats |= {
                f"{long}_points": matrix.shape[0],
                f"{long}_pairs": int(matrix.nnz),
                f"{long}_pairs_read": self.pairs_read[f"Y.{split}"],
                f"{long}_points_without_labels": int((np.diff(matrix.indptr) == 0).sum()),
                f"avg_labels_per_{long}_point": round(matrix.nnz / matrix.shape[0], 4),
                f"sha256_Y.{split}": matrix_hash(matrix),
            }
        return stats

    def _publish(self) -> None:
        self._check_out()  # another process may have filled it meanwhile
        if not self.out.exists():
            self.partial.rename(self.out)
            return
        take_access(self.partial, self.out)
        old = self.out.with_name(f"{self.out.name}.old-{os.getpid()}")
        self.out.rename(old)
        try:
            self.partial.rename(self.out)
        except OSError:
            old.rename(self.out)
            raise
        shutil.rmtree(old)


def matrix_hash(matrix) -> str:
    """sha256 of a canonical CSR: shape, indptr and indices as int64, data as float32, all little
    endian."""
    digest = hashlib.sha256(np.asarray(matrix.shape, "<i8").tobytes())
    for part, dtype in ((matrix.indptr, "<i8"), (matrix.indices, "<i8"), (matrix.data, "<f4")):
        # in blocks, as all of it in int64 would double memory
        for start in range(0, len(part), 1 << 20):
            digest.update(part[start : start + (1 << 20)].astype(dtype).tobytes())
    return digest.hexdigest()
