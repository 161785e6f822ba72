"""Extreme classifiers: one row a label on an encoder trained before (NGAME, DEXA: modules M2 to M4
of DeepXML).

Score s_il = cos(w_l, E(x_i)) / tau + b_l. Rows start from the label vectors of the run started
from: its (augmented) label embeddings, or the rows of its label clusters. With a frozen encoder
every training query is encoded once. A step sees the batch's positives (`pool: in-batch`,
row-sparse: it costs the rows it touches) or all labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from models.batching.clustered_batches import ClusteredBatches, ClusteredConfig, check_curriculum
from models.batching.label_pool import LabelPool
from models.classifiers.ova import Ova, OvaConfig
from models.encoders.encoder import TextEncoder
from models.encoders.frozen import encode_frozen
from models.method import (
    Method,
    check_encoders,
    check_label_vectors,
    embed_rows,
    encode_all,
    load_label_embeddings,
)
from utils import distributed
from utils.config.config import Config, ConfigError, option
from utils.config.sections import MANY_EPOCHS, MANY_TEXTS
from utils.data.batches import Batch
from utils.data.dataset import Dataset, Split
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.parameters import Gradient, take_rows
from utils.run.stages import Runs


@dataclass(frozen=True)
class XcConfig(ClusteredConfig, OvaConfig):
    pool: Literal["all", "in-batch"] = option(
        "in-batch", "labels in a step's loss: all, or all positives of the batch's queries"
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
    """Extreme classifiers. Attribute label_embeddings [L, D]: label vectors of the run started
    from, for fusion."""

    Options = XcConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder
    ) -> None:
        super().__init__(config, num_labels, data, encoder)
        settings = config.method
        self.encoder.requires_grad_(not settings.freeze)
        self.clustered = ClusteredBatches(config, len(data.splits["trn"])) if data else None
        self.label_embeddings: np.ndarray | None = None
        # [n, D] of the training queries, if the encoder is frozen
        self._queries: Tensor | None = None

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
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

    # ---- training
    def prepare_queries(self, accelerator: Accelerator) -> Tensor:
        """Embeddings of all training queries [n, D], made once if the encoder is frozen."""
        if self._queries is None or not self.config.method.freeze:
            split = self.data.splits["trn"]
            encode = encode_frozen if self.config.method.freeze else encode_all
            self._queries = embed_rows(
                self.encoder,
                split.tokens,
                split.rows,
                self.config.eval.batch_size,
                accelerator,
                "embed queries",
                encode,
            )
        return self._queries

    def embed(self, batch: Batch, accelerator: Accelerator) -> tuple[Tensor, Callable[[], None]]:
        settings = self.config.method
        if not settings.freeze:
            queries, to_encoder = super().embed(batch, accelerator)
            self.clustered.record(batch, queries)
        else:
            own = distributed.share(len(batch.points))
            points = torch.from_numpy(batch.points[own.start : own.stop])
            queries = self.prepare_queries(accelerator)[points.to(accelerator.device)]
            to_encoder = _nothing
        return F.dropout(queries, settings.dropout, self.training), to_encoder

    def rows(self, batch: Batch) -> tuple[LabelPool, Tensor, Tensor]:
        if self.config.method.pool == "all":
            return LabelPool(np.arange(self.num_rows)), self._direction(self.weight), self.bias
        pool = LabelPool(
            np.unique(batch.relevance.indices).astype(np.int64), num_labels=self.num_rows
        )
        own = torch.from_numpy(pool.own - distributed.share(self.num_rows).start).to(
            self.weight.device
        )
        return pool, self._direction(take_rows(self.weight, own)), take_rows(self.bias, own)

    def _direction(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1) if self.config.method.cosine else rows

    def on_epoch_start(self, epoch: int, accelerator: Accelerator) -> None:
        self.clustered.start_epoch(epoch, lambda: self.prepare_queries(accelerator).cpu().numpy())

    def batch_order(self, epoch: int) -> np.ndarray | None:
        return self.clustered.order(epoch)

    def training_state(self) -> dict[str, np.ndarray]:
        return self.clustered.state()

    def load_training_state(self, state: dict[str, np.ndarray]) -> None:
        self.clustered.load_state(state)

    def start_from(self, other: Method) -> None:
        """The encoder of another run; rows from its label vectors, and biases too if it is an xc
        run."""
        if other.num_labels != self.num_labels:
            raise InputError(
                f"run.start_from: that run has {other.num_labels} labels, this one "
                f"{self.num_labels}"
            )
        self.start_from_encoder(other)
        own = distributed.share(self.num_rows)
        vectors = other.label_vectors()
        self.weight.data.copy_(torch.as_tensor(vectors[own.start : own.stop]))
        if isinstance(other, Xc):
            self.bias.data.copy_(other.bias.data[own.start : own.stop])
        self.label_embeddings = np.asarray(
            other.label_embeddings if isinstance(other, Xc) else vectors
        )

    # ---- scoring and saving
    @torch.no_grad()
    def score_points(
        self,
        split: Split,
        points: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """In training a frozen encoder encodes the validation points once, not after every
        epoch."""
        if not self.config.method.freeze or self.data is None:
            return super().score_points(split, points, k, accelerator)
        size = self.config.eval.batch_size
        queries = encode_frozen(
            self.encoder, split.tokens, split.rows[points], size, accelerator, "embed points"
        )
        parts = (
            [self.open_embeddings(block).best(k) for block in queries.split(size)]
            if len(points)
            else []
        )
        return (
            tuple(np.concatenate(part) for part in zip(*parts, strict=True))
            if parts
            else (np.empty((0, k), np.float32), np.empty((0, k), np.int64))
        )

    def label_rows(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return self._direction(weight), bias

    def search_vectors(self) -> dict[str, tuple[Tensor | np.ndarray, Tensor | None]]:
        return {**super().search_vectors(), "embeddings": (self.label_embeddings, None)}

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        super().save(folder, accelerator)
        if distributed.is_main():
            np.save(folder / "label_embeddings.npy", self.label_embeddings)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Xc:
        method = super().load(config, folder, num_labels)
        method.label_embeddings = load_label_embeddings(folder, num_labels, method.encoder.dim)
        return method


def _nothing() -> None:
    """What a frozen encoder does with a gradient."""
