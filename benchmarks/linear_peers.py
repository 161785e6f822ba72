"""One system of `benchmarks.linear`: trains or predicts in a process of its own, by its own interpreter.

    PYTHON benchmarks/linear_peers.py SYSTEM {train,predict} DATA_FOLDER WORK_FOLDER THREADS

Imports nothing but numpy, scipy and the system, which may be this project itself. `train` reads {X,Y}.trn.npz and
leaves the model in WORK_FOLDER; `predict` loads it and ranks the points of X.tst.npz. Both write PHASE.json: wall and
processor seconds (user + system), megabytes. What must be done before, compiling or writing another input format, is
timed apart; saving is not timed.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

TOP = 100
BEAM = 10
SINGLE_POINTS = 200      # ranked one by one for the latency


class Pecos:
    """XR-Linear of libpecos: PIFA, hierarchical k-means with 32 splits, leaves of at most 100, defaults otherwise."""

    def __init__(self, folder: Path, threads: int) -> None:
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel
        self.folder, self.threads, self.model = str(folder), threads, None
        self.indexer, self.embedding, self.kind = Indexer, LabelEmbeddingFactory, XLinearModel

    def before_training(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        pass

    def train(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        labels = self.embedding.create(relevance, features, method="pifa")
        clusters = self.indexer.gen(labels, indexer_type="hierarchicalkmeans", nr_splits=32, max_leaf_size=100,
                                    threads=self.threads)
        self.model = self.kind.train(features, relevance, clusters, threads=self.threads)

    def save(self) -> None:
        self.model.save(self.folder)

    def load(self) -> None:
        self.model = self.kind.load(self.folder, is_predict_only=True)

    def predict(self, features: sp.csr_matrix) -> sp.csr_matrix:
        return self.model.predict(features, beam_size=BEAM, only_topk=TOP, threads=self.threads)


class Omikuji:
    """Partitioned label trees of omikuji, three trees: Parabel (balanced, binary) or Bonsai (100 children, depth 3)."""
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path, threads: int) -> None:
        import omikuji
        self.folder, self.threads, self.kind, self.model = folder, threads, omikuji.Model, None
        self.num_labels = 0

    def before_training(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        """The text format that it reads."""
        self.folder.mkdir(parents=True)
        with open(self.folder.with_suffix(".txt"), "w") as out:
            print(*features.shape, relevance.shape[1], file=out)
            for row in range(features.shape[0]):
                labels, part = _row(relevance, row)[0], zip(*_row(features, row), strict=True)
                print(",".join(map(str, labels)), *(f"{index}:{value:.7g}" for index, value in part), file=out)

    def train(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        settings = self.kind.default_hyper_param()
        for name, value in self.settings.items():
            setattr(settings, name, value)
        self.model = self.kind.train_on_data(str(self.folder.with_suffix(".txt")), settings, self.threads)

    def save(self) -> None:
        self.model.save(str(self.folder))

    def load(self) -> None:
        self.model = self.kind.load(str(self.folder))
        self.model.init_prediction_thread_pool(self.threads)
        self.model.densify_weights(0.1, self.threads)      # the default of its own command

    def predict(self, features: sp.csr_matrix) -> list[list[tuple[int, float]]]:
        return [self.model.predict(list(zip(*_row(features, row), strict=True)), BEAM, TOP)
                for row in range(features.shape[0])]


class Bonsai(Omikuji):
    settings: ClassVar[dict[str, Any]] = {"cluster_balanced": False, "cluster_k": 100, "max_depth": 3}


class NapkinXC:
    """The probabilistic label tree of napkinXC with its defaults: balanced, binary, logistic, exact search."""

    def __init__(self, folder: Path, threads: int) -> None:
        from napkinxc.models import PLT
        self.model = PLT(str(folder), seed=0, threads=threads)

    def before_training(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        pass

    def train(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        self.model.fit(features, relevance)      # writes the model too

    def save(self) -> None:
        pass

    def load(self) -> None:
        self.model.load()

    def predict(self, features: sp.csr_matrix) -> list[list[tuple[int, float]]]:
        return self.model.predict_proba(features, top_k=TOP)


class Ours:
    """This project's XR-Linear with its defaults, which are those of libpecos; `trees` of them, scores averaged."""
    trees = 1

    def __init__(self, folder: Path, threads: int) -> None:
        from utils import arrays, linear_layer, partition_tree, tree_training
        self.folder, self.threads, self.models, self.num_labels = folder, threads, [], 0
        self.arrays, self.layer, self.tree, self.training = arrays, linear_layer, partition_tree, tree_training
        self.combiner = partition_tree.COMBINERS["l3-hinge"]

    def before_training(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        """Compiles the kernels, on a few points."""
        some = np.unique(relevance[:200].indices)
        self.models = [self._fit(features[:200], relevance[:200][:, some], 0, max_leaf=2)]
        self.predict(features[:10])

    def train(self, features: sp.csr_matrix, relevance: sp.csr_matrix) -> None:
        self.models = [self._fit(features, relevance, seed) for seed in range(self.trees)]

    def _fit(self, features: sp.csr_matrix, relevance: sp.csr_matrix, seed: int, max_leaf: int = 100) -> Any:
        labels = np.flatnonzero(np.bincount(relevance.indices, minlength=relevance.shape[1]))
        skeleton = self.training.grow(self.training.label_centroids(relevance, features), labels, max_leaf=max_leaf,
                                      splits=32, seed=seed, threads=self.threads)
        ranking = self.training.Ranking(self.layer.Solver(), "positives", BEAM, self.combiner, self.threads)
        return self.training.fit_tree(self.layer.Features.build(features), relevance, skeleton, ranking)

    def save(self) -> None:
        self.folder.mkdir()
        for number, tree in enumerate(self.models):
            self.arrays.save_arrays(self.folder / f"{number}.npz", {"labels": tree.node_labels})
            for level, layer in enumerate(tree.layers):
                self.arrays.save_arrays(self.folder / f"{number}.{level}.npz", layer.arrays())
        (self.folder / "shape.json").write_text(json.dumps([self.models[0].num_labels, *self.models[0].shape]))

    def load(self) -> None:
        self.num_labels, *shape = json.loads((self.folder / "shape.json").read_text())
        self.models = []
        for number in range(self.trees):
            levels = len(list(self.folder.glob(f"{number}.*.npz")))
            layers = [self.layer.Layer(**self.arrays.map_arrays(self.folder / f"{number}.{level}.npz"))
                      for level in range(levels)]
            labels = self.arrays.map_arrays(self.folder / f"{number}.npz")["labels"]
            self.models.append(self.tree.PartitionTree(layers, labels, self.num_labels, tuple(shape), 1.0))

    def predict(self, features: sp.csr_matrix) -> sp.csr_matrix:
        from utils.sparse import topk_csr
        features = self.layer.Features.build(features)
        found = [tree.search(features, TOP, beam=BEAM, combiner=self.combiner, threads=self.threads)
                 for tree in self.models]
        return sum(topk_csr(values, ids, self.models[0].num_labels) for ids, values, _ in found)


class ThreeOfOurs(Ours):
    trees = 3


SYSTEMS = {"xmckit": Ours, "xmckit-3-trees": ThreeOfOurs, "pecos": Pecos, "omikuji-parabel": Omikuji,
           "omikuji-bonsai": Bonsai, "napkinxc": NapkinXC}


def _row(matrix: sp.csr_matrix, row: int) -> tuple[list, list]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[part].tolist(), matrix.data[part].tolist()


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """(result, {wall_s, cpu_s})."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _peak_mb() -> float:
    """Largest resident memory since this program started."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _load(path: Path) -> sp.csr_matrix:
    matrix = sp.csr_matrix(sp.load_npz(path)).astype(np.float32)
    matrix.sum_duplicates()
    return matrix


def _as_csr(ranked: sp.csr_matrix | list[list[tuple[int, float]]], num_labels: int) -> sp.csr_matrix:
    if sp.issparse(ranked):
        return sp.csr_matrix(ranked)
    pairs = [pair for row in ranked for pair in row]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in ranked])])
    ids, values = ([pair[i] for pair in pairs] for i in range(2))
    return sp.csr_matrix((np.array(values, np.float32), np.array(ids, np.int64), indptr), (len(ranked), num_labels))


def train(system: Any, data: Path, model: Path) -> dict[str, float]:
    features, relevance = _load(data / "X.trn.npz"), _load(data / "Y.trn.npz")
    before = _peak_mb()
    _, preparing = _timed(system.before_training, features, relevance)
    _, numbers = _timed(system.train, features, relevance)
    peak = _peak_mb()
    system.save()
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    return {**numbers, "before_s": preparing["cpu_s"], "before_mb": before, "peak_mb": peak, "model_mb": size}


def predict(system: Any, data: Path, scores: Path) -> dict[str, float]:
    features = _load(data / "X.tst.npz")
    num_labels = int(np.load(data / "Y.trn.npz")["shape"][1])
    _, loading = _timed(system.load)
    singles = [features[row] for row in range(min(SINGLE_POINTS, features.shape[0]))]
    for single in singles[:3]:
        system.predict(single)
    milliseconds = [1000 * _timed(system.predict, single)[1]["wall_s"] for single in singles]
    ranked, numbers = _timed(system.predict, features)
    sp.save_npz(scores, _as_csr(ranked, num_labels), compressed=False)
    return {**numbers, "load_s": loading["wall_s"], "single_ms": float(np.median(milliseconds)),
            "points": features.shape[0], "peak_mb": _peak_mb()}


def main(name: str, phase: str, data: str, work: str, threads: str) -> None:
    folder = Path(work)
    model = folder / "model"
    system = SYSTEMS[name](model, int(threads))
    numbers = (train(system, Path(data), model) if phase == "train"
               else predict(system, Path(data), folder / "scores.npz"))
    (folder / f"{phase}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
