"""TF-IDF of texts, by nothing but numpy, scipy and scikit-learn: other systems are measured with it in environments of
their own (benchmarks/compare_worker.py)."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from utils.text import iter_lines

NGRAMS = (1, 2)


def vectorizer(**options) -> TfidfVectorizer:
    """1- and 2-grams of words, rows L2-normalised."""
    return TfidfVectorizer(ngram_range=NGRAMS, token_pattern=r"(?u)\b\w+\b", dtype=np.float32, **options)


class TextFeatures:
    """TF-IDF of new texts in the columns of a data set's features; reads `term <TAB> idf` lines once.

    The same as scikit-learn's transform, whose checks take longer than the work where there is one text.
    """

    def __init__(self, path: str | Path) -> None:
        lines = [line.rpartition("\t") for line in iter_lines(path)]
        try:
            self._idf = np.array([float(value) for _, _, value in lines], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}: expected `term <TAB> idf` in every line ({error})") from None
        self._columns = {term: i for i, (term, _, _) in enumerate(lines)}
        self._terms = vectorizer().build_analyzer()

    def __call__(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Features [n, F] float32 of n texts; a text without known words has none."""
        ends, columns, values = [0], [], []
        for text in texts:
            counts = Counter(self._columns[term] for term in self._terms(text) if term in self._columns)
            own = np.array(sorted(counts), np.int32)
            weights = np.array([counts[column] for column in own.tolist()], np.float32) * self._idf[own]
            columns.append(own)
            values.append(weights / max(float(np.linalg.norm(weights)), 1e-12))
            ends.append(ends[-1] + len(own))
        empty = np.empty(0, np.int32)
        return sp.csr_matrix((np.concatenate([empty.astype(np.float32), *values]), np.concatenate([empty, *columns]),
                              np.array(ends)), shape=(len(ends) - 1, len(self._idf)))
