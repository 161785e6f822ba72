"""Labels of a data set that a model knows already: what a run keeps that starts from a smaller one.

Labels are the same if they are called the same (utils/data/label_names.py), whatever their ids.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from models.contract import Ranker, label_vectors_of
from models.encoders.reader import embed_together
from utils.data.dataset import Dataset
from utils.data.label_names import LabelNames
from utils.data.texts import ListTexts
from utils.errors import InputError
from utils.run.model_files import LABEL_IDS, LABELS

log = logging.getLogger(__name__)


def rows_in_start(start: Ranker, data: Dataset) -> np.ndarray:
    """Return the row of each label in the model that a run starts from [L] int64, -1 = new.

    Raises:
        InputError: other numbers of labels, and nothing to tell them by.
    """
    everything = np.arange(data.num_labels)
    if start.folder is None:
        return everything
    try:
        known = LabelNames.read(start.folder / LABEL_IDS, start.folder / LABELS, start.num_labels)
        rows = LabelNames.of_dataset(data.folder, data.num_labels).ids_in(known, str(data.folder))
    except InputError as error:
        if start.num_labels == data.num_labels:
            return everything
        raise InputError(
            f"run.start_from: that run has {start.num_labels} labels, this one {data.num_labels}: "
            f"{error}"
        ) from None
    if (rows < 0).any():
        log.info(
            "run.start_from: %d of %d labels are known there by name, %d begin anew",
            np.count_nonzero(rows >= 0),
            data.num_labels,
            np.count_nonzero(rows < 0),
        )
    return rows


def check_same_labels(
    start: Ranker,
    data: Dataset,
    what: str,
) -> None:
    """Refuse a run to start from that has other labels.

    Args:
        what: cannot be taken then, "its clusters".
    Raises:
        InputError: it has another number of labels; naming the methods that can do it.
    """
    if start.num_labels == data.num_labels:
        return
    raise InputError(
        f"run.start_from: {what} cannot be taken, that run has {start.num_labels} labels and this "
        f"one {data.num_labels}; methods that keep what is known of labels by name: ova, xc, and "
        "dexa with method.num_vectors labels"
    )


def vectors_from_start(start: Ranker, data: Dataset) -> Tensor:
    """Return what labels begin with [L, D]: rows of that model, of new labels from their texts.

    A collective. Labels that it does not know are embedded by its encoder; where they have no
    texts, they begin at the mean of those that are known.

    Raises:
        InputError: it has no label vectors, or no label in common with this data set.
    """
    vectors = torch.as_tensor(label_vectors_of(start))  # [known, D]
    rows = rows_in_start(start, data)
    new = np.flatnonzero(rows < 0)
    if not len(new):
        return vectors if np.array_equal(rows, np.arange(len(vectors))) else vectors[rows]
    if len(new) == len(rows):
        raise InputError(
            f"run.start_from: none of the {len(rows)} labels of {data.folder} is known to that run"
        )
    begun = torch.empty(len(rows), vectors.shape[1], dtype=vectors.dtype)
    known = rows >= 0
    begun[known] = vectors[rows[known]].detach().cpu()
    begun[new] = _of_new(start, data, new, begun[known]).to(begun)
    return begun


def _of_new(
    start: Ranker,
    data: Dataset,
    new: np.ndarray,
    known: Tensor,
) -> Tensor:
    """Vectors of labels that a model does not know [k, D]."""
    if data.label_problem or start.reader is None:
        return known.mean(0, keepdim=True).expand(len(new), -1)
    texts = ListTexts([data.label_texts[label] for label in new.tolist()])
    try:
        return torch.as_tensor(label_vectors_of(start.with_labels(texts)))
    except InputError:  # it knows labels by their points: its encoder still reads texts
        settings = start.config.data
        length = settings.label_max_len or settings.max_len
        tokens, rows = texts.tokens(start.reader.encoder.label_tokenizer(length))
        return embed_together(start.reader, tokens, rows, "embed new labels")


def take_rows_of(
    to: Tensor,
    values: Tensor,
    rows: np.ndarray,
) -> None:
    """Copy rows of values [known, ...] to the places [n, ...] of labels that have one.

    Args:
        rows: of each place [n], -1 = none.
    """
    places = torch.from_numpy(np.flatnonzero(rows >= 0)).to(to.device)
    to[places] = values[torch.from_numpy(rows[rows >= 0])].to(to)
