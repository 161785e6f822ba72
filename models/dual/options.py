"""Options of the dual encoders: section `method` of dexml, ngame and dexa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.batching.clustered_batches import ClusteredConfig
from utils.config.config import option
from utils.config.sections import (
    LARGEST,
    MANY_EPOCHS,
    MANY_LABELS,
    MANY_TEXTS,
    SMALLEST,
    EncodingConfig,
)


@dataclass(frozen=True)
class DexmlConfig(EncodingConfig):
    has_label_vectors: ClassVar[bool] = True
    pool: Literal["all", "hnm", "in-batch"] = option(
        "all",
        "labels in a step's loss: all; hnm = the batch's sampled positives and mined negatives; "
        "in-batch",
        auto="all up to 32,768 labels, then hnm",
    )
    tau: float = option(
        0.05,
        "temperature: scores are inner products / tau (1 for embeddings that are not normalised)",
        ge=SMALLEST,
        le=LARGEST,
    )
    gc_batch_size: int = option(
        1024,
        "texts encoded at once by gradient caching: bounds the activations' memory; "
        "micro_batch_tokens counts in its place",
        ge=1,
        le=MANY_TEXTS,
    )
    num_positives: int = option(
        1, "hnm, in-batch: positives sampled per query", ge=1, le=MANY_LABELS
    )
    num_negatives: int = option(
        1, "hnm: negatives drawn per query from its shortlist", ge=0, le=MANY_LABELS
    )
    shortlist_size: int = option(
        100, "hnm: labels of the shortlist, the positives among them removed", ge=1, le=MANY_LABELS
    )
    hard_neg_start: int = option(
        0, "hnm: first epoch with mined negatives; in-batch before it", ge=0, le=MANY_EPOCHS
    )
    refresh_interval: int = option(
        1, "hnm: epochs between two minings of the shortlists", ge=1, le=MANY_EPOCHS
    )


@dataclass(frozen=True)
class NgameConfig(ClusteredConfig, DexmlConfig):
    pool: Literal["all", "hnm", "in-batch"] = option(
        "in-batch",
        "labels in a step's loss: all; hnm = the batch's sampled positives and mined negatives; "
        "in-batch",
        auto="all up to 32,768 labels, then hnm",
    )
    tau: float = option(
        1.0,
        "temperature: scores are inner products / tau; 1 for the triplet loss",
        ge=SMALLEST,
        le=LARGEST,
    )


@dataclass(frozen=True)
class DexaConfig(NgameConfig):
    num_vectors: int | Literal["labels"] = option(
        1024,
        "auxiliary vectors: a power of two, or as many beyond num_head_vectors; 0 = none "
        "(NGAME); labels = one a label (SiameseXML)",
        ge=0,
        le=MANY_LABELS,
    )
    num_head_vectors: int = option(
        0,
        "of them, vectors of the most frequent labels, one each; others share",
        ge=0,
        le=MANY_LABELS,
    )
    vector_init: Literal["xavier", "zeros"] = option("xavier", "auxiliary vectors at the start")
