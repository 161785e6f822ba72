"""Token ids that other programs saved -> text lines, which every method can read.

Scripts of DEXA and NGAME leave {trn_doc,tst_doc,lbl}_{input_ids,attention_mask}.npy, [rows, length]
integers, padded. Their texts are decoded with the tokenizer that made them; that tokenizer gives
the same ids for the decoded text, which is checked for every row.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.prepare.folder import Folder
from utils.prepare.writer import Writer

log = logging.getLogger(__name__)
STEMS = {"trn_X": "trn_doc", "tst_X": "tst_doc", "Y": "lbl"}
ROWS_AT_ONCE = 4096


def write_token_texts(source: Folder, writer: Writer, tokenizer: str) -> None:
    """raw/{trn_X,tst_X,Y}.txt from token ids, where the folder has some; those of labels may be
    absent."""
    paths = {stem: _pair(source, prefix) for stem, prefix in STEMS.items()}
    if not any(paths.values()):
        return
    if not (paths["trn_X"] and paths["tst_X"]):
        raise InputError(
            f"{source.path}: expected token ids of both splits or of none, got those of one"
        )
    decoder = _Decoder(tokenizer)
    for stem, pair in paths.items():
        if pair:
            matrix = writer.matrices["Y.trn" if stem == "Y" else f"Y.{stem[:3]}"]
            rows = matrix.shape[1] if stem == "Y" else matrix.shape[0]
            for text in decoder.texts(*pair, rows):
                writer.write(f"raw/{stem}.txt", text)
    log.info("%s: texts are made of token ids with tokenizer %s", source.path, tokenizer)


def _pair(source: Folder, prefix: str) -> tuple[Path, Path] | None:
    """The files of ids and of their mask."""
    names = (f"{prefix}_input_ids.npy", f"{prefix}_attention_mask.npy")
    ids, mask = (source.find(name, required=False) for name in names)
    if (ids is None) != (mask is None):
        raise InputError(
            f"{source.path}: expected both of {' and '.join(names)}, got only {(ids or mask).name}"
        )
    return (ids, mask) if ids and mask else None


class _Decoder:
    """Rows of token ids -> texts."""

    def __init__(self, name: str) -> None:
        from utils.pretrained.location import load_tokenizer

        self.name = name
        try:
            self.tokenizer = load_tokenizer(name)
        except ValueError as error:
            raise InputError(f"--tokenizer {name}: {error}") from error
        empty = self._encode([""])[0]
        letter = self._encode(["a"])[0]
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(empty, letter, strict=False)
        )
        self.before = [first for first, _ in same]  # [CLS]
        self.after = empty[len(self.before) :]  # [SEP]

    def texts(self, ids_path: Path, mask_path: Path, rows: int) -> Iterator[str]:
        """The text of each row; InputError where the ids are not of this tokenizer."""
        ids = _array(ids_path, rows)
        mask = _array(mask_path, rows)
        if ids.shape != mask.shape:
            raise InputError(
                f"{mask_path}: expected shape {ids.shape}, that of {ids_path.name}, got "
                f"{mask.shape}"
            )
        changed: list[int] = []
        for start in range(0, rows, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            tokens = self._rows(ids_path, start, np.asarray(ids[part]), np.asarray(mask[part]))
            inner = [row[len(self.before) : len(row) - len(self.after)] for row in tokens]
            texts = [
                self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in inner
            ]
            again = self._encode(texts)
            changed += [start + i for i, row in enumerate(tokens) if again[i] != row]
            yield from texts
        if changed:
            log.warning(
                "%s: %d of %d rows have other ids when their text is tokenised again, e.g. row %d",
                ids_path,
                len(changed),
                rows,
                changed[0],
            )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts)["input_ids"]

    def _rows(self, path: Path, start: int, ids: np.ndarray, mask: np.ndarray) -> list[list[int]]:
        """The ids under the mask, row by row, checked."""
        size = len(self.tokenizer)
        tokens = [row[kept != 0].tolist() for row, kept in zip(ids, mask, strict=True)]
        for number, row in enumerate(tokens, start):
            if row and not (min(row) >= 0 and max(row) < size):
                raise InputError(
                    f"{path}: row {number}: expected ids from 0 to {size - 1}, those of tokenizer "
                    f"{self.name}, got {min(row)} to {max(row)}"
                )
            ends = row[len(row) - len(self.after) :]
            if (
                len(row) < len(self.before) + len(self.after)
                or row[: len(self.before)] != self.before
                or ends != self.after
            ):
                raise InputError(
                    f"{path}: row {number}: expected ids between {self.before} and {self.after}, "
                    f"as tokenizer {self.name} makes them, got {row[:3]} ... {row[-2:]}; "
                    "--tokenizer names another"
                )
        return tokens


def _array(path: Path, rows: int) -> np.ndarray:
    """Integers [rows, length], mapped from disk."""
    from utils.reading.matrices import read_array

    array = read_array(path, mapped=True)
    if array.ndim != 2 or array.shape[0] != rows or array.dtype.kind not in "iub":
        raise InputError(
            f"{path}: expected integers of shape ({rows}, length), got {array.dtype} {array.shape}"
        )
    return array
