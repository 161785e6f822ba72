"""ELIAS: search through a sparse graph of clusters and labels whose edges are learned.

    score of label l = sigmoid(w_l . x + bias_l) max_c s_c s_cl
        over the top clusters c of the query and their edges

Gupta et al., NeurIPS 2022, arXiv 2210.08410. `elias-1` trains the encoder, W_C and W_L with the
graph A fixed; `elias-2` learns its edges too. `Elias.backward` is a training step; graph.py makes
the graph and first_graph.py chooses it, beginning.py takes what an earlier run gives, start.py the
first classifiers; model.py has the paths of a step, search.py the shortlists, label_scores.py their
scores; ranker.py answers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.shortlist import path_loss
from models.contract import Group, Learner, Start
from models.elias.beginning import Beginning, begin
from models.elias.checks import (
    LOSSES,
    STARTS_FROM_TEXTS,
    check_options,
    check_same_clusters,
    check_what_is_taken,
)
from models.elias.first_graph import make_graph, positive_parents
from models.elias.graph import Graph
from models.elias.label_scores import Pairs, pool_gradient, pool_scores
from models.elias.memory_needs import elias_needs
from models.elias.model import Edges, EliasModel
from models.elias.options import Elias1Config, Elias2Config, EliasConfig, Limits, clusters_of
from models.elias.ranker import GraphRanker
from models.elias.report import draw
from models.elias.search import forced_clusters
from models.elias.start import start_clusters, start_edges, start_labels
from models.encoders.building import build_encoder
from models.encoders.reader import Reader, embed_together
from utils import distributed
from utils.config.config import Config
from utils.data.batches import Batch, TextBatch, steps_per_epoch
from utils.data.dataset import Dataset
from utils.data.micro_batches import MicroBatches
from utils.data.sizes import DataSizes
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.run.stages import Runs
from utils.runtime import Runtime
from utils.training.grad_cache import GradCache, backward_all
from utils.training.optim import decay_groups

EXTRA = 5  # clusters of a training query beyond the beam, for the parents of its positives


@dataclass(frozen=True)
class EliasStep:
    """What a step is told ahead of its b own queries.

    Attributes:
        parents: of their positives [b, P], -1 behind the last.
        fill: random clusters [b, F].
        noise: of the draw among both [b, beam + P + F].
        relevant, filtered: their positives and filter pairs.
        queries: their texts, in micro-batches; one without `method.micro_batch_tokens`.
    """

    parents: Tensor
    fill: Tensor
    noise: Tensor
    relevant: Pairs
    filtered: Pairs
    queries: MicroBatches


class Elias(Learner):
    """Both stages.

    Attributes:
        model: what is trained.
        average: of its weights along the way, which answers; None without `method.swa`.
        averaged: weights that it is the mean of.
    """

    Options = EliasConfig
    Answers = GraphRanker

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        """Read what the run begins with.

        What is wrong with the graph of a file, or with the run that this one starts from, shows
        here, before there is a run folder.
        """
        super().__init__(config, data, start, runtime)
        options = config.method
        if options.init == "labels":
            data.check_label_texts(STARTS_FROM_TEXTS)
        clusters = clusters_of(options, data.num_labels)
        limits = Limits.of(options, clusters, data.num_labels)
        encoder = build_encoder(config.encoder, data)
        self.model = EliasModel(encoder, options, limits, (clusters, data.num_labels))
        self.model.to(runtime.device)
        self.average: EliasModel | None = None
        if options.swa:
            self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.averaged = 0
        self.module = _together(self.model, self.average)
        self.loss = LOSSES[config.loss.name]
        self._graph: Graph | None = None
        self._edges: Edges | None = None
        self._parents = np.empty(0, np.int64)  # [L], once there is a graph
        self._beginning: Beginning | None = begin(config, data, self.model, start)
        self._reader = Reader.of(self.model.encoder, config, runtime)
        self._average_reader = self._reader
        if self.average is not None:
            self._average_reader = Reader.of(self.average.encoder, config, runtime)

    # ---- on paper
    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        check_options(config, sizes)
        super().check(config, sizes, runs)
        if config.run.start_from:
            check_same_clusters(config, runs.start(config), sizes.num_labels)

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        check_what_is_taken(config, before)

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        edges = {"edges"} if config.method.learns_edges else set()
        return super().group_names(config) | {"clusters", "classifier"} | edges

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        return elias_needs(sizes)

    # ---- training
    def groups(self) -> list[Group]:
        """encoder (and table), clusters, classifier, edges: the names of `optim.group_lr`."""
        decay = self.config.optim.weight_decay
        model = self.model
        every = {"accumulate": self.config.method.accumulation_steps}
        groups = [
            *decay_groups(model.encoder, "encoder", decay),
            {"name": "clusters", "params": [model.clusters], "weight_decay": decay},
            {"name": "classifier", "params": [model.labels], "weight_decay": decay, **every},
            {"name": "classifier", "params": [model.bias], "weight_decay": 0.0, **every},
        ]
        if model.projection is not None:
            weights = list(model.projection.parameters())
            groups.append({"name": "classifier", "params": weights, "weight_decay": decay})
        if model.edges is not None:
            groups.append({"name": "edges", "params": [model.edges], "weight_decay": 0.0})
        return groups

    def prepare(self, folder: Path) -> None:
        """Make or read the graph, save it with the run, and start the classifiers."""
        beginning = self._beginning
        assert beginning is not None, "a run begins once"
        graph = make_graph(beginning, self.config, self.data, self.model, self._reader)
        self._set_graph(graph)
        if distributed.is_main():
            graph.save(folder / "graph.npz")
        rows = self._label_rows(beginning)
        if rows is not None:
            start_labels(self.model, rows)
            if beginning.before is None:  # new clusters
                start_clusters(self.model, rows, graph)
        start_edges(self.model, graph)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        self._beginning = None
        distributed.barrier()

    def _label_rows(self, beginning: Beginning) -> Tensor | None:
        """What the label classifiers start as [L, D].

        None where they start random or keep what they have.
        """
        if self.config.method.init == "labels":
            tokens = self.data.label_tokens
            assert tokens is not None, "labels whose texts were checked have tokens"
            every = np.arange(self.data.num_labels)
            return embed_together(self._reader, tokens, every, "embed labels")
        return beginning.vectors

    def _set_graph(self, graph: Graph) -> None:
        self._graph = graph
        self._parents = graph.parents()
        self._edges = Edges.of(graph, self.model.limits, self.runtime.device)

    @property
    def graph(self) -> Graph:
        """A."""
        assert self._graph is not None, "there is a graph from `prepare` on"
        return self._graph

    @property
    def edges(self) -> Edges:
        """The graph as a step reads it."""
        assert self._edges is not None, "there is a graph from `prepare` on"
        return self._edges

    def begin(self, epoch: int) -> None:
        """parent(l) = argmax_c s_cl, once an epoch."""
        if self.model.edges is not None:
            self._parents = self.graph.parents(self.model.all_log_edges(self.edges))

    def backward(self, batch: Batch) -> Tensor:
        """A step: the K labels with the best paths, their losses, and all gradients.

        b of the batch's B queries are this process's; letters as in models/contract.py, C clusters,
        S of them searched for a query.
        """
        self._join_average(batch)
        options = self.config.method
        model = self.model
        step: EliasStep = self.made(batch)
        cache = GradCache(self._encode, step.queries)
        embeddings = cache.embed()  # [b, D]
        with self.runtime.autocast():
            queries = F.dropout(embeddings, options.dropout, self.module.training)
            projected = model.project(queries).float()  # [b, D']
        raised = model.raised_shares(queries)  # [b, C] log(alpha softmax(W_C x))
        clusters = forced_clusters(
            raised, model.limits.beam, step.parents, step.fill, step.noise
        )  # [b, S]
        shortlist, log_paths = model.best_paths(self.edges, queries, raised, clusters)  # [b, K]
        inside = shortlist.labels >= 0  # [b, K] whether a place holds a label
        labels = shortlist.labels.clamp(min=0)  # [b, K]
        scores = pool_scores(projected, model.labels, labels)  # [b, K] w_l . x
        scores.retain_grad()
        logits = scores / options.tau + model.bias.detach()[labels, 0]  # [b, K]
        positive = step.relevant.at(shortlist.labels)
        absent = step.filtered.at(shortlist.labels)
        counted = inside & (positive | ~absent)
        loss = self.loss(
            logits=logits,
            log_paths=log_paths,
            positive=positive,
            counted=counted,
        )
        if options.loss_lambda:
            paths = path_loss(log_paths=log_paths, positive=positive, counted=counted)
            loss = loss + options.loss_lambda * paths
        loss = loss / len(batch.points)
        self.runtime.backward(loss)
        backward_all([cache])
        assert scores.grad is not None, "it was retained"
        # those of W_L and of the bias are kept as factors
        rows = pool_gradient(labels, inside, scores.grad, projected)
        ones = projected.new_ones(len(projected), 1)
        model.labels.factors = rows
        model.bias.factors = replace(
            rows.scaled(options.tau), vectors=ones
        )  # z = w . x / tau + bias
        return distributed.loss_exchange().sum(loss.detach())

    def _encode(self, texts: TextBatch) -> Tensor:
        with self.runtime.autocast():
            return self.model.encoder(texts).float()

    def ahead(self, batch: Batch) -> EliasStep:
        """Positives, and what the clusters beside the top ones are drawn by.

        Drawn for the whole batch, of which this process takes its rows.
        """
        share = distributed.share(len(batch.points))
        rng = batch.rng()
        num_clusters = self.graph.num_clusters
        beam = self.model.limits.beam
        parents = positive_parents(batch.relevance, self._parents)  # [B, P]
        size = min(beam + EXTRA, num_clusters)
        fill = rng.integers(num_clusters, size=(len(parents), size))
        choices = beam + parents.shape[1] + size
        noise = rng.gumbel(size=(len(parents), choices)).astype(np.float32)

        own = slice(share.start, share.stop)
        at_once = self.model.encoder.micro_batch_size(self.config.method, self.runtime.device)
        return EliasStep(
            torch.from_numpy(parents[own]),
            torch.from_numpy(fill[own]),
            torch.from_numpy(noise[own]),
            Pairs.of(batch.relevance[own]),
            Pairs.of(batch.filters[own]),
            MicroBatches.of(batch.queries, at_once),
        )

    def _join_average(self, batch: Batch) -> None:
        """Every `swa_step` steps from `swa_start` on, the present weights join the average."""
        if self.average is None:
            return
        options = self.config.method
        _, epoch, step = batch.key
        steps = steps_per_epoch(self.data.splits["trn"], self.config.train.batch_size)
        done = (epoch - options.swa_start) * steps + step
        if done <= 0 or done % options.swa_step:
            return
        self.averaged += 1
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 / self.averaged)

    # ---- between steps
    def state(self) -> dict[str, np.ndarray]:
        return {"parents": self._parents, "averaged": np.array(self.averaged)}

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        self._set_graph(Graph.load(folder / "graph.npz", self.data.num_labels))
        self._parents = state["parents"]
        self.averaged = int(state["averaged"])
        self._beginning = None

    def ranker(self) -> GraphRanker:
        """By the average, once there are weights in it."""
        model = self.model
        reader = self._reader
        if self.average is not None and self.averaged:
            model = self.average
            reader = self._average_reader
        return GraphRanker(self.config, reader, model.projection, model.index(self.edges))

    def finish(self, folder: Path) -> None:
        draw(folder)


def _together(model: EliasModel, average: EliasModel | None) -> nn.Module:
    """Both by their names in a checkpoint."""
    parts = {"model": model}
    if average is not None:
        parts["average"] = average
    return nn.ModuleDict(parts)


class Elias1(Elias):
    """Stage 1: encoder, clusters and label classifiers on a fixed graph."""

    Options = Elias1Config


class Elias2(Elias):
    """Stage 2: the edges too."""

    Options = Elias2Config
