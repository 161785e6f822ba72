"""TF-IDF of texts, by nothing but numpy, scipy and scikit-learn: other systems are measured with it in environments of
their own (benchmarks/compare_worker.py)."""
from __future__ import annotations

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
    """TF-IDF of new texts in the columns of a data set's features; reads `term <TAB> idf` lines once."""

    def __init__(self, path: str | Path) -> None:
        lines = [line.rpartition("\t") for line in iter_lines(path)]
        try:
            idf = np.array([float(value) for _, _, value in lines], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}: expected `term <TAB> idf` in every line ({error})") from None
        self._vectorizer = vectorizer(vocabulary={term: i for i, (term, _, _) in enumerate(lines)})
        self._vectorizer.idf_ = idf

    def __call__(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Features [n, F] float32 of n texts; a text without known words has none."""
        return self._vectorizer.transform(texts).tocsr()
