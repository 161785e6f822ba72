"""Dense columns of what linear trees read: embeddings of saved runs' encoders, and arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from models.contract import Ranker
from models.encoders.building import load_encoder
from models.encoders.reader import Reader
from utils.config.config import Config, load_config, to_yaml
from utils.data.texts import FileTexts, TextFile, Texts
from utils.errors import InputError
from utils.features.files import check_rows, text_hash
from utils.files import write_json, write_text
from utils.reading.arrays import read_array
from utils.reading.input_files import present
from utils.reading.matrix_limits import FEATURE_MAX
from utils.reading.saved import read_facts
from utils.runtime import Runtime

ROWS_AT_ONCE = 1 << 14
PARTNERS = {"trn": "tst", "train": "test"}  # how a pair of files is told apart
_SPLIT_NAME = re.compile(r"(?<![A-Za-z])(trn|train|tst|test)(?![A-Za-z])")


class DenseSource(Protocol):
    """Dense features of texts."""

    @property
    def dim(self) -> int:
        """Columns D."""

    def readers(self) -> list[Reader]:
        """What embeds the texts; none where nothing does."""

    def of(self, texts: Texts) -> np.ndarray:
        """Features [n, D] float32, rows of unit length; a zero row stays zero."""

    def fingerprint(self, file: TextFile) -> str:
        """A hash of all that decides the features of a file's texts."""

    def save(self, folder: Path, number: int) -> None:
        """Write what `load_dense` needs: the source of this number."""


def load_dense(folder: Path, runtime: Runtime) -> list[DenseSource]:
    """Read the sources of a saved model, in the order of their columns."""
    sources: dict[int, DenseSource] = {}
    for path in folder.glob("encoder*"):
        sources[int(path.name.removeprefix("encoder"))] = RunEmbeddings.load(path, runtime)
    for path in folder.glob("arrays*.json"):
        told = read_facts(path, name=str, columns=int)
        sources[int(path.stem.removeprefix("arrays"))] = ArrayFiles(told["name"], told["columns"])
    return [sources[number] for number in sorted(sources)]


# -------------------------------- embeddings


@dataclass(frozen=True)
class RunEmbeddings:
    """Embeddings by the encoder of a saved run.

    Attributes:
        reader: frozen.
        config: of that run, which is saved beside the encoder.
    """

    reader: Reader
    config: Config

    @classmethod
    def of_ranker(cls, ranker: Ranker) -> RunEmbeddings:
        """Take the encoder of a loaded model, which `check_sources` has found to have one."""
        assert ranker.reader is not None, f"a {ranker.config.method.name} run without an encoder"
        return cls(ranker.reader, ranker.config)

    @property
    def dim(self) -> int:
        return self.reader.dim

    def readers(self) -> list[Reader]:
        return [self.reader]

    def of(self, texts: Texts) -> np.ndarray:
        return torch.nn.functional.normalize(texts.embeddings(self.reader), dim=1).cpu().numpy()

    def fingerprint(self, file: TextFile) -> str:
        """Hash the weights, not the embeddings, whose last digits depend on the machine."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{text_hash(file.path)} {self.reader.tokenizer.fingerprint()}".encode())
        for tensor in self.reader.encoder.state_dict().values():
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: Path, number: int) -> None:
        to = folder / f"encoder{number}"
        to.mkdir()
        self.reader.encoder.save(to)
        write_text(to / "config.yaml", to_yaml(self.config))

    @classmethod
    def load(cls, folder: Path, runtime: Runtime) -> RunEmbeddings:
        """Read what `save` wrote; no code beside the encoder is trusted."""
        config = load_config(folder / "config.yaml")
        settings = dataclasses.replace(config.encoder, trust_remote_code=False)
        return cls(Reader.frozen(load_encoder(settings, folder), config, runtime), config)


# -------------------------------- arrays


@dataclass(frozen=True)
class ArrayFiles:
    """A pair of .npy files that `method.features` names: rows of training and of test points."""

    name: str
    dim: int

    @classmethod
    def open(cls, name: str, data: Path) -> ArrayFiles:
        """Open the pair and look at all of both.

        Raises:
            InputError: a file is missing or no matrix of real numbers up to FEATURE_MAX with a row
                for each point, or the two have different columns.
        """
        widths = {}
        for split in ("trn", "tst"):
            array = cls._mapped(name, data, split)
            widths[split] = array.shape[1]
            path = array_pair(name, data)[split]
            for start in range(0, len(array), ROWS_AT_ONCE):
                _check_features(array[start : start + ROWS_AT_ONCE], start, path)
        if widths["trn"] != widths["tst"]:
            raise InputError(
                f"method.features: {name}: the training points have {widths['trn']:,} columns, "
                f"the test points {widths['tst']:,}"
            )
        return cls(name, widths["trn"])

    @staticmethod
    def check(name: str, data: Path) -> dict[str, Path]:
        """Find the pair's files by split; InputError unless both are there."""
        pair = array_pair(name, data)
        for path in pair.values():
            if not present(path):
                raise InputError(
                    f"method.features: {name}: {path} does not exist; expected two .npy files, of "
                    "training and of test points, such as X.trn.npy and X.tst.npy, in the "
                    "working folder or that of the data set"
                )
        return pair

    @classmethod
    def _mapped(
        cls,
        name: str,
        data: Path,
        split: str,
    ) -> np.ndarray:
        path = cls.check(name, data)[split]
        array = read_array(path, ndim=2, kinds="f", mapped=True)
        check_rows(len(array), path, data, split)
        return array

    def readers(self) -> list[Reader]:
        return []

    def of(self, texts: Texts) -> np.ndarray:
        """Take the texts' rows of the array of their split.

        Raises:
            InputError: new texts, or arrays of another width than in training.
        """
        if not isinstance(texts, FileTexts):
            raise InputError(
                f"the model reads precomputed features, {self.name}, which new texts do not have: "
                "it can rank the points of the data set alone (eval.py)"
            )
        array = self._mapped(self.name, texts.file.folder, texts.file.source)
        if array.shape[1] != self.dim:
            raise InputError(
                f"method.features: {self.name} has {array.shape[1]:,} columns, expected "
                f"{self.dim:,}, those that the model was trained on"
            )
        rows = array[texts.rows].astype(np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def fingerprint(self, file: TextFile) -> str:
        array = self._mapped(self.name, file.folder, file.source)
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(array), ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(array[start : start + ROWS_AT_ONCE]).data)
        return digest.hexdigest()

    def save(self, folder: Path, number: int) -> None:
        """Write the pair's name; the arrays stay where they are."""
        told = {"name": self.name, "columns": self.dim}
        write_json(folder / f"arrays{number}.json", told)


def is_array_source(name: str, data: Path) -> bool:
    """Does a name of `method.features` mean .npy files, and no run?"""
    return name.endswith(".npy") or any(_arrays_in(place / name) for place in (Path(), data))


def array_pair(name: str, data: Path) -> dict[str, Path]:
    """Name the files that a name of `method.features` means, by split, whether they exist or not.

    The name is a file of the pair, such as X.trn.npy; both of them, X.{trn,tst}.npy or X.npy for
    short; or a folder that holds one pair. It is looked for in the working folder, then in the data
    set's.
    """
    here = _pair(Path() / name)
    for pair in (here, _pair(data / name)):
        if any(path.exists() for path in pair.values()):
            return pair
    return here


def _pair(path: Path) -> dict[str, Path]:
    if inside := _arrays_in(path):
        pairs = {tuple(_pair(file).values()) for file in inside}
        if len(pairs) > 1:
            raise InputError(
                f"method.features: {path} holds {', '.join(file.name for file in inside)}: "
                "expected one pair, such as X.trn.npy and X.tst.npy; name one of its files"
            )
        return dict(zip(("trn", "tst"), pairs.pop(), strict=True))
    name = path.name
    if "{trn,tst}" in name:
        return {split: path.with_name(name.replace("{trn,tst}", split)) for split in ("trn", "tst")}
    splits = list(_SPLIT_NAME.finditer(name))
    if not splits:
        return {split: path.with_name(f"{path.stem}.{split}.npy") for split in ("trn", "tst")}
    start, end = splits[-1].span()
    first, second = next(pair for pair in PARTNERS.items() if splits[-1].group() in pair)
    return {
        "trn": path.with_name(name[:start] + first + name[end:]),
        "tst": path.with_name(name[:start] + second + name[end:]),
    }


def _arrays_in(folder: Path) -> list[Path]:
    """The .npy files of a folder that is no run's."""
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return []
    return sorted(folder.glob("*.npy"))


def _check_features(
    block: np.ndarray,
    start: int,
    path: Path,
) -> None:
    largest = np.abs(block).max(axis=1, initial=0).astype(np.float64)  # NaN where a row has one
    bad = ~(largest <= FEATURE_MAX)
    if bad.any():
        raise InputError(
            f"{path}: row {start + int(np.argmax(bad))}: a feature is NaN, infinite or beyond "
            f"{FEATURE_MAX:g}"
        )
