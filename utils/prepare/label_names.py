"""Label names -> ids, and the file of label texts."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from pathlib import Path

from utils.errors import InputError
from utils.prepare.checks import warn_of_names
from utils.prepare.lines import clean, consume, lines
from utils.prepare.records import field, json_object
from utils.prepare.writer import Writer

log = logging.getLogger(__name__)


class Labels:
    """Label names -> ids by first appearance; writes raw/Y_ids.txt and raw/Y.txt as they come."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.ids: dict[str, int] = {}
        self.size = 0
        self.text_hashes = array("q")  # of the labels from a file: enough to tell two texts apart

    def __len__(self) -> int:
        return self.size

    def id(self, name: str) -> int:
        """Return the id of `name`, a new one if it is new.

        Names are compared on one line, as they are written.
        """
        known = self.ids.get(name)
        return self._id(name, None) if known is None else known

    def _id(self, raw: str, text: str | None) -> int:
        name = clean(raw)
        if not name:
            raise InputError(f"expected a label name, got {raw!r}")
        if name not in self.ids:
            self.writer.write("raw/Y_ids.txt", name)
            self.writer.write("raw/Y.txt", name if text is None else text)
            self.ids[name] = self.size
            self.size += 1
        return self.ids.setdefault(raw, self.ids[name])

    def warn(self) -> None:
        """Log names that differ by their spelling alone or are no texts, and empty texts."""
        if empty := self.text_hashes.count(0):  # hash("") is 0
            first = self.text_hashes.index(0)
            name = next(name for name, index in self.ids.items() if index == first)
            log.warning(
                "%d of %d labels have an empty text in the file of label texts, e.g. %r; methods "
                "that read label texts refuse more than 1%%",
                empty,
                self.size,
                name,
            )
        warn_of_names(self.ids, texts=not self.text_hashes)

    def read(self, path: str | Path) -> None:
        """Read the file of label texts; a name may come again with the same text only."""
        parse: list[Callable] = []

        def store(line: str) -> None:
            if not parse:
                parse.append(_json_label if line.lstrip().startswith("{") else _tab_label)
            name, text = parse[0](line)
            index = self._id(name, clean(text))
            if index == len(self.text_hashes):
                self.text_hashes.append(hash(clean(text)))
            elif self.text_hashes[index] != hash(clean(text)):
                raise InputError(
                    f"expected one text for each label, got another for {name!r}: {text[:60]!r}"
                )

        consume(path, lines(path), store)


def _json_label(line: str) -> tuple[str, str]:
    record = json_object(line)
    return field(record, "label", str), field(record, "text", str)


def _tab_label(line: str) -> tuple[str, str]:
    name, tab, text = line.partition("\t")
    if not tab:
        raise InputError(f"expected name<TAB>text, got {line[:60]!r}")
    return name, text
