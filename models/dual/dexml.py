"""DEXML: dual encoders trained against all labels, or a pool of them (Gupta et al., ICLR 2024,
arXiv 2310.10636).

One encoder E for queries and labels; score s_il = E(x_i) . E(z_l) / tau. The step, with labels
sharded over processes:
  1. the pool of labels, and the range of it that this process owns, shortest texts first;
  2. query embeddings, gathered from all processes [B, D];
  3. embeddings of the own labels by gradient caching [K / G, D];
  4. the loss over [B, K / G] scores; processes exchange row statistics only;
  5. backward to the embeddings, then through the encoder micro-batch by micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from models.batching.label_pool import LabelPool, pool_loss, sample_positives, sample_size
from models.batching.losses import loss_function
from models.encoders.encoder import TextEncoder, build_encoder, load_encoder
from models.method import Method, embed_rows, load_label_embeddings, write_method
from utils import distributed
from utils.config.config import Config, MethodConfig, option
from utils.config.sections import LARGEST, MANY_EPOCHS, MANY_LABELS, MANY_TEXTS, SMALLEST
from utils.data.batches import Batch, TextBatch
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.run.stages import Runs
from utils.search import ExactIndex, HnswIndex, build_index
from utils.sparse import contains
from utils.tokenization_utils import Ragged, tokenize_texts
from utils.training.grad_cache import GradCache


@dataclass(frozen=True)
class DexmlConfig(MethodConfig):
    has_label_vectors: ClassVar[bool] = True
    pool: Literal["all", "hnm", "in-batch"] = option(
        "all",
        "labels in a step's loss: all; hnm = the batch's sampled positives and mined negatives; "
        "in-batch",
    )
    tau: float = option(
        0.05,
        "temperature: scores are inner products / tau (1 for embeddings that are not normalised)",
        ge=SMALLEST,
        le=LARGEST,
    )
    gc_batch_size: int = option(
        1024,
        "texts encoded at once by gradient caching: bounds the activations' memory",
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


class Dexml(Method):
    """The dual encoder. Attributes: encoder; after prepare_scoring or load: label_embeddings [L,
    D], index."""

    Options = DexmlConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder
    ) -> None:
        super().__init__(config, num_labels, data)
        self.encoder = encoder
        self.loss = loss_function(config.loss)
        self.label_embeddings: Tensor | np.ndarray | None = None
        self.index: ExactIndex | HnswIndex | None = None  # over the label embeddings
        # [n, shortlist_size] label ids, -1 where there is none
        self._shortlists: np.ndarray | None = None
        # [L], made once, not in each step
        self._label_lengths = data.label_tokens.lengths if data else None
        self._all: tuple[LabelPool, list[TextBatch]] | None = None

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        sizes.check_label_texts(_needs_texts(config))
        super().check(config, sizes, runs)

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Dexml:
        data.check_label_texts(_needs_texts(config))
        return cls(config, data.num_labels, data, build_encoder(config.encoder, data))

    # ---- training
    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        settings = self.config.method
        device = accelerator.device
        rng = batch.rng()
        pool, label_texts, sampled = self._pool(batch, rng, device)
        encode = self._encode_with(accelerator)
        query_cache = GradCache(encode, batch.queries.split(settings.gc_batch_size))
        label_cache = GradCache(encode, label_texts)
        queries = query_cache.embed()  # [b, D]
        labels = self.represent(label_cache.embed(), pool.own)  # [k, D]
        loss = pool_loss(
            self.loss, queries, labels, pool, batch, sampled, self.config.loss, tau=settings.tau
        )
        self.observe(batch, queries.detach(), labels.detach(), pool, sampled)
        accelerator.backward(loss)
        query_cache.backward()
        label_cache.backward()
        return loss.detach()

    def represent(self, embeddings: Tensor, labels: np.ndarray) -> Tensor:
        """Representations of labels [k, D] from the embeddings of their texts; DEXA adds its
        vectors here."""
        return embeddings

    def observe(
        self,
        batch: Batch,
        queries: Tensor,
        labels: Tensor,
        pool: LabelPool,
        sampled: np.ndarray | None,
    ) -> None:
        """Look at a step's own embeddings [b, D], [k, D]; NGAME fills its memory bank here."""

    def _encode_with(self, accelerator: Accelerator):
        def encode(texts: TextBatch) -> Tensor:
            with accelerator.autocast():
                return self.encoder(texts)

        return encode

    def _pool(
        self,
        batch: Batch,
        rng: np.random.Generator,
        device: torch.device,
    ) -> tuple[LabelPool, list[TextBatch], np.ndarray | None]:
        """(pool, the own labels' texts in micro-batches, mask of sampled positives)."""
        settings = self.config.method
        loss = self.config.loss
        sampled = None
        if settings.pool != "all" or loss.sample:
            count = sample_size(loss, self.num_labels) if loss.sample else settings.num_positives
            sampled = sample_positives(batch.relevance, count, rng)
        if settings.pool == "all":
            # made once: every step sees the same labels in the same micro-batches
            if self._all is None:
                pool = LabelPool(np.arange(self.num_labels), self._label_lengths)
                self._all = pool, self._label_texts(pool, device)
            return *self._all, sampled
        chosen = [batch.relevance.indices[sampled]]
        if settings.pool == "hnm" and self._shortlists is not None:
            chosen.append(self._draw_negatives(batch, rng))
        pool = LabelPool(np.unique(np.concatenate(chosen)).astype(np.int64), self._label_lengths)
        return pool, self._label_texts(pool, device), sampled

    def _label_texts(self, pool: LabelPool, device: torch.device) -> list[TextBatch]:
        size = self.config.method.gc_batch_size
        return [
            TextBatch.take(self.data.label_tokens, pool.own[i : i + size]).to(device)
            for i in range(0, max(len(pool.own), 1), size)
        ]

    # ---- hard negatives
    def _draw_negatives(self, batch: Batch, rng: np.random.Generator) -> np.ndarray:
        """`num_negatives` labels of each query's shortlist, drawn without replacement."""
        # [B, shortlist]
        lists = self._shortlists[batch.points]
        keys = np.where(lists >= 0, rng.random(lists.shape), np.inf)
        count = min(self.config.method.num_negatives, lists.shape[1])
        drawn = np.take_along_axis(lists, np.argsort(keys, axis=1)[:, :count], 1).ravel()
        return drawn[drawn >= 0]

    def on_epoch_start(self, epoch: int, accelerator: Accelerator) -> None:
        """Mine the shortlists of this epoch: the current model's top labels of each training
        query."""
        settings = self.config.method
        due = (epoch - settings.hard_neg_start) % settings.refresh_interval == 0
        if (
            settings.pool == "hnm"
            and epoch >= settings.hard_neg_start
            and (due or self._shortlists is None)
        ):
            self._shortlists = self._mine(accelerator)

    def _mine(self, accelerator: Accelerator) -> np.ndarray:
        split = self.data.splits["trn"]
        size = self.config.method.shortlist_size
        known = split.relevance + split.filters
        k = min(size + int(np.diff(known.indptr).max(initial=0)), self.num_labels)
        self.prepare_scoring(accelerator)
        own = distributed.share(len(split))
        _, ids = self.score_rows(split.tokens, split.rows[own.start : own.stop], k, accelerator)
        ids = distributed.broadcast(distributed.gather_arrays(ids, len(split)))
        ids[contains(known, np.arange(len(ids))[:, None], ids)] = -1
        # the negatives first, best first
        order = np.argsort(ids < 0, axis=1, kind="stable")[:, :size]
        return np.take_along_axis(ids, order, 1)

    def training_state(self) -> dict[str, np.ndarray]:
        return {} if self._shortlists is None else {"shortlists": self._shortlists}

    def load_training_state(self, state: dict[str, np.ndarray]) -> None:
        self._shortlists = state.get("shortlists")

    # ---- scoring
    def prepare_scoring(self, accelerator: Accelerator) -> Tensor:
        """Training searches exactly: neither the choice of the checkpoint nor negatives depend on
        `eval.index`.

        Returns the embeddings of the labels' texts [L, D].
        """
        embeddings = self.embed_labels(self.data.label_tokens, accelerator)
        self.label_embeddings = self.represent(embeddings, np.arange(self.num_labels)).detach()
        self._index_labels("exact")
        return embeddings

    def rank_new_labels(self, labels: Sequence[str], accelerator: Accelerator) -> None:
        length = self.config.data.label_max_len or self.config.data.max_len
        tokens = tokenize_texts(labels, self.encoder.label_tokenizer(length))
        self.label_embeddings = self.represent_new(self.embed_labels(tokens, accelerator))
        self._index_labels(self.config.eval.index)

    def represent_new(self, embeddings: Tensor) -> Tensor:
        """Representations of labels that training never saw [k, D]."""
        return embeddings

    def _index_labels(self, name: str) -> None:
        self.index = build_index(name, self.label_embeddings, settings=self.config.eval)

    def embed_labels(self, labels: Ragged, accelerator: Accelerator) -> Tensor:
        """Embeddings of label texts, each process its share: [L, D] on every process."""
        return embed_rows(
            self.encoder,
            labels,
            np.arange(len(labels)),
            self.config.eval.batch_size,
            accelerator,
            "embed labels",
        )

    def label_vectors(self) -> Tensor | np.ndarray:
        return self.label_embeddings

    def search_vectors(self) -> dict[str, tuple[Tensor | np.ndarray, Tensor | None]]:
        return {"embeddings": (self.label_embeddings, None)}

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        return self.index.search(self.encoder(queries).float(), k)

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if distributed.is_main():
            self.encoder.save(folder)
            np.save(folder / "label_embeddings.npy", np.asarray(self.label_embeddings.cpu()))
            write_method(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Dexml:
        method = cls(config, num_labels, None, load_encoder(config.encoder, folder))
        method.label_embeddings = load_label_embeddings(folder, num_labels, method.encoder.dim)
        method._index_labels(config.eval.index)
        return method


def _needs_texts(config: Config) -> str:
    return (
        f"method {config.method.name} encodes the labels' texts: give them texts, or use `ova`, "
        "or the path from `surrogate` to `xc`, which need none"
    )
