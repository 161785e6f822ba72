"""Methods of the older contract as recipes and rankers. It goes when they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from models.contract import Group, Learner, Ranker, Recipe, Solver, Start, Vectors
from models.encoders.reader import Reader
from models.method import Method
from models.scores import Scores
from utils.config.config import Config
from utils.data.batches import Batch
from utils.data.dataset import Dataset, Split
from utils.data.texts import FileTexts, Texts
from utils.runtime import Runtime
from utils.search import HnswIndex


class MethodRanker(Ranker):
    def __init__(self, method: Method, runtime: Runtime, folder: Path | None = None) -> None:
        super().__init__(method.config, method.num_labels, folder)
        self.method = method
        self.runtime = runtime
        if method.text_encoder is not None:
            make = Reader.of if method.data is not None else Reader.frozen
            self.reader = make(method.text_encoder, method.config, runtime)
        self.index = vars(method).get("index")
        self.at_once = 1 << 30
        takes = {"precision"} if method.config.method.name.startswith("elias") else set()
        takes |= {"index"} if isinstance(self.index, HnswIndex) else set()
        self.takes = frozenset(takes)

    @classmethod
    def of(cls, kind, config, folder, num_labels, runtime):
        method = kind.load(config, folder, num_labels).to(runtime.device)
        method.requires_grad_(False).eval()
        return cls(method, runtime, folder)

    def open(self, texts: Texts, given: bool = False) -> Scores:
        return _OldScores(self, texts, given)

    def save(self, folder: Path) -> None:
        self.method.save(folder, self.runtime.accelerator)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int, runtime: Runtime) -> Ranker:
        raise TypeError("loaded by the method's class")

    def vectors(self) -> dict[str, Vectors]:
        found = {}
        for name, (rows, bias) in self.method.search_vectors().items():
            tau = getattr(self.config.method, "tau", 1.0) if bias is not None else 1.0
            found[name] = Vectors(rows * tau if tau != 1.0 else rows, bias, tau)
        return found

    def clusters(self) -> dict[str, sp.csr_matrix]:
        return self.method.label_clusters()

    def facts(self, sums: Mapping[str, float]) -> dict[str, float]:
        return self.method.facts()

    def probabilities(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.method.probabilities(scores, labels)

    def with_labels(self, labels: Texts) -> Ranker:
        self.method.rank_new_labels(labels.strings(), self.runtime.accelerator)
        return MethodRanker(self.method, self.runtime, self.folder)

    def queries(self, texts: Texts) -> Tensor:
        embeddings = super().queries(texts)
        tau = getattr(self.config.method, "tau", 1.0)
        classifier = hasattr(self.method, "num_rows")
        return embeddings / tau if classifier else embeddings


class _OldScores(Scores):
    def __init__(self, ranker: MethodRanker, texts: Texts, given: bool) -> None:
        self.ranker, self.texts, self.given = ranker, texts, given
        self.accelerator = ranker.runtime.accelerator
        self._member = None
        self._split = self._as_split() if isinstance(texts, FileTexts) else None

    def _as_split(self) -> Split:
        rows = self.texts.rows
        tokens = None
        if self.ranker.reader is not None:
            tokens = self.texts.tokens(self.ranker.reader.tokenizer)[0]
        elif hasattr(self.ranker.method, "elias"):
            tokens = self.texts.tokens(self.ranker.method.elias.tokenizer)[0]
        return Split(self.texts.file.source, rows, tokens, None, None, self.texts.file)

    def member(self):
        if self._member is None:
            method = self.ranker.method
            if type(method).open_points is Method.open_points:  # it ranks by embeddings
                embeddings = self.texts.embeddings(self.ranker.reader)
                self._member = method.open_embeddings(embeddings)
            elif self._split is not None:
                points = np.arange(len(self.texts))
                self._member = method.open_points(self._split, points, self.accelerator)
            else:
                self._member = method.open_texts(self.texts.strings(), self.accelerator)
        return self._member

    def best(self, k: int):
        if self.given:
            return self.member().best(k)
        if self._split is not None:
            points = np.arange(len(self.texts))
            return self.ranker.method.score_points(self._split, points, k, self.accelerator)
        return self.ranker.method.score_texts(self.texts.strings(), k, self.accelerator)

    def of(self, labels: np.ndarray) -> np.ndarray:
        return self.member().of(labels)


class _OldRecipe(Recipe):
    def __init__(
        self, kind: type[Method], config: Config, data: Dataset, start: Start | None, runtime
    ) -> None:
        super().__init__(config, data, start, runtime)
        self.method = kind.build(config, data).to(runtime.device)
        if start is not None:
            before = start()
            self.method.start_from(
                before.method if isinstance(before, MethodRanker) else _StartView(before)
            )

    def ranker(self) -> Ranker:
        self.method.prepare_scoring(self.runtime.accelerator)
        return MethodRanker(self.method, self.runtime)

    def finish(self, folder: Path) -> None:
        self.method.on_finish(folder)


class _StartView:
    """A new ranker, as a method starts from it."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.config = ranker.config
        self.num_labels = ranker.num_labels
        self.encoder = self.text_encoder = ranker.reader.encoder if ranker.reader else None

    def label_vectors(self):
        return next(iter(self.ranker.vectors().values())).rows


class OldSolver(_OldRecipe, Solver):
    def fit(self, folder: Path) -> None:
        self.method.prepare(folder, self.runtime.accelerator)


class OldLearner(_OldRecipe, Learner):
    @property
    def module(self) -> torch.nn.Module:
        return self.method

    def group_names(self, config):  # of the method
        return self.method.group_names(config)

    def groups(self) -> list[Group]:
        return self.method.parameter_groups()

    def backward(self, batch: Batch) -> Tensor:
        return self.method.backward(batch, self.runtime.accelerator)

    def prepare(self, folder: Path) -> None:
        self.method.prepare(folder, self.runtime.accelerator)

    def begin(self, epoch: int) -> None:
        self.method.on_epoch_start(epoch, self.runtime.accelerator)

    def order(self, epoch: int) -> np.ndarray | None:
        return self.method.batch_order(epoch)

    def report(self) -> dict[str, float]:
        return self.method.epoch_report()

    def state(self) -> dict[str, Any]:
        return self.method.training_state()

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        self.method.load_training_state(dict(state))


def make_recipe(
    kind: type, config: Config, data: Dataset, start: Start | None, runtime: Runtime
) -> Recipe:
    if issubclass(kind, Recipe):
        return kind(config, data, start, runtime)
    fits = kind.__name__ == "EliasRanker"
    return (OldSolver if fits else OldLearner)(kind, config, data, start, runtime)
