"""What linear trees read: TF-IDF of the texts, embeddings and dense arrays, side by side.

`method.features` lists them: `tfidf`, run folders, `start`, the model of `run.start_from` or of the
stage before, and pairs of .npy files (models/trees/dense_features.py).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.contract import Ranker
from models.encoders.reader import Reader
from models.loading import load_ranker
from models.trees.dense_features import (
    ArrayFiles,
    DenseSource,
    RunEmbeddings,
    is_array_source,
    load_dense,
)
from utils import distributed
from utils.config.config import Config, ConfigError
from utils.data.texts import FileTexts, TextFile, Texts
from utils.errors import InputError
from utils.features.files import (
    VOCABULARY,
    FeatureFiles,
    check_available,
    features_by,
    find_features,
)
from utils.features.tfidf import TextFeatures
from utils.linear.layer import Features
from utils.reading.input_files import present
from utils.reading.saved import check_finite, read_facts
from utils.run.finding import find_run
from utils.run.stages import Runs
from utils.runtime import Runtime
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


def _check_run(
    name: str,
    config: Config,
    runs: Runs,
) -> None:
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
    """What the texts of a data set and new ones are known by.

    Args:
        columns: of the TF-IDF part, 0 without it.
        vocabulary: its terms; None where X.{trn,tst}.npz were given without.
        dense: in the order of their columns.
        model: the folder that they were loaded from; None in training.
    """

    def __init__(
        self,
        columns: int,
        vocabulary: Path | None,
        dense: Sequence[DenseSource],
        model: Path | None = None,
    ) -> None:
        self.columns = columns
        self.dense = list(dense)
        self._vocabulary = vocabulary
        self._model = model
        self._terms: TextFeatures | None = None  # the vocabulary, once read
        # what was read last, with its data set and split
        self._matrix: tuple[Path, str, sp.csr_matrix] | None = None

    @classmethod
    def build(
        cls,
        config: Config,
        start: Ranker | None,
        runtime: Runtime,
    ) -> TreeFeatures:
        """Open the sources that `method.features` names; a collective.

        `check_sources` has looked at them.

        Args:
            start: the model of `run.start_from`.
        """
        names = config.method.features
        data = config.dataset_folder
        dense = [_dense_source(name, data, start, runtime) for name in names if name != "tfidf"]
        if "tfidf" not in names:
            return cls(0, None, dense)
        with distributed.main_first():
            files = find_features(data, config.data)
        matrix = files.check()
        features = cls(matrix.shape[1], files.vocabulary, dense)
        features._matrix = data, "trn", normalised(matrix)
        return features

    @property
    def shape(self) -> tuple[int, int]:
        """(F, D): columns of TF-IDF, and of the dense sources together."""
        return self.columns, sum(source.dim for source in self.dense)

    def readers(self) -> list[Reader]:
        """What embeds the texts."""
        return [reader for source in self.dense for reader in source.readers()]

    def of(self, texts: Texts) -> Features:
        """Read or make the features of some texts [n, F + D].

        Raises:
            InputError: of new texts, where the data set came with features but without Xf.txt,
                their vocabulary, or where some are precomputed.
        """
        sparse = self._sparse(texts)
        dense = [source.of(texts) for source in self.dense]
        for block in dense:
            check_finite(block, "embeddings among the features")
        return Features.build(sparse, np.concatenate(dense, axis=1) if dense else None)

    def _sparse(self, texts: Texts) -> sp.csr_matrix:
        if not self.columns:
            return sp.csr_matrix((len(texts), 0), dtype=np.float32)
        if isinstance(texts, FileTexts):
            return self._of_file(texts.file)[texts.rows]
        return self.tfidf(texts.strings())

    def tfidf(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Make the TF-IDF part of new texts alone [n, F], rows of unit length."""
        if self._vocabulary is None:
            raise InputError(
                f"{self._own_vocabulary}: no such file; the data set's X.trn.npz came without its "
                "vocabulary, so that features of new texts cannot be computed"
            )
        if self._terms is None:
            self._terms = TextFeatures(self._vocabulary)
        features = self._terms(texts)
        self._check_columns(features, self._vocabulary)
        return features

    def _of_file(self, file: TextFile) -> sp.csr_matrix:
        """X.trn or X.tst in the columns of this vocabulary, its rows of unit length."""
        folder = file.folder
        if self._matrix is None or self._matrix[:2] != (folder, file.source):
            if self._vocabulary is None:
                matrix = self._given(file)
            else:
                matrix = features_by(self._vocabulary, folder, file.settings, file.source)
            if self._vocabulary is not None and matrix.shape[1] != self.columns:
                self.tfidf([])  # says it of the vocabulary, if that has other terms
            self._check_columns(matrix, folder)
            self._matrix = folder, file.source, normalised(matrix)
        return self._matrix[2]

    def _given(self, file: TextFile) -> sp.csr_matrix:
        """Read what came with the data set, where the model has no vocabulary of its own."""
        files = FeatureFiles(file.folder, file.folder)
        try:
            files.require(file.source)
        except InputError as error:
            raise InputError(
                f"{self._own_vocabulary}: no such file, so that the data set's own features are "
                f"needed; {error}"
            ) from None
        return files.matrix(file.source)

    @property
    def _own_vocabulary(self) -> Path:
        """Where the vocabulary lies of a model that has one."""
        return Path(VOCABULARY) if self._model is None else self._model / VOCABULARY

    def _check_columns(self, matrix: sp.csr_matrix, where: Path) -> None:
        if matrix.shape[1] != self.columns:
            raise InputError(
                f"{where} has {matrix.shape[1]:,} terms, expected {self.columns:,}, one for each "
                "column of the features that the model was trained on"
            )

    def fingerprint(self, file: TextFile) -> str:
        """Hash what decides the features of a file's texts: whether work on them may go on."""
        digest = hashlib.blake2b(digest_size=16)
        if self.columns:
            for array in Features.build(self._of_file(file)).arrays:
                digest.update(array.data)
        for source in self.dense:
            digest.update(source.fingerprint(file).encode())
        return digest.hexdigest()

    # ---- saving
    def facts(self) -> dict[str, Any]:
        """Tell method.json of a model what `load` will find in the folder."""
        return {"columns": self.shape, "vocabulary": self._vocabulary is not None}

    def save(self, folder: Path) -> None:
        """Write the vocabulary and the encoders: no other run is needed.

        Of arrays only their names.
        """
        if self._vocabulary is not None:
            shutil.copyfile(self._vocabulary, folder / VOCABULARY)
        for number, source in enumerate(self.dense):
            source.save(folder, number)

    @classmethod
    def load(cls, folder: Path, runtime: Runtime) -> TreeFeatures:
        """Read what `save` wrote into the folder of a model, whose method.json has the `facts`.

        Raises:
            InputError: the vocabulary is gone, or the sources have other columns.
        """
        columns = read_columns(folder)
        vocabulary = _find_vocabulary(folder) if columns[0] else None
        features = cls(columns[0], vocabulary, load_dense(folder, runtime), folder)
        if features.shape != columns:
            raise InputError(
                f"{folder}: its encoders give {features.shape[1]} columns, expected {columns[1]}"
            )
        return features


def read_columns(folder: Path) -> tuple[int, int]:
    """Read the columns of a saved model's features: of TF-IDF, and of the dense sources together.

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


def _find_vocabulary(folder: Path) -> Path | None:
    """Find the vocabulary of a saved model; None where its data set came without one.

    Raises:
        InputError: its method.json says that there is one, which older models do not say.
    """
    path = folder / VOCABULARY
    if present(path):
        return path
    if read_facts(folder / "method.json").get("vocabulary"):
        raise InputError(
            f"{path}: no such file; expected the vocabulary of the features that the model was "
            "trained on, of `term <TAB> idf` lines"
        )
    return None


def _dense_source(
    name: str,
    data: Path,
    start: Ranker | None,
    runtime: Runtime,
) -> DenseSource:
    """What a name of `method.features` other than `tfidf` means."""
    if name == "start":
        assert start is not None, "check_sources has seen run.start_from"
        return RunEmbeddings.of_ranker(start)
    if is_array_source(name, data):
        return ArrayFiles.open(name, data)
    run, config = find_run(name)
    return RunEmbeddings.of_ranker(load_ranker(config, run, runtime))
