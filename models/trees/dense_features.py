"""Dense columns of what linear trees read: embeddings of saved runs' encoders, and arrays made
elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator

from models.encoders.encoder import TextEncoder
from models.method import Method, encode_rows
from utils.config.config import Config
from utils.data.dataset import Split, token_cache
from utils.errors import InputError
from utils.features.files import check_rows, text_hash
from utils.reading.matrices import present, read_array
from utils.reading.matrix_limits import FEATURE_MAX
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file, tokenize_texts

ROWS_AT_ONCE = 1 << 14
PARTNERS = {"trn": "tst", "train": "test"}  # how a pair of files is told apart
_SPLIT_NAME = re.compile(r"(?<![A-Za-z])(trn|train|tst|test)(?![A-Za-z])")


class DenseSource(Protocol):
    """Dense features of points and of new texts. Attributes: dim, their columns D."""

    dim: int

    def of_points(
        self, split: Split, rows: np.ndarray, config: Config, accelerator: Accelerator
    ) -> np.ndarray:
        """Of rows of a split's files [n]: [n, D] float32 of unit length; a zero row stays zero."""

    def of_texts(self, texts: Sequence[str], accelerator: Accelerator) -> np.ndarray:
        """Of new texts: [n, D] float32."""

    def fingerprint(self, split: Split) -> str:
        """A hash of all that decides the features of a split's files."""


@dataclass(frozen=True)
class RunEncoder:
    """The encoder of a saved run and what its texts need."""

    encoder: TextEncoder
    config: Config

    @classmethod
    def of(cls, method: Method) -> RunEncoder:
        """Of a loaded run whose method has an encoder."""
        return cls(method.encoder.eval(), method.config)

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def tokenizer(self) -> Tokenizer:
        return self.encoder.point_tokenizer(self.config.data.max_len)

    def of_points(
        self, split: Split, rows: np.ndarray, config: Config, accelerator: Accelerator
    ) -> np.ndarray:
        return self._embed(
            tokenize_file(split.text_path, self.tokenizer, token_cache(config)), rows, accelerator
        )

    def of_texts(self, texts: Sequence[str], accelerator: Accelerator) -> np.ndarray:
        return self._embed(
            tokenize_texts(texts, self.tokenizer), np.arange(len(texts)), accelerator
        )

    def fingerprint(self, split: Split) -> str:
        """Of the weights, not of the embeddings, whose last digits depend on the machine."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{text_hash(split.text_path)} {self.tokenizer.fingerprint()}".encode())
        for tensor in self.encoder.state_dict().values():
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _embed(self, tokens: Ragged, rows: np.ndarray, accelerator: Accelerator) -> np.ndarray:
        out = np.empty((len(rows), self.encoder.dim), np.float32)
        size = self.config.eval.batch_size
        for positions, block in encode_rows(
            self.encoder.to(accelerator.device), tokens, rows, size, accelerator, "embed texts"
        ):
            out[positions] = torch.nn.functional.normalize(block, dim=1).cpu().numpy()
        return out


@dataclass(frozen=True)
class ArrayFiles:
    """A pair of .npy files, rows of training and of test points, as `method.features` names
    them."""

    name: str
    dim: int

    @classmethod
    def open(cls, name: str, data: Path) -> ArrayFiles:
        """The pair, both looked at.

        Raises:
            InputError: a file is missing or no matrix of real numbers up to FEATURE_MAX with a row
                for each point, or the two have different columns.
        """
        widths = {}
        for split in ("trn", "tst"):
            array = cls._mapped(name, data, split)
            widths[split] = array.shape[1]
            for start in range(0, len(array), ROWS_AT_ONCE):
                _check_features(
                    array[start : start + ROWS_AT_ONCE], start, array_pair(name, data)[split]
                )
        if widths["trn"] != widths["tst"]:
            raise InputError(
                f"method.features: {name}: the training points have {widths['trn']:,} columns, "
                f"the test points {widths['tst']:,}"
            )
        return cls(name, widths["trn"])

    @staticmethod
    def check(name: str, data: Path) -> dict[str, Path]:
        """The pair's files by split; InputError unless both are there."""
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
    def _mapped(cls, name: str, data: Path, split: str) -> np.ndarray:
        path = cls.check(name, data)[split]
        array = read_array(path, ndim=2, kinds="f", mapped=True)
        check_rows(len(array), path, data, split)
        return array

    def of_points(
        self, split: Split, rows: np.ndarray, config: Config, accelerator: Accelerator
    ) -> np.ndarray:
        array = self._mapped(self.name, split.folder, split.source)
        if array.shape[1] != self.dim:
            raise InputError(
                f"method.features: {self.name} has {array.shape[1]:,} columns, expected "
                f"{self.dim:,}, those that the model was trained on"
            )
        own = array[rows].astype(np.float32)
        return own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)

    def fingerprint(self, split: Split) -> str:
        array = self._mapped(self.name, split.folder, split.source)
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(array), ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(array[start : start + ROWS_AT_ONCE]))
        return digest.hexdigest()

    def of_texts(self, texts: Sequence[str], accelerator: Accelerator) -> np.ndarray:
        raise InputError(
            f"the model reads precomputed features, {self.name}, which new texts do not have: it "
            "can rank the points of the data set alone (eval.py)"
        )


def is_array_source(name: str, data: Path) -> bool:
    """Does a name of `method.features` mean .npy files, and no run?"""
    return name.endswith(".npy") or any(_arrays_in(place / name) for place in (Path(), data))


def array_pair(name: str, data: Path) -> dict[str, Path]:
    """The files that a name of `method.features` means, by split, whether they exist or not.

    The name is a file of the pair, such as X.trn.npy; both of them, X.{trn,tst}.npy or X.npy for
    short; or a folder that holds one pair. It is looked for in the working folder, then in the data
    set's.
    """
    pairs = [_pair(place / name) for place in (Path(), data)]
    return next((pair for pair in pairs if any(path.exists() for path in pair.values())), pairs[0])


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
    found = list(_SPLIT_NAME.finditer(name))
    if not found:
        return {split: path.with_name(f"{path.stem}.{split}.npy") for split in ("trn", "tst")}
    start, end = found[-1].span()
    first, second = next(pair for pair in PARTNERS.items() if found[-1].group() in pair)
    return {
        "trn": path.with_name(name[:start] + first + name[end:]),
        "tst": path.with_name(name[:start] + second + name[end:]),
    }


def _arrays_in(folder: Path) -> list[Path]:
    """The .npy files of a folder that is no run's."""
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return []
    return sorted(folder.glob("*.npy"))


def _check_features(block: np.ndarray, start: int, path: Path) -> None:
    largest = np.abs(block).max(axis=1, initial=0).astype(np.float64)  # NaN where a row has one
    bad = ~(largest <= FEATURE_MAX)
    if bad.any():
        raise InputError(
            f"{path}: row {start + int(np.argmax(bad))}: a feature is NaN, infinite or beyond "
            f"{FEATURE_MAX:g}"
        )
