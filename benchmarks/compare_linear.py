"""Linear trees of other projects for `benchmarks.compare`: libpecos, omikuji, napkinXC.

Imports nothing but numpy, scipy, scikit-learn and, where it is used, the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.sparse as sp

from utils.features.tfidf import TextFeatures

if TYPE_CHECKING:
    from benchmarks.compare_worker import Task

BEAM = 10


class Linear:
    """A tree on the features X.{trn,tst}.npz: subclasses fit, save, load and predict."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = str(task.model)
        self.threads = task.threads
        self.model = None
        self.num_labels = 0
        self.text_features = None

    def before(self) -> None:
        pass

    def train(self) -> dict[str, Any]:
        self.fit(self.task.matrix("X.trn"), self.task.matrix("Y.trn"))
        return {}

    def open(self) -> None:
        self.load()
        self.num_labels = int(np.load(Path(self.task.data) / "Y.trn.npz")["shape"][1])
        if (path := Path(self.task.features) / "Xf.txt").exists():
            self.text_features = TextFeatures(path)

    def rank_points(self) -> sp.csr_matrix:
        return as_csr(self.predict(self.task.matrix("X.tst")), self.num_labels)

    @property
    def reads_texts(self) -> bool:
        return self.text_features is not None

    def rank_texts(self, texts: Sequence[str]) -> None:
        self.predict(self.text_features(texts))


class Pecos(Linear):
    """XR-Linear of libpecos: PIFA, hierarchical k-means with 32 splits, leaves of at most 100,
    defaults otherwise."""

    def __init__(self, task: Task) -> None:
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        super().__init__(task)
        self.indexer, self.embedding, self.kind = Indexer, LabelEmbeddingFactory, XLinearModel

    def fit(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        labels = self.embedding.create(relevance, features, method="pifa")
        clusters = self.indexer.gen(
            labels,
            indexer_type="hierarchicalkmeans",
            nr_splits=32,
            max_leaf_size=100,
            threads=self.threads,
        )
        self.kind.train(features, relevance, clusters, threads=self.threads).save(self.folder)

    def load(self) -> None:
        self.model = self.kind.load(self.folder, is_predict_only=True)

    def predict(self, features: sp.csr_matrix) -> sp.csr_matrix:
        return self.model.predict(
            features, beam_size=BEAM, only_topk=self.task.top, threads=self.threads
        )


class Parabel(Linear):
    """Partitioned label trees of omikuji with its defaults: three balanced binary trees."""

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, task: Task) -> None:
        import omikuji

        super().__init__(task)
        self.kind = omikuji.Model
        self.text_file = str(task.model.with_suffix(".txt"))

    def before(self) -> None:
        """The text format that it reads."""
        features, relevance = self.task.matrix("X.trn"), self.task.matrix("Y.trn")
        with open(self.text_file, "w") as out:
            print(*features.shape, relevance.shape[1], file=out)
            for row in range(features.shape[0]):
                labels = _row(relevance, row)[0]
                part = zip(*_row(features, row), strict=True)
                print(
                    ",".join(map(str, labels)),
                    *(f"{index}:{value:.7g}" for index, value in part),
                    file=out,
                )

    def train(self) -> dict[str, Any]:
        settings = self.kind.default_hyper_param()
        for name, value in self.settings.items():
            setattr(settings, name, value)
        Path(self.folder).mkdir()
        self.kind.train_on_data(self.text_file, settings, self.threads).save(self.folder)
        return {}

    def load(self) -> None:
        self.model = self.kind.load(self.folder)
        self.model.init_prediction_thread_pool(self.threads)
        self.model.densify_weights(0.1, self.threads)  # the default of its own command

    def predict(self, features: sp.csr_matrix) -> list[list[tuple[int, float]]]:
        return [
            self.model.predict(list(zip(*_row(features, row), strict=True)), BEAM, self.task.top)
            for row in range(features.shape[0])
        ]


class Bonsai(Parabel):
    """omikuji's second recipe: clusters that need not be balanced, 100 children, depth 3."""

    settings: ClassVar[dict[str, Any]] = {
        "cluster_balanced": False,
        "cluster_k": 100,
        "max_depth": 3,
    }


class NapkinXC(Linear):
    """The probabilistic label tree of napkinXC with its defaults: balanced, binary, logistic, exact
    search."""

    def __init__(self, task: Task) -> None:
        from napkinxc.models import PLT

        super().__init__(task)
        self.model = PLT(self.folder, seed=task.seed, threads=self.threads)

    def fit(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        self.model.fit(features, relevance)  # writes the model too

    def load(self) -> None:
        self.model.load()

    def predict(self, features: sp.csr_matrix) -> list[list[tuple[int, float]]]:
        return self.model.predict_proba(features, top_k=self.task.top)


def _row(matrix: sp.csr_matrix, row: int) -> tuple[list, list]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[part].tolist(), matrix.data[part].tolist()


def as_csr(ranked: sp.csr_matrix | list[list[tuple[int, float]]], num_labels: int) -> sp.csr_matrix:
    """Scores [N, L] from what the systems answer: a matrix, or (label, score) pairs of each
    point."""
    if sp.issparse(ranked):
        return sp.csr_matrix(ranked)
    pairs = [pair for row in ranked for pair in row]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in ranked])])
    ids, values = ([pair[i] for pair in pairs] for i in range(2))
    return sp.csr_matrix(
        (np.array(values, np.float32), np.array(ids, np.int64), indptr), (len(ranked), num_labels)
    )
