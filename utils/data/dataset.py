"""Datasets/<name> -> checked arrays and splits.

    Datasets/<name>/raw/{trn_X,tst_X,Y}.txt             one text a line, UTF-8
    Datasets/<name>/Y.{trn,tst}.npz                     scipy CSR, points x labels
    Datasets/<name>/filter_labels_{train,test}.txt      optional: pairs that are never counted

Everything is checked on load; an error names the file, the line and what was expected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils import distributed, metrics
from utils.config.config import Config, DataConfig
from utils.data.filters import load_filters
from utils.data.held_out import validation_rows
from utils.data.label_texts import (
    NO_TEXTS,
    label_text_path,
    label_text_problem,
    label_texts,
    stand_ins,
    with_stand_ins,
)
from utils.data.relevance import dataset_hashes, load_relevance
from utils.data.texts import FileTexts, TextFile, Texts
from utils.errors import InputError
from utils.ragged import Ragged
from utils.reading.input_files import present
from utils.reading.matrix_checks import check_size_is_meant
from utils.text import count_lines, lines_hash
from utils.tokenization_utils import Tokenizer, TokenizerSource, tokenize_file

log = logging.getLogger(__name__)
SPLITS = ("trn", "val", "tst")
TEXTS_AT_ONCE = 1 << 16  # whose tokens are counted together


# -------------------------------- splits


@dataclass(frozen=True)
class Split:
    """Points of one split: texts as token rows, their relevance and their filter pairs."""

    name: str
    rows: np.ndarray  # [n] rows of the text file
    tokens: Ragged | None  # of the whole text file; None for methods that read no tokens
    relevance: sp.csr_matrix  # [n, L]
    filters: sp.csr_matrix  # [n, L] ones: pairs whose score is removed before ranking
    file: TextFile

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def texts(self) -> Texts:
        """The points' texts."""
        return FileTexts(self.file, self.rows)

    @property
    def text_path(self) -> Path:
        return self.file.path

    @property
    def source(self) -> str:
        """Which files its rows are of: trn or tst."""
        return self.file.source

    @property
    def folder(self) -> Path:
        """The folder of its data set."""
        return self.file.folder


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training: splits trn, val and tst over the same L labels."""

    name: str
    folder: Path
    config: DataConfig
    label_tokens: Ragged | None  # None: the labels have no texts, or the method reads no tokens
    label_problem: str  # why the labels' texts cannot be encoded; empty where they can
    label_stand_ins: str  # which labels without text have another in `label_tokens`, or empty
    num_labels: int
    splits: dict[str, Split]
    label_counts: np.ndarray  # [L] training points of a label, validation included: the field's N_l
    num_train: int  # training points, validation included: the field's N
    hash: str  # of both relevance matrices and of the filters
    relevance_hash: str  # of both relevance matrices; what `hash` was in older runs

    def inverse_propensity(self) -> np.ndarray | None:
        """Return 1 / p_l of each label [L]; None of fewer than 3 points: it is not defined."""
        if self.num_train < 3:
            return None
        return metrics.inverse_propensity(
            self.label_counts, self.num_train, self.config.propensity_a, self.config.propensity_b
        )

    def label_weights(self) -> np.ndarray:
        """Return 1 / p_l of each label [L], or ones where it is not defined."""
        propensity = self.inverse_propensity()
        return np.ones(self.num_labels) if propensity is None else propensity

    @cached_property
    def seen_counts(self) -> np.ndarray:
        """Points of the split trn alone that each label has [L].

        What may be known where something is fitted on validation points: `label_counts` would give
        their labels away.
        """
        return np.bincount(self.splits["trn"].relevance.indices, minlength=self.num_labels)

    def seen_weights(self) -> np.ndarray:
        """Return `label_weights` by the points of the split trn alone."""
        points = len(self.splits["trn"])
        if points < 3:
            return np.ones(self.num_labels)
        return metrics.inverse_propensity(
            self.seen_counts, points, self.config.propensity_a, self.config.propensity_b
        )

    def check_label_texts(self, needed: str) -> None:
        """Refuse labels without texts, but for the share that may have none.

        Args:
            needed: what for, for the message.
        Raises:
            InputError: too many labels have none.
        """
        if self.label_problem:
            raise InputError(f"{self.label_problem}; {needed}")

    @cached_property
    def label_texts(self) -> Sequence[str]:
        """The labels' texts by id."""
        return label_texts(self.folder, self.num_labels)

    def token_document_counts(self, vocab_size: int) -> tuple[np.ndarray, int]:
        """Count in how many training and label texts each token occurs: ([V], number of texts)."""
        if self.splits["trn"].tokens is None:
            raise ValueError(
                "the training texts were not cut into tokens: a recipe that builds an encoder sets "
                "`reads_tokens = True`"
            )
        counts = np.zeros(vocab_size, np.int64)
        num_texts = 0
        for tokens in (self.splits["trn"].tokens, self.label_tokens):
            if tokens is None:
                continue
            num_texts += len(tokens)
            for start in range(0, len(tokens), TEXTS_AT_ONCE):
                rows = np.arange(start, min(start + TEXTS_AT_ONCE, len(tokens)))
                ids, lengths = tokens.take(rows)
                texts = np.repeat(np.arange(len(lengths)), lengths)  # of each token
                pairs = np.unique(texts * vocab_size + ids)
                counts += np.bincount(pairs % vocab_size, minlength=vocab_size)
        return counts, num_texts


def labels_hash(folder: Path) -> str:
    """Return the hash of the labels' texts in their order; empty for a data set without."""
    path = label_text_path(folder)
    return lines_hash(path) if present(path) else ""


def check_dataset_folder(folder: Path) -> None:
    """Raise InputError if the folder of a data set is missing, with the folders that are there."""
    if folder.is_dir():
        return
    there = []
    if folder.parent.is_dir():
        there = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
        there = [name for name in there if not name.startswith(".")]
    raise InputError(
        f"{folder}: no such data set (data.root, data.name){_from(folder)}; found in "
        f"{folder.parent}: {', '.join(there) or 'nothing'}. Where it lies elsewhere: "
        "--data.root FOLDER"
    )


def _from(folder: Path) -> str:
    """Say from where a relative path is meant."""
    return "" if folder.is_absolute() else f", from the working folder {Path.cwd()}"


def token_cache(config: Config) -> Path:
    """Return the folder of a data set's token files."""
    if config.data.token_cache:
        return Path(config.data.token_cache)
    return config.dataset_folder / "tokens"


# -------------------------------- loading


def load_dataset(
    config: Config, tokenizer_source: TokenizerSource | None, held_out: np.ndarray | None = None
) -> Dataset:
    """Read and check a data set; tokenise what has not been tokenised yet.

    Args:
        config: sections data and run are used.
        tokenizer_source: folder, hub id or loaded tokenizer of the encoder; None = nothing is
            tokenised.
        held_out: training rows [n] of a run's validation split, saved as val_rows.npy; None =
            drawn.
    Raises:
        InputError: naming the file, the line or row, what was expected and what came.
    """
    data = config.data
    folder = config.dataset_folder
    check_dataset_folder(folder)
    paths = _text_paths(folder)
    trn, tst = _load_both(folder, paths, texts_needed=tokenizer_source is not None)
    relevance = {"trn": trn, "tst": tst}
    shapes = {"trn": trn.shape, "tst": tst.shape}
    filters = load_filters(folder, shapes, data.filters == "required")
    tokens = _Tokens(points={}, problem="" if "Y" in paths else _no_label_texts(folder))
    if tokenizer_source is not None:
        tokens = _tokenised(config, tokenizer_source, paths)
    rows = _rows_of_splits(config, relevance, held_out)
    files = {
        source: TextFile(paths[f"{source}_X"], data, token_cache(config))
        for source in ("trn", "tst")
    }
    splits = {}
    for name in SPLITS:
        source = "tst" if name == "tst" else "trn"
        splits[name] = Split(
            name,
            rows[name],
            tokens.points.get(source),
            relevance[source][rows[name]],
            filters[source][rows[name]],
            files[source],
        )
    whole_hash, relevance_hash = dataset_hashes((trn, tst), (filters["trn"], filters["tst"]))
    return Dataset(
        name=data.name,
        folder=folder,
        config=data,
        label_tokens=tokens.labels,
        label_problem=tokens.problem,
        label_stand_ins=tokens.stand_ins,
        num_labels=trn.shape[1],
        splits=splits,
        label_counts=np.bincount(trn.indices, minlength=trn.shape[1]),
        num_train=trn.shape[0],
        hash=whole_hash,
        relevance_hash=relevance_hash,
    )


def _text_paths(folder: Path) -> dict[str, Path]:
    """Text files by stem; without Y where the labels have no texts."""
    paths = {stem: folder / "raw" / f"{stem}.txt" for stem in ("trn_X", "tst_X", "Y")}
    if not present(paths["Y"]):
        log.info("%s: no such file: the labels have no texts", paths.pop("Y"))
    return paths


def _no_label_texts(folder: Path) -> str:
    return NO_TEXTS.format(label_text_path(folder))


def _load_both(
    folder: Path, paths: Mapping[str, Path], texts_needed: bool
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Y.trn and Y.tst [N, L], checked against the texts and against each other.

    A method that reads no tokens can do with features alone, and looks itself whether it has them.
    """
    counts = {
        stem: count_lines(path)
        for stem, path in paths.items()
        if texts_needed or stem == "Y" or present(path)
    }
    files = {split: folder / f"Y.{split}.npz" for split in ("trn", "tst")}
    trn = load_relevance(files["trn"], counts.get("trn_X"), paths["trn_X"])
    tst = load_relevance(files["tst"], counts.get("tst_X"), paths["tst_X"])
    for path, matrix in ((files["trn"], trn), (files["tst"], tst)):
        if "Y" not in counts:
            check_size_is_meant(matrix.shape[1], trn.nnz + tst.nnz, str(path))
        elif matrix.shape[1] != counts["Y"]:
            raise InputError(
                f"{path} has {matrix.shape[1]:,} columns but {paths['Y']} has {counts['Y']:,} "
                "lines; expected one column a label"
            )
    if trn.shape[1] != tst.shape[1]:
        raise InputError(
            f"{files['trn']} has {trn.shape[1]:,} columns, Y.tst.npz {tst.shape[1]:,}; "
            "expected the same labels"
        )
    if trn.nnz == 0:
        raise InputError(f"{files['trn']}: no training point has a label")
    return trn, tst


@dataclass(frozen=True)
class _Tokens:
    """What a tokenizer makes of the texts; see `Dataset` for what is said of the labels."""

    points: dict[str, Ragged]  # by files: trn, tst
    labels: Ragged | None = None
    problem: str = ""
    stand_ins: str = ""


def _tokenised(
    config: Config, tokenizer_source: TokenizerSource, paths: Mapping[str, Path]
) -> _Tokens:
    """Tokens of all texts, from the token files where these are up to date."""
    data = config.data
    folder = config.dataset_folder
    cache = token_cache(config)
    of_points = Tokenizer(tokenizer_source, data.max_len, prompt=config.encoder.point_prompt)
    of_labels = Tokenizer(
        tokenizer_source, data.label_max_len or data.max_len, prompt=config.encoder.prompt_of_labels
    )
    labels = None
    with distributed.main_first():
        points = {
            split: tokenize_file(paths[f"{split}_X"], of_points, cache) for split in ("trn", "tst")
        }
        if "Y" in paths:
            labels = tokenize_file(paths["Y"], of_labels, cache)
    if labels is None:
        return _Tokens(points, problem=_no_label_texts(folder))
    without = np.flatnonzero(labels.lengths <= of_labels.num_special)
    problem = label_text_problem(folder, without, len(labels))
    if problem or not len(without):
        return _Tokens(points, labels, problem)
    stand_in = stand_ins(folder, without)
    return _Tokens(points, with_stand_ins(folder, labels, without, of_labels), "", stand_in)


def _rows_of_splits(
    config: Config, relevance: Mapping[str, sp.csr_matrix], held_out: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Rows of each split in its files; training points without labels are in none."""
    folder = config.dataset_folder
    trn = relevance["trn"]
    if held_out is None:
        held_out = validation_rows(trn, config.data, folder)
    labelled = np.flatnonzero(np.diff(trn.indptr))
    if not np.isin(held_out, labelled).all() or (np.diff(held_out) <= 0).any():
        raise InputError(
            f"{folder}: expected other rows held out for validation, ascending and with labels: "
            "val_rows.npy is not of this data set"
        )
    training = np.setdiff1d(labelled, held_out)
    if skipped := trn.shape[0] - len(training) - len(held_out):
        log.info("%s: %d training points without labels are skipped", folder, skipped)
    return {"trn": training, "val": held_out, "tst": np.arange(relevance["tst"].shape[0])}
