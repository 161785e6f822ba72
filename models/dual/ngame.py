"""NGAME: negative-mining-aware mini-batches for a dual encoder (Dahiya et al., WSDM 2023), the base
of DEXA's M1.

The dual encoder of DEXML with another order of the queries and, as published, another pool and
loss: one sampled positive a query, the batch's other sampled positives as negatives, the triplet
loss with online hard negatives. The axes are independent: any `method.pool`, `loss.name` and
`method.batches` go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from losses import violations
from models.batching.clustered_batches import ClusteredBatches, ClusteredConfig, check_curriculum
from models.batching.label_pool import LabelPool, gather_pool
from models.dual.dexml import Dexml, DexmlConfig
from models.encoders.encoder import TextEncoder
from models.method import Method, check_encoders, embed_rows
from utils import distributed
from utils.config.config import Config, option
from utils.config.sections import LARGEST, SMALLEST
from utils.data.batches import Batch
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.run.stages import Runs


@dataclass(frozen=True)
class NgameConfig(ClusteredConfig, DexmlConfig):
    pool: Literal["all", "hnm", "in-batch"] = option(
        "in-batch",
        "labels in a step's loss: all; hnm = the batch's sampled positives and mined negatives; "
        "in-batch",
    )
    tau: float = option(
        1.0,
        "temperature: scores are inner products / tau; 1 for the triplet loss",
        ge=SMALLEST,
        le=LARGEST,
    )


class Ngame(Dexml):
    """The dual encoder with clustered batches."""

    Options = NgameConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder
    ) -> None:
        super().__init__(config, num_labels, data, encoder)
        self.clustered = ClusteredBatches(config, len(data.splits["trn"])) if data else None
        self._violating: list[tuple[Tensor, Tensor]] = []  # own pairs of a step: violating, all

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        check_curriculum(config)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        check_encoders(config, before)

    def start_from(self, other: Method) -> None:
        """The encoder of any run."""
        self.start_from_encoder(other)

    def observe(
        self,
        batch: Batch,
        queries: Tensor,
        labels: Tensor,
        pool: LabelPool,
        sampled: np.ndarray | None,
    ) -> None:
        self.clustered.record(batch, queries)
        # the margin is one of cosines
        if self.config.method.pool != "all" and self.encoder.config.normalize:
            positives = pool.positives(
                batch, self.config.loss, sampled, queries.device, by_rows=True
            )
            self._violating.append(
                violations(
                    queries=queries,
                    labels=gather_pool(pool, labels),
                    positives=positives,
                    margin=self.config.loss.margin,
                )
            )

    def epoch_report(self) -> dict[str, float]:
        """Share of the epoch's in-batch negatives that violate the margin."""
        violating, pairs = self._counted()
        self._violating = []
        return {"violating_share": violating / pairs} if pairs else {}

    def _counted(self) -> list[float]:
        """[violating pairs, pairs] of the epoch so far, of all processes."""
        own = [float(sum(part)) for part in zip(*self._violating, strict=True)] or [0.0, 0.0]
        return [distributed.total(value) for value in own]

    def on_epoch_start(self, epoch: int, accelerator: Accelerator) -> None:
        super().on_epoch_start(epoch, accelerator)
        self.clustered.start_epoch(epoch, lambda: self.embed_queries(accelerator).cpu().numpy())

    def embed_queries(self, accelerator: Accelerator) -> Tensor:
        """Embeddings of the training queries [n, D]."""
        split = self.data.splits["trn"]
        return embed_rows(
            self.encoder,
            split.tokens,
            split.rows,
            self.config.eval.batch_size,
            accelerator,
            "embed queries",
        )

    def batch_order(self, epoch: int) -> np.ndarray | None:
        return self.clustered.order(epoch)

    def training_state(self) -> dict[str, np.ndarray]:
        return {
            **super().training_state(),
            **self.clustered.state(),
            "violating": np.array(self._counted()),
        }

    def load_training_state(self, state: dict[str, np.ndarray]) -> None:
        super().load_training_state(state)
        self.clustered.load_state(state)
        if distributed.is_main():
            self._violating = [tuple(torch.from_numpy(state["violating"]))]
