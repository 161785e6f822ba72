"""Datasets/<name> -> checked arrays, splits and batches.

    Datasets/<name>/raw/{trn_X,tst_X,Y}.txt             one text a line, UTF-8
    Datasets/<name>/Y.{trn,tst}.npz                     scipy CSR, points x labels
    Datasets/<name>/filter_labels_{train,test}.txt      optional `row label` pairs that are never
        counted

Everything is checked on load; an error names the file, the line and what was expected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from utils.errors import InputError
from utils.reading.matrices import (
    check_size_is_meant,
    present,
)
from utils.text import count_lines, lines_hash
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file

log = logging.getLogger(__name__)
SPLITS = ("trn", "val", "tst")


# -------------------------------- splits


@dataclass(frozen=True)
class Split:
    """Points of one split: texts as token rows, their relevance and their filter pairs."""

    name: str
    rows: np.ndarray  # [n] rows of the text file
    tokens: Ragged | None  # of the whole text file; None for methods that read no tokens
    relevance: sp.csr_matrix  # [n, L]
    filters: sp.csr_matrix  # [n, L] ones: pairs whose score is removed before ranking
    text_path: Path

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def source(self) -> str:
        """Which files its rows are of: trn or tst."""
        return "tst" if self.name == "tst" else "trn"

    @property
    def folder(self) -> Path:
        """The folder of its data set."""
        return self.text_path.parent.parent


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training: splits trn, val and tst over the same L labels."""

    name: str
    folder: Path
    config: DataConfig
    # None where the labels have no texts, or the method reads no tokens
    label_tokens: Ragged | None
    label_problem: str  # why the labels' texts cannot be encoded; empty where they can
    # which labels without text have another in `label_tokens`; empty for none
    label_stand_ins: str
    num_labels: int
    splits: dict[str, Split]
    # [L] training points (validation included) a label has: the field's N_l
    label_counts: np.ndarray
    num_train: int  # training points, validation included: the field's N
    hash: str  # of both relevance matrices and of the filters
    relevance_hash: str  # of both relevance matrices; what `hash` was in older runs

    def inverse_propensity(self) -> np.ndarray | None:
        """1 / p_l of each label [L]; None where it is not defined, of fewer than 3 training
        points."""
        if self.num_train < 3:
            return None
        return metrics.inverse_propensity(
            self.label_counts, self.num_train, self.config.propensity_a, self.config.propensity_b
        )

    def label_weights(self) -> np.ndarray:
        """1 / p_l of each label [L], or ones where it is not defined."""
        propensity = self.inverse_propensity()
        return np.ones(self.num_labels) if propensity is None else propensity

    @cached_property
    def seen_counts(self) -> np.ndarray:
        """[L] points of the split trn alone that a label has: what may be known where something is
        fitted on validation points, whose own labels `label_counts` would give away."""
        return np.bincount(self.splits["trn"].relevance.indices, minlength=self.num_labels)

    def seen_weights(self) -> np.ndarray:
        """`label_weights` by the points of the split trn alone."""
        points = len(self.splits["trn"])
        return (
            np.ones(self.num_labels)
            if points < 3
            else metrics.inverse_propensity(
                self.seen_counts, points, self.config.propensity_a, self.config.propensity_b
            )
        )

    def check_label_texts(self, needed: str) -> None:
        """InputError unless the labels have texts, but for the share that may have none; `needed`
        says what for."""
        if self.label_problem:
            raise InputError(f"{self.label_problem}; {needed}")

    @cached_property
    def label_texts(self) -> Sequence[str]:
        return label_texts(self.folder, self.num_labels)

    def token_document_counts(self, vocab_size: int) -> tuple[np.ndarray, int]:
        """In how many training and label texts each token occurs [V], and how many texts there
        are."""
        counts = np.zeros(vocab_size, np.int64)
        sources = [
            tokens
            for tokens in (self.splits["trn"].tokens, self.label_tokens)
            if tokens is not None
        ]
        for tokens in sources:
            for start in range(0, len(tokens), 1 << 16):
                ids, lengths = tokens.take(np.arange(start, min(start + (1 << 16), len(tokens))))
                pairs = np.unique(np.repeat(np.arange(len(lengths)), lengths) * vocab_size + ids)
                counts += np.bincount(pairs % vocab_size, minlength=vocab_size)
        return counts, sum(map(len, sources))


def labels_hash(folder: Path) -> str:
    """Of the labels' texts and their order; empty for a data set without."""
    path = label_text_path(folder)
    return lines_hash(path) if present(path) else ""


def check_dataset_folder(folder: Path) -> None:
    """InputError if the folder of a data set is missing, with the folders that are there."""
    if not folder.is_dir():
        there = (
            sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
            if folder.parent.is_dir()
            else []
        )
        raise InputError(
            f"{folder}: no such data set (data.root, data.name); found in {folder.parent}: "
            f"{', '.join(there) or 'nothing'}"
        )


def token_cache(config: Config) -> Path:
    """Folder of a data set's token files."""
    return (
        Path(config.data.token_cache)
        if config.data.token_cache
        else config.dataset_folder / "tokens"
    )


def load_dataset(config: Config, tokenizer_source, held_out: np.ndarray | None = None) -> Dataset:
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
    texts = {s: folder / "raw" / f"{s}.txt" for s in ("trn_X", "tst_X", "Y")}
    if not present(texts["Y"]):
        log.info("%s: no such file: the labels have no texts", texts.pop("Y"))
    # A method that reads no tokens can do with features alone, and looks itself whether it has
    # them.
    absent = [s for s in ("trn_X", "tst_X") if tokenizer_source is None and not present(texts[s])]
    counts = {s: count_lines(path) for s, path in texts.items() if s not in absent}
    trn = load_relevance(folder / "Y.trn.npz", counts.get("trn_X"), texts["trn_X"])
    tst = load_relevance(folder / "Y.tst.npz", counts.get("tst_X"), texts["tst_X"])
    for path, matrix in ((folder / "Y.trn.npz", trn), (folder / "Y.tst.npz", tst)):
        if "Y" not in counts:
            check_size_is_meant(matrix.shape[1], trn.nnz + tst.nnz, str(path))
        elif matrix.shape[1] != counts["Y"]:
            raise InputError(
                f"{path} has {matrix.shape[1]:,} columns but {texts['Y']} has {counts['Y']:,} "
                "lines; expected one column a label"
            )
    if trn.shape[1] != tst.shape[1]:
        raise InputError(
            f"{folder / 'Y.trn.npz'} has {trn.shape[1]:,} columns, Y.tst.npz {tst.shape[1]:,}; "
            "expected the same labels"
        )
    if trn.nnz == 0:
        raise InputError(f"{folder / 'Y.trn.npz'}: no training point has a label")
    filters = load_filters(folder, {"trn": trn.shape, "tst": tst.shape}, data.filters == "required")
    tokens: dict[str, Ragged] = {}
    if tokenizer_source is not None:
        query = Tokenizer(tokenizer_source, data.max_len, prompt=config.encoder.point_prompt)
        label_max_len = data.label_max_len or data.max_len
        label = Tokenizer(tokenizer_source, label_max_len, prompt=config.encoder.prompt_of_labels)
        with distributed.main_first():
            tokens = {
                s: tokenize_file(p, label if s == "Y" else query, token_cache(config))
                for s, p in texts.items()
            }
    problem = "" if "Y" in texts else NO_TEXTS.format(label_text_path(folder))
    stand_in = ""
    if "Y" in tokens:
        without = np.flatnonzero(tokens["Y"].lengths <= label.num_special)
        problem = label_text_problem(folder, without, trn.shape[1])
        if len(without) and not problem:
            stand_in = stand_ins(folder, without)
            tokens["Y"] = with_stand_ins(folder, tokens["Y"], without, label)
    held_out = validation_rows(trn, data, folder) if held_out is None else held_out
    labelled = np.flatnonzero(np.diff(trn.indptr))
    if not np.isin(held_out, labelled).all() or (np.diff(held_out) <= 0).any():
        raise InputError(
            f"{folder}: expected other rows held out for validation, ascending and with labels: "
            "val_rows.npy is not of this data set"
        )
    training = np.setdiff1d(labelled, held_out)
    if skipped := trn.shape[0] - len(training) - len(held_out):
        log.info("%s: %d training points without labels are skipped", folder, skipped)
    rows = {"trn": training, "val": held_out, "tst": np.arange(tst.shape[0])}
    splits = {}
    for name in SPLITS:
        source, matrix = ("tst", tst) if name == "tst" else ("trn", trn)
        splits[name] = Split(
            name,
            rows[name],
            tokens.get(f"{source}_X"),
            matrix[rows[name]],
            filters[source][rows[name]],
            texts[f"{source}_X"],
        )
    whole_hash, relevance_hash = dataset_hashes((trn, tst), (filters["trn"], filters["tst"]))
    return Dataset(
        name=data.name,
        folder=folder,
        config=data,
        label_tokens=tokens.get("Y"),
        label_problem=problem,
        label_stand_ins=stand_in,
        num_labels=trn.shape[1],
        splits=splits,
        label_counts=np.bincount(trn.indices, minlength=trn.shape[1]),
        num_train=trn.shape[0],
        hash=whole_hash,
        relevance_hash=relevance_hash,
    )
