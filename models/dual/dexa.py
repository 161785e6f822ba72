"""DEXA: a dual encoder whose labels have auxiliary vectors (Dahiya et al., KDD 2023), on NGAME's
batches: module M1.

w_l = norm(E(z_l) + a_C(l)) for labels, norm(E(x_i)) for queries; `models/dual/auxiliary.py` has the
vectors. No vectors is NGAME; one a label is SiameseXML's residual; `pool: all`, `batches: random`
and a softmax loss make it DEXML with auxiliary vectors. Here E(z_l) is of unit length
(`encoder.normalize`) before the vector is added.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from models.dual.auxiliary import AuxiliaryVectors, assign, number_of_vectors
from models.dual.ngame import Ngame, NgameConfig
from models.encoders.encoder import TextEncoder
from models.method import Method, take_parameters
from utils import distributed
from utils.clustering.clustering import centroids
from utils.config.config import Config, option
from utils.config.sections import MANY_LABELS
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.reading.saved import check_ids, read_tensors
from utils.run.stages import Runs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DexaConfig(NgameConfig):
    num_vectors: int | Literal["labels"] = option(
        1024,
        "auxiliary vectors: a power of two, or as many beyond num_head_vectors; 0 = none "
        "(NGAME); labels = one a label (SiameseXML)",
        ge=0,
        le=MANY_LABELS,
    )
    num_head_vectors: int = option(
        0,
        "of them, vectors of the most frequent labels, one each; others share",
        ge=0,
        le=MANY_LABELS,
    )
    vector_init: Literal["xavier", "zeros"] = option("xavier", "auxiliary vectors at the start")


class Dexa(Ngame):
    """NGAME's dual encoder with auxiliary vectors. Attribute auxiliary: None without vectors."""

    Options = DexaConfig

    def __init__(
        self,
        config: Config,
        num_labels: int,
        data: Dataset | None,
        encoder: TextEncoder,
        vectors: int = 0,
    ) -> None:
        super().__init__(config, num_labels, data, encoder)
        self.auxiliary = (
            AuxiliaryVectors(vectors, encoder.dim, num_labels, config.method.vector_init)
            if vectors
            else None
        )
        # [K, D] of the labels' text embeddings, for labels never seen
        self.centroids: Tensor | None = None

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        number_of_vectors(config, sizes)
        super().check(config, sizes, runs)

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Dexa:
        method = super().build(config, data)
        return cls(config, data.num_labels, data, method.encoder, number_of_vectors(config, data))

    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Assign the labels to vectors, once, by the initial encoder; a model started from keeps
        its own assignment."""
        super().prepare(run_folder, accelerator)
        if self.auxiliary is None or (self.auxiliary.clusters >= 0).all():
            return
        embeddings = self.embed_labels(self.data.label_tokens, accelerator).cpu().numpy()
        clusters = None
        if distributed.is_main():
            settings = self.config.method
            run = self.config.run
            clusters = assign(
                embeddings,
                self.data.label_counts,
                len(self.auxiliary.table),
                settings.num_head_vectors,
                run.seed,
                distributed.cpu_threads(run.threads),
            )
        self.auxiliary.clusters.copy_(torch.from_numpy(distributed.broadcast(clusters)))

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        own = {"auxiliary"} if config.method.num_vectors else set()
        return super().group_names(config) | own

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.auxiliary is None:
            return super().parameter_groups()
        groups = [
            {**g, "params": [p for p in g["params"] if p is not self.auxiliary.table]}
            for g in super().parameter_groups()
        ]
        return [
            *(g for g in groups if g["params"]),
            {"name": "auxiliary", "params": [self.auxiliary.table], "weight_decay": 0.0},
        ]

    def represent(self, embeddings: Tensor, labels: np.ndarray) -> Tensor:
        if self.auxiliary is None:
            return embeddings
        return self.auxiliary(embeddings, labels, self.encoder.config.normalize)

    def represent_new(self, embeddings: Tensor) -> Tensor:
        """The text's embedding plus the vector of the nearest cluster of known labels."""
        if self.auxiliary is None:
            return embeddings
        return self.auxiliary.nearest(
            embeddings, self.centroids.to(embeddings.device), self.encoder.config.normalize
        )

    def start_from(self, other: Method) -> None:
        """The encoder of any run; the vectors and their assignment if the other run has as many."""
        self.start_from_encoder(other)
        if self.auxiliary is None or not isinstance(other, Dexa) or other.auxiliary is None:
            return
        if other.auxiliary.table.shape == self.auxiliary.table.shape:
            take_parameters(self.auxiliary, other.auxiliary, "auxiliary vectors")
        else:
            log.info(
                "run.start_from has %d auxiliary vectors, this run %d: they start anew",
                len(other.auxiliary.table),
                len(self.auxiliary.table),
            )

    # ---- saving
    def prepare_scoring(self, accelerator: Accelerator) -> None:
        embeddings = super().prepare_scoring(accelerator)
        if self.auxiliary is not None:
            clusters = self.auxiliary.clusters.cpu().numpy()
            number = len(self.auxiliary.table)
            self.centroids = torch.from_numpy(centroids(embeddings.cpu().numpy(), clusters, number))

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        super().save(folder, accelerator)
        if distributed.is_main() and self.auxiliary is not None:
            save_file(
                {
                    **{
                        n: v.detach().cpu().contiguous()
                        for n, v in self.auxiliary.state_dict().items()
                    },
                    "centroids": self.centroids,
                },
                folder / "auxiliary.safetensors",
            )

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Dexa:
        method = super().load(config, folder, num_labels)
        if config.method.num_vectors:
            path = folder / "auxiliary.safetensors"
            dim = method.encoder.dim
            saved = read_tensors(
                path,
                {"table": (None, dim), "centroids": (None, dim), "clusters": (num_labels,)},
                whole=frozenset({"clusters"}),
            )
            check_ids(saved["clusters"], len(saved["table"]), f"{path}: clusters")
            method.centroids = saved.pop("centroids")
            method.auxiliary = AuxiliaryVectors(*saved["table"].shape, num_labels, "zeros")
            method.auxiliary.load_state_dict(saved)
        return method
