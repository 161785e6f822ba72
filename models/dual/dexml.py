"""DEXML: dual encoders trained against all labels, or a pool of them.

Gupta et al., ICLR 2024, arXiv 2310.10636. One encoder E for queries and labels; score s_il =
E(x_i) . E(z_l) / tau. The step, with labels sharded over processes:
  1. the pool of labels, and the range of it that this process owns, shortest texts first;
  2. query embeddings, gathered from all processes [B, D];
  3. embeddings of the own labels by gradient caching [K / G, D];
  4. the loss over [B, K / G] scores; processes exchange row statistics only;
  5. backward to the embeddings, then through the encoder micro-batch by micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losses import Positives
from models.batching.label_pool import (
    LabelPool,
    StepLabels,
    pool_loss,
    sample_positives,
    sample_size,
)
from models.batching.losses import loss_function
from models.contract import Group, Learner, Ranker, Start, take_encoder
from models.dual.auxiliary import AuxiliaryVectors
from models.dual.hard_negatives import HardNegatives
from models.dual.memory_needs import DualSizes, dual_needs
from models.dual.options import DexmlConfig
from models.dual.ranker import DualRanker
from models.encoders.building import build_encoder
from models.encoders.reader import Reader, embed_share
from models.encoders.text_encoder import TextEncoder
from models.sharded import sharded
from utils import distributed
from utils.config.config import Config
from utils.data.batches import Batch, TextBatch
from utils.data.dataset import Dataset
from utils.data.micro_batches import MicroBatches, MicroBatchSize
from utils.data.sizes import DataSizes
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.training.grad_cache import GradCache, backward_all
from utils.training.optim import decay_groups


class DualEncoder(nn.Module):
    """What is trained: the encoder, and DEXA's auxiliary vectors where there are some."""

    encoder: TextEncoder
    auxiliary: AuxiliaryVectors | None

    def __init__(self, encoder: TextEncoder, auxiliary: AuxiliaryVectors | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.auxiliary = auxiliary


@dataclass(frozen=True)
class StepPool:
    """The labels that a step sees.

    Attributes:
        queries: texts of the own ones, in micro-batches.
        labels: the pool, and the batch's positives in it.
        texts: of the own labels, in micro-batches; None where every step has all labels' texts.
        sampled: mask of the batch's sampled positives among its relevance entries [nnz]; None = all
            count.
        by_rows: positives of the own queries among all labels, for those that look at them.
    """

    queries: MicroBatches
    labels: StepLabels
    texts: MicroBatches | None
    sampled: np.ndarray | None
    by_rows: Positives | None = None


class Dexml(Learner):
    """Trains a dual encoder."""

    Options = DexmlConfig
    Answers = DualRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        data.check_label_texts(_needs_texts(config))
        self.module: DualEncoder = self.build().to(runtime.device)
        if start is not None:
            self.take(start())
        self.reader = Reader.of(self.module.encoder, config, runtime)
        self.loss = loss_function(config.loss)
        self.negatives = HardNegatives(config.method, data.splits["trn"])
        assert data.label_tokens is not None, "labels whose texts were checked have tokens"
        self._label_tokens = data.label_tokens
        self._label_lengths = data.label_tokens.lengths  # [L]
        everything = np.arange(data.num_labels)
        self._pool_of_all = LabelPool(everything, self._label_lengths).on(runtime.device)

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        sizes.check_label_texts(_needs_texts(config))
        super().check(config, sizes, runs)

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        return dual_needs(DualSizes.of(sizes))

    def build(self) -> DualEncoder:
        """A fresh module."""
        return DualEncoder(build_encoder(self.config.encoder, self.data))

    def take(self, start: Ranker) -> None:
        """Copy from the model that the run starts from: the encoder of any."""
        take_encoder(self.module.encoder, start)

    def groups(self) -> list[Group]:
        return decay_groups(self.module, "encoder", self.config.optim.weight_decay)

    # ---- a step
    def backward(self, batch: Batch) -> Tensor:
        """A step, as the head of this page tells it; letters as in models/contract.py."""
        options = self.config.method
        pool: StepPool = self.made(batch)  # K labels, k of them this process's
        texts = self._all_texts if pool.texts is None else pool.texts
        query_cache = GradCache(self._encode, pool.queries)
        label_cache = GradCache(self._encode, texts)
        queries = query_cache.embed()  # [b, D]
        labels = self.represent(label_cache.embed(), pool.labels.pool.own_ids)  # [k, D]
        loss = pool_loss(
            self.loss,
            queries,
            labels,
            pool.labels,
            options=self.config.loss,
            tau=options.tau,
        )
        self.observe(batch, queries.detach(), labels.detach(), pool)
        self.runtime.backward(loss)  # to the embeddings
        backward_all([query_cache, label_cache])
        return loss.detach()

    def represent(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Represent labels [k, D] by the embeddings of their texts; DEXA adds its vectors here."""
        return embeddings

    def observe(
        self,
        batch: Batch,
        queries: Tensor,
        labels: Tensor,
        pool: StepPool,
    ) -> None:
        """Look at a step's own embeddings [b, D], [k, D]; NGAME fills its memory bank here."""

    def _encode(self, texts: TextBatch) -> Tensor:
        with self.runtime.autocast():
            return self.module.encoder(texts)

    def ahead(self, batch: Batch) -> StepPool:
        """The labels of a step: all, or sampled positives and mined negatives of the batch."""
        options = self.config.method
        loss = self.config.loss
        rng = batch.rng()
        queries = MicroBatches.of(batch.queries, self._micro_batch_size)
        sampled = None
        if options.pool != "all" or loss.sample:
            count = options.num_positives
            if loss.sample:
                count = sample_size(loss, len(self._label_lengths))
            sampled = sample_positives(batch.relevance, count, rng)
        if options.pool == "all":
            labels = StepLabels.of(self._pool_of_all, batch, loss, sampled)
            return StepPool(queries, labels, None, sampled)
        chosen = [batch.relevance.indices[sampled]]
        if options.pool == "hnm":
            chosen.append(self.negatives.draw(batch, rng))
        ids = np.unique(np.concatenate(chosen)).astype(np.int64)
        pool = LabelPool(ids, self._label_lengths)
        labels = StepLabels.of(pool, batch, loss, sampled)
        return StepPool(queries, labels, self._label_texts(pool), sampled)

    @property
    def _micro_batch_size(self) -> MicroBatchSize:
        return self.module.encoder.micro_batch_size(self.config.method, self.runtime.device)

    @cached_property
    def _all_texts(self) -> MicroBatches:
        """Their texts in the same micro-batches, on the device."""
        parts = self._label_texts(self._pool_of_all).parts
        return MicroBatches([texts.to(self.runtime.device) for texts in parts])

    def _label_texts(self, pool: LabelPool) -> MicroBatches:
        """Texts of the own labels in micro-batches; one at least."""
        slices = self._micro_batch_size.cut(self._label_lengths[pool.own])
        rows = [pool.own[part] for part in slices]
        return MicroBatches([TextBatch.take(self._label_tokens, part) for part in rows])

    # ---- epochs
    def begin(self, epoch: int) -> None:
        if self.negatives.is_due(epoch):
            self.negatives.mine(self.ranker())

    def state(self) -> dict[str, np.ndarray]:
        return self.negatives.state()

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        self.negatives.load_state(state)

    # ---- the model
    def embed_own_labels(self) -> Tensor:
        """Embeddings of the texts of this process's labels [L / G, D]."""
        rows = np.arange(len(self._label_lengths))
        return embed_share(self.reader, self._label_tokens, rows, "embed labels")

    def ranker(self) -> Ranker:
        """By the vectors of the labels' texts, which each process makes and keeps of its own."""
        texts = self.embed_own_labels()  # [k, D]
        own = distributed.share(self.data.num_labels)
        labels = torch.arange(own.start, own.stop, device=texts.device)
        with torch.no_grad():
            vectors = self.represent(texts, labels)
        return sharded(
            self.data.num_labels,
            lambda: DualRanker(self.config, self.reader, vectors),
            lambda: self.whole_ranker(texts, vectors),
        )

    def whole_ranker(self, texts: Tensor, vectors: Tensor) -> Ranker | None:
        """The ranker of all labels on the main process; a collective.

        Args:
            texts: embeddings of the own labels' texts [k, D].
            vectors: what the own labels are ranked by [k, D].
        """
        rows = distributed.gather_on_main(vectors, self.data.num_labels)
        return None if rows is None else DualRanker(self.config, self.reader, rows)


def _needs_texts(config: Config) -> str:
    return (
        f"method {config.method.name} encodes the labels' texts: give them texts, or use `ova`, "
        "or the path from `surrogate` to `xc`, which need none"
    )
