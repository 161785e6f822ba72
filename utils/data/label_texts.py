"""The labels' texts, raw/Y.txt, and what stands in for a label that has none.

That is its name in raw/Y_ids.txt, or its id. Two labels without text would look the same to an
encoder, and training on many such would learn nothing: up to a share of MOST_WITHOUT_TEXT is
logged, more are a problem for whatever reads label texts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.ragged import Ragged
from utils.reading.input_files import present
from utils.text import TextLines
from utils.tokenization_utils import Tokenizer, tokenize_texts

log = logging.getLogger(__name__)
MOST_WITHOUT_TEXT = 0.01
NO_TEXTS = "{}: no such file"


def label_text_path(folder: Path) -> Path:
    """Return where the texts of a data set's labels are, if it has any."""
    return folder / "raw" / "Y.txt"


def label_name_path(folder: Path) -> Path:
    """Return where the names of a data set's labels are, if they have own ones."""
    return folder / "raw" / "Y_ids.txt"


def numbered_labels(num_labels: int) -> list[str]:
    """Return what stands for the texts of labels that have none."""
    return [f"label {label}" for label in range(num_labels)]


def label_texts(folder: Path, num_labels: int) -> Sequence[str]:
    """Return the labels' texts by id.

    For one without text it is its name or id; `label 17` where the data set has none.

    Raises:
        InputError: raw/Y.txt has not one line a label.
    """
    path = label_text_path(folder)
    if not present(path):
        return numbered_labels(num_labels)
    lines = LabelTexts.of(folder)
    if len(lines) != num_labels:
        raise InputError(
            f"{path} has {len(lines):,} lines, expected one for each of {num_labels:,} labels; it "
            "is not the data set of this run"
        )
    return lines


class LabelTexts(TextLines):
    """Lines of a file of label texts; for an empty one what stands in for it.

    That is the label's name, or its id.

    Args:
        path: raw/Y.txt of a data set.
        names: file of the labels' names, which may be absent.
    """

    def __init__(self, path: Path, names: Path) -> None:
        super().__init__(path)
        self._name_path = names

    @classmethod
    def of(cls, folder: Path) -> LabelTexts:
        """Open those of a data set."""
        return cls(label_text_path(folder), label_name_path(folder))

    def __iter__(self) -> Iterator[str]:
        for label, text in enumerate(super().__iter__()):
            yield text if text.strip() else self.stand_in(label)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        text = super().__getitem__(index)
        return text if text.strip() else self.stand_in(range(len(self))[index])

    @cached_property
    def _names(self) -> Sequence[str]:
        return TextLines(self._name_path) if present(self._name_path) else ()

    def stand_in(self, label: int) -> str:
        """Return the name of a label, or its id."""
        name = self._names[label].strip() if len(self._names) == len(self) else ""
        return name or str(label)


def labels_without_text(folder: Path) -> np.ndarray:
    """Return the ids of the labels whose line of raw/Y.txt is blank."""
    with open(label_text_path(folder), "rb") as file:
        return np.array([label for label, line in enumerate(file) if not line.strip()], np.int64)


def label_text_problem(
    folder: Path,
    without: np.ndarray,
    num_labels: int,
) -> str:
    """Say why the labels' texts cannot be read where these labels have none, or nothing."""
    if len(without) <= MOST_WITHOUT_TEXT * num_labels:
        return ""
    return (
        f"{label_text_path(folder)}: {len(without):,} of {num_labels:,} labels have no text, e.g. "
        f"line {without[0] + 1}, expected at most {MOST_WITHOUT_TEXT:.0%}"
    )


def blank_text_problem(folder: Path, num_labels: int) -> str:
    """Say the same of blank lines, before anything is tokenised, or of a data set without texts."""
    path = label_text_path(folder)
    if not present(path):
        return NO_TEXTS.format(path)
    return label_text_problem(folder, labels_without_text(folder), num_labels)


def stand_ins(folder: Path, without: np.ndarray) -> str:
    """Say for the log what stands in for the texts of these labels; empty where there are none."""
    if not len(without):
        return ""
    texts = LabelTexts.of(folder)
    examples = ", ".join(
        f"label {label} as {texts.stand_in(label)!r}" for label in without[:5].tolist()
    )
    return (
        f"{texts.path}: {len(without)} of {len(texts):,} labels have no text, their name or id "
        f"stands in: {examples}"
    )


def with_stand_ins(
    folder: Path, tokens: Ragged, without: np.ndarray, tokenizer: Tokenizer
) -> Ragged:
    """Return tokens of the labels' texts; where these have none, those of their name or id."""
    texts = LabelTexts.of(folder)
    names = tokenize_texts([texts.stand_in(label) for label in without.tolist()], tokenizer)
    ids = tokenize_texts([str(label) for label in without.tolist()], tokenizer)
    wordless = np.flatnonzero(names.lengths <= tokenizer.num_special)
    return tokens.replaced(without, names.replaced(wordless, ids.rows(wordless)))
