"""The surrogate task: an encoder for data without label texts learns to find clusters of labels.

M1 of DeepXML: Dahiya et al., WSDM 2021. Labels are clustered once by the centroids of their
training points, encoded by the initial encoder; the classes of a one-versus-all model are these
clusters. A label's score is its cluster's, plus the log of its share of the cluster's training
points, under the softmax loss:

    s_il = log p(C(l) | x_i) + log p(l | C(l))

`xc` then starts its rows from the clusters'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.classifiers.label_rows import ClusterRows
from models.classifiers.linear_ranker import SurrogateRanker
from models.classifiers.memory_needs import surrogate_needs
from models.classifiers.ova import Classifier, ClassifierStep, Ova, OvaConfig
from models.contract import Ranker
from models.encoders.building import build_encoder
from models.encoders.reader import embed_all
from models.encoders.text_encoder import TextEncoder
from models.known_labels import check_same_labels
from utils import distributed
from utils.clustering.clustering import balanced_hierarchy
from utils.config.config import Config, ConfigError, option
from utils.config.sections import MANY_LABELS
from utils.data.batches import Batch
from utils.data.sizes import DataSizes
from utils.parameters import Gradient
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.run.stages import Runs


@dataclass(frozen=True)
class SurrogateConfig(OvaConfig):
    num_clusters: int = option(
        1024,
        "clusters of labels: the classes",
        auto="half as many as labels, at most 8,192",
        ge=1,
        le=MANY_LABELS,
    )

    @property
    def classes(self) -> int:
        return self.num_clusters


class ClusterClassifier(Classifier):
    """A classifier of clusters, and the labels' clusters.

    Buffers:
        clusters: of each label [L] int64, -1 before they are made.
        log_share: log p(l | C(l)) [L].
    """

    clusters: Tensor
    log_share: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        num_clusters: int,
        num_labels: int,
    ) -> None:
        super().__init__(encoder, num_clusters, Gradient.DENSE)
        self.register_buffer("clusters", torch.full((num_labels,), -1))
        self.register_buffer("log_share", torch.zeros(num_labels))


class Surrogate(Ova):
    """One-versus-all over clusters of labels."""

    Options = SurrogateConfig
    Answers = SurrogateRanker
    module: ClusterClassifier

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        if config.method.num_clusters > sizes.num_labels:
            raise ConfigError(
                f"method.num_clusters is {config.method.num_clusters}, more than the labels of "
                f"{sizes.name}, {sizes.num_labels}"
            )
        super().check(config, sizes, runs)

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        return surrogate_needs(sizes, config.method.num_clusters)

    def build(self) -> ClusterClassifier:
        encoder = build_encoder(self.config.encoder, self.data)
        return ClusterClassifier(encoder, self.num_rows, self.data.num_labels)

    def take(self, start: Ranker) -> None:
        """Copy a surrogate's clusters too.

        Raises:
            InputError: it has another number of labels.
        """
        if isinstance(start, SurrogateRanker):
            check_same_labels(start, self.data, "its clusters of labels")
        super().take(start)
        if isinstance(start, SurrogateRanker):
            self.module.clusters.copy_(start.rows.clusters)
            self.module.log_share.copy_(start.rows.log_share)

    def prepare(self, folder: Path) -> None:
        """Cluster the labels by the initial encoder; those of the model started from are kept."""
        if (self.module.clusters >= 0).all():
            return
        texts = self.data.splits["trn"].texts
        queries = embed_all(self.reader, texts, "embed queries").cpu().numpy()  # [n, D]
        made = self.cluster_labels(queries) if distributed.is_main() else np.zeros(0, np.int64)
        clusters = distributed.broadcast(made)  # [L]
        counts = self.data.label_counts + 1.0  # a label without points keeps a finite share
        share = counts / np.bincount(clusters, counts, self.num_rows)[clusters]
        self.module.clusters.copy_(torch.from_numpy(clusters))
        self.module.log_share.copy_(torch.from_numpy(np.log(share)))

    def cluster_labels(self, queries: np.ndarray) -> np.ndarray:
        """The cluster of each label [L], by the summed embeddings of its training points [n, D]."""
        run = self.config.run
        points_of = self.data.splits["trn"].relevance.T.tocsr()  # [L, n]
        sums = np.ascontiguousarray(points_of @ queries, np.float32)  # [L, D]
        return balanced_hierarchy(
            sums,
            [self.num_rows],
            seed=run.seed,
            name="cluster labels",
            threads=distributed.cpu_threads(run.threads),
        ).clusters()

    @cached_property
    def membership(self) -> sp.csr_matrix:
        """Ones where a label is in a cluster [L, C]; asked for when there are clusters."""
        clusters = self.module.clusters.cpu().numpy()
        places = (np.arange(len(clusters)), clusters)
        shape = (len(clusters), self.num_rows)
        return sp.csr_matrix((np.ones(len(clusters), np.float32), places), shape=shape)

    def ahead(self, batch: Batch) -> ClassifierStep:
        """The positives are clusters."""
        relevance = sp.csr_matrix(batch.relevance @ self.membership)  # [B, C]
        relevance.sort_indices()
        none = sp.csr_matrix(relevance.shape, dtype=np.float32)  # filter pairs are of labels
        return super().ahead(replace(batch, relevance=relevance, filters=none))

    def ranker(self) -> SurrogateRanker:
        """By the rows of all clusters, which are few: every process ranks all labels."""
        weight = distributed.gather_rows(self.module.weight.detach(), self.num_rows)
        bias = distributed.gather_rows(self.module.bias.detach(), self.num_rows)
        rows = ClusterRows(weight, bias, self.module.clusters, self.module.log_share)
        return SurrogateRanker(self.config, self.reader, rows)
