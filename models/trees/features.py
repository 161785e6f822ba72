"""What linear trees read: TF-IDF of the texts, embeddings of saved runs' encoders, and dense
arrays, side by side.

`method.features` lists them: `tfidf`, run folders, `start`, the model of `run.start_from` or of the
stage before, and pairs of .npy files (models/trees/dense_features.py).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from accelerate import Accelerator

from models.encoders.encoder import load_encoder
from models.loading import load_method
from models.method import Method
from models.trees.dense_features import ArrayFiles, DenseSource, RunEncoder, is_array_source
from utils import distributed
from utils.config.config import Config, ConfigError, EncoderConfig, load_config, to_yaml
from utils.data.dataset import Split
from utils.errors import InputError
from utils.features.files import (
    VOCABULARY,
    FeatureFiles,
    check_available,
    features_by,
    find_features,
)
from utils.features.tfidf import TextFeatures
from utils.files import write_json, write_text
from utils.linear.layer import Features
from utils.reading.saved import check_finite, read_facts
from utils.run.finding import find_run
from utils.run.stages import Runs
from utils.sparse import normalised


def check_sources(config: Config, runs: Runs) -> None:
    """Refuse a `method.features` that cannot be read; nothing is built.

    Raises:
        ConfigError: it names nothing, something twice, or a run that has no encoder.
        InputError: files that training or evaluation will need are missing.
    """
    names = config.method.features
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"method.features is {list(names)}: expected one source or more, none of them twice"
        )
    data = config.dataset_folder
    for name in names:
        if name == "tfidf":
            check_available(data, config.data)
        elif name != "start" and is_array_source(name, data):
            ArrayFiles.check(name, data)
        else:
            _check_run(name, config, runs)


def _check_run(name: str, config: Config, runs: Runs) -> None:
    """ConfigError unless a name is that of a run with an encoder."""
    if name == "start" and not config.run.start_from:
        raise ConfigError(
            "method.features names `start`, but there is no run.start_from and no stage before "
            "this one"
        )
    if name != "start" and name not in runs:
        raise ConfigError(
            f"method.features: expected tfidf, start, a run folder or a .npy file, got '{name}'"
        )
    source = runs.start(config) if name == "start" else runs.config(name)
    if not source.method.has_encoder:
        raise ConfigError(
            f"method.features: {name}: a run of method {source.method.name} has no encoder whose "
            "embeddings could be features"
        )


class TreeFeatures:
    """Features of a data set's splits and of new texts.

    Attributes: columns, the columns of the TF-IDF part (0 without it); dense, in the order of their
    columns.
    """

    def __init__(
        self, config: Config, columns: int, vocabulary: Path | None, dense: Sequence[DenseSource]
    ) -> None:
        self.columns = columns
        self.dense = list(dense)
        self._config = config
        self._vocabulary = vocabulary  # None: X.{trn,tst}.npz were given without
        self._texts: TextFeatures | None = None
        # read last: of which data set and split
        self._matrix: tuple[Path, str, sp.csr_matrix] | None = None

    @classmethod
    def build(cls, names: Sequence[str], config: Config, start: Method | None) -> TreeFeatures:
        """The sources that `method.features` names, which `check_sources` has looked at; every
        process calls it.

        Args:
            start: the model of `run.start_from`.
        """
        data = config.dataset_folder
        dense = [_dense_source(name, data, start) for name in names if name != "tfidf"]
        if "tfidf" not in names:
            return cls(config, 0, None, dense)
        with distributed.main_first():
            files = find_features(data, config.data)
        matrix = files.check()
        features = cls(config, matrix.shape[1], files.vocabulary, dense)
        features._matrix = data, "trn", normalised(matrix)
        return features

    @property
    def shape(self) -> tuple[int, int]:
        return self.columns, sum(source.dim for source in self.dense)

    def of_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Features:
        """Features of points of a split [n]."""
        rows = split.rows[points]
        if self.columns:
            sparse = self._of_split(split.folder, split.source)[rows]
        else:
            sparse = sp.csr_matrix((len(rows), 0), dtype=np.float32)
        return _join(
            sparse,
            [source.of_points(split, rows, self._config, accelerator) for source in self.dense],
        )

    def of_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Features:
        """Features of new texts.

        Raises:
            InputError: the data set came with features but without Xf.txt, their vocabulary, or
            some are precomputed.
        """
        sparse = (
            self.tfidf(texts) if self.columns else sp.csr_matrix((len(texts), 0), dtype=np.float32)
        )
        return _join(sparse, [source.of_texts(texts, accelerator) for source in self.dense])

    def tfidf(self, texts: Sequence[str]) -> sp.csr_matrix:
        """The TF-IDF part alone [n, F], rows of unit length."""
        if self._texts is None:
            if self._vocabulary is None:
                raise InputError(
                    f"{VOCABULARY}: no such file; the data set's X.trn.npz came without its "
                    "vocabulary, so that features of new texts cannot be computed"
                )
            self._texts = TextFeatures(self._vocabulary)
        features = self._texts(texts)
        self._check_columns(features, self._vocabulary)
        return features

    def _of_split(self, folder: Path, source: str) -> sp.csr_matrix:
        """X.trn or X.tst of a data set in the columns of this vocabulary, its rows of unit
        length."""
        if self._matrix is None or self._matrix[:2] != (folder, source):
            if self._vocabulary is None:
                matrix = FeatureFiles(folder, folder).matrix(source)
            else:
                matrix = features_by(self._vocabulary, folder, self._config.data, source)
            self._check_columns(matrix, folder)
            self._matrix = folder, source, normalised(matrix)
        return self._matrix[2]

    def _check_columns(self, matrix: sp.csr_matrix, where: Path) -> None:
        if matrix.shape[1] != self.columns:
            raise InputError(
                f"{where} has {matrix.shape[1]:,} terms, expected {self.columns:,}, one for each "
                "column of the features that the model was trained on"
            )

    def fingerprint(self, split: Split) -> str:
        """A hash of what decides the features of a split's files: whether work on them may go
        on."""
        digest = hashlib.blake2b(digest_size=16)
        if self.columns:
            sparse = Features.build(self._of_split(split.folder, split.source))
            for array in sparse.arrays:
                digest.update(array)
        for source in self.dense:
            digest.update(source.fingerprint(split).encode())
        return digest.hexdigest()

    # ---- saving
    def save(self, folder: Path) -> None:
        """The vocabulary and the encoders, so that the model needs no other run; of arrays only
        their names."""
        if self._vocabulary is not None:
            shutil.copyfile(self._vocabulary, folder / VOCABULARY)
        for number, source in enumerate(self.dense):
            if isinstance(source, ArrayFiles):
                write_json(
                    folder / f"arrays{number}.json", {"name": source.name, "columns": source.dim}
                )
                continue
            to = folder / f"encoder{number}"
            to.mkdir()
            source.encoder.save(to)
            write_text(to / "config.yaml", to_yaml(source.config))

    @classmethod
    def load(cls, config: Config, folder: Path, columns: int) -> TreeFeatures:

        dense: dict[int, DenseSource] = {}
        for to in folder.glob("encoder*"):
            own = load_config(to / "config.yaml")
            settings = EncoderConfig(**{**vars(own.encoder), "trust_remote_code": False})
            dense[int(to.name.removeprefix("encoder"))] = RunEncoder(
                load_encoder(settings, to).eval(), own
            )
        for path in folder.glob("arrays*.json"):
            told = read_facts(path, name=str, columns=int)
            dense[int(path.stem.removeprefix("arrays"))] = ArrayFiles(told["name"], told["columns"])
        vocabulary = folder / VOCABULARY
        known = bool(columns) and vocabulary.is_file()
        return cls(
            config,
            columns,
            vocabulary if known else None,
            [dense[number] for number in sorted(dense)],
        )


def read_columns(folder: Path) -> tuple[int, int]:
    """Columns of a saved model's features: of TF-IDF, and of the dense sources together.

    Raises:
        InputError: its method.json does not say them.
    """
    path = folder / "method.json"
    columns = read_facts(path, columns=list[int])["columns"]
    if len(columns) != 2:
        raise InputError(
            f"{path}: columns: expected two numbers, of terms and of dense columns, got {columns}"
        )
    return columns[0], columns[1]


def _dense_source(name: str, data: Path, start: Method | None) -> DenseSource:
    """What a name of `method.features` other than `tfidf` means."""
    if name == "start":
        return RunEncoder.of(start)
    if is_array_source(name, data):
        return ArrayFiles.open(name, data)
    run, config = find_run(name)
    return RunEncoder.of(load_method(config, run))


def _join(sparse: sp.csr_matrix, dense: list[np.ndarray]) -> Features:
    for block in dense:
        check_finite(block, "embeddings among the features")
    return Features.build(sparse, np.concatenate(dense, axis=1) if dense else None)
