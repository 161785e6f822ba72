"""Labels by their texts: search for words in them, and ids of exact texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class LabelSearch:
    """The label texts of a model.

    A search walks through all texts, which lie end to end in one string: of a million labels it
    takes a few tenths of a second, and no index.

    Args:
        texts: by id.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        folded = [_folded(text) for text in texts]
        self._joined = "\n".join([*folded, ""])
        ends = np.cumsum([len(text) + 1 for text in folded])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._ids: dict[str, int] = {}  # the lowest of each text
        self._others: dict[str, list[int]] = {}  # of texts that stand twice
        for label, text in enumerate(texts):
            if self._ids.setdefault(text, label) != label:
                self._others.setdefault(text, []).append(label)

    def __len__(self) -> int:
        return len(self.texts)

    def named(self, text: str) -> list[int]:
        """Ids of the labels of exactly this text; [] where there are none."""
        if text not in self._ids:
            return []
        return [self._ids[text], *self._others.get(text, [])]

    def find(
        self,
        query: str,
        offset: int,
        limit: int,
    ) -> tuple[int, list[int]]:
        """Search for labels whose text has all words of a query, whatever their case.

        Returns:
            how many there are, and the ids of `limit` of them from place `offset`, by id
        """
        words = sorted(_folded(query).split(), key=len, reverse=True)
        if not words:
            return len(self), list(range(len(self)))[offset : offset + limit]
        total = 0
        ids: list[int] = []
        for label in self._with(words):
            if offset <= total < offset + limit:
                ids.append(label)
            total += 1
        return total, ids

    def _with(self, words: Sequence[str]) -> Iterator[int]:
        """Ids of the labels with all of some words, by id."""
        first, *others = words
        at = self._joined.find(first)
        while at >= 0:
            label = int(np.searchsorted(self._starts, at, side="right")) - 1
            start, end = int(self._starts[label]), int(self._starts[label + 1])
            if all(self._joined.find(word, start, end) >= 0 for word in others):
                yield label
            at = self._joined.find(first, end)


def _folded(text: str) -> str:
    """A text as it is searched in: one line, without case."""
    return text.casefold().replace("\n", " ")
