"""What is odd about texts and labels that were read without an error: one line of the log each."""

from __future__ import annotations

import logging
import unicodedata
from array import array
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)


def warn_of_texts(
    raw: Path,
    train: array,
    test: array,
    labels: csr_matrix,
) -> None:
    """Log empty texts, texts in several rows, and test texts that training has too.

    Args:
        raw: folder with trn_X.txt and tst_X.txt, for the examples.
        train, test: `hash(text)` of each row, empty where a data set has no texts; hash("") is 0.
        labels: CSR [N, L] of the training rows.
    """
    hashes = {"trn": np.frombuffer(train, np.int64), "tst": np.frombuffer(test, np.int64)}
    for split, of_split in hashes.items():
        if empty := np.flatnonzero(of_split == 0).tolist():
            log.warning(
                "%d of %d texts of %s_X.txt are empty, e.g. line %d",
                len(empty),
                len(of_split),
                split,
                empty[0] + 1,
            )
    _warn_of_repeated(raw, hashes["trn"], labels)
    shared = np.flatnonzero(np.isin(hashes["tst"], hashes["trn"]) & (hashes["tst"] != 0))
    if len(shared):
        log.warning(
            "%d of %d test texts stand among the training texts too, e.g. line %d of tst_X.txt: %r",
            len(shared),
            len(hashes["tst"]),
            shared[0] + 1,
            _line(raw / "tst_X.txt", shared[0]),
        )


def _warn_of_repeated(
    raw: Path,
    hashes: np.ndarray,
    labels: csr_matrix,
) -> None:
    """Log training texts in several rows whose labels differ, as a row per (text, label) has it."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    texts = hashes[order]
    as_before = (texts[1:] == texts[:-1]) & (texts[1:] != 0)
    again = np.flatnonzero(as_before).astype(np.int32)
    if not len(again):
        return
    of_labels = _label_hashes(labels)
    several = again[of_labels[order[again]] != of_labels[order[again + 1]]]
    if len(several):
        row = order[several].min()
        lines = np.flatnonzero(hashes == hashes[row]) + 1
        log.warning(
            "%d training texts come in several rows with other labels, e.g. lines %d and %d of "
            "trn_X.txt: %r; rows are not joined: where a row is one (text, label) pair, join "
            "them before",
            len(np.unique(texts[several])),
            lines[0],
            lines[1],
            _line(raw / "trn_X.txt", lines[0] - 1),
        )


def _label_hashes(labels: csr_matrix) -> np.ndarray:
    """One number for the set of labels of each row [N]: the sum of a random number a label."""
    numbers = np.random.default_rng(0).integers(1 << 62, size=labels.shape[1])
    sums = np.zeros(labels.shape[0], np.int64)
    for start in range(0, labels.shape[0], 1 << 16):  # in blocks: no second copy of all pairs
        ends = labels.indptr[start : start + (1 << 16) + 1]
        inside = labels.indices[ends[0] : ends[-1]]
        total = np.concatenate([[0], np.cumsum(numbers[inside])])  # may wrap around
        sums[start : start + (1 << 16)] = np.diff(total[ends - ends[0]])
    return sums


def _line(path: Path, row: int) -> str:
    with open(path, encoding="utf-8", newline="\n") as file:
        return next(islice(file, int(row), None)).rstrip("\n")[:60]


def folded(name: str) -> str:
    """Return `name` without what case and Unicode composition add."""
    if name.isascii():
        return name.casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def warn_of_names(ids: dict[str, int], texts: bool) -> None:
    """Log labels whose names differ by case or Unicode composition alone.

    They stay labels of their own. With `texts`, the names serve as the labels' texts: it is logged
    where all are numbers.
    """
    if texts and all(name.isdecimal() for name in ids):
        log.warning(
            "all %d names of labels are numbers, e.g. %r: as texts of labels they say nothing",
            len(set(ids.values())),
            next(iter(ids), ""),
        )
    numbers = np.fromiter(ids.values(), np.int64, len(ids))
    hashes = np.fromiter((hash(folded(name)) for name in ids), np.int64, len(ids))
    order = np.argsort(hashes, kind="stable")
    again = (hashes[order][1:] == hashes[order][:-1]) & (numbers[order][1:] != numbers[order][:-1])
    if not again.any():
        return
    several = np.unique(hashes[order][1:][again])  # a name may stand in `ids` as read and cleaned
    names = list(islice((name for name in ids if hash(folded(name)) == several[0]), 2))
    log.warning(
        "%d names of labels come in several spellings that differ by case or Unicode composition "
        "alone, e.g. %r and %r; each is a label of its own",
        len(several),
        *names,
    )
