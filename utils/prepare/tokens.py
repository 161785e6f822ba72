"""Token ids that other programs saved -> text lines, which every method can read.

Scripts of DEXA and NGAME leave {trn_doc,tst_doc,lbl}_{input_ids,attention_mask}.npy, [rows, length]
integers, padded. Their texts are decoded with the tokenizer that made them; that tokenizer gives
the same ids for the decoded text, which is checked for every row.
"""

from __future__ import annotations

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


def write_token_texts(
    source: Folder,
    writer: Writer,
    tokenizer: str,
) -> None:
    """Write raw/{trn_X,tst_X,Y}.txt from token ids, where the folder has some.

    Those of labels may be absent.
    """
    paths = {stem: _pair(source, prefix) for stem, prefix in STEMS.items()}
    if not any(paths.values()):
        return
    if not (paths["trn_X"] and paths["tst_X"]):
        raise InputError(
            f"{source.path}: expected token ids of both splits or of none, got those of one"
        )
    decoder = _Decoder(tokenizer)
    rows = {
        "trn_X": writer.matrices["Y.trn"].shape[0],
        "tst_X": writer.matrices["Y.tst"].shape[0],
        "Y": writer.matrices["Y.trn"].shape[1],
    }
    for stem, pair in paths.items():
        if pair:
            for text in decoder.texts(*pair, rows[stem]):
                writer.write(f"raw/{stem}.txt", text)
    log.info("%s: texts are made of token ids with tokenizer %s", source.path, tokenizer)


def _pair(source: Folder, prefix: str) -> tuple[Path, Path] | None:
    """The files of ids and of their mask."""
    names = (f"{prefix}_input_ids.npy", f"{prefix}_attention_mask.npy")
    paths = [path for path in map(source.find_optional, names) if path is not None]
    if len(paths) == 1:
        raise InputError(
            f"{source.path}: expected both of {' and '.join(names)}, got only {paths[0].name}"
        )
    return (paths[0], paths[1]) if paths else None


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
        shared = 0
        for first, second in zip(empty, letter, strict=False):
            if first != second:
                break
            shared += 1
        self.before = empty[:shared]  # [CLS]
        self.after = empty[shared:]  # [SEP]

    def texts(
        self,
        ids_path: Path,
        mask_path: Path,
        rows: int,
    ) -> Iterator[str]:
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
            texts = [self._decode(row) for row in tokens]
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

    def _decode(self, row: list[int]) -> str:
        inner = row[len(self.before) : len(row) - len(self.after)]
        return self.tokenizer.decode(inner, clean_up_tokenization_spaces=False)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts)["input_ids"]

    def _rows(
        self,
        path: Path,
        start: int,
        ids: np.ndarray,
        mask: np.ndarray,
    ) -> list[list[int]]:
        """The ids under the mask, row by row, checked."""
        size = len(self.tokenizer)
        tokens = [row[kept != 0].tolist() for row, kept in zip(ids, mask, strict=True)]
        for number, row in enumerate(tokens, start):
            if row and not (min(row) >= 0 and max(row) < size):
                raise InputError(
                    f"{path}: row {number}: expected ids from 0 to {size - 1}, those of tokenizer "
                    f"{self.name}, got {min(row)} to {max(row)}"
                )
            if not self._is_whole(row):
                raise InputError(
                    f"{path}: row {number}: expected ids between {self.before} and {self.after}, "
                    f"as tokenizer {self.name} makes them, got {row[:3]} ... {row[-2:]}; "
                    "--tokenizer names another"
                )
        return tokens

    def _is_whole(self, row: list[int]) -> bool:
        """Whether a row begins and ends as this tokenizer's rows do."""
        if len(row) < len(self.before) + len(self.after):
            return False
        ends = row[len(row) - len(self.after) :]
        return row[: len(self.before)] == self.before and ends == self.after


def _array(path: Path, rows: int) -> np.ndarray:
    """Integers [rows, length], mapped from disk."""
    from utils.reading.arrays import read_array

    array = read_array(path, mapped=True)
    if array.ndim != 2 or array.shape[0] != rows or array.dtype.kind not in "iub":
        raise InputError(
            f"{path}: expected integers of shape ({rows}, length), got {array.dtype} {array.shape}"
        )
    return array
