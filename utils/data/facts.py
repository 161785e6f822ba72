"""What a data set is, as far as its sizes go: what choices for it are made by.

facts = DataFacts.read(config)
facts.token_lengths("trn_X", "minilm")      # of a sample of the texts, special tokens included
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.config.config import Config
from utils.data.label_texts import blank_text_problem
from utils.data.sizes import training_counts
from utils.reading.input_files import present
from utils.text import TextLines
from utils.tokenization_utils import Tokenizer

SAMPLE = 20_000  # texts that stand for all of a file
FEW_LINES = 2000
LONGEST = 100_000  # tokens that a text is counted up to


@dataclass(frozen=True)
class DataFacts:
    """Sizes of a data set, and a look into its texts.

    Attributes:
        folder: where it lies; None of one that is not here.
        points: training points that have a label, those held out for validation among them.
        labels: L.
        pairs: of a training point and a label of it.
        has_texts: whether its points have texts.
        has_label_texts: whether its labels have texts that an encoder can read.
        assumed_tokens: of a text on average, where there is no folder.
    """

    folder: Path | None
    points: int
    labels: int
    pairs: int
    has_texts: bool = True
    has_label_texts: bool = True
    assumed_tokens: float = 0.0

    @classmethod
    def read(cls, config: Config) -> DataFacts:
        """Read those of the data set of a config from headers and row pointers.

        Raises:
            InputError: there is no such data set, or its Y.trn.npz is missing or damaged.
        """
        folder = config.dataset_folder
        found = training_counts(folder)
        return cls(
            folder,
            found.points,
            found.labels,
            found.pairs,
            present(folder / "raw" / "trn_X.txt"),
            not blank_text_problem(folder, found.labels),
        )

    def token_lengths(
        self,
        name: str,
        source: str,
        prompt: str = "",
        trust_remote_code: bool = False,
    ) -> np.ndarray:
        """Count the tokens of a sample of a text file, special ones and the prompt's included [n].

        Args:
            name: trn_X, tst_X or Y.
            source: of the tokenizer.
        """
        if self.folder is None:
            # of texts that nobody has seen: few are three times as long as their mean
            return np.array([self.assumed_tokens, 3 * self.assumed_tokens], np.int64)
        path = self.folder / "raw" / f"{name}.txt"
        stat = path.stat()
        version = (path, stat.st_size, stat.st_mtime_ns)
        return _token_lengths(version, source, prompt, trust_remote_code)

    def unknown_share(self, source: str) -> float:
        """Count the share of a sample's tokens that a tokenizer has no word for, of the texts'."""
        if self.folder is None or not self.has_texts:
            return 0.0
        tokenizer = Tokenizer(source, LONGEST)
        ids, _ = tokenizer(sample_lines(self.folder / "raw" / "trn_X.txt", FEW_LINES))
        unknown = tokenizer.hf.unk_token_id
        return 0.0 if unknown is None or not len(ids) else float((ids == unknown).mean())


def sample_lines(path: Path, most: int = SAMPLE) -> list[str]:
    """Take lines of a text file at even distances, all of a short one."""
    lines = TextLines(path)
    rows = np.unique(np.linspace(0, len(lines) - 1, min(most, len(lines))).astype(np.int64))
    return [lines[row] for row in rows.tolist()]


@functools.lru_cache(maxsize=16)
def _token_lengths(
    version: tuple[Path, int, int],
    source: str,
    prompt: str,
    trust_remote_code: bool,
) -> np.ndarray:
    """Lengths of a sample of a file, which is known by its path, size and time."""
    tokenizer = Tokenizer(source, LONGEST, trust_remote_code, prompt)
    _, lengths = tokenizer(sample_lines(version[0]))
    return lengths
