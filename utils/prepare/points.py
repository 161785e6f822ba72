"""Files of points whose labels are names: what their formats share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import InputError
from utils.prepare.folder import existing
from utils.prepare.label_names import Labels
from utils.prepare.lines import consume
from utils.prepare.rows import Rows
from utils.prepare.writer import Writer


@dataclass(frozen=True)
class Source:
    """Files with named labels.

    Without `test`, a share `test_fraction` of the training file's points is split off, by `seed`.
    `labels` gives label texts, as JSON lines {"label": name, "text": ...} or as name<TAB>text (the
    first line decides: JSON begins with a brace). A label without text there has its name as text.
    """

    train: str | Path
    test: str | Path | None = None
    labels: str | Path | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise InputError(f"expected a test fraction between 0 and 1, got {self.test_fraction}")

    def files(self) -> list[Path]:
        """Return all files given; InputError if one is missing."""
        return [existing(path) for path in (self.train, self.test, self.labels) if path is not None]


class Point(NamedTuple):
    """A row of a user's table.

    Attributes:
        text: on one line.
        labels: (name, relevance) pairs; empty where they were not asked for.
        id: the row's own; None where it has none.
    """

    text: str
    labels: Sequence[tuple[str, float]] = ()
    id: str | int | None = None


@dataclass(frozen=True)
class PointReader:
    """How the files of one format are read.

    Attributes:
        kind: the format's name.
        items: path -> (line, item) pairs.
        parse: item -> its point.
        warn: says at the end what is odd about them.
    """

    kind: str
    items: Callable[[str | Path], Iterable[tuple[int, Any]]]
    parse: Callable[[Any], Point]
    warn: Callable[[], None] = lambda: None

    def points(self, path: str | Path) -> Iterator[Point]:
        """Yield the points of a file, or of standard input for `-`.

        Raises:
            InputError: naming the file, the line and what is wrong with it.
        """
        for number, item in self.items(path):
            try:
                point = self.parse(item)
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from error
            yield point
        self.warn()


def prepare_points(
    source: Source,
    out: str | Path,
    overwrite: bool,
    reader: PointReader,
) -> Path:
    """Write a data set from files of one format."""
    with Writer(out, reader.kind, source.files(), overwrite) as writer:
        labels = Labels(writer)
        rows = {"trn": Rows(max), "tst": Rows(max)}
        if source.labels is not None:
            labels.read(source.labels)

        def store(splits: Iterator[str], item: Any) -> None:
            point = reader.parse(item)
            split = next(splits)
            writer.write(f"raw/{split}_X.txt", point.text)
            if point.id is not None:
                writer.write(f"raw/{split}_ids.txt", str(point.id))
            ids = [labels.id(name) for name, _ in point.labels]
            rows[split].add(ids, [relevance for _, relevance in point.labels])

        if source.test is None:
            splits = split_off(source.test_fraction, source.seed)
            consume(source.train, reader.items(source.train), partial(store, splits))
        else:
            consume(source.train, reader.items(source.train), partial(store, repeat("trn")))
            consume(source.test, reader.items(source.test), partial(store, repeat("tst")))
        if not (len(rows["trn"]) and len(rows["tst"])):
            raise InputError(
                f"{source.train}: expected enough points for both splits at a test fraction of "
                f"{source.test_fraction}, got {len(rows['trn'])} + {len(rows['tst'])}"
            )
        for split, matrix in rows.items():
            writer.put(f"Y.{split}", matrix.csr(len(labels)), matrix.read)
        reader.warn()
        labels.warn()
        return writer.finish()


def split_off(fraction: float, seed: int) -> Iterator[str]:
    """Yield 'trn' or 'tst' for point after point, however many come.

    There is one random test point in each 1/fraction of them. Test point j falls uniformly into
    [j, j + 1) / fraction: N points give fraction * N, give or take one.
    """
    chance = random.Random(seed)
    position = 0
    for j in count():
        place = int((j + chance.random()) / fraction)
        chosen = max(position, place)  # never the place of the one before
        for _ in range(position, chosen):
            yield "trn"
        yield "tst"
        position = chosen + 1
