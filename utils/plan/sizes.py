"""Sizes of a data set, said on the command line or read from headers alone: no text, no matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from utils.config.config import Config
from utils.data.dataset import check_dataset_folder
from utils.errors import InputError
from utils.reading.matrices import matrix_header
from utils.text import check_text_file

FIRST_BYTES = 16 << 20  # of a text file, whose lines stand for all
LARGEST_SIZE = 1e15
POSITIVES = 5  # labels of a point, of a data set that is not here


@dataclass(frozen=True)
class Texts:
    count: int
    tokens: int  # of all texts together
    longest: int
    file_bytes: int  # of the token file

    def of(self, texts: int) -> int:
        """Tokens of so many of them."""
        return ceil(texts * self.tokens / max(self.count, 1))


@dataclass(frozen=True)
class DataShape:
    """What a plan knows of a data set: entries of both relevance matrices, texts by file."""

    points: int
    labels: int
    entries: tuple[int, int]
    texts: dict[str, Texts]  # trn_X, tst_X, Y


@dataclass(frozen=True)
class Assumed:
    """What the command line says in place of what is here; None: what is here.

    Attributes:
        points, labels: of the training split.
        tokens: of a text of the training split on average, special tokens included.
        gpu: GiB of a card.
    """

    points: int | None = None
    labels: int | None = None
    tokens: float | None = None
    gpu: float | None = None

    def __post_init__(self) -> None:
        data = {"points": self.points, "labels": self.labels, "tokens": self.tokens}
        missing = [f"--{name}" for name, value in data.items() if value is None]
        if missing and len(missing) < len(data):
            raise InputError(
                "--points, --labels and --tokens stand for a data set that is not here and go "
                f"together; missing: {', '.join(missing)}"
            )
        for name, value in {**data, "gpu": self.gpu}.items():
            if value is not None and not 0 < value < LARGEST_SIZE:
                raise InputError(f"--{name}: expected a number above 0, got {value:g}")

    @property
    def described(self) -> str:
        """What was said, for the head of a plan; empty where nothing was."""
        said = []
        if self.points is not None:
            said.append(f"{self.points:,} points")
            said.append(f"{self.labels:,} labels")
            said.append(f"{self.tokens:g} tokens a text")
        if self.gpu is not None:
            said.append(f"GPUs of {self.gpu:g} GiB")
        return f" (as if of {', '.join(said)})" if said else ""

    def shape(self, config: Config) -> DataShape | None:
        """Return the data set that was said; None where none was.

        A text has at most `data.max_len` tokens, and some have as many. The test split has a fifth
        of the training points, a point POSITIVES labels, a label's text as many tokens as a point's
        (at most `data.label_max_len`).
        """
        if self.points is None or self.labels is None or self.tokens is None:
            return None
        test = max(self.points // 5, 1)
        data = config.data
        longest = {
            "trn_X": data.max_len,
            "tst_X": data.max_len,
            "Y": data.label_max_len or data.max_len,
        }
        counts = {"trn_X": self.points, "tst_X": test, "Y": self.labels}
        texts = {
            name: _even_texts(count, self.tokens, longest[name]) for name, count in counts.items()
        }
        entries = (self.points * POSITIVES, test * POSITIVES)
        return DataShape(self.points, self.labels, entries, texts)


def _even_texts(
    count: int,
    mean: float,
    longest: int,
) -> Texts:
    mean = min(mean, longest)
    return Texts(count, int(mean * count), longest, int((2 * mean + 8) * count))


def data_shape(config: Config) -> DataShape:
    """Read the shape of the data set that is here from headers and the first lines of texts.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    folder = config.dataset_folder
    check_dataset_folder(folder)
    data = config.data
    points, labels, entries = matrix_header(folder / "Y.trn.npz")
    test_points, _, test_entries = matrix_header(folder / "Y.tst.npz")
    cache = Path(data.token_cache) if data.token_cache else folder / "tokens"
    longest = {
        "trn_X": data.max_len,
        "tst_X": data.max_len,
        "Y": data.label_max_len or data.max_len,
    }
    texts: dict[str, Texts] = {}
    for name, count in {"trn_X": points, "tst_X": test_points, "Y": labels}.items():
        path = folder / "raw" / f"{name}.txt"
        if name == "Y" and not path.exists():  # labels need not have texts
            texts[name] = Texts(0, 0, 0, 0)
        else:
            texts[name] = text_sizes(path, count, longest[name], cache)
    return DataShape(points, labels, (entries, test_entries), texts)


def text_sizes(
    path: Path,
    count: int,
    max_len: int,
    cache: Path,
) -> Texts:
    """Sizes of a text file cut into tokens.

    From a token file of this text and length if there is one, else from the first lines at 4 bytes
    a token.
    """
    check_text_file(path)
    size = path.stat().st_size
    for description in sorted(cache.glob(f"{path.name}-*.json")):
        found = _of_token_file(description, count, max_len, size)
        if found is not None:
            return found
    with open(path, "rb") as file:
        ends = np.flatnonzero(np.frombuffer(file.read(FIRST_BYTES), np.uint8) == ord("\n"))
    tokens = np.array([max_len])
    if len(ends):
        tokens = np.minimum(np.diff(ends, prepend=-1) / 4 + 2, max_len)
    mean = float(tokens.mean())
    return Texts(count, int(mean * count), ceil(tokens.max()), int((2 * mean + 8) * count))


def _of_token_file(
    description: Path,
    count: int,
    max_len: int,
    size: int,
) -> Texts | None:
    """Sizes that a token file's description tells; None if it is of another text or length."""
    try:
        info = {"max_len": None, "stat": [None], **json.loads(description.read_text())}
    except (OSError, ValueError):  # half written or foreign: the run will make it anew
        return None
    offsets = description.with_name(description.stem + ".offsets.npy")
    if info["max_len"] != max_len or info["stat"][0] != size or not offsets.is_file():
        return None
    longest = int(np.diff(np.load(offsets, mmap_mode="r")).max(initial=1))
    ids = info["tokens"] * np.dtype(info["dtype"]).itemsize
    return Texts(count, info["tokens"], longest, ids + info["offsets_bytes"])
