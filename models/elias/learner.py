"""ELIAS: search through a sparse graph of clusters and labels whose edges are learned (Gupta et
al., NeurIPS 2022, arXiv 2210.08410).

    score of label l = sigmoid(w_l . x + bias_l) max_c s_c s_cl, over the top clusters c and their
        edges

`elias-1` trains the encoder, W_C and W_L with the graph A fixed; `elias-2` learns its edges too.
graph.py makes the graph, start.py what comes before the first step, model.py the scores of a step,
search.py the shortlists; index.py answers for a saved model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from losses.shortlist import path_loss, shortlist_bce, shortlist_decoupled_softmax
from models.elias.graph import Graph, check_graph
from models.elias.index import GraphIndex
from models.elias.made_graphs import MadeGraph, graph_made_before
from models.elias.model import EliasModel
from models.elias.options import (
    Elias1Config,
    Elias2Config,
    EliasConfig,
    Limits,
    check_averaging,
    clusters_of,
)
from models.elias.report import draw, graph_arrays, graph_facts, save_report, shortlist_recall
from models.elias.search import forced_clusters, pool_gradient, pool_scores
from models.elias.start import (
    given_graph,
    make_graph,
    positive_parents,
    start_classifiers,
    start_edges,
)
from models.encoders.encoder import TextEncoder, build_encoder, load_encoder
from models.method import (
    Asked,
    Method,
    check_encoders,
    check_label_vectors,
    encode_rows,
    take_parameters,
    write_method,
)
from models.scores import Scores
from utils import distributed
from utils.config.config import Config, ConfigError
from utils.data.batches import Batch, TextBatch, steps_per_epoch
from utils.data.dataset import Dataset, Split, token_cache
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.reading.saved import read_facts, read_tensors
from utils.run.stages import Runs
from utils.sparse import entry_rows
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file, tokenize_texts
from utils.training.optim import decay_groups

LOSSES = {"bce": shortlist_bce, "decoupled-softmax": shortlist_decoupled_softmax}
STARTS_FROM_TEXTS = "method.init: labels starts from the labels' texts"
EXTRA = 5  # clusters of a training query beyond the beam, for the parents of its positives


class Elias(Method):
    """Both stages. Attributes: model, limits; graph, once it is known; after prepare_scoring or
    load: index."""

    Options = EliasConfig

    def __init__(
        self,
        config: Config,
        num_labels: int,
        data: Dataset | None,
        model: EliasModel,
        made_graph: MadeGraph | None = None,
    ) -> None:
        """made_graph: one that a step of elias_utils.py has left for this run.

        Of a run that trains, a graph of a file is read here: what is wrong with it shows before
        there is a run folder.
        """
        super().__init__(config, num_labels, data)
        self.model = model
        self.loss = LOSSES[config.loss.name]
        self.average = (
            copy.deepcopy(model).requires_grad_(False) if config.method.swa and data else None
        )
        self.averaged = 0  # weights that `average` is the mean of
        self.made_graph = made_graph
        self.graph: Graph | None = None
        self.given = given_graph(config, num_labels, made_graph) if data else None
        self.before: Graph | None = None  # of the run that this one starts from
        # with `fresh_encoder` that run: no module of this one, until `prepare`
        self.clusterer: list[Method] = []
        # of the labels [L, D], of that run, with `init: vectors`
        self.vectors: Tensor | None = None
        self.index: GraphIndex | None = None
        self._parents: np.ndarray | None = None
        self._facts: dict[str, float] = {}

    @property
    def encoder(self) -> TextEncoder:
        return self.model.encoder

    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        s = config.method
        if config.loss.name not in LOSSES or config.loss.sample or config.loss.weighted:
            raise ConfigError(
                f"loss.name must be one of {', '.join(LOSSES)} for {s.name}, without loss.sample "
                f"and loss.weighted; got {config.loss.name}"
            )
        if s.graph == "approx" and not config.run.start_from:
            raise ConfigError(
                "method.graph is 'approx', made from the run that this one starts from, but "
                "run.start_from names none; name a finished elias run, or a graph file that "
                "`python elias_utils.py gen_approx_A` wrote, or use method.graph: cluster"
            )
        if s.init == "vectors" and not config.run.start_from:
            raise ConfigError(
                "method.init is 'vectors', the label vectors of the run that this one starts "
                "from, but run.start_from names none; name a finished run with an encoder, such "
                "as dexa or xc"
            )
        if s.fresh_encoder and not config.run.start_from:
            raise ConfigError(
                "method.fresh_encoder clusters the labels by the run that this one starts from, "
                "but run.start_from names none"
            )
        if s.init == "labels":
            sizes.check_label_texts(STARTS_FROM_TEXTS)
        check_averaging(config, sizes)
        clusters = clusters_of(s, sizes.num_labels)
        limits = Limits.of(s, clusters, sizes.num_labels)
        largest = -(-sizes.num_labels // clusters)
        if s.graph == "cluster" and clusters > sizes.num_labels:
            raise ConfigError(
                f"method.max_leaf is {s.max_leaf}, which makes {clusters} clusters (a power of "
                f"two) of {sizes.num_labels} labels; it needs to be larger"
            )
        if s.graph == "cluster" and largest > limits.kappa:
            raise ConfigError(
                f"method.kappa is {limits.kappa}, but {sizes.num_labels} labels in {clusters} "
                f"clusters (method.max_leaf) are {largest} in one"
            )
        super().check(config, sizes, runs)
        before = runs.start(config) if config.run.start_from else None
        if before and isinstance(before.method, EliasConfig) and s.graph != "cluster":
            there = clusters_of(before.method, sizes.num_labels)
            if there != clusters:
                raise ConfigError(
                    f"run.start_from: it has {there} clusters, this run {clusters} "
                    "(method.max_leaf, method.graph)"
                )

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        s = config.method
        check_encoders(config, before)
        if s.fresh_encoder and (s.graph != "cluster" or s.init not in ("random", "labels")):
            raise ConfigError(
                "method.fresh_encoder takes nothing but clusters from the run that this one "
                "starts from: expected method.graph cluster and method.init random or labels, "
                f"got {s.graph} and {s.init}"
            )
        if s.init == "vectors":
            check_label_vectors(config, before)
        if isinstance(before.method, EliasConfig):
            if s.init == "keep" and before.method.wl_dim != s.wl_dim:
                raise ConfigError(
                    "method.init is 'keep', but the run started from has method.wl_dim "
                    f"{before.method.wl_dim}, this one {s.wl_dim}"
                )
        elif s.graph == "approx" or s.init == "keep":
            raise ConfigError(
                "method.graph 'approx' and method.init 'keep' need an elias run to start from, "
                f"got a {before.method.name} run"
            )

    @classmethod
    def build(cls, config: Config, data: Dataset) -> Elias:
        """The graph is made in `prepare`, when the run that this one starts from is known."""
        s = config.method
        if s.init == "labels":
            data.check_label_texts(STARTS_FROM_TEXTS)
        clusters = clusters_of(s, data.num_labels)
        limits = Limits.of(s, clusters, data.num_labels)
        model = EliasModel(
            build_encoder(config.encoder, data), s, clusters, data.num_labels, limits
        )
        made_graph = graph_made_before(config, data, limits.kappa, limits.beam)
        return cls(config, data.num_labels, data, model, made_graph)

    # ---- the start
    def start_from(self, other: Method) -> None:
        """Another run's encoder, or its clusters alone with `fresh_encoder`; its label vectors with
        `init: vectors`; of an ELIAS run also W_C if the clusters stay, and W_L with `init:
        keep`."""
        s = self.config.method
        if s.fresh_encoder:
            self.clusterer = [other]
        else:
            take_parameters(self.encoder, other.encoder, "encoder")
        if s.init == "vectors":
            self.vectors = torch.as_tensor(other.label_vectors()).float()
            if self.vectors.shape != (self.num_labels, self.encoder.dim):
                raise InputError(
                    f"run.start_from: its label vectors are {tuple(self.vectors.shape)}, expected "
                    f"{(self.num_labels, self.encoder.dim)}"
                )
        if isinstance(other, Elias):
            self._take_graph(other)

    def _take_graph(self, other: Elias) -> None:
        s = self.config.method
        clusters = torch.from_numpy(np.array(other.index.clusters.floats(slice(None))))
        if other.num_labels != self.num_labels:
            raise InputError(
                f"run.start_from: its graph has {other.num_labels} labels, this run "
                f"{self.num_labels}"
            )
        if s.graph != "cluster":
            if clusters.shape != self.model.clusters.shape:
                raise InputError(
                    f"run.start_from: its cluster classifiers are {tuple(clusters.shape)}, this "
                    f"run's {tuple(self.model.clusters.shape)} (method.max_leaf, method.graph)"
                )
            self.before = other.learned_graph()
            self.model.clusters.data.copy_(clusters)
        if s.init == "keep":
            labels = torch.from_numpy(np.array(other.index.labels.floats(slice(None))))
            if labels.shape != self.model.labels.shape:
                raise InputError(
                    "method.init 'keep': the label classifiers to keep are "
                    f"{tuple(labels.shape)}, this run's {tuple(self.model.labels.shape)} "
                    "(method.wl_dim)"
                )
            self.model.labels.data.copy_(labels)
            self.model.bias.data.copy_(torch.from_numpy(np.array(other.index.bias))[:, None])
            if self.model.projection is not None:
                self.model.projection.load_state_dict(other.model.projection.state_dict())

    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Make or read the graph, save it with the run, and start the classifiers."""
        made = self.made_graph
        where = (
            f"method.graph '{self.config.method.graph}'"
            if made is None or made.difference
            else str(made.path)
        )
        graph = check_graph(
            make_graph(self, accelerator), len(self.model.clusters), self.model.limits.kappa, where
        )
        self.clusterer = []
        self.given = None
        self.set_graph(graph)
        if distributed.is_main():
            graph.save(run_folder / "graph.npz")
        start_classifiers(self, accelerator)
        start_edges(self)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())
        distributed.barrier()

    def set_graph(self, graph: Graph) -> None:
        self.graph = graph
        self._parents = graph.parents()
        for model in (self.model, self.average):
            if model is not None:
                model.set_graph(graph)

    # ---- training
    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        edges = {"edges"} if config.method.name == "elias-2" else set()
        return super().group_names(config) | {"clusters", "classifier"} | edges

    def parameter_groups(self) -> list[dict[str, Any]]:
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
            groups.append(
                {
                    "name": "classifier",
                    "params": list(model.projection.parameters()),
                    "weight_decay": decay,
                }
            )
        if model.edges is not None:
            groups.append({"name": "edges", "params": [model.edges], "weight_decay": 0.0})
        return groups

    def on_epoch_start(self, epoch: int, accelerator: Accelerator) -> None:
        """parent(l) = argmax_c s_cl, once an epoch."""
        if self.model.edges is not None:
            self._parents = self.graph.parents(self.model.all_log_edges())

    def training_state(self) -> dict[str, np.ndarray]:
        return {"parents": self._parents, "averaged": np.array(self.averaged)}

    def load_training_state(self, state: dict[str, np.ndarray]) -> None:
        self.set_graph(Graph.load(self.config.run_folder / "graph.npz", self.num_labels))
        self._parents = state["parents"]
        self.averaged = int(state["averaged"])
        self.clusterer = []

    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        self._take_average(batch)
        s = self.config.method
        model = self.model
        own = distributed.share(len(batch.points))
        with accelerator.autocast():
            # [b, D]
            queries = F.dropout(self.encoder(batch.queries).float(), s.dropout, self.training)
            projected = model.project(queries).float()
        # [b, C]
        raised = model.raised_shares(queries)
        # [b, K]
        shortlist, log_paths = model.shortlist(queries, raised, self._forced(raised, batch))
        inside = shortlist.labels >= 0
        labels = shortlist.labels.clamp(min=0)
        scores = pool_scores(projected, model.labels, labels)
        scores.retain_grad()
        positive, absent = (
            self._among(matrix[own.start : own.stop], shortlist.labels)
            for matrix in (batch.relevance, batch.filters)
        )
        marks = {"positive": positive, "counted": inside & (positive | ~absent)}
        loss = self.loss(
            logits=scores / s.tau + model.bias.detach()[labels, 0], log_paths=log_paths, **marks
        )
        if s.loss_lambda:
            loss = loss + s.loss_lambda * path_loss(log_paths=log_paths, **marks)
        loss = loss / len(batch.points)
        accelerator.backward(loss)
        self._keep_gradient(labels, inside, scores.grad, projected, accelerator)
        return distributed.loss_exchange().sum(loss.detach())

    def _keep_gradient(
        self,
        labels: Tensor,
        inside: Tensor,
        gradient: Tensor,
        projected: Tensor,
        accelerator: Accelerator,
    ) -> None:
        """The gradients of W_L and of the bias, as factors. With fp16 the loss was scaled, which
        they must not see."""
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
        rows = pool_gradient(labels, inside, gradient / scale, projected)
        self.model.labels.factors = rows
        # z = w . x / tau + bias
        self.model.bias.factors = replace(
            rows.scaled(self.config.method.tau), vectors=projected.new_ones(len(projected), 1)
        )

    def _forced(self, raised: Tensor, batch: Batch) -> Tensor:
        """`forced_clusters` with draws for the whole batch, of which this process takes its
        rows."""
        own = distributed.share(len(batch.points))
        rng = batch.rng()
        total = self.graph.num_clusters
        beam = self.model.limits.beam
        parents = positive_parents(batch.relevance, self._parents)
        size = min(beam + EXTRA, total)
        fill = rng.integers(total, size=(len(parents), size))
        noise = rng.gumbel(size=(len(parents), beam + parents.shape[1] + size)).astype(np.float32)
        return forced_clusters(
            raised,
            beam,
            *(
                torch.from_numpy(a[own.start : own.stop]).to(raised.device, non_blocking=True)
                for a in (parents, fill, noise)
            ),
        )

    def _among(self, matrix: Any, labels: Tensor) -> Tensor:
        """Whether the matrix [b, L] has an entry at each label of the shortlists [b, K]."""
        keys = torch.from_numpy(entry_rows(matrix) * self.num_labels + matrix.indices).to(
            labels.device
        )
        if len(keys) == 0:
            return torch.zeros_like(labels, dtype=torch.bool)
        wanted = torch.arange(len(labels), device=labels.device)[:, None] * self.num_labels + labels
        place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        return (keys[place] == wanted) & (labels >= 0)

    def _take_average(self, batch: Batch) -> None:
        """Every `swa_step` steps from `swa_start` on, the present weights join the average."""
        s = self.config.method
        (_, epoch, step) = batch.key
        done = (epoch - s.swa_start) * steps_per_epoch(
            self.data.splits["trn"], self.config.train.batch_size
        ) + step
        if self.average is None or done <= 0 or done % s.swa_step:
            return
        self.averaged += 1
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 / self.averaged)

    # ---- scoring
    @property
    def scored(self) -> EliasModel:
        """What scores: the averaged weights, once there are some."""
        return self.average if self.average is not None and self.averaged else self.model

    def prepare_scoring(self, accelerator: Accelerator) -> None:
        self.index = self.scored.index()
        self._accelerator = accelerator

    def facts(self) -> dict[str, float]:
        """What the graph has learned; in training also how much of the validation points' labels it
        finds."""
        found = graph_facts(graph_arrays(self.index, self.num_labels))
        if self.data is not None and len(self.data.splits["val"]):
            found |= shortlist_recall(self, self.data.splits["val"], self._accelerator)
        self._facts = found
        return found

    def on_finish(self, run_folder: Path) -> None:
        if distributed.is_main():
            draw(run_folder)

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        x = self.scored.encoder(queries).float()
        return self.index.search(x, k, self.scored.project(x))

    def open_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Scores:
        return ask_points(self, self.tokenizer, split, points, accelerator)

    def open_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Scores:
        return ask_texts(self, texts, accelerator)

    def score_labels(
        self,
        split: Split,
        points: np.ndarray,
        labels: np.ndarray,
        accelerator: Accelerator,
    ) -> np.ndarray:
        """Scores of given labels [n, c] of points of a split [n], as `score_points` gives them: [n,
        c] float32.

        Id -1 and labels that no cluster has: -inf. A label that the beam does not reach has its
        score without the beam.
        """
        return self._score_given(split.tokens, split.rows[points], labels, accelerator)

    def score_labels_of_texts(
        self, texts: Sequence[str], labels: np.ndarray, accelerator: Accelerator
    ) -> np.ndarray:
        """Scores of given labels [n, c] of new texts, as `score_labels`."""
        return self._score_given(
            tokenize_texts(texts, self.tokenizer), np.arange(len(texts)), labels, accelerator
        )

    @torch.no_grad()
    def _score_given(
        self,
        tokens: Ragged,
        rows: np.ndarray,
        labels: np.ndarray,
        accelerator: Accelerator,
    ) -> np.ndarray:
        check_given(labels, len(rows), self.num_labels)
        scores = np.empty(labels.shape, np.float32)
        encoder = self.scored.encoder
        for positions, x in encode_rows(
            encoder, tokens, rows, self.config.eval.batch_size, accelerator, "score"
        ):
            with accelerator.autocast():
                projected = self.scored.project(x)
            scores[positions] = self.index.score_labels(x, labels[positions], projected)
        return scores

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if distributed.is_main():
            model = self.scored
            model.encoder.save(folder)
            self.index.save(folder)
            if model.projection is not None:
                save_file(
                    {"weight": model.projection.weight.detach().contiguous()},
                    folder / "projection.safetensors",
                )
            write_method(
                folder, self.config.method.name, self.num_labels, clusters=len(model.clusters)
            )
            save_report(folder, graph_arrays(self.index, self.num_labels), self._facts)

    def log_cluster_scores(self, queries: Tensor) -> Tensor:
        """log s_c of all clusters [B, C], by a model in training or a loaded one."""
        return (
            self.model.log_cluster_scores(queries)
            if len(self.model.clusters)
            else self.index.log_cluster_scores(queries)
        )

    def label_clusters(self) -> dict[str, sp.csr_matrix]:
        return {"graph": self.learned_graph().to_csr()}

    def learned_graph(self) -> Graph:
        """The graph of a saved model, its edges' weights as values; all of it is read."""
        edges = self.index.edges
        log_edges = self.index.log_edges
        values = np.where(edges >= 0, np.exp(np.where(edges >= 0, log_edges, 0)), 0).astype(
            np.float32
        )
        return Graph(np.asarray(edges), values, self.num_labels)

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Elias:
        """Cluster and label classifiers stay on disk, whence a search reads the rows that it
        needs."""
        clusters = read_facts(folder / "method.json", clusters=int)["clusters"]
        limits = Limits.of(config.method, clusters, num_labels)
        model = EliasModel(load_encoder(config.encoder, folder), config.method, clusters, 0, limits)
        if model.projection is not None:
            shape = tuple(model.projection.weight.shape)
            model.projection.load_state_dict(
                read_tensors(folder / "projection.safetensors", {"weight": shape})
            )
        method = cls(config, num_labels, None, model)
        method.index = GraphIndex.load(
            folder, model.search_settings(), config.eval.precision, (clusters, num_labels)
        )
        _check_widths(folder, method.index, (model.encoder.dim, config.method.wl_dim))
        return method


def _check_widths(folder: Path, index: GraphIndex, dims: tuple[int, int | None]) -> None:
    """InputError unless a saved index has these (embedding, projected) dimensions."""
    widths = index.clusters.rows.shape[1], index.labels.rows.shape[1]
    wanted = dims[0], dims[1] or dims[0]
    if widths != wanted:
        raise InputError(
            f"{folder / 'clusters.npy'}, labels.npy: expected {wanted[0]} and {wanted[1]} "
            f"dimensions, got {widths[0]} and {widths[1]}"
        )


def check_given(labels: np.ndarray, points: int, num_labels: int) -> None:
    """ValueError for given labels that are not ids [n, c] of so many points."""
    if labels.ndim != 2 or len(labels) != points:
        raise ValueError(f"expected given labels [{points}, c], got {labels.shape}")
    if labels.size and not -1 <= labels.min() <= labels.max() < num_labels:
        raise ValueError(
            f"expected given labels from -1 to {num_labels - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )


class Elias1(Elias):
    """Stage 1: encoder, clusters and label classifiers on a fixed graph."""

    Options = Elias1Config


class Elias2(Elias):
    """Stage 2: the edges too."""

    Options = Elias2Config


# -------------------------------- as members of a fusion


def ask_points(
    method: Method,
    tokenizer: Tokenizer,
    split: Split,
    points: np.ndarray,
    accelerator: Accelerator,
) -> Scores:
    """Scores of points of a split by `score_points` and `score_labels`, on tokens of the method's
    own tokenizer."""
    tokens = tokenize_file(split.text_path, tokenizer, token_cache(method.config))
    own = replace(split, tokens=tokens)
    return Asked(
        lambda k: method.score_points(own, points, k, accelerator),
        lambda labels: method.score_labels(own, points, labels, accelerator),
    )


def ask_texts(method: Method, texts: Sequence[str], accelerator: Accelerator) -> Scores:
    """Scores of new texts, likewise."""
    return Asked(
        lambda k: method.score_texts(texts, k, accelerator),
        lambda labels: method.score_labels_of_texts(texts, labels, accelerator),
    )
