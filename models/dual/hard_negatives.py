"""Hard negatives: labels that the current model ranks high for a query without being positives.

DEXML, arXiv 2310.10636, section 5; ANCE, Xiong et al., ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.contract import Ranker
from models.dual.options import DexmlConfig
from models.evaluation import make_tokens, own_best_labels
from utils import distributed
from utils.data.batches import Batch
from utils.data.dataset import Split


class HardNegatives:
    """A shortlist of negatives for each training query, mined anew every few epochs.

    Args:
        options: `shortlist_size`, `num_negatives`, `hard_neg_start`, `refresh_interval`.
        split: of the training points.
    """

    def __init__(self, options: DexmlConfig, split: Split) -> None:
        self._options = options
        self._split = split
        self._shortlists: np.ndarray | None = None  # [n, shortlist_size] int32, -1 = none

    def is_due(self, epoch: int) -> bool:
        """Whether shortlists are mined before an epoch."""
        first = self._options.hard_neg_start
        if self._options.pool != "hnm" or epoch < first:
            return False
        return self._shortlists is None or (epoch - first) % self._options.refresh_interval == 0

    def mine(self, ranker: Ranker) -> None:
        """Take each training query's best labels; a collective.

        Neither positives nor filter pairs are among them.
        """
        known = self._split.relevance + self._split.filters
        texts = self._split.texts
        size = min(self._options.shortlist_size, ranker.num_labels)
        make_tokens(ranker, texts)
        _, own, _ = own_best_labels(ranker, texts, size, removed=known)
        self._shortlists = distributed.share_arrays(own, len(texts))

    def draw(self, batch: Batch, rng: np.random.Generator) -> np.ndarray:
        """Draw `num_negatives` labels of each query's shortlist, without replacement.

        Returns:
            ids [m]; none before the first mining.
        """
        if self._shortlists is None:
            return np.zeros(0, np.int64)
        lists = self._shortlists[batch.points]  # [B, shortlist]
        keys = np.where(lists >= 0, rng.random(lists.shape), np.inf)
        count = min(self._options.num_negatives, lists.shape[1])
        chosen = np.argsort(keys, axis=1)[:, :count]
        drawn = np.take_along_axis(lists, chosen, 1).ravel()
        return drawn[drawn >= 0]

    def state(self) -> dict[str, np.ndarray]:
        """For the checkpoint."""
        return {} if self._shortlists is None else {"shortlists": self._shortlists}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        self._shortlists = state.get("shortlists")
