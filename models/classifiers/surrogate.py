"""The surrogate task: an encoder for data without label texts, trained to find clusters of labels
(M1 of DeepXML: Dahiya et al., WSDM 2021).

Labels are clustered once by the centroids of their training points, encoded by the initial encoder;
the classes of a one-versus-all model are these clusters. A label's score is its cluster's, plus the
log of its share of the cluster's training points: log p(C(l) | x) + log p(l | C(l)) under the
softmax loss. `xc` then starts its rows from the clusters'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from models.classifiers.ova import Ova, OvaConfig
from models.encoders.encoder import TextEncoder, build_encoder
from models.method import Method, embed_rows
from utils import distributed
from utils.clustering.clustering import balanced_hierarchy
from utils.config.config import Config, ConfigError, option
from utils.config.sections import MANY_LABELS
from utils.data.batches import Batch
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.reading.saved import check_ids, read_tensors
from utils.run.stages import Runs


@dataclass(frozen=True)
class SurrogateConfig(OvaConfig):
    num_clusters: int = option(1024, "clusters of labels: the classes", ge=1, le=MANY_LABELS)

    @property
    def classes(self) -> int:
        return self.num_clusters


class Surrogate(Ova):
    """One-versus-all over clusters of labels. Buffers: clusters [L] int64, log_share [L]."""

    Options = SurrogateConfig

    def __init__(
        self, config: Config, num_labels: int, data: Dataset | None, encoder: TextEncoder
    ) -> None:
        super().__init__(config, num_labels, data, encoder, config.method.num_clusters)
        self.register_buffer("clusters", torch.full((num_labels,), -1))
        self.register_buffer("log_share", torch.zeros(num_labels))
        self._members: sp.csr_matrix | None = None  # [L, clusters] ones

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        if config.method.num_clusters > sizes.num_labels:
            raise ConfigError(
                f"method.num_clusters is {config.method.num_clusters}, more than the labels of "
                f"{sizes.name}, {sizes.num_labels}"
            )
        super().check(config, sizes, runs)

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Surrogate:
        return cls(config, data.num_labels, data, build_encoder(config.encoder, data))

    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Cluster the labels, once, by the initial encoder; a model started from keeps its own
        clusters."""
        if (self.clusters >= 0).all():
            return
        split = self.data.splits["trn"]
        run = self.config.run
        queries = (
            embed_rows(
                self.encoder,
                split.tokens,
                split.rows,
                self.config.eval.batch_size,
                accelerator,
                "embed queries",
            )
            .cpu()
            .numpy()
        )
        clusters = None
        if distributed.is_main():
            sums = np.ascontiguousarray(split.relevance.T.tocsr() @ queries, np.float32)
            clusters = balanced_hierarchy(
                sums,
                [self.num_rows],
                seed=run.seed,
                name="cluster labels",
                threads=distributed.cpu_threads(run.threads),
            ).clusters()
        clusters = distributed.broadcast(clusters)
        # a label without training points keeps a finite share
        counts = self.data.label_counts + 1.0
        share = counts / np.bincount(clusters, counts, self.num_rows)[clusters]
        self.clusters.copy_(torch.from_numpy(clusters))
        self.log_share.copy_(torch.from_numpy(np.log(share)))

    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        if self._members is None:
            clusters = self.clusters.cpu().numpy()
            self._members = sp.csr_matrix(
                (np.ones(len(clusters), np.float32), (np.arange(len(clusters)), clusters)),
                shape=(self.num_labels, self.num_rows),
            )
        relevance = sp.csr_matrix(batch.relevance @ self._members)
        relevance.sort_indices()
        # filter pairs are of labels, not of clusters
        none = sp.csr_matrix(relevance.shape, dtype=np.float32)
        return super().backward(replace(batch, relevance=relevance, filters=none), accelerator)

    def start_from(self, other: Method) -> None:
        super().start_from(other)
        if isinstance(other, Surrogate):
            self.clusters.copy_(other.clusters)
            self.log_share.copy_(other.log_share)

    def label_rows(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight[self.clusters], bias[self.clusters] + self.log_share

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        super().save(folder, accelerator)
        if distributed.is_main():
            save_file(
                {"clusters": self.clusters.cpu(), "log_share": self.log_share.cpu()},
                folder / "clusters.safetensors",
            )

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Surrogate:
        method = super().load(config, folder, num_labels)
        path = folder / "clusters.safetensors"
        saved = read_tensors(
            path,
            {"clusters": (num_labels,), "log_share": (num_labels,)},
            whole=frozenset({"clusters"}),
        )
        check_ids(saved["clusters"], method.num_rows, f"{path}: clusters")
        for name, value in saved.items():
            getattr(method, name).copy_(value)
        method._index_rows()
        return method
