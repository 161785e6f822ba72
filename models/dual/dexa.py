"""DEXA: a dual encoder whose labels have auxiliary vectors, on NGAME's batches: module M1.

Dahiya et al., KDD 2023. w_l = norm(E(z_l) + a_C(l)) for labels, norm(E(x_i)) for queries;
`models/dual/auxiliary.py` has the vectors. No vectors is NGAME; one a label is SiameseXML's
residual; `pool: all`, `batches: random` and a softmax loss make it DEXML with auxiliary vectors.
Here E(z_l) is of unit length (`encoder.normalize`) before the vector is added.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.contract import Group, Ranker, take_encoder, take_parameters
from models.dual.auxiliary import AuxiliaryVectors, assign, number_of_vectors
from models.dual.dexml import DualEncoder
from models.dual.memory_needs import DualSizes, dual_needs
from models.dual.ngame import Ngame
from models.dual.options import DexaConfig
from models.dual.ranker import DexaRanker
from models.encoders.building import build_encoder
from models.known_labels import check_same_labels, rows_in_start, take_rows_of
from utils import distributed
from utils.clustering.clustering import centroids
from utils.config.config import Config
from utils.data.sizes import DataSizes
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.run.stages import Runs
from utils.training.optim import decay_groups

log = logging.getLogger(__name__)


class Dexa(Ngame):
    """Trains a dual encoder and auxiliary vectors."""

    Options = DexaConfig
    Answers = DexaRanker

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        number_of_vectors(config, sizes)
        super().check(config, sizes, runs)

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        vectors = {"auxiliary"} if config.method.num_vectors else set()
        return super().group_names(config) | vectors

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        labels = sizes.data.labels
        count = config.method.num_vectors
        return dual_needs(DualSizes.of(sizes, labels if count == "labels" else min(count, labels)))

    def build(self) -> DualEncoder:
        encoder = build_encoder(self.config.encoder, self.data)
        count = number_of_vectors(self.config, self.data)
        auxiliary = None
        if count:
            init = self.config.method.vector_init
            auxiliary = AuxiliaryVectors(count, encoder.dim, self.data.num_labels, init)
        return DualEncoder(encoder, auxiliary)

    def take(self, start: Ranker) -> None:
        """Copy the encoder of any model; its vectors and their assignment if it has as many.

        Where each label has a vector of its own there and here, labels that are called the same
        keep theirs; new ones start as `vector_init` says.

        Raises:
            InputError: vectors that labels share, of a model of other labels.
        """
        take_encoder(self.module.encoder, start)
        ours = self.module.auxiliary
        theirs = start.auxiliary if isinstance(start, DexaRanker) else None
        if ours is None or theirs is None:
            return
        num_labels = self.data.num_labels
        is_own = len(theirs.table) == start.num_labels and len(ours.table) == num_labels
        if is_own and theirs.table.shape[1] == ours.table.shape[1]:
            rows = rows_in_start(start, self.data)
            own_rows = theirs.clusters.cpu().numpy()[rows]
            take_rows_of(ours.table.data, theirs.table.data, np.where(rows >= 0, own_rows, -1))
            ours.clusters.copy_(torch.arange(num_labels))
            return
        if theirs.table.shape == ours.table.shape:
            check_same_labels(start, self.data, "auxiliary vectors that labels share")
            take_parameters(ours, theirs, "auxiliary vectors")
            return
        log.info(
            "run.start_from has %d auxiliary vectors, this run %d: they start anew",
            len(theirs.table),
            len(ours.table),
        )

    def groups(self) -> list[Group]:
        decay = self.config.optim.weight_decay
        groups = decay_groups(self.module.encoder, "encoder", decay)
        if self.module.auxiliary is not None:
            table = [self.module.auxiliary.table]
            groups.append({"name": "auxiliary", "params": table, "weight_decay": 0.0})
        return groups

    def prepare(self, folder: Path) -> None:
        """Assign the labels to vectors, once, by the initial encoder.

        A model started from keeps its own assignment.
        """
        super().prepare(folder)
        auxiliary = self.module.auxiliary
        if auxiliary is None or bool((auxiliary.clusters >= 0).all()):
            return
        embeddings = distributed.gather_on_main(self.embed_own_labels(), self.data.num_labels)
        clusters = None
        if embeddings is not None:
            clusters = assign(
                embeddings.cpu().numpy(),
                self.data.label_counts,
                len(auxiliary.table),
                self.config.method.num_head_vectors,
                seed=self.config.run.seed,
                threads=self.runtime.threads,
            )
        auxiliary.clusters.copy_(torch.from_numpy(distributed.broadcast(clusters)))

    def represent(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.module.auxiliary is None:
            return embeddings
        normalize = self.module.encoder.config.normalize
        return self.module.auxiliary(embeddings, labels, normalize)

    def whole_ranker(self, texts: Tensor, vectors: Tensor) -> Ranker | None:
        """Labels by w_l = norm(E(z_l) + a_C(l)), and centroids for labels never seen."""
        texts_of_all = distributed.gather_on_main(texts, self.data.num_labels)  # [L, D]
        rows = distributed.gather_on_main(vectors, self.data.num_labels)
        if rows is None or texts_of_all is None:
            return None
        auxiliary = self.module.auxiliary
        if auxiliary is None:
            return DexaRanker(self.config, self.reader, rows)
        clusters = auxiliary.clusters.cpu().numpy()
        means = centroids(texts_of_all.cpu().numpy(), clusters, len(auxiliary.table))
        return DexaRanker(
            self.config,
            self.reader,
            rows,
            auxiliary=auxiliary,
            centroids=torch.from_numpy(means),
        )
