"""One-versus-all: a linear classifier of all labels on top of a text encoder.

    s_il = w_l . E(x_i) / tau + b_l

The baseline of extreme classification, and DEXML's `dist-clf-net` (Gupta et al., ICLR 2024): no
label text is used. Classifier rows are sharded over processes like DEXML's labels. `xc` and
`surrogate` are one-versus-all too, with other rows in a step or other classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from models.batching.label_pool import (
    LabelPool,
    StepLabels,
    pool_loss,
    sample_positives,
    sample_size,
)
from models.batching.losses import loss_function
from models.classifiers.label_rows import LabelRows
from models.classifiers.linear_ranker import LinearRanker
from models.classifiers.memory_needs import classifier_needs
from models.contract import Group, Learner, Ranker, Start, check_encoders, take_encoder
from models.encoders.building import build_encoder
from models.encoders.reader import Reader
from models.encoders.text_encoder import TextEncoder
from models.known_labels import rows_in_start, take_rows_of
from models.sharded import sharded
from utils import distributed
from utils.config.config import Config, ConfigError, option
from utils.config.sections import LARGEST, MANY_TEXTS, SMALLEST, EncodingConfig
from utils.data.batches import Batch, TextBatch
from utils.data.dataset import Dataset
from utils.data.micro_batches import MicroBatches
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.plan.weights import label_rows
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.training.grad_cache import GradCache, backward_all
from utils.training.optim import decay_groups


@dataclass(frozen=True)
class OvaConfig(EncodingConfig):
    has_label_vectors: ClassVar[bool] = True
    tau: float = option(
        1.0, "temperature: scores are inner products / tau + bias", ge=SMALLEST, le=LARGEST
    )
    gc_batch_size: int = option(
        1024,
        "queries encoded at once: bounds the activations' memory; micro_batch_tokens counts in "
        "its place",
        ge=1,
        le=MANY_TEXTS,
    )

    @property
    def classes(self) -> int | None:
        """Rows of the classifier; None = one a label."""
        return None

    @property
    def gradient(self) -> Gradient:
        """The form of the classifier's gradient."""
        return Gradient.DENSE


class Classifier(nn.Module):
    """What is trained: the encoder, and this process's share of the classifier's rows.

    Attributes:
        weight: [own rows, D].
        bias: [own rows]. Both start at 0: every class is equally likely.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        num_rows: int,
        gradient: Gradient,
    ) -> None:
        super().__init__()
        own_rows = len(distributed.share(num_rows))
        kind = Kind(gradient, sharded=True)
        self.encoder = encoder
        self.weight = DeclaredParameter(torch.zeros(own_rows, encoder.dim), kind)
        self.bias = DeclaredParameter(torch.zeros(own_rows), kind)


@dataclass(frozen=True)
class ClassifierStep:
    """What a step is told ahead.

    Attributes:
        labels: the pool, and the batch's positives in it.
        points: own ones, positions in the split [b].
        rows: of the pool's own labels among this process's rows [k]; None = all.
        queries: their texts; None where the encoder is not trained.
    """

    labels: StepLabels
    points: Tensor
    rows: Tensor | None = None
    queries: MicroBatches | None = None


class Ova(Learner):
    """Trains encoder and classifier.

    Attributes:
        num_rows: of the classifier, over all processes.
        reader: of the encoder, which may be in training.
    """

    Options = OvaConfig
    Answers: ClassVar[type[LinearRanker]] = LinearRanker
    module: Classifier

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        self.num_rows: int = config.method.classes or data.num_labels
        self.loss = loss_function(config.loss)
        self._pool_of_all = LabelPool(np.arange(self.num_rows)).on(runtime.device)
        self.module = self.build().to(runtime.device)
        if start is not None:
            self.take(start())
        self.reader = self.make_reader()

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        loss_function(config.loss)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        check_encoders(config, before)
        if isinstance(before.method, OvaConfig) and before.method.classes != config.method.classes:
            theirs = before.method.classes or "one a label"
            ours = config.method.classes or "one a label"
            raise ConfigError(
                f"run.start_from: its classifier has other classes: {theirs}, this run's {ours}"
            )

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return super().group_names(config) | {"classifier"}

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        labels = sizes.data.labels
        return classifier_needs(sizes, label_rows(sizes, labels), labels)

    def build(self) -> Classifier:
        """A fresh module."""
        encoder = build_encoder(self.config.encoder, self.data)
        return Classifier(encoder, self.num_rows, self.config.method.gradient)

    def make_reader(self) -> Reader:
        """The reader of the module's encoder."""
        return Reader.of(self.module.encoder, self.config, self.runtime)

    @property
    def own_rows(self) -> slice:
        """This process's among the rows of all."""
        share = distributed.share(self.num_rows)
        return slice(share.start, share.stop)

    def take(self, start: Ranker) -> None:
        """Copy the encoder of any run, and the rows of a classifier; new labels' rows stay 0."""
        take_encoder(self.module.encoder, start)
        if not isinstance(start, LinearRanker):
            return
        rows = start.rows
        if self.config.method.classes is None and len(rows.weight) == start.num_labels:
            known = rows_in_start(start, self.data)[self.own_rows]
            take_rows_of(self.module.weight.data, rows.weight, known)
            take_rows_of(self.module.bias.data, rows.bias, known)
            return
        if len(rows.weight) != self.num_rows:
            raise InputError(
                f"run.start_from: its classifier has {len(rows.weight)} labels, this run "
                f"{self.num_rows}"
            )
        self.module.weight.data.copy_(rows.weight[self.own_rows])
        self.module.bias.data.copy_(rows.bias[self.own_rows])

    def groups(self) -> list[Group]:
        decay = self.config.optim.weight_decay
        return [
            *decay_groups(self.module.encoder, "encoder", decay),
            {"name": "classifier", "params": [self.module.weight], "weight_decay": decay},
            {"name": "classifier", "params": [self.module.bias], "weight_decay": 0.0},
        ]

    # ---- a step
    def backward(self, batch: Batch) -> Tensor:
        """A step: own queries against the rows of the pool.

        b of the batch's B queries and k of the pool's K rows are this process's.
        """
        step: ClassifierStep = self.made(batch)
        queries, to_encoder = self.embed(batch, step)  # [b, D]
        weight, bias = self.step_rows(step)  # [k, D], [k]
        loss = pool_loss(
            self.loss,
            queries,
            weight,
            step.labels,
            options=self.config.loss,
            tau=self.config.method.tau,
            bias=bias,
        )
        self.runtime.backward(loss)  # to weight, bias and queries
        to_encoder()
        return loss.detach()

    def ahead(self, batch: Batch) -> ClassifierStep:
        """The labels of a step, their positives, and the rows that they have."""
        pool, rows = self.pool_of(batch)
        sampled = None
        if self.config.loss.sample:
            count = sample_size(self.config.loss, self.num_rows)
            sampled = sample_positives(batch.relevance, count, batch.rng())  # [nnz]
        share = distributed.share(len(batch.points))
        points = torch.from_numpy(batch.points[share.start : share.stop])
        labels = StepLabels.of(pool, batch, self.config.loss, sampled)
        return ClassifierStep(labels, points, rows, self.queries_of(batch))

    def queries_of(self, batch: Batch) -> MicroBatches | None:
        """The own queries of a step as they are encoded."""
        encoder = self.module.encoder
        size = encoder.micro_batch_size(self.config.method, self.runtime.device)
        return MicroBatches.of(batch.queries, size)

    def pool_of(self, batch: Batch) -> tuple[LabelPool, Tensor | None]:
        """The pool of a step, and the rows of its own labels; None = all of them."""
        return self._pool_of_all, None

    def embed(self, batch: Batch, step: ClassifierStep) -> tuple[Tensor, Callable[[], None]]:
        """Embed the own queries [b, D], with what carries their gradient on to the encoder."""

        def encode(texts: TextBatch) -> Tensor:
            with self.runtime.autocast():
                return self.module.encoder(texts)

        assert step.queries is not None, "an encoder that is trained is told its texts"
        cache = GradCache(encode, step.queries)
        return cache.embed(), partial(backward_all, [cache])

    def step_rows(self, step: ClassifierStep) -> tuple[Tensor, Tensor]:
        """Weight [k, D] and bias [k] of this process's rows in the pool of a step."""
        return self.module.weight, self.module.bias

    # ---- the model
    def ranker(self) -> Ranker:
        weight = self.module.weight.detach()
        bias = self.module.bias.detach()
        return sharded(
            self.num_rows,
            lambda: self.ranker_of(weight, bias, self.own_rows),
            lambda: self.whole_ranker(weight, bias),
        )

    def whole_ranker(self, weight: Tensor, bias: Tensor) -> Ranker | None:
        """The ranker of all labels on the main process, of own rows [r, D], [r]; a collective."""
        rows = distributed.gather_on_main(weight, self.num_rows)
        biases = distributed.gather_on_main(bias, self.num_rows)
        if rows is None or biases is None:
            return None
        return self.ranker_of(rows, biases, slice(self.num_rows))

    def ranker_of(
        self,
        weight: Tensor,
        bias: Tensor,
        labels: slice,
    ) -> LinearRanker:
        """A ranker of some labels by their rows, weight [R, D] and bias [R]."""
        return self.Answers(self.config, self.reader, LabelRows(weight, bias))
