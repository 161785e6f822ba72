"""What linear trees read: TF-IDF of the texts, and embeddings of saved runs' encoders, side by side.

`method.features` lists them: `tfidf`, run folders, and `start`, the model of `run.start_from` or of the stage before.
"""
from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator

from models.encoder import TextEncoder, load_encoder
from models.method import Method, encode_rows
from utils.config import Config, ConfigError, EncoderConfig, load_config, to_yaml
from utils.data import Split, token_cache
from utils.features import load_features
from utils.files import write_text
from utils.linear_layer import Features
from utils.run import find_run
from utils.stages import Runs
from utils.text_features import TextFeatures
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file, tokenize_texts
from utils.tree_training import normalised


def check_sources(config: Config, runs: Runs) -> None:
    """ConfigError where `method.features` names nothing, something twice, or a run that has no encoder."""
    names = config.method.features
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"method.features is {list(names)}: expected one source or more, none of them twice")
    for name in names:
        if name == "tfidf":
            continue
        if name == "start" and not config.run.start_from:
            raise ConfigError("method.features names `start`, but there is no run.start_from and no stage before this "
                              "one")
        if name != "start" and name not in runs:
            raise ConfigError(f"method.features: expected tfidf, start or a run folder, got '{name}'")
        source = runs.start(config) if name == "start" else runs.config(name)
        if not source.method.has_encoder:
            raise ConfigError(f"method.features: {name}: a run of method {source.method.name} has no encoder whose "
                              "embeddings could be features")


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
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.encoder.tokenizer, self.config.data.max_len)

    def embed(self, tokens: Ragged, rows: np.ndarray, accelerator: Accelerator) -> np.ndarray:
        """Embeddings of unit length [n, D] float32; a zero embedding stays zero."""
        out = np.empty((len(rows), self.encoder.dim), np.float32)
        size = self.config.eval.batch_size
        for positions, block in encode_rows(self.encoder.to(accelerator.device), tokens, rows, size, accelerator,
                                            "embed texts"):
            out[positions] = torch.nn.functional.normalize(block, dim=1).cpu().numpy()
        return out


class TreeFeatures:
    """Features of a data set's splits and of new texts.

    Attributes: columns, the columns of the TF-IDF part (0 without it); encoders, in the order of their dense columns.
    """

    def __init__(self, columns: int, vocabulary: Path | None, encoders: Sequence[RunEncoder], cache: Path) -> None:
        self.columns, self.encoders, self._cache = columns, list(encoders), cache
        self._vocabulary, self._texts = vocabulary, None
        self._matrices: tuple[Path, dict[str, sp.csr_matrix]] | None = None      # of the data set looked at last

    @classmethod
    def build(cls, names: Sequence[str], config: Config, start: Method | None) -> TreeFeatures:
        """The sources that `method.features` names, which `check_sources` has looked at.

        Args:
            start: the model of `run.start_from`.
        """
        from models import METHOD_CONFIGS, load_method  # here: the registry imports the trees
        folder, encoders = config.dataset_folder, []
        for name in names:
            if name == "start":
                encoders.append(RunEncoder.of(start))
            elif name != "tfidf":
                run, run_config = find_run(name, METHOD_CONFIGS)
                encoders.append(RunEncoder.of(load_method(run_config, run)))
        features = cls(0, folder / "Xf.txt" if "tfidf" in names else None, encoders, token_cache(config))
        if "tfidf" in names:
            features.columns = features._matrix(folder, "trn").shape[1]
        return features

    @property
    def shape(self) -> tuple[int, int]:
        return self.columns, sum(e.encoder.dim for e in self.encoders)

    def of_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Features:
        """Features of points of a split [n]."""
        rows = split.rows[points]
        if self.columns:
            sparse = self._matrix(split.folder, split.source)[rows]
        else:
            sparse = sp.csr_matrix((len(rows), 0), dtype=np.float32)
        return self._join(sparse, [e.embed(tokenize_file(split.text_path, e.tokenizer, self._cache), rows, accelerator)
                                   for e in self.encoders])

    def of_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Features:
        """Features of new texts.

        Raises:
            ValueError: the data set came with features but without Xf.txt, their vocabulary.
        """
        sparse = self.tfidf(texts) if self.columns else sp.csr_matrix((len(texts), 0), dtype=np.float32)
        rows = np.arange(len(texts))
        return self._join(sparse, [e.embed(tokenize_texts(texts, e.tokenizer), rows, accelerator)
                                   for e in self.encoders])

    def tfidf(self, texts: Sequence[str]) -> sp.csr_matrix:
        """The TF-IDF part alone [n, F], rows of unit length."""
        if self._texts is None:
            if self._vocabulary is None or not self._vocabulary.is_file():
                raise ValueError(f"{self._vocabulary or 'Xf.txt'}: no such file; the data set's X.trn.npz came without "
                                 "its vocabulary, so that features of new texts cannot be computed")
            self._texts = TextFeatures(self._vocabulary)
        features = self._texts(texts)
        if features.shape[1] != self.columns:
            raise ValueError(f"{self._vocabulary} has {features.shape[1]:,} terms, expected {self.columns:,}, one for "
                             "each column of the features that the model was trained on")
        return features

    def _matrix(self, folder: Path, source: str) -> sp.csr_matrix:
        """X.trn or X.tst of a data set, its rows of unit length."""
        if self._matrices is None or self._matrices[0] != folder:
            self._matrices = folder, dict(zip(("trn", "tst"), map(normalised, load_features(folder)), strict=True))
        return self._matrices[1][source]

    @staticmethod
    def _join(sparse: sp.csr_matrix, dense: list[np.ndarray]) -> Features:
        return Features.build(sparse, np.concatenate(dense, axis=1) if dense else None)

    # ---- saving
    def save(self, folder: Path) -> None:
        """The vocabulary and the encoders, so that the model needs no other run."""
        if self.columns and self._vocabulary is not None and self._vocabulary.is_file():
            shutil.copyfile(self._vocabulary, folder / "Xf.txt")
        for number, source in enumerate(self.encoders):
            to = folder / f"encoder{number}"
            to.mkdir()
            source.encoder.save(to)
            write_text(to / "config.yaml", to_yaml(source.config))

    @classmethod
    def load(cls, folder: Path, columns: int, cache: Path) -> TreeFeatures:
        from models import METHOD_CONFIGS
        encoders = []
        for to in sorted(folder.glob("encoder*"), key=lambda path: int(path.name.removeprefix("encoder"))):
            config = load_config(to / "config.yaml", method_configs=METHOD_CONFIGS)
            settings = EncoderConfig(**{**vars(config.encoder), "trust_remote_code": False})
            encoders.append(RunEncoder(load_encoder(settings, to).eval(), config))
        return cls(columns, folder / "Xf.txt" if columns else None, encoders, cache)
