"""Writing the folder of a data set: what all formats of utils/prepare/command.py share.

Memory holds no text: lines stream from input to output; label matrices grow in flat arrays, 8 bytes
a pair, and of a text stays a hash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from utils.errors import InputError
from utils.files import take_access
from utils.prepare.checks import warn_of_texts
from utils.prepare.folder import Folder
from utils.prepare.lines import check_index, clean, consume, lines
from utils.prepare.rows import matrix_hash
from utils.reading.input_files import FILTER_FILES, filter_pair

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)
SPLITS = {"trn": "train", "tst": "test"}  # as in Y.trn.npz, and in filter_labels_train.txt


class Writer:
    """Builds a data set in `<out>.partial-<pid>`.

    It is renamed to `out` by `finish`, removed on any error.

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
        self.out = Path(out).resolve()  # a link keeps pointing at the folder that is replaced
        self.partial = self.out.with_name(f"{self.out.name}.partial-{os.getpid()}")
        self.inputs = [Path(path).resolve() for path in inputs]
        self.matrices: dict[str, csr_matrix] = {}
        self.pairs_read: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        self._created: list[Path] = []  # folders above `out`
        self.read_from: dict[str, Path | None] = {}
        self.facts: dict[str, object] = {}  # more lines for stats.json
        self._text_hashes = {f"raw/{split}_X.txt": array("q") for split in SPLITS}

    def __enter__(self) -> Writer:
        self._check_out()
        self._created = [path for path in self.partial.parents if not path.exists()]
        if self.partial.exists():  # left by a killed process that had this process's number
            shutil.rmtree(self.partial)
        try:
            (self.partial / "raw").mkdir(parents=True)
        except BaseException:  # a signal too: the `with` that would clean up is not entered yet
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
            with contextlib.suppress(OSError):  # up to one that others have filled meanwhile
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
        """Write one more line of the text file `name`."""
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

    def copy_texts(
        self,
        path: Path,
        stem: str,
        rows: int,
        what: str,
        latin: bool = False,
    ) -> None:
        """Copy `path` to raw/<stem>.txt; it must have `rows` lines, one for each of `what`."""
        count = consume(path, lines(path, latin), lambda text: self.write(f"raw/{stem}.txt", text))
        if count != rows:
            raise InputError(f"{path}: expected {rows} lines, one for each {what}, got {count}")

    def put(
        self, name: str, matrix: csr_matrix, read: int | None = None, path: Path | None = None
    ) -> None:
        """Take the CSR of `<name>.npz`.

        Args:
            read: its pairs before repeated ones and zeros went.
            path: where it was read from.
        """
        self.matrices[name] = matrix
        self.pairs_read[name] = matrix.nnz if read is None else read
        self.read_from[name] = path

    def copy_filters(self, folder: Folder) -> None:
        """Copy filter_labels_{train,test}.txt, where present: pairs within the shape of Y.

        `filter_labels_text.txt`, so misspelt in a published manual, is the one of the test points.
        """
        for split, names in FILTER_FILES.items():
            if path := folder.find_optional(*names):
                name = names[0]
                shape = self.matrices[f"Y.{split}"].shape
                (self.partial / name).touch()  # an empty list stays an empty list
                consume(path, lines(path), partial(self._filter, name, shape), empty=True)

    def _filter(
        self,
        name: str,
        shape: tuple[int, int],
        line: str,
    ) -> None:
        row, label = filter_pair(line)
        check_index(row, shape[0], "a row")
        check_index(label, shape[1])
        self.write(name, f"{row} {label}")

    def finish(self, folder: Folder | None = None) -> Path:
        """Write matrices and stats.json, then rename; log what was not read of a folder.

        Returns:
            the output folder.
        """
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
        train, test = self._text_hashes.values()
        warn_of_texts(self.partial / "raw", train, test, self.matrices["Y.trn"])
        self._publish()
        if folder is not None and (unread := folder.unread()):
            log.warning(
                "%s: %d files were not read: %s", folder.path, len(unread), ", ".join(unread[:8])
            )
        return self.name

    def _stats(self) -> dict[str, object]:
        targets = {split: self.matrices[f"Y.{split}"] for split in SPLITS}
        labels = targets["trn"].shape[1]  # what the file says: nothing of that size is made here
        stats: dict[str, object] = {
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
