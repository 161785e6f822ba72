"""Batches of queries that are hard for each other (NGAME: Dahiya et al., WSDM 2023).

Queries are clustered by their current embeddings into balanced clusters; a batch is filled with
whole clusters in random order, so that in-batch negatives are positives of similar queries. The
embeddings come from a memory bank that training itself fills in the epoch before: nothing is
encoded twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.clustering.clustering import balanced_hierarchy
from utils.config.config import Config, ConfigError, MethodConfig, option
from utils.config.sections import MANY_EPOCHS, MANY_TEXTS
from utils.data.batches import Batch

log = logging.getLogger(__name__)
TOGETHER = 20  # steps whose embeddings leave a GPU together: each time the host waits for it
ITERATIONS = 8  # of a cut: clusters are thrown away after a few epochs


@dataclass(frozen=True)
class ClusteredConfig(MethodConfig):
    batches: Literal["random", "clustered"] = option(
        "clustered", "order of the queries: random, or clusters of similar queries together"
    )
    cluster_size: int = option(4, "clustered: queries of a cluster at first", ge=2, le=MANY_TEXTS)
    curr_epochs: tuple[int, ...] = option(
        (1,),
        "clustered: the first epoch with clusters (random order before it; epochs count from 0), "
        "then the epochs at which their size doubles",
        ge=0,
        le=MANY_EPOCHS,
    )
    cluster_interval: int = option(
        5, "clustered: epochs between two clusterings", ge=1, le=MANY_EPOCHS
    )


class ClusteredBatches:
    """Memory bank, clusters and order of an epoch's queries, alike on all processes.

    Args:
        config: sections method (a ClusteredConfig), train and run are used.
        count: training points n.
    """

    def __init__(self, config: Config, count: int) -> None:
        self.options = config.method
        self.count = count
        self.seed = config.run.seed
        self._clusters: np.ndarray | None = None  # [n]
        # this process's part of the bank, a step an entry
        self._points: list[np.ndarray] = []  # positions in the split [b]
        self._embeddings: list[np.ndarray] = []  # [b, D] float32
        self._waiting: list[Tensor] = []  # those of the last steps, where they were computed
        self._threads = distributed.cpu_threads(config.run.threads)
        is_clustered = self.options.batches == "clustered"
        if is_clustered and self.options.curr_epochs[0] >= config.train.epochs > 0:
            log.warning(
                "method.curr_epochs begins at %d, but train.epochs is %d: all batches are random",
                self.options.curr_epochs[0],
                config.train.epochs,
            )

    def size(self, epoch: int) -> int | None:
        """Queries of a cluster in an epoch; None = random order."""
        reached = sum(first <= epoch for first in self.options.curr_epochs)
        if self.options.batches == "random" or not reached:
            return None
        return self.options.cluster_size << (reached - 1)

    def due(self, epoch: int) -> bool:
        """Whether queries are clustered at the start of an epoch."""
        if self.size(epoch) is None:
            return False
        since = epoch - self.options.curr_epochs[0]
        return epoch in self.options.curr_epochs or since % self.options.cluster_interval == 0

    def record(self, batch: Batch, embeddings: Tensor) -> None:
        """Keep the own queries' embeddings [b, D] of a step, if the next epoch needs them."""
        if self.due(batch.key[1] + 1):
            share = distributed.share(len(batch.points))
            self._points.append(batch.points[share.start : share.stop])
            self._waiting.append(embeddings.detach().float())
            if len(self._waiting) >= TOGETHER:
                self._bring_home()

    def _bring_home(self) -> None:
        """Move the last steps' embeddings to the host; it waits for a GPU."""
        if self._waiting:
            self._embeddings.append(torch.cat(self._waiting).cpu().numpy())
            self._waiting = []

    def start_epoch(self, epoch: int, embed: Callable[[], np.ndarray]) -> None:
        """Cluster the queries if it is time; every process calls it.

        Args:
            embed: makes the embeddings [n, D] where the bank is not full, as at the start of a run.
        """
        size = self.size(epoch)
        if size is None or not self.due(epoch):
            return
        began = time.perf_counter()
        bank = self._gathered()
        full = distributed.broadcast(bank is not None and len(bank[0]) == self.count)
        rows = None if full else embed()
        clusters = None
        if distributed.is_main():
            if full and bank is not None:
                points, embeddings = bank
                rows = np.empty_like(embeddings)
                rows[points] = embeddings
            number = max(1, self.count // size)
            clusters = balanced_hierarchy(
                rows,
                [number],
                seed=self.seed + epoch,
                threads=self._threads,
                iterations=ITERATIONS,
                name="cluster queries",
            ).clusters()
        self._clusters = distributed.broadcast(clusters)
        self._points = []
        self._embeddings = []
        log.info("clusters of %d queries, %.2f s", size, time.perf_counter() - began)

    def order(self, epoch: int) -> np.ndarray | None:
        """Positions in the split [n], cluster by cluster in random order; None = shuffled.

        A batch's last cluster goes on in the next batch where it does not fit.
        """
        if self.size(epoch) is None or self._clusters is None:
            return None
        rng = np.random.default_rng((self.seed, epoch, 1))
        place = rng.permutation(int(self._clusters.max()) + 1)[self._clusters]
        return np.argsort(place, kind="stable")

    # ---- the bank over processes, and in checkpoints
    def _gathered(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Gather (positions, embeddings) of all processes on the main one.

        Returns:
            None on the other processes, and where there are none.
        """
        self._bring_home()
        has_some = len(self._points) > 0
        if not distributed.agree(int(has_some)):
            return None
        width = distributed.agree(self._embeddings[0].shape[1] if has_some else 0)
        points = np.zeros(0, np.int64)
        embeddings = np.zeros((0, width), np.float32)
        if has_some:
            points = np.concatenate(self._points)
            embeddings = np.concatenate(self._embeddings)
        all_points = distributed.gather_arrays(points)
        all_embeddings = distributed.gather_arrays(embeddings)
        if all_points is None or all_embeddings is None:
            return None
        return all_points, all_embeddings

    def state(self) -> dict[str, np.ndarray]:
        """Clusters and bank for the checkpoint; a collective, whole on the main process."""
        state = {} if self._clusters is None else {"clusters": self._clusters}
        bank = self._gathered()
        if bank is not None:
            points, embeddings = bank
            state |= {"bank_points": points, "bank_embeddings": embeddings}
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._clusters = state.get("clusters")
        if "bank_points" in state and distributed.is_main():
            self._points = [state["bank_points"]]
            self._embeddings = [state["bank_embeddings"]]


def check_curriculum(config: Config) -> None:
    """ConfigError for a curriculum that cannot be run."""
    options = config.method
    if options.batches == "random":
        return
    epochs = list(options.curr_epochs)
    if not epochs or epochs != sorted(set(epochs)) or epochs[0] < 0:
        raise ConfigError(f"method.curr_epochs must be ascending epochs from 0, got {epochs}")
    if options.cluster_size > config.train.batch_size:
        raise ConfigError(
            f"method.cluster_size is {options.cluster_size}, expected at most the batch, "
            f"train.batch_size {config.train.batch_size}"
        )
    doublings = sum(epoch < max(config.train.epochs, 1) for epoch in epochs[1:])
    largest = options.cluster_size << doublings
    if largest > config.train.batch_size:
        raise ConfigError(
            f"method.cluster_size is {options.cluster_size} and doubles to {largest} by "
            f"method.curr_epochs, more than the batch, train.batch_size {config.train.batch_size}"
        )
