"""NGAME: negative-mining-aware mini-batches for a dual encoder, the base of DEXA's M1.

Dahiya et al., WSDM 2023. The dual encoder of DEXML with another order of the queries and, as
published, another pool and loss: one sampled positive a query, the batch's other sampled positives
as negatives, the triplet loss with online hard negatives. The axes are independent: any
`method.pool`, `loss.name` and `method.batches` go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from losses import LOSSES, violations
from models.batching.clustered_batches import ClusteredBatches, check_curriculum
from models.batching.label_pool import gather_pool
from models.contract import Start
from models.dual.dexml import Dexml, StepPool
from models.dual.options import NgameConfig
from models.encoders.reader import embed_all
from utils import distributed
from utils.config.config import Config
from utils.data.batches import Batch
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.run.stages import Runs
from utils.runtime import Runtime


class Ngame(Dexml):
    """Trains a dual encoder on clustered batches."""

    Options = NgameConfig

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        self.clustered = ClusteredBatches(config, len(data.splits["trn"]))
        # of each step's own pairs of the epoch: how many violate the margin, and how many there are
        self._violating: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        check_curriculum(config)
        super().check(config, sizes, runs)

    def ahead(self, batch: Batch) -> StepPool:
        """Dexml's, and the positives by whom violations are counted."""
        step = super().ahead(batch)
        if not self._counts_violations:
            return step
        positives = step.labels.positives
        if self.config.loss.name in LOSSES:  # it is told of all queries
            positives = step.labels.pool.positives(
                batch, self.config.loss, step.sampled, by_rows=True
            )
        return replace(step, by_rows=positives)

    @property
    def _counts_violations(self) -> bool:
        """Of in-batch cosines: the margin is one of cosines."""
        return self.config.method.pool != "all" and bool(self.module.encoder.config.normalize)

    def observe(
        self,
        batch: Batch,
        queries: Tensor,
        labels: Tensor,
        pool: StepPool,
    ) -> None:
        """Keep the queries' embeddings for the next clusters, and count who violates the margin."""
        self.clustered.record(batch, queries)
        if pool.by_rows is None:
            return
        counts = violations(
            queries=queries,
            labels=gather_pool(pool.labels.pool, labels),
            positives=pool.by_rows,
            margin=self.config.loss.margin,
        )
        self._violating.append(counts)

    def report(self) -> dict[str, float]:
        """Share of the epoch's in-batch negatives that violate the margin."""
        violating, pairs = self._counted()
        self._violating = []
        return {"violating_share": violating / pairs} if pairs else {}

    def _counted(self) -> list[float]:
        """[violating pairs, pairs] of the epoch so far, of all processes."""
        counts = [float(sum(part)) for part in zip(*self._violating, strict=True)]
        return [distributed.total(count) for count in counts or [0.0, 0.0]]

    # ---- epochs
    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self.clustered.start_epoch(epoch, self._embed_queries)

    def _embed_queries(self) -> np.ndarray:
        """Embeddings of the training queries [n, D]; a collective."""
        texts = self.data.splits["trn"].texts
        return embed_all(self.reader, texts, "embed queries").cpu().numpy()

    def order(self, epoch: int) -> np.ndarray | None:
        return self.clustered.order(epoch)

    def state(self) -> dict[str, np.ndarray]:
        counted = {"violating": np.array(self._counted())}
        return {**super().state(), **self.clustered.state(), **counted}

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        super().load_state(state, folder)
        self.clustered.load_state(dict(state))
        if distributed.is_main():
            violating, pairs = torch.from_numpy(state["violating"])
            self._violating = [(violating, pairs)]
