"""Datasets/<name> -> checked arrays, splits and batches.

    Datasets/<name>/raw/{trn_X,tst_X,Y}.txt             one text a line, UTF-8
    Datasets/<name>/Y.{trn,tst}.npz                     scipy CSR, points x labels
    Datasets/<name>/filter_labels_{train,test}.txt      optional `row label` pairs that are never
        counted

Everything is checked on load; an error names the file, the line and what was expected.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from utils import distributed, metrics
from utils.config.config import Config, DataConfig
from utils.data.filters import load_filters
from utils.data.label_texts import (
    NO_TEXTS,
    label_text_path,
    label_text_problem,
    label_texts,
    stand_ins,
    with_stand_ins,
)
from utils.errors import InputError
from utils.reading.matrices import (
    RELEVANCE,
    check_file,
    check_size_is_meant,
    matrix_header,
    present,
    read_array,
    read_matrix,
)
from utils.sparse import without_zeros
from utils.text import count_lines, lines_hash
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file

log = logging.getLogger(__name__)
SPLITS = ("trn", "val", "tst")
# the split belongs to the data, not to the run: every run of every seed sees the same one
VALIDATION_SEED = 0


# -------------------------------- reading and checking


def load_relevance(path: Path, num_texts: int | None, text_path: Path) -> sp.csr_matrix:
    """Y.{trn,tst}.npz -> CSR float32 [N, L], checked against the number of texts, if there are
    texts."""
    check_file(path, "a scipy sparse matrix, points x labels")
    rows = matrix_header(path)[0]  # before a matrix of so many is made
    if num_texts is not None and rows != num_texts:
        raise InputError(
            f"{path} has {rows:,} rows but {text_path} has {num_texts:,} lines; expected one row "
            "a line"
        )
    return without_zeros(read_matrix(path, RELEVANCE))


def held_out_points(labelled: int, config: DataConfig) -> int:
    """How many of so many training points with labels are held out for validation; of whole groups,
    at most."""
    return max(min(round(config.val_fraction * labelled), config.val_max_points, labelled - 1), 0)


def validation_rows(relevance: sp.csr_matrix, config: DataConfig, folder: Path) -> np.ndarray:
    """Sorted training rows held out for validation: a fixed random draw among the points that have
    labels.

    With `data.val_group_size` s > 1 groups of about s similar texts are drawn, until there are
    enough points: at most as many, fewer by less than one group.
    """
    labelled = np.flatnonzero(np.diff(relevance.indptr))
    rng = np.random.default_rng(VALIDATION_SEED)
    count = held_out_points(len(labelled), config)
    if config.val_group_size == 1 or count == 0:
        return np.sort(rng.choice(labelled, count, replace=False))
    # here: scikit-learn and numba take seconds to import
    from utils.clustering.clustering import balanced_hierarchy
    from utils.features.files import grouping_features

    with distributed.main_first():
        features = grouping_features(folder, config)[labelled]
    groups = balanced_hierarchy(
        features,
        [-(-len(labelled) // config.val_group_size)],
        seed=VALIDATION_SEED,
        name="group texts",
    ).clusters()
    # group by group
    order = np.argsort(rng.permutation(groups.max() + 1)[groups], kind="stable")
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    return np.sort(labelled[order[: ends[ends <= count].max(initial=0)]])


def saved_validation_rows(run_folder: Path, config: DataConfig) -> np.ndarray | None:
    """The rows that a run held out, where drawing them again might give others: groups go by texts,
    which may have been edited, and by how these are cut into terms.

    Raises:
        InputError: val_rows.npy is not a list of rows.
    """
    path = run_folder / "val_rows.npy"
    if config.val_group_size == 1 or not path.is_file():
        return None
    return read_array(path, ndim=1, kinds="iu")


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


def _dataset_hashes(
    relevance: Sequence[sp.csr_matrix], filters: Sequence[sp.csr_matrix]
) -> tuple[str, str]:
    """Of the relevance and the filters together, and of the relevance alone: each matrix is read
    once."""
    digest = hashlib.sha256()
    for matrix in relevance:
        _add_matrix(digest, matrix)
    alone = digest.hexdigest()[:16]
    for matrix in filters:
        _add_matrix(digest, matrix)
    return digest.hexdigest()[:16], alone


def _add_matrix(digest: hashlib._Hash, matrix: sp.csr_matrix) -> None:
    digest.update(repr(matrix.shape).encode())
    for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data):
        digest.update(np.ascontiguousarray(array).tobytes())


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
    whole_hash, relevance_hash = _dataset_hashes((trn, tst), (filters["trn"], filters["tst"]))
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


# -------------------------------- batches


class TextBatch:
    """Texts of one batch as flat token ids; padded, where an encoder needs it, on the device to its
    own longest text.

    Attributes: ids [tokens] int32 and offsets [B + 1] int64 on the batch's device; host_lengths
    [B], a numpy array that stays on the host, so that padding and splitting need no host sync;
    bag_index, which the bag encoder makes once and finds again where a batch is encoded in every
    step.
    """

    def __init__(
        self, ids: Tensor, host_lengths: np.ndarray, offsets: Tensor | None = None
    ) -> None:
        self.ids, self.host_lengths = ids, host_lengths
        ends = torch.from_numpy(np.concatenate([[0], np.cumsum(host_lengths)]).astype(np.int64))
        self.offsets = ends if offsets is None else offsets
        self.bag_index: Any = None

    @classmethod
    def take(cls, tokens: Ragged, rows: np.ndarray) -> TextBatch:
        ids, lengths = tokens.take(rows)
        return cls(torch.from_numpy(ids), lengths)

    def __len__(self) -> int:
        return len(self.host_lengths)

    @property
    def longest(self) -> int:
        return int(self.host_lengths.max(initial=0))

    def pin_memory(self) -> TextBatch:
        return TextBatch(self.ids.pin_memory(), self.host_lengths, self.offsets.pin_memory())

    def to(self, device: torch.device) -> TextBatch:
        if self.ids.device == device:
            return self
        return TextBatch(
            self.ids.to(device, non_blocking=True),
            self.host_lengths,
            self.offsets.to(device, non_blocking=True),
        )

    def split(self, size: int) -> list[TextBatch]:
        """Micro-batches of at most `size` texts, in order, each with its own longest text."""
        if len(self) <= size:
            return [self]
        ends = np.concatenate([[0], np.cumsum(self.host_lengths)])
        return [
            TextBatch(
                self.ids[ends[i] : ends[min(i + size, len(self))]],
                self.host_lengths[i : i + size],
                self.offsets[i : i + size + 1] - self.offsets[i],
            )
            for i in range(0, len(self), size)
        ]

    def padded(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """(input ids [B, T] int64, attention mask [B, T] int64), T = the longest text of this
        batch."""
        positions = torch.arange(self.longest, device=self.ids.device)
        mask = positions[None] < self.offsets.diff()[:, None]  # [B, T]
        index = (self.offsets[:-1, None] + positions[None]).clamp_(max=max(len(self.ids) - 1, 0))
        ids = self.ids.long()[index] if len(self.ids) else index
        return torch.where(mask, ids, pad_id), mask.long()


@dataclass
class Batch:
    """One step's points. The relevance covers the GLOBAL batch, the texts only this process's share
    of it."""

    points: np.ndarray  # [B] positions in the split, whole batch
    relevance: sp.csr_matrix  # [B, L]
    filters: sp.csr_matrix  # [B, L]
    queries: TextBatch  # own share of the B texts
    # (seed, epoch, step): seeds every random draw of the step, equal on all processes
    key: tuple[int, ...]

    def pin_memory(self) -> Batch:
        self.queries = self.queries.pin_memory()
        return self

    def to(self, device: torch.device) -> Batch:
        self.queries = self.queries.to(device)
        return self

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.key)


class _Assembler(torch.utils.data.Dataset):
    """Item i = batch i, gathered at once; the loader's workers run it."""

    def __init__(
        self, split: Split, batches: list[np.ndarray], key: tuple[int, ...], first: int
    ) -> None:
        self.split, self.batches, self.key, self.first = split, batches, key, first

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Batch:
        points = self.batches[step]
        split = self.split
        own = distributed.share(len(points))
        return Batch(
            points,
            split.relevance[points],
            split.filters[points],
            TextBatch.take(split.tokens, split.rows[points[own.start : own.stop]]),
            (*self.key, self.first + step),
        )


def _loader(
    split: Split, batches: list[np.ndarray], key: tuple[int, ...], first: int, workers: int
) -> Iterator[Batch]:
    assembler = _Assembler(split, batches, key, first)
    # Its own generator: an iterator draws a seed when it is made, and one more draw in a resumed
    # epoch would shift every dropout mask after it.
    return iter(
        torch.utils.data.DataLoader(
            assembler,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
    )


def training_batches(
    split: Split, order: np.ndarray | None, config: Config, epoch: int, first_step: int = 0
) -> Iterator[Batch]:
    """The batches of one epoch from `first_step` on.

    Args:
        order: positions in the split [n] in the order of the epoch; None = shuffled by seed and
        epoch.
    """
    if order is None:
        order = np.random.default_rng((config.run.seed, epoch)).permutation(len(split))
    size = config.train.batch_size
    batches = [order[i : i + size] for i in range(first_step * size, len(order), size)]
    return _loader(split, batches, (config.run.seed, epoch), first_step, config.data.workers)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    return -(-len(split) // batch_size)


def sequential_batches(
    tokens: Ragged, rows: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, TextBatch]]:
    """(positions in `rows`, texts) of texts of similar length together, so that batches carry
    little padding."""
    order = np.argsort(-tokens.lengths[rows], kind="stable")
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, TextBatch.take(tokens, rows[positions])
