"""TF-IDF features of a data set: those that it comes with, or built from its texts.

    python -m utils.features Datasets/LF-DebianTitles-small

What lies in the data set's folder is only read. What is built lies apart, in
<folder>/features/<key>/, the key a hash of the texts and of the rule by which they are cut into
terms: other texts have another key. Xf.txt holds the rule and `term <TAB> idf`, a line a column, so
that new texts get the same features. Terms are words and pairs of neighbours, or character n-grams
where most texts have no blanks (`--terms`), counted on the training texts; rows L2-normalised.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.config.config import DataConfig
from utils.errors import InputError
from utils.features.tfidf import (
    OLD_RULE,
    RULE_OF,
    TextFeatures,
    has_no_blanks,
    rule_of,
    vectorizer,
    vocabulary_lines,
)
from utils.files import written_whole
from utils.progress import followed
from utils.reading.input_files import check_file, present
from utils.reading.matrices import matrix_header, read_matrix
from utils.reading.matrix_checks import FEATURES, check_size_is_meant
from utils.sparse import normalised
from utils.text import TextLines, check_text_file, count_lines, iter_lines, lines_hash

log = logging.getLogger(__name__)
MIN_DOCUMENTS = 2  # that a term of a vocabulary occurs in, at the least
MAX_TERMS = 500_000  # of a vocabulary, at the most
SPLITS = ("trn", "tst")
TEXTS_LOOKED_AT = 2000  # for whether words are written without blanks
LETTERS_LOOKED_AT = 1000  # of each of them
ROWS_LOOKED_AT = 100  # for whether given features are those of the texts
VOCABULARY = "Xf.txt"


@dataclass(frozen=True)
class FeatureFiles:
    """Sparse features of a data set's splits."""

    data: Path  # the data set's folder
    folder: Path  # of X.{trn,tst}.npz and Xf.txt, as far as they are there

    @property
    def given(self) -> bool:
        """Did they come with the data?"""
        return self.folder == self.data

    @property
    def vocabulary(self) -> Path | None:
        """Xf.txt, if it is there."""
        path = self.folder / VOCABULARY
        return path if present(path) else None

    def path(self, split: str) -> Path:
        """Return where the matrix of a split lies, if it is there."""
        return self.folder / f"X.{split}.npz"

    def matrix(self, split: str) -> sp.csr_matrix:
        """Return X.trn or X.tst [N, F] float32, checked; made by Xf.txt where it is missing.

        Raises:
            InputError: as `require`, or the file is no finite matrix with a row for each point.
        """
        if present(self.path(split)):
            rows = matrix_header(self.path(split))[0]  # before a matrix of so many is made
            check_rows(rows, self.path(split), self.data, split)
            matrix = read_matrix(self.path(split), FEATURES)
            check_size_is_meant(matrix.shape[1], matrix.nnz, str(self.path(split)))
            return matrix
        return self._made_by(self.require(split), split)

    def _made_by(self, vocabulary: Path, split: str) -> sp.csr_matrix:
        log.info("%s: no such file; its features are computed by %s", self.path(split), vocabulary)
        return TextFeatures(vocabulary).of_lines(_texts(text_path(self.data, split)))

    def require(self, split: str) -> Path:
        """Return what a split's features are read from or made by: its matrix, or the vocabulary.

        Raises:
            InputError: there is neither, with what would help.
        """
        if present(self.path(split)):
            return self.path(split)
        other = next(name for name in SPLITS if name != split)
        texts = text_path(self.data, split)
        if not present(self.path(other)):
            raise InputError(
                f"{self.path(split)}: no such file; expected the features that came with the data "
                "set"
            )
        missing = (
            f"{self.path(split)}: no such file, but X.{other}.npz is there: expected both, or "
            f"Xf.txt of `term <TAB> idf` lines beside it and {texts}"
        )
        if present(texts):
            missing += "; `--data.features texts` builds both from the texts instead"
        if self.vocabulary is None or not present(texts):
            raise InputError(missing)
        try:
            TextFeatures(self.vocabulary)
        except InputError as error:
            raise InputError(f"{missing} ({error})") from None
        return self.vocabulary

    def training_matrix(self) -> sp.csr_matrix:
        """Return X.trn [N, F] alone, as `matrix`; logs it where texts were edited since."""
        matrix = self.matrix("trn")
        self.warn_if_edited(matrix)
        return matrix

    def check(self) -> sp.csr_matrix:
        """Return X.trn [N, F], where both splits can be had and have the same columns.

        Raises:
            InputError: as `matrix`, or the splits differ in their columns.
        """
        self.require("tst")
        matrix = self.matrix("trn")
        if self.given and present(self.path("tst")):
            columns = self.matrix("tst").shape[1]
            if columns != matrix.shape[1]:
                raise InputError(
                    f"{self.data}: X.trn.npz has {matrix.shape[1]:,} columns, X.tst.npz {columns:,}"
                )
        self.warn_if_edited(matrix)
        return matrix

    def warn_if_edited(self, matrix: sp.csr_matrix) -> None:
        """Log it where some rows of a given X.trn are not what Xf.txt makes of their texts."""
        texts = text_path(self.data, "trn")
        if not self.given or self.vocabulary is None or not texts.is_file():
            return
        try:
            features = TextFeatures(self.vocabulary)
        except InputError:  # lines of another form: nothing to compare with
            return
        rows = _spread(matrix.shape[0], ROWS_LOOKED_AT)
        lines = TextLines(texts)
        expected = features([lines[row] for row in rows.tolist()])
        if expected.shape[1] != matrix.shape[1]:
            raise InputError(
                f"{self.vocabulary} has {expected.shape[1]:,} terms, expected "
                f"{matrix.shape[1]:,}, one for each column of {self.path('trn')}"
            )
        difference = abs(normalised(matrix[rows]) - expected)
        wrong = rows[difference.max(axis=1).toarray().ravel() > 0.01]
        if len(wrong):
            log.warning(
                "%s: %d of %d rows looked at are not what %s makes of their texts, such as row "
                "%d: the texts may have been edited since; `--data.features texts` builds "
                "features from them",
                self.path("trn"),
                len(wrong),
                len(rows),
                VOCABULARY,
                wrong[0],
            )


def check_available(data: Path, settings: DataConfig) -> None:
    """Raise InputError unless both splits' features are given, or can be made or built.

    Nothing is read whole.
    """
    files = _given(data, settings)
    for split in SPLITS:
        if files is not None:
            files.require(split)
        else:
            check_file(text_path(data, split), "one text a line, UTF-8")


def _given(data: Path, settings: DataConfig) -> FeatureFiles | None:
    """The features that came with a data set, if it has some and they are wanted."""
    files = FeatureFiles(data, data)
    there = any(present(files.path(split)) for split in SPLITS)
    return files if there and settings.features == "given" else None


def find_features(data: Path, settings: DataConfig) -> FeatureFiles:
    """Return the features to train on: those given, or those built from the texts, now if need be.

    Raises:
        InputError: there are neither features nor texts, no text has a term, or nothing can be
            written there.
    """
    given = _given(data, settings)
    if given is not None:
        return given
    if present(data / VOCABULARY):
        log.info("%s is not used: features are built from the texts", data / VOCABULARY)
    return _built_now(data, settings, choose_rule(text_path(data, "trn"), settings.terms))


def grouping_features(data: Path, settings: DataConfig) -> sp.csr_matrix:
    """Return what similar training texts are grouped by [N, F].

    Words are those of the first rule: a better one must not hold out other points than in earlier
    runs.
    """
    files = _given(data, settings)
    if files is None:
        rule = choose_rule(text_path(data, "trn"), settings.terms)
        files = _built_now(data, settings, OLD_RULE if rule == RULE_OF["words"] else rule)
    return files.matrix("trn")


def _built_now(
    data: Path,
    settings: DataConfig,
    rule: str,
) -> FeatureFiles:
    """The features built by a rule from the texts as they are now, built if they are not there."""
    files = _built(data, settings, rule)
    if not files.folder.is_dir():
        _build(files, rule)
    return files


def features_by(
    vocabulary: Path,
    data: Path,
    settings: DataConfig,
    split: str,
) -> sp.csr_matrix:
    """Return features of a split [N, F] in the columns of a saved model's own Xf.txt.

    A matrix that is there is read if its vocabulary is the model's; else they are computed from the
    texts.

    Raises:
        InputError: there is neither such a matrix nor the texts.
    """
    candidates = [FeatureFiles(data, data)]
    texts = [present(text_path(data, name)) for name in SPLITS]
    if all(texts):
        candidates.append(_built(data, settings, rule_of(vocabulary)))
    for files in candidates:
        if files.vocabulary is None:
            continue
        same = filecmp.cmp(files.vocabulary, vocabulary, shallow=False)
        if same and present(files.path(split)):
            return files.matrix(split)
    if not present(text_path(data, split)):
        raise InputError(
            f"{text_path(data, split)}: no such file; expected it, or {data / f'X.{split}.npz'} "
            f"with the vocabulary that the model was trained on, {vocabulary}"
        )
    log.info("%s: features by the model's own vocabulary", text_path(data, split))
    return TextFeatures(vocabulary).of_lines(_texts(text_path(data, split)))


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of so many rows, spread evenly."""
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def text_path(data: Path, split: str) -> Path:
    """Return where the texts of a split's points lie, if it has some."""
    return data / "raw" / f"{split}_X.txt"


# -------------------------------- building


def choose_rule(texts: Path, terms: str) -> str:
    """Return the rule that `data.terms` asks for; `auto` looks at texts from all of the file."""
    if terms != "auto":
        return RULE_OF[terms]
    lines = TextLines(texts)
    rows = _spread(len(lines), TEXTS_LOOKED_AT)
    unspaced = sum(has_no_blanks(lines[row][:LETTERS_LOOKED_AT]) for row in rows.tolist())
    if 2 * unspaced <= len(rows):
        return RULE_OF["words"]
    log.info(
        "%s: %d of %d texts looked at have no blanks between words: their terms are character "
        "n-grams (data.terms: words for words)",
        texts,
        unspaced,
        len(rows),
    )
    return RULE_OF["characters"]


def _built(
    data: Path,
    settings: DataConfig,
    rule: str,
) -> FeatureFiles:
    """Where the features built by a rule from the texts as they are now lie, or will lie."""
    cache = Path(settings.feature_cache) if settings.feature_cache else data / "features"
    told = {
        "rule": rule,
        "min_documents": MIN_DOCUMENTS,
        "max_terms": MAX_TERMS,
        **{split: text_hash(text_path(data, split)) for split in SPLITS},
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return FeatureFiles(data, cache / key)


def text_hash(path: Path) -> str:
    """Return the hash of a text file's lines; InputError if there is no file."""
    check_text_file(path)
    state = path.stat()
    return _hash_once(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash_once(
    path: Path,
    size: int,
    changed: int,
) -> str:
    """The hash of a text file's lines, computed once a process while the file stays the same."""
    return lines_hash(path)


def _build(files: FeatureFiles, rule: str) -> None:
    """Write X.trn.npz, X.tst.npz and Xf.txt; texts are streamed, only the features are held.

    Features of earlier texts stay: a run may be reading them.
    """
    texts = {split: text_path(files.data, split) for split in SPLITS}
    documents = min(MIN_DOCUMENTS, count_lines(texts["trn"]))  # a set of one text keeps its words
    tfidf = vectorizer(rule, min_df=documents, max_features=MAX_TERMS)
    log.info("building TF-IDF features of %s in %s", files.data, files.folder)
    with _folder_made(files.folder) as partial:
        try:
            matrix = tfidf.fit_transform(_texts(texts["trn"]))
        except ValueError as error:
            if "vocabulary" not in str(error) and "no terms" not in str(error).lower():
                raise
            raise InputError(
                f"{texts['trn']}: no word occurs in {documents} texts, so there are no TF-IDF "
                "features"
            ) from None
        for split in SPLITS:
            if split == "tst":
                matrix = tfidf.transform(_texts(texts["tst"]))
            with written_whole(partial / f"X.{split}.npz") as file:
                sp.save_npz(file, matrix.tocsr())
        with written_whole(partial / VOCABULARY) as file, open(file, "w", encoding="utf-8") as out:
            out.writelines(vocabulary_lines(tfidf, rule))


def _texts(path: Path) -> Iterator[str]:
    """The lines of a text file, which are counted as they are read."""
    return followed(iter_lines(path), f"TF-IDF of {path.name}", "texts")


@contextlib.contextmanager
def _folder_made(path: Path) -> Iterator[Path]:
    """Give a folder to write to, renamed to `path` at the end and removed on an error.

    Of several processes the first counts.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot hold TF-IDF features ({error.strerror}); set "
            "data.feature_cache to a folder that can be written"
        ) from None
    try:
        yield partial
        try:
            os.rename(partial, path)
        except OSError:  # another process has made the same meanwhile
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# -------------------------------- reading


def check_rows(
    rows: int,
    path: Path,
    data: Path,
    split: str,
) -> None:
    """Raise InputError unless there is a row for each text.

    Or for each of the relevance, where a data set has features alone.
    """
    texts = text_path(data, split)
    if present(texts):
        expected = count_lines(texts)
        other = f"raw/{split}_X.txt has {expected:,} lines"
    else:
        expected = matrix_header(data / f"Y.{split}.npz")[0]
        other = f"Y.{split}.npz has {expected:,} rows"
    if rows != expected:
        raise InputError(f"{path} has {rows:,} rows but {other}")
