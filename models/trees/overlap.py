"""XR-Linear, and label disentanglement on top of it: partition trees of linear rankers.

`xr-linear` (Yu et al., PECOS, JMLR 2022): labels are clustered by the centroids of their points'
features, and a linear ranker scores every child of a cluster that the beam reaches. `overlap` (Liu
et al., NeurIPS 2021, arXiv 2106.12751): labels that several clusters' points ask for get a copy in
each, and the tree is trained again with the copies as pseudo-labels. Neither is trained by
gradient: `prepare` does all of it, level by level.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from accelerate import Accelerator

from models.method import Method, write_method
from models.scores import Reached, Scores
from models.trees.features import TreeFeatures, check_sources, read_columns
from models.trees.options import OverlapConfig, XrLinearConfig, ranking
from utils import distributed
from utils.arrays import map_arrays, save_arrays
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset, Split
from utils.data.label_texts import labels_without_text, stand_ins
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.files import link_or_copy, write_text, written_whole
from utils.linear.layer import Features, load_layer
from utils.linear.partition_tree import COMBINERS, PartitionTree
from utils.linear.tree_training import (
    Ranking,
    Skeleton,
    fit_tree,
    grow,
    pifa,
    reassign,
    tree_levels,
)
from utils.reading.saved import check_arrays, check_ids, read_facts
from utils.run.stages import Runs
from utils.sparse import normalised, topk_csr, topk_rows

log = logging.getLogger(__name__)
# labels that each of several trees proposes, so that the order of the first k does not depend on k
POOL = 200


class XrLinear(Method):
    """Trees of linear rankers. Attributes: trees; features; prior, the labels by frequency: (ids
    [n], shares [n])."""

    Options = XrLinearConfig

    def __init__(self, config: Config, num_labels: int, data: Dataset | None) -> None:
        super().__init__(config, num_labels, data)
        self.trees: list[PartitionTree] = []
        self.features: TreeFeatures | None = None
        self.prior = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self._start: Method | None = None
        self._facts: dict[str, float] = {}
        self._files: list[Path] = []

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        settings = config.method
        if settings.label_embedding == "pifa+text":
            sizes.check_label_texts("method.label_embedding: pifa+text reads them")
            if "tfidf" not in settings.features:
                raise ConfigError(
                    "method.label_embedding: pifa+text needs tfidf among method.features"
                )
        if settings.trees > 1 and COMBINERS[settings.combiner].start != 1.0:
            raise ConfigError(
                f"method.trees is {settings.trees}: scores of several trees are averaged, those "
                f"of method.combiner {settings.combiner} cannot be, as a label that a tree does "
                "not reach has none; use l1-hinge to l5-hinge or sigmoid"
            )
        check_sources(config, runs)
        super().check(config, sizes, runs)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        if "start" not in config.method.features:
            raise ConfigError(
                f"run.start_from: method {config.method.name} takes from another run only its "
                "embeddings: name `start` among method.features"
            )

    @classmethod
    def build(cls, config: Config, data: Dataset) -> XrLinear:
        method = cls(config, data.num_labels, data)
        counts = np.bincount(data.splits["trn"].relevance.indices, minlength=data.num_labels)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        method.prior = order, (counts[order] / max(len(data.splits["trn"]), 1)).astype(np.float32)
        if not config.run.start_from:
            method.features = TreeFeatures.build(config.method.features, config, None)
        return method

    @classmethod
    def tokenizer_source(cls, config: Config) -> None:
        return None

    @property
    def epochs(self) -> int:
        return 0

    @property
    def mean_of_copies(self) -> bool:
        """Does a label score the mean of its copies that were reached, or their maximum?"""
        return True

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return frozenset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return []

    def start_from(self, other: Method) -> None:
        """Take the embeddings of another run as the feature `start`."""
        self.features = TreeFeatures.build(self.config.method.features, self.config, other)

    # ---- training
    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Train all trees; levels that an interrupted run has finished are not trained again."""
        levels = run_folder / "levels"
        if missing := self.num_labels - len(self.prior[0]):
            log.info(
                "%d of %d labels have no training points and are never predicted",
                missing,
                self.num_labels,
            )
        # the main process trains, with all its threads; the others read
        with distributed.main_first():
            trainer = _Trainer(self, levels, accelerator)
            self.trees = [
                self._train_tree(trainer, number) for number in range(self.config.method.trees)
            ]
        self._files = trainer.files

    def _train_tree(self, trainer: _Trainer, number: int) -> PartitionTree:
        return trainer.fit(f"tree{number}", lambda: trainer.grow(number), final=True)

    # ---- scoring
    def score_points(
        self,
        split: Split,
        points: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._search(self.features.of_points(split, points, accelerator), k)

    def score_texts(
        self, texts: Sequence[str], k: int, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._search(self.features.of_texts(texts, accelerator), k)

    def _search(self, features: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        settings = self.config.method
        threads = distributed.cpu_threads(self.config.run.threads)
        options = {
            "beam": settings.beam,
            "combiner": COMBINERS[settings.combiner],
            "threads": threads,
            "mean": self.mean_of_copies,
        }
        proposed = k if len(self.trees) == 1 else max(k, min(POOL, self.num_labels))
        found = [tree.search(features, proposed, **options) for tree in self.trees]
        ids, values, _ = found[0]
        if len(found) > 1:  # a label that a tree does not reach has score 0 there
            total = sum(topk_csr(values, ids, self.num_labels) for ids, values, _ in found)
            ids, values = topk_rows(total / np.float32(len(found)), k)
        empty = features.empty
        if empty.any():  # nothing is known of them but how frequent labels are
            some = min(k, len(self.prior[0]))
            ids[empty], values[empty] = -1, -np.inf
            ids[np.ix_(empty, np.arange(some))] = self.prior[0][:some]
            values[np.ix_(empty, np.arange(some))] = self.prior[1][:some]
        points = len(features)
        products = sum(count for _, _, count in found)
        points, products, empty = (
            distributed.total(x) for x in (points, products * points, empty.sum())
        )
        self._facts = {
            "inner_products": round(products / max(points, 1), 1),
            "points_without_features": int(empty),
        }
        return values, ids

    def open_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Scores:
        return self._open(self.features.of_points(split, points, accelerator))

    def open_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Scores:
        return self._open(self.features.of_texts(texts, accelerator))

    def label_clusters(self) -> dict[str, sp.csr_matrix]:
        return {
            f"tree {number}": tree.labels_of_clusters() for number, tree in enumerate(self.trees, 1)
        }

    def _open(self, features: Features) -> Scores:
        """All labels that the beams reach; of several trees the average."""
        settings = self.config.method
        threads = distributed.cpu_threads(self.config.run.threads)
        reached = [
            tree.reached(
                features,
                beam=settings.beam,
                combiner=COMBINERS[settings.combiner],
                threads=threads,
                mean=self.mean_of_copies,
            )
            for tree in self.trees
        ]
        return Reached(
            reached[0]
            if len(reached) == 1
            else sum(reached[1:], reached[0]) / np.float32(len(reached)),
            negative=COMBINERS[settings.combiner].start != 1.0,
        )

    def facts(self) -> dict[str, float]:
        """Average inner products with label rankers per point (the paper's cost), and points
        without features."""
        return self._facts

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """The trees' files are linked from `levels`, not written twice."""
        if not distributed.is_main():
            return
        for file in self._files:
            link_or_copy(file, folder / file.name)
        self.features.save(folder)
        save_arrays(folder / "prior.npz", {"ids": self.prior[0], "shares": self.prior[1]})
        write_method(
            folder,
            self.config.method.name,
            self.num_labels,
            columns=self.features.shape,
            trees=[len(tree.layers) for tree in self.trees],
        )

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> XrLinear:
        method = cls(config, num_labels, None)
        shape = read_columns(folder)
        trees = read_facts(folder / "method.json", trees=list[int])["trees"]
        if not trees:
            raise InputError(
                f"{folder / 'method.json'}: trees: expected the levels of one tree or more, got "
                "none"
            )
        for number, levels in enumerate(trees):
            tree = _load_tree(folder, number, levels, num_labels, shape, config.method.bias)
            method.trees.append(tree)
        method.features = TreeFeatures.load(config, folder, shape[0])
        if method.features.shape != shape:
            raise ValueError(
                f"{folder}: its encoders give {method.features.shape[1]} columns, expected "
                f"{shape[1]}"
            )
        method.prior = _load_prior(folder / "prior.npz", num_labels)
        return method


def _load_tree(
    folder: Path, number: int, levels: int, num_labels: int, shape: tuple[int, int], bias: float
) -> PartitionTree:
    """One tree of a saved model, its arrays mapped and checked."""
    file = folder / f"tree{number}.skeleton.npz"
    skeleton = map_arrays(file)
    files = [folder / f"tree{number}.level{level}.npz" for level in range(levels)]
    layers = [load_layer(path) for path in files]
    if not layers:
        raise InputError(
            f"{folder / 'method.json'}: trees: expected one level or more a tree, got {levels}"
        )
    if "node_labels" not in skeleton:
        raise InputError(
            f"{file}: expected an array 'node_labels', got {', '.join(skeleton) or 'none'}"
        )
    tree = PartitionTree(tuple(layers), skeleton["node_labels"], num_labels, shape, bias)
    tree.check(files, file)
    return tree


def _load_prior(path: Path, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels by frequency and their shares, of a saved model."""
    prior = map_arrays(path)
    check_arrays(path, prior, {"ids": ((None,), np.int64), "shares": ((None,), np.float32)})
    if len(prior["ids"]) != len(prior["shares"]):
        raise InputError(
            f"{path}: expected a share for each of {len(prior['ids'])} labels, got "
            f"{len(prior['shares'])}"
        )
    check_ids(prior["ids"], num_labels, f"{path}: ids")
    return prior["ids"], prior["shares"]


class Overlap(XrLinear):
    """XR-Linear whose labels live in their `copies` best clusters."""

    Options = OverlapConfig

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        super().check(config, sizes, runs)
        settings = config.method
        labels = sizes.used_labels
        clusters = prod(tree_levels(labels, settings.max_leaf, settings.splits))
        if settings.copies > clusters:
            raise ConfigError(
                f"method.copies is {settings.copies}, but {labels} labels with method.max_leaf "
                f"{settings.max_leaf} make only {clusters}; lower method.copies or method.max_leaf"
            )

    @property
    def mean_of_copies(self) -> bool:
        return self.config.method.merge == "mean"

    def _train_tree(self, trainer: _Trainer, number: int) -> PartitionTree:
        name = f"tree{number}"
        rounds = self.config.method.rounds
        tree = trainer.fit(f"{name}.base", lambda: trainer.grow(number), final=False)
        for turn in range(1, rounds + 1):
            last = turn == rounds
            before = trainer.skeleton
            tree = trainer.fit(
                name if last else f"{name}.round{turn}",
                lambda tree=tree, before=before: trainer.reassign(tree, before),
                final=last,
            )
        return tree


class _Trainer:
    """Trains trees into files, one a level, and reads those that are there.

    Attributes: files, of the trees that make the model; skeleton, of the last tree.
    """

    def __init__(self, method: XrLinear, folder: Path, accelerator: Accelerator) -> None:
        self.method = method
        self.settings = method.config.method
        self.folder = folder
        self.accelerator = accelerator
        self.split = method.data.splits["trn"]
        self.threads = distributed.cpu_threads(method.config.run.threads)
        self.files: list[Path] = []
        self.skeleton: Skeleton | None = None
        self._features: Features | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if distributed.is_main():
            # of a process that was killed while it wrote
            for leftover in folder.glob(".*.partial-*"):
                leftover.unlink()
            self._check_features()

    def _check_features(self) -> None:
        """InputError if there are levels already, of other features: of texts that were edited
        since."""
        path = self.folder / "features"
        now = self.method.features.fingerprint(self.split)
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != now and any(self.folder.glob("*.npz")):
            raise InputError(
                f"{self.folder}: its trees were trained on other features than those of "
                f"{self.method.data.folder} now: texts or features were changed since; start the "
                "run again with --overwrite"
            )
        write_text(path, now)

    @property
    def features(self) -> Features:
        """Of the training points; computed when the first level needs them."""
        if self._features is None:
            self._features = self.method.features.of_points(
                self.split, np.arange(len(self.split)), self.accelerator
            )
            if empty := int(self._features.empty.sum()):
                log.info("%d of %d training points have no features", empty, len(self.split))
        return self._features

    def fit(self, name: str, make: Callable[[], Skeleton], *, final: bool) -> PartitionTree:
        """The tree `name`: its skeleton from `make`, its levels one by one."""
        path = self.folder / f"{name}.skeleton.npz"
        if path.exists():
            arrays = map_arrays(path)
            pointers = tuple(arrays[f"ptr{level}"] for level in range(len(arrays) - 1))
            self.skeleton = Skeleton(pointers, arrays["node_labels"])
        else:
            self.skeleton = make()
            self._write(
                path,
                {
                    "node_labels": self.skeleton.node_labels,
                    **{f"ptr{i}": pointer for i, pointer in enumerate(self.skeleton.child_ptrs)},
                },
            )
        paths = [
            self.folder / f"{name}.level{level}.npz"
            for level in range(len(self.skeleton.child_ptrs))
        ]
        kept = []
        for file in paths:
            if not file.exists():
                break
            kept.append(load_layer(file))
        if final:
            self.files += [path, *paths]
        if len(kept) == len(paths):
            return PartitionTree(
                tuple(kept),
                self.skeleton.node_labels,
                self.method.num_labels,
                self.method.features.shape,
                self.settings.bias,
            )
        if kept:
            log.info("%s: %d of %d levels are there already", name, len(kept), len(paths))
        return fit_tree(
            self.features,
            self.split.relevance,
            self.skeleton,
            self.ranking,
            self.split.filters,
            kept,
            lambda level, layer: self._write(paths[level], layer.arrays()),
        )

    def _write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        with written_whole(path) as partial:
            save_arrays(partial, arrays)

    @property
    def ranking(self) -> Ranking:
        return ranking(self.method.config, self.threads)

    def grow(self, number: int) -> Skeleton:
        """Clusters of the labels that have training points, for the tree of this number."""
        embeddings = pifa(self.split.relevance, self.features)
        if self.settings.label_embedding == "pifa+text":
            folder = self.method.data.folder
            without = stand_ins(folder, labels_without_text(folder))
            if without and number == 0:
                log.warning("%s", without)
            texts = self.method.features.tfidf(self.method.data.label_texts)
            embeddings = sp.hstack([embeddings, normalised(texts)], format="csr")
        return grow(
            embeddings,
            np.sort(self.method.prior[0]),
            max_leaf=self.settings.max_leaf,
            splits=self.settings.splits,
            seed=self.method.config.run.seed + 1000 * number,
            threads=self.threads,
        )

    def reassign(self, tree: PartitionTree, before: Skeleton) -> Skeleton:
        """The copies of every label, from the beams of a trained tree."""
        return reassign(
            tree, before, self.features, self.split.relevance, self.settings.copies, self.ranking
        )
