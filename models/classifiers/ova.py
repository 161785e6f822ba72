"""One-versus-all: a linear classifier w_l, b_l per label on top of a text encoder, trained against
all labels.

The baseline of extreme classification, and DEXML's `dist-clf-net` (Gupta et al., ICLR 2024): no
label text is used. Score s_il = w_l . E(x_i) / tau + b_l. Classifier rows are sharded over
processes like DEXML's labels. `xc` and `surrogate` are one-versus-all too, with other rows in a
step or other classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from models.batching.label_pool import LabelPool, pool_loss, sample_positives, sample_size
from models.batching.losses import loss_function
from models.encoders.encoder import TextEncoder, build_encoder, load_encoder
from models.method import Method, check_encoders, write_method
from models.scores import InnerProducts, Scores
from utils import distributed
from utils.config.config import Config, ConfigError, MethodConfig, option
from utils.config.sections import LARGEST, MANY_TEXTS, SMALLEST
from utils.data.batches import Batch, TextBatch
from utils.data.dataset import Dataset
from utils.errors import InputError
from utils.parameters import DeclaredParameter, Gradient, Kind
from utils.reading.saved import read_tensors
from utils.search import ExactIndex, HnswIndex, build_index
from utils.training.grad_cache import GradCache
from utils.training.optim import decay_groups


@dataclass(frozen=True)
class OvaConfig(MethodConfig):
    has_label_vectors: ClassVar[bool] = True
    tau: float = option(
        1.0, "temperature: scores are inner products / tau + bias", ge=SMALLEST, le=LARGEST
    )
    gc_batch_size: int = option(
        1024, "queries encoded at once: bounds the activations' memory", ge=1, le=MANY_TEXTS
    )

    @property
    def classes(self) -> int | None:
        """Rows of the classifier; None = one a label."""
        return None

    @property
    def gradient(self) -> Gradient:
        """The form of the classifier's gradient."""
        return Gradient.DENSE


class Ova(Method):
    """Encoder and classifier. Attributes: encoder, weight [own rows, D], bias [own rows] (all rows
    if loaded); num_rows, those of all processes: L; after prepare_scoring or load: index over all
    labels."""

    Options = OvaConfig

    def __init__(
        self,
        config: Config,
        num_labels: int,
        data: Dataset | None,
        encoder: TextEncoder,
        num_rows: int | None = None,
    ) -> None:
        """num_rows: classifier rows of all processes; None = one a label. Without data, all are
        this process's."""
        super().__init__(config, num_labels, data)
        self.encoder = encoder
        self.loss = loss_function(config.loss)
        self.num_rows = num_rows or num_labels
        rows = len(distributed.share(self.num_rows)) if data else self.num_rows
        kind = Kind(config.method.gradient, sharded=True)
        self.weight = DeclaredParameter(torch.zeros(rows, encoder.dim), kind)
        self.bias = DeclaredParameter(torch.zeros(rows), kind)
        self.index: ExactIndex | HnswIndex | None = None
        # weight and bias of all processes, for `save`
        self._whole: tuple[Tensor, Tensor] | None = None

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        check_encoders(config, before)
        if isinstance(before.method, OvaConfig) and before.method.classes != config.method.classes:
            theirs, ours = (m.classes or "one a label" for m in (before.method, config.method))
            raise ConfigError(
                f"run.start_from: its classifier has other classes: {theirs}, this run's {ours}"
            )

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Ova:
        """Rows start at 0 (every label equally likely), biases too."""
        return cls(config, data.num_labels, data, build_encoder(config.encoder, data))

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return super().group_names(config) | {"classifier"}

    def parameter_groups(self) -> list[dict[str, Any]]:
        decay = self.config.optim.weight_decay
        return [
            *decay_groups(self.encoder, "encoder", decay),
            {"name": "classifier", "params": [self.weight], "weight_decay": decay},
            {"name": "classifier", "params": [self.bias], "weight_decay": 0.0},
        ]

    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        loss = self.config.loss
        queries, to_encoder = self.embed(batch, accelerator)
        sampled = None
        if loss.sample:
            sampled = sample_positives(
                batch.relevance, sample_size(loss, self.num_rows), batch.rng()
            )
        pool, weight, bias = self.rows(batch)
        value = pool_loss(
            self.loss,
            queries,
            weight,
            pool,
            batch,
            sampled,
            loss,
            tau=self.config.method.tau,
            bias=bias,
        )
        accelerator.backward(value)
        to_encoder()
        return value.detach()

    def embed(self, batch: Batch, accelerator: Accelerator) -> tuple[Tensor, Callable[[], None]]:
        """(embeddings of the own queries [b, D], what carries their gradient on to the encoder)."""

        def encode(texts: TextBatch) -> Tensor:
            with accelerator.autocast():
                return self.encoder(texts)

        cache = GradCache(encode, batch.queries.split(self.config.method.gc_batch_size))
        return cache.embed(), cache.backward

    def rows(self, batch: Batch) -> tuple[LabelPool, Tensor, Tensor]:
        """(pool of the step, weight [k, D] and bias [k] of this process's labels in it)."""
        return LabelPool(np.arange(self.num_rows)), self.weight, self.bias

    def start_from(self, other: Method) -> None:
        """Another run's encoder, and its classifier rows if it has any."""
        own = distributed.share(self.num_rows)
        if isinstance(other, Ova) and other.num_rows != self.num_rows:
            raise InputError(
                f"run.start_from: its classifier has {other.num_rows} labels, this run "
                f"{self.num_rows}"
            )
        self.start_from_encoder(other)
        if isinstance(other, Ova):
            for mine, theirs in ((self.weight, other.weight), (self.bias, other.bias)):
                mine.data.copy_(theirs.data[own.start : own.stop])

    # ---- scoring
    def prepare_scoring(self, accelerator: Accelerator) -> None:
        """Gather the classifier's shards, [L, D] on every process; training searches exactly, as in
        DEXML."""
        self._whole = tuple(
            distributed.gather_rows(p.detach(), self.num_rows) for p in (self.weight, self.bias)
        )
        self.index = build_index("exact", *self.label_rows(*self._whole), settings=self.config.eval)

    def label_rows(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Classifier rows of all processes -> weight [L, D] and bias [L] that a query's labels are
        ranked by."""
        return weight, bias

    def label_vectors(self) -> Tensor:
        return torch.as_tensor(self.index.labels)

    def search_vectors(self) -> dict[str, tuple[Tensor | np.ndarray, Tensor | None]]:
        return {
            "classifier": (
                torch.as_tensor(self.index.labels) / self.config.method.tau,
                self.index.bias,
            )
        }

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        return self.index.search(self.encoder(queries).float() / self.config.method.tau, k)

    def open_embeddings(self, embeddings: Tensor) -> Scores:
        return InnerProducts(
            embeddings / self.config.method.tau, self.index, self.config.eval.batch_size
        )

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if distributed.is_main():
            weight, bias = self._whole
            self.encoder.save(folder)
            save_file(
                {"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()},
                folder / "classifier.safetensors",
            )
            write_method(folder, self.config.method.name, self.num_labels)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Ova:
        method = cls(config, num_labels, None, load_encoder(config.encoder, folder))
        rows = read_tensors(
            folder / "classifier.safetensors",
            {"weight": tuple(method.weight.shape), "bias": tuple(method.bias.shape)},
        )
        method.load_state_dict({**method.state_dict(), **rows})
        method._index_rows()
        return method

    def _index_rows(self) -> None:
        """The index of a loaded model."""
        rows = self.label_rows(self.weight.detach(), self.bias.detach())
        self.index = build_index(self.config.eval.index, *rows, settings=self.config.eval)
