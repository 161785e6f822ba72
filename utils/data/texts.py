"""Texts, whatever they are: points of a split, new texts of a user, labels.

    texts = split.texts[rows]                     # rows of a file, whose tokens lie on disk
    texts = ListTexts(["a new text"])
    embeddings = texts.embeddings(reader)         # [n, D]; a frozen reader's are made once

Nothing here is a collective: each process asks for what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from utils.config.config import DataConfig
from utils.errors import InputError
from utils.ragged import Ragged
from utils.reading.input_files import present
from utils.text import TextLines
from utils.tokenization_utils import Tokenizer, tokenize_file, tokenize_texts


class TextReader(Protocol):
    """What turns texts into embeddings (models/encoders/reader.py).

    Attributes:
        tokenizer: cuts texts into its tokens.
        key: equal for readers that give every text the same embedding; None while it may change.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def key(self) -> bytes | None: ...

    def encode(self, tokens: Ragged, rows: np.ndarray) -> Tensor:
        """Embeddings [n, D] of the texts at `rows` [n]."""


class Texts(ABC):
    """n texts, to be read as strings, as tokens, or as embeddings."""

    def __init__(self) -> None:
        self._kept: list[tuple[TextReader, Tensor]] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, rows: slice | np.ndarray) -> Texts:
        """Some of them, with embeddings of their own."""

    @abstractmethod
    def strings(self) -> Sequence[str]:
        """The texts themselves; "point 17" where the data has none."""

    @abstractmethod
    def tokens(self, tokenizer: Tokenizer) -> tuple[Ragged, np.ndarray]:
        """Token rows, and which of them [n] are those of these texts.

        Raises:
            InputError: the data has no texts.
        """

    def embeddings(self, reader: TextReader) -> Tensor:
        """Embeddings [n, D]; those of a frozen reader are remembered."""
        if reader.key is None:
            return reader.encode(*self.tokens(reader.tokenizer))
        for known, embeddings in self._kept:
            if known is reader or known.key == reader.key:
                return embeddings
        embeddings = reader.encode(*self.tokens(reader.tokenizer))
        self._kept.append((reader, embeddings))
        return embeddings


class ListTexts(Texts):
    """Texts in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, rows: slice | np.ndarray) -> ListTexts:
        return ListTexts([self._texts[row] for row in np.arange(len(self))[rows]])

    def strings(self) -> Sequence[str]:
        return self._texts

    def tokens(self, tokenizer: Tokenizer) -> tuple[Ragged, np.ndarray]:
        return tokenize_texts(self._texts, tokenizer), np.arange(len(self))


@dataclass
class TextFile:
    """The texts of a data set's points of one kind.

    Attributes:
        path: raw/trn_X.txt or raw/tst_X.txt; there may be none, where the data has features alone.
        settings: section `data` of the config, which says how the file is read.
        token_folder: where its tokens are kept.
    """

    path: Path
    settings: DataConfig
    token_folder: Path
    _tokens: dict[Tokenizer, Ragged] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Which points its lines are: trn or tst."""
        return self.path.stem.removesuffix("_X")

    @property
    def folder(self) -> Path:
        """The data set's folder."""
        return self.path.parent.parent

    def tokens(self, tokenizer: Tokenizer) -> Ragged:
        """Tokens of all its lines, mapped from disk; made on first use."""
        if tokenizer not in self._tokens:
            if not present(self.path):
                raise InputError(f"{self.path}: no such file; expected the points' texts")
            self._tokens[tokenizer] = tokenize_file(self.path, tokenizer, self.token_folder)
        return self._tokens[tokenizer]

    @cached_property
    def lines(self) -> TextLines | None:
        """The texts by line; None where the data set has none."""
        return TextLines(self.path) if present(self.path) else None


class FileTexts(Texts):
    """Lines of a data set's file.

    Args:
        file: of the points' texts.
        rows: its lines [n].
    """

    def __init__(self, file: TextFile, rows: np.ndarray) -> None:
        super().__init__()
        self.file = file
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray) -> FileTexts:
        return FileTexts(self.file, self.rows[rows])

    def strings(self) -> Sequence[str]:
        lines = self.file.lines
        if lines is None:
            return [f"point {row}" for row in self.rows]
        return [lines[row] for row in self.rows]

    def tokens(self, tokenizer: Tokenizer) -> tuple[Ragged, np.ndarray]:
        return self.file.tokens(tokenizer), self.rows
