"""Labels by what they are called, so that those of two data sets can be told to be the same.

A label is called by its own name (raw/Y_ids.txt), where the data set has some, and by its text
(raw/Y.txt). Names count first: texts may be alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.data.label_texts import label_name_path, label_text_path
from utils.errors import InputError
from utils.reading.input_files import present
from utils.text import iter_lines

log = logging.getLogger(__name__)
UNKNOWN = -1
LONGEST_ID = 20  # digits: int() refuses thousands of them
SEVERAL = -2  # a name that more than one label has
SHOWN = 5  # names of a message


@dataclass(frozen=True)
class LabelNames:
    """What L labels are called.

    Attributes:
        count: L.
        names: their own names by id; None where they have none.
        texts: their texts by id; None where they have none.
    """

    count: int
    names: Sequence[str] | None = None
    texts: Sequence[str] | None = None

    @classmethod
    def read(
        cls,
        names: Path,
        texts: Path,
        count: int,
    ) -> LabelNames:
        """Read both files, each of which may be absent.

        Raises:
            InputError: one has not as many lines as there are labels.
        """
        return cls(count, _lines_of(names, count), _lines_of(texts, count))

    @classmethod
    def of_dataset(cls, folder: Path, count: int) -> LabelNames:
        """Read those of a data set of so many labels."""
        return cls.read(label_name_path(folder), label_text_path(folder), count)

    @cached_property
    def _ids_by_name(self) -> dict[str, int]:
        return _numbered(self.names)

    @cached_property
    def _ids_by_text(self) -> dict[str, int]:
        return _numbered(self.texts)

    def find(self, called: str) -> int:
        """Return the id of the label that is called so, by its name or its text; else UNKNOWN.

        Labels that have neither are called by their ids.

        Raises:
            InputError: several labels are called so.
        """
        if self.names is None and self.texts is None:
            is_number = called.isdecimal() and len(called) <= LONGEST_ID
            return int(called) if is_number and int(called) < self.count else UNKNOWN
        found = self._ids_by_name.get(called, UNKNOWN)
        if found < 0:
            found = self._ids_by_text.get(called, UNKNOWN)
        if found == SEVERAL:
            raise InputError(
                f"{called[:60]!r} is the text of several labels: give the label's own name, as in "
                "raw/Y_ids.txt"
            )
        return found

    def ids_in(self, known: LabelNames, where: str) -> np.ndarray:
        """Return the id of each of these labels among `known` ones, UNKNOWN for others [L] int64.

        Equal lists have equal ids. Otherwise labels are the same if they have the same name, or,
        where not both have names, the same text; those whose name or text is empty, or that of
        several labels, are UNKNOWN, and are warned of.

        Args:
            where: names these labels in messages.
        Raises:
            InputError: there is nothing to tell them by.
        """
        if self.count == known.count and self.names == known.names and self.texts == known.texts:
            return np.arange(self.count)
        if self.names is not None and known.names is not None:
            ours = self.names
            ids = known._ids_by_name
            mine = self._ids_by_name
        elif self.texts is not None and known.texts is not None:
            ours = self.texts
            ids = known._ids_by_text
            mine = self._ids_by_text
        else:
            raise InputError(
                f"{where}: {self.count:,} labels that cannot be told from the model's "
                f"{known.count:,}: expected names (raw/Y_ids.txt) or texts (raw/Y.txt) of both"
            )
        found = np.array([ids.get(called, UNKNOWN) for called in ours], np.int64)
        alike = np.array([mine.get(called) == SEVERAL for called in ours], bool)
        _warn_of_alike(where, ours, (found == SEVERAL) | (alike & (found >= 0)))
        return np.where(alike | (found < 0), UNKNOWN, found)


def _lines_of(path: Path, count: int) -> list[str] | None:
    """The lines of a file of names or texts, their ends stripped; None of one that is absent."""
    if not present(path):
        return None
    lines = [line.strip() for line in iter_lines(path)]
    if len(lines) != count:
        raise InputError(
            f"{path} has {len(lines):,} lines, expected one for each of {count:,} labels"
        )
    return lines


def _numbered(called: Sequence[str] | None) -> dict[str, int]:
    """Ids by name, SEVERAL for one that stands more than once; empty names are none."""
    ids: dict[str, int] = {}
    for number, name in enumerate(called or ()):
        if name:
            ids[name] = SEVERAL if name in ids else number
    return ids


def _warn_of_alike(
    where: str,
    called: Sequence[str],
    alike: np.ndarray,
) -> None:
    if alike.any():
        log.warning(
            "%s: %d labels have a name or text that others have too, e.g. %r, and are taken for "
            "unknown",
            where,
            int(alike.sum()),
            called[int(np.argmax(alike))][:60],
        )


def listed(names: Sequence[str]) -> str:
    """Return the first few names for a message."""
    shown = ", ".join(repr(name[:60]) for name in names[:SHOWN])
    return shown + (", …" if len(names) > SHOWN else "")
