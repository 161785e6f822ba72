"""What a linear ranker ranks labels by: rows and biases, in three forms.

    LabelRows       x . w_l + b_l                     ova
    DirectionRows   x . w_l / |w_l| + b_l             xc, with method.cosine
    ClusterRows     x . w_C(l) + b_C(l) + s_l         surrogate: labels share the rows of clusters

x is a query's embedding divided by the temperature. Rows may be a Learner's own tensors: nothing of
the size L x D is copied to rank by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from utils.config.config import Config
from utils.reading.saved import check_ids, map_rows, read_tensors
from utils.search import ClusterIndex, ExactIndex

SHORTEST = 1e-12  # of a row that has a direction


@dataclass(frozen=True)
class LabelRows:
    """A row and a bias a label.

    Attributes:
        weight: w [L, D].
        bias: b [L].
    """

    weight: Tensor
    bias: Tensor

    @property
    def num_labels(self) -> int:
        return len(self.weight)

    def exact_index(self, block: int) -> ExactIndex | ClusterIndex:
        """Exact search, `block` labels at a time."""
        return ExactIndex(self.weight, self.bias, block=block)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """A row [L, D] and a bias [L] of each label whose plain inner products are the scores."""
        return self.weight, self.bias

    def save(self, folder: Path) -> None:
        """Write classifier.safetensors."""
        tensors = {"weight": self.weight, "bias": self.bias}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, folder / "classifier.safetensors")

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        dim: int,
    ) -> LabelRows:
        """What `save` wrote; InputError if it is something else."""
        return cls(*read_rows(folder, num_labels, dim))


@dataclass(frozen=True)
class DirectionRows(LabelRows):
    """Rows that count by direction alone, and the vectors that they started from.

    Attributes:
        embeddings: z [L, D], for a fusion of both.
        cosine: whether rows count so; plain ones otherwise.
    """

    embeddings: np.ndarray
    cosine: bool

    def exact_index(self, block: int) -> ExactIndex:
        scale = None
        if self.cosine:
            scale = 1 / torch.linalg.vector_norm(self.weight, dim=1).clamp(min=SHORTEST)  # [L]
        return ExactIndex(self.weight, self.bias, scale=scale, block=block)

    def expanded(self) -> tuple[Tensor, Tensor]:
        if not self.cosine:
            return super().expanded()
        return F.normalize(self.weight, dim=1, eps=SHORTEST), self.bias

    def save(self, folder: Path) -> None:
        """Write label_embeddings.npy too."""
        super().save(folder)
        np.save(folder / "label_embeddings.npy", self.embeddings)

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        dim: int,
    ) -> DirectionRows:
        weight, bias = read_rows(folder, num_labels, dim)
        embeddings = map_rows(folder / "label_embeddings.npy", (num_labels, dim))
        return cls(weight, bias, embeddings, config.method.cosine)


@dataclass(frozen=True)
class ClusterRows(LabelRows):
    """A row and a bias a cluster, shared by its labels.

    Attributes:
        weight: w [C, D].
        bias: b [C].
        clusters: C(l) [L] int64.
        log_share: s [L], the log of a label's share of its cluster.
    """

    clusters: Tensor
    log_share: Tensor

    @property
    def num_labels(self) -> int:
        return len(self.clusters)

    @property
    def label_bias(self) -> Tensor:
        """b_C(l) + s_l [L]."""
        return self.bias[self.clusters] + self.log_share

    def exact_index(self, block: int) -> ClusterIndex:
        return ClusterIndex(self.weight, self.clusters, self.label_bias, block=block)

    def expanded(self) -> tuple[Tensor, Tensor]:
        return self.weight[self.clusters], self.label_bias

    def save(self, folder: Path) -> None:
        """Write clusters.safetensors too."""
        super().save(folder)
        tensors = {"clusters": self.clusters.cpu(), "log_share": self.log_share.cpu()}
        save_file(tensors, folder / "clusters.safetensors")

    @classmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        dim: int,
    ) -> ClusterRows:
        weight, bias = read_rows(folder, config.method.num_clusters, dim)
        path = folder / "clusters.safetensors"
        shapes = {"clusters": (num_labels,), "log_share": (num_labels,)}
        saved = read_tensors(path, shapes, whole=frozenset({"clusters"}))
        check_ids(saved["clusters"], len(weight), f"{path}: clusters")
        return cls(weight, bias, saved["clusters"], saved["log_share"])


def read_rows(
    folder: Path,
    rows: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """Weight [R, D] and bias [R] of classifier.safetensors; InputError if they are others."""
    shapes = {"weight": (rows, dim), "bias": (rows,)}
    saved = read_tensors(folder / "classifier.safetensors", shapes)
    return saved["weight"], saved["bias"]
