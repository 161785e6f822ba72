"""TF-IDF of texts, by nothing but numpy, scipy and scikit-learn.

Other systems are measured with it in environments of their own (benchmarks/compare_worker.py).

A rule says which terms a text has. The first line of Xf.txt names the rule by which its terms were
counted, so that new texts are read by the same one, whatever later versions do.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from utils.errors import InputError
from utils.text import iter_lines

HEADER = "# terms: "
CHARACTERS = (1, 2, 3)  # lengths of character n-grams
TEXTS_AT_ONCE = 8192

# A word with what tells c++, c#, f# and a+ from c, f and a; not the plus of a+b, the hash of no#12.
_SUFFIX = r"(?:\+\+|[+#](?!\w))?"
_DOT_NET = r"(?<![\w.])\.net\b"
_ASCII_WORD = re.compile(rf"\w+{_SUFFIX}|{_DOT_NET}")
_OLD_WORD = re.compile(r"\w+")
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
)
_UNSPACED_LETTER = re.compile(rf"[{_UNSPACED}]")
_BLANK_BETWEEN = re.compile(rf"(?<=[{_UNSPACED}])\s+(?=[{_UNSPACED}])")
LONGEST_WORD = 4  # unspaced letters between two blanks, on average: more is a phrase


@functools.cache
def _any_word() -> re.Pattern[str]:
    """Words that keep their combining marks and joiners, and emoji with what modifies them.

    `\\w` has no marks: it would cut Hindi, Telugu, Bangla, pointed Arabic and Hebrew inside words.
    """
    points = itertools.chain(range(0x300, 0x1F000), range(0xE0100, 0xE01F0))
    marks = "".join(
        chr(point) for point in points if unicodedata.category(chr(point)).startswith("M")
    )
    word = rf"\w+(?:(?=[^\x00-\u02ff])(?:[{marks}]\w*|[\u200c\u200d]+\w+))*{_SUFFIX}"
    emoji = "[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
    modified = rf"{emoji}[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
    flag = "[\U0001f1e6-\U0001f1ff]{2}"
    return re.compile(rf"{word}|{_DOT_NET}|{flag}|{modified}(?:\u200d{modified})*")


def _words(text: str) -> list[str]:
    """The words and emoji of a text in lower case, composed and decomposed letters alike."""
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    text = unicodedata.normalize("NFC", text)
    text = text.replace("\ufe0f", "")  # an emoji with or without its colour
    return _any_word().findall(text)


def _with_pairs(words: list[str]) -> list[str]:
    return words + [f"{one} {two}" for one, two in itertools.pairwise(words)]


def _word_pairs(text: str) -> list[str]:
    """Words, and pairs of neighbours."""
    return _with_pairs(_words(text))


def _old_word_pairs(text: str) -> list[str]:
    """Words without their marks, and pairs of neighbours.

    Xf.txt without a first line of its own was made by this rule.
    """
    return _with_pairs(_OLD_WORD.findall(text.lower()))


def _character_ngrams(text: str) -> list[str]:
    """Words, and the character n-grams inside them."""
    terms = []
    for word in _words(text):
        for length in CHARACTERS:
            terms += [word[start : start + length] for start in range(len(word) - length + 1)]
        if len(word) > max(CHARACTERS):
            terms.append(word)
    return terms


OLD_RULE = "words-1"
RULES: dict[str, Callable[[str], list[str]]] = {
    OLD_RULE: _old_word_pairs,
    "words-2": _word_pairs,
    "characters-1": _character_ngrams,
}
RULE_OF = {"words": "words-2", "characters": "characters-1"}  # what data.terms stands for today


def has_no_blanks(text: str) -> bool:
    """Whether most of a text is in a script without blanks between words, and has none.

    Such are Chinese, Japanese, Thai, Lao, Khmer and Burmese.
    """
    if text.isascii():
        return False
    letters = len(_UNSPACED_LETTER.findall(text))
    parts = 1 + len(_BLANK_BETWEEN.findall(text))
    if 2 * letters <= sum(map(len, _words(text))):
        return False
    return parts == 1 or letters > LONGEST_WORD * parts


def vectorizer(rule: str, **options: Any) -> TfidfVectorizer:
    """Return scikit-learn's TF-IDF by one of RULES, rows L2-normalised."""
    return TfidfVectorizer(analyzer=RULES[rule], dtype=np.float32, **options)


def vocabulary_lines(tfidf: TfidfVectorizer, rule: str) -> Iterator[str]:
    """Yield the lines of Xf.txt: the rule, then `term <TAB> idf` of each column."""
    yield f"{HEADER}{rule}\n"
    for term, idf in zip(tfidf.get_feature_names_out(), tfidf.idf_, strict=True):
        yield f"{term}\t{idf:.9g}\n"


def rule_of(path: str | Path) -> str:
    """Return the rule that the first line of Xf.txt names, the old one where it names none.

    Raises:
        InputError: it is not known.
    """
    first = next(iter_lines(path))
    if "\t" in first or not first.startswith(HEADER):
        return OLD_RULE
    rule = first.removeprefix(HEADER)
    if rule not in RULES:
        raise InputError(
            f"{path}: its terms are of the rule '{rule}', expected one of {', '.join(RULES)}; it "
            "was written by another version"
        )
    return rule


class TextFeatures:
    """TF-IDF of new texts in the columns of a data set's features; reads Xf.txt once.

    The same as scikit-learn's transform, whose checks take longer than the work where there is one
    text.

    Raises:
        InputError: Xf.txt is not of `term <TAB> idf` lines, or names a rule that is not known.
    """

    def __init__(self, path: str | Path) -> None:
        rule = rule_of(path)
        self._terms = RULES[rule]
        pairs = [line.rpartition("\t") for line in iter_lines(path) if line != f"{HEADER}{rule}"]
        try:
            self._idf = np.array([float(value) for _, _, value in pairs], np.float32)
        except ValueError as error:
            raise InputError(f"{path}: expected `term <TAB> idf` in every line ({error})") from None
        if not np.isfinite(self._idf).all():
            term, _, _ = pairs[int(np.argmin(np.isfinite(self._idf)))]
            raise InputError(f"{path}: the idf of '{term}' is not finite")
        self._columns = {term: column for column, (term, _, _) in enumerate(pairs)}

    def __call__(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Return features [n, F] float32 of n texts; a text without known words has none."""
        ends = [0]
        columns = [np.empty(0, np.int32)]
        values = [np.empty(0, np.float32)]
        for text in texts:
            known = [self._columns[term] for term in self._terms(text) if term in self._columns]
            counts = Counter(known)
            ids = np.array(sorted(counts), np.int32)
            frequencies = np.array([counts[column] for column in ids.tolist()], np.float32)
            weights = frequencies * self._idf[ids]
            columns.append(ids)
            values.append(weights / max(float(np.linalg.norm(weights)), 1e-12))
            ends.append(ends[-1] + len(ids))
        parts = (np.concatenate(values), np.concatenate(columns), np.array(ends))
        return sp.csr_matrix(parts, shape=(len(ends) - 1, len(self._idf)))

    def of_lines(self, lines: Iterable[str]) -> sp.csr_matrix:
        """Return features [n, F] float32 of the lines of a text file, which are streamed."""
        lines = iter(lines)
        parts = []
        while chunk := list(itertools.islice(lines, TEXTS_AT_ONCE)):
            parts.append(self(chunk))
        return sp.vstack(parts, format="csr")
