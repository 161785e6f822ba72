"""One-versus-all: a linear classifier w_l, b_l per label on top of a text encoder, trained against all labels.

The baseline of extreme classification, and DEXML's `dist-clf-net` (Gupta et al., ICLR 2024): no label text is used.
Score s_il = w_l . E(x_i) / tau + b_l. Classifier rows are sharded over processes like DEXML's labels.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.encoder import TextEncoder, build_encoder, load_encoder
from models.label_pool import LabelPool, sample_positives, sample_size
from models.method import Method, loss_function
from utils import distributed
from utils.config import Config, MethodConfig, option
from utils.data import Batch, Dataset, TextBatch
from utils.grad_cache import GradCache
from utils.optim import decay_groups
from utils.search import ExactIndex, HnswIndex, build_index


@dataclass(frozen=True)
class OvaConfig(MethodConfig):
    tau: float = option(1.0, "temperature: scores are inner products / tau + bias", gt=0)
    gc_batch_size: int = option(1024, "queries encoded at once: bounds the activations' memory", ge=1)


class Ova(Method):
    """Encoder and classifier. Attributes: encoder, weight [own labels, D], bias [own labels] (all labels if loaded);
    after prepare_scoring or load: index over all labels."""

    Config = OvaConfig

    def __init__(self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder,
                 rows: int) -> None:
        super().__init__(config, num_labels, data)
        self.encoder, self.loss = encoder, loss_function(config.loss)
        self.weight = nn.Parameter(torch.zeros(rows, encoder.dim))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.weight.sharded = self.bias.sharded = True
        self.index: ExactIndex | HnswIndex | None = None

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Ova:
        """Rows start at 0 (every label equally likely), biases too."""
        return cls(config, data.num_labels, data, build_encoder(config.encoder, data),
                   len(distributed.share(data.num_labels)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        decay = self.config.optim.weight_decay
        return [*decay_groups(self.encoder, "encoder", decay),
                {"name": "classifier", "params": [self.weight], "weight_decay": decay},
                {"name": "classifier", "params": [self.bias], "weight_decay": 0.0}]

    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        settings, loss = self.config.method, self.config.loss

        def encode(texts: TextBatch) -> Tensor:
            with accelerator.autocast():
                return self.encoder(texts)
        cache = GradCache(encode, batch.queries.split(settings.gc_batch_size))
        queries = distributed.gather_rows(cache.embed(), len(batch.points))                 # [B, D]
        sampled = None
        if loss.sample:
            sampled = sample_positives(batch.relevance, sample_size(loss, self.num_labels), batch.rng())
        positives = LabelPool(np.arange(self.num_labels)).positives(batch, loss, sampled, accelerator.device)
        value = self.loss(queries=queries, labels=self.weight, bias=self.bias, positives=positives, tau=settings.tau,
                          exchange=distributed.loss_exchange())
        accelerator.backward(value)
        cache.backward()
        return value.detach()

    def start_from(self, other: Method) -> None:
        """Another run's encoder, and its classifier rows if it has any."""
        own = distributed.share(self.num_labels)
        if isinstance(other, Ova) and other.num_labels != self.num_labels:
            raise ValueError(f"run.start_from: its classifier has {other.num_labels} labels, "
                             f"this run {self.num_labels}")
        try:
            self.encoder.load_state_dict(other.encoder.state_dict())
        except RuntimeError as error:
            raise ValueError(f"run.start_from: the encoder does not fit this config: {' '.join(str(error).split())}"
                             ) from error
        if isinstance(other, Ova):
            for mine, theirs in ((self.weight, other.weight), (self.bias, other.bias)):
                mine.data.copy_(theirs.data[own.start:own.stop])

    # ---- scoring
    def prepare_scoring(self, accelerator: Accelerator) -> None:
        """Gather the classifier's shards, [L, D] on every process; training searches exactly, as in DEXML."""
        weight, bias = (distributed.gather_rows(p.detach(), self.num_labels) for p in (self.weight, self.bias))
        self.index = build_index("exact", weight, bias, settings=self.config.eval)

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        return self.index.search(self.encoder(queries).float() / self.config.method.tau, k)

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if distributed.is_main():
            weight, bias = self.index.labels, self.index.bias
            self.encoder.save(folder)
            save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()},
                      folder / "classifier.safetensors")
            (folder / "method.json").write_text(json.dumps({"method": "ova", "num_labels": self.num_labels}) + "\n")

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Ova:
        method = cls(config, num_labels, None, load_encoder(config.encoder, folder), num_labels)
        rows = load_file(folder / "classifier.safetensors")
        if rows["weight"].shape != method.weight.shape:
            raise ValueError(f"{folder / 'classifier.safetensors'}: expected weight of shape "
                             f"{tuple(method.weight.shape)}, got {tuple(rows['weight'].shape)}")
        method.load_state_dict({**method.state_dict(), **rows})
        method.index = build_index(config.eval.index, method.weight.detach(), method.bias.detach(),
                                   settings=config.eval)
        return method
