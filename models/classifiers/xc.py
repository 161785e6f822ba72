"""Extreme classifiers: one row a label on an encoder trained before.

    s_il = cos(w_l, E(x_i)) / tau + b_l

Modules M2 to M4 of DeepXML, as NGAME and DEXA have them. Rows start from the label vectors of the
run started from: its (augmented) label embeddings, or the rows of its label clusters. With a frozen
encoder every training query is encoded once. A step sees the batch's positives (`pool: in-batch`,
row-sparse: it costs the rows it touches) or all labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.batching.clustered_batches import ClusteredBatches, ClusteredConfig, check_curriculum
from models.batching.label_pool import LabelPool
from models.classifiers.label_rows import DirectionRows
from models.classifiers.linear_ranker import XcRanker
from models.classifiers.memory_needs import xc_needs
from models.classifiers.ova import ClassifierStep, Ova, OvaConfig
from models.contract import (
    Ranker,
    Start,
    check_encoders,
    check_label_vectors,
    take_encoder,
)
from models.encoders.reader import Reader, embed_all
from models.known_labels import rows_in_start, take_rows_of, vectors_from_start
from utils.config.config import Config, ConfigError, option
from utils.config.sections import MANY_EPOCHS, MANY_TEXTS
from utils.data.batches import Batch
from utils.data.dataset import Dataset
from utils.data.micro_batches import MicroBatches
from utils.data.sizes import DataSizes
from utils.parameters import Gradient, take_rows
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.run.stages import Runs
from utils.runtime import Runtime


@dataclass(frozen=True)
class XcConfig(ClusteredConfig, OvaConfig):
    pool: Literal["all", "in-batch"] = option(
        "in-batch",
        "labels in a step's loss: all, or all positives of the batch's queries",
        auto="all up to 32,768 labels, then in-batch",
    )
    freeze: bool = option(True, "keep the encoder as it is; each query is then encoded once")
    dropout: float = option(0.5, "dropout of the query embedding", ge=0, lt=1)
    cosine: bool = option(True, "classifier rows count by direction alone")
    cluster_size: int = option(32, "clustered: queries of a cluster at first", ge=2, le=MANY_TEXTS)
    curr_epochs: tuple[int, ...] = option(
        (0,),
        "clustered: the first epoch with clusters, then those of doubled size",
        ge=0,
        le=MANY_EPOCHS,
    )

    @property
    def gradient(self) -> Gradient:
        """In-batch, a step takes the rows of the batch's labels alone."""
        return Gradient.ROWS if self.pool == "in-batch" else Gradient.DENSE


class Xc(Ova):
    """Trains extreme classifiers.

    Attributes:
        embeddings: label vectors of the run started from [L, D], for a fusion.
        clustered: order of the queries.
    """

    Options = XcConfig
    Answers = XcRanker
    embeddings: np.ndarray

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        assert start is not None, "checked on paper"
        super().__init__(config, data, start, runtime)
        self.clustered = ClusteredBatches(config, len(data.splits["trn"]))

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        if not config.run.start_from:
            raise ConfigError(
                "method xc starts from a trained encoder: run it as a stage after ngame, dexa, "
                "dexml or surrogate, or name such a run by run.start_from"
            )
        check_curriculum(config)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        check_encoders(config, before)
        check_label_vectors(config, before)

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return frozenset({"classifier"}) if config.method.freeze else super().group_names(config)

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        return xc_needs(sizes)

    def make_reader(self) -> Reader:
        if not self.config.method.freeze:
            return super().make_reader()
        return Reader.frozen(self.module.encoder, self.config, self.runtime)

    def take(self, start: Ranker) -> None:
        """Copy the encoder of a run, rows from its label vectors, and biases of an xc run."""
        take_encoder(self.module.encoder, start)
        vectors = vectors_from_start(start, self.data)  # [L, D]
        self.module.weight.data.copy_(vectors[self.own_rows])
        self.embeddings = vectors.detach().cpu().numpy()
        if isinstance(start, XcRanker):
            rows = rows_in_start(start, self.data)
            take_rows_of(self.module.bias.data, start.rows.bias, rows[self.own_rows])
            known = rows >= 0
            embeddings = np.where(known[:, None], start.rows.embeddings[rows], self.embeddings)
            self.embeddings = np.ascontiguousarray(embeddings, np.float32)

    # ---- a step
    @cached_property
    def frozen_queries(self) -> Tensor:
        """Embeddings of all training queries [n, D] by a frozen encoder, made once.

        A collective when it is asked for first.
        """
        return self.embed_queries()

    def embed_queries(self) -> Tensor:
        """Embeddings of all training queries [n, D] by the encoder as it is; a collective."""
        return embed_all(self.reader, self.data.splits["trn"].texts, "embed queries")

    def embed(self, batch: Batch, step: ClassifierStep) -> tuple[Tensor, Callable[[], None]]:
        """Take the own queries from those encoded once, or encode them; then drop out."""
        options = self.config.method
        if options.freeze:
            queries = self.frozen_queries[step.points]  # [b, D]
            to_encoder = _nothing
        else:
            queries, to_encoder = super().embed(batch, step)  # [b, D]
            self.clustered.record(batch, queries)
        return F.dropout(queries, options.dropout, self.module.training), to_encoder

    def queries_of(self, batch: Batch) -> MicroBatches | None:
        """None where they have been encoded once."""
        return None if self.config.method.freeze else super().queries_of(batch)

    def pool_of(self, batch: Batch) -> tuple[LabelPool, Tensor | None]:
        """All labels, or the batch's positives alone."""
        if self.config.method.pool == "all":
            return super().pool_of(batch)
        labels = np.unique(batch.relevance.indices).astype(np.int64)  # [K]
        pool = LabelPool(labels, num_labels=self.num_rows)
        return pool, torch.from_numpy(pool.own - self.own_rows.start)  # [k]

    def step_rows(self, step: ClassifierStep) -> tuple[Tensor, Tensor]:
        module = self.module
        if step.rows is None:
            return self._direction(module.weight), module.bias
        weight = self._direction(take_rows(module.weight, step.rows))  # [k, D]
        return weight, take_rows(module.bias, step.rows)

    def _direction(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1) if self.config.method.cosine else rows

    # ---- epochs
    def begin(self, epoch: int) -> None:
        def embed() -> np.ndarray:
            frozen = self.config.method.freeze
            queries = self.frozen_queries if frozen else self.embed_queries()
            return queries.cpu().numpy()

        self.clustered.start_epoch(epoch, embed)

    def order(self, epoch: int) -> np.ndarray | None:
        return self.clustered.order(epoch)

    def state(self) -> dict[str, np.ndarray]:
        return self.clustered.state()

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        self.clustered.load_state(state)

    # ---- the model
    def ranker_of(
        self,
        weight: Tensor,
        bias: Tensor,
        labels: slice,
    ) -> XcRanker:
        embeddings = self.embeddings[labels]
        rows = DirectionRows(weight, bias, embeddings, self.config.method.cosine)
        return XcRanker(self.config, self.reader, rows)


def _nothing() -> None:
    """What a frozen encoder does with a gradient."""
