"""The two kinds of thing that a method is made of.

- A `Recipe` turns a data set into a model and is dropped when training ends: a `Learner` is trained
  by gradient, a `Solver` fits at once.
- A `Ranker` is that model: what a run folder holds. It answers queries, needs no data set, is never
  trained.

Letters: n texts, B queries of a batch, L labels, N points, D embedding dimension, K labels of a
pool. Losses are means over the GLOBAL batch: every process computes its share of the gradient and
the trainer sums the shares (utils.training.gradients), so 1 and G processes take the same
step. What is a collective (every process calls it, in the same order) says so.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from torch import Tensor, nn

from models.encoders.building import encoder_groups
from models.encoders.reader import Reader
from models.scores import Index, Scores
from utils.answering.decider import Decider
from utils.config.config import Config, ConfigError, MethodConfig
from utils.data.batches import Batch, moved
from utils.data.dataset import Dataset
from utils.data.sizes import DataSizes
from utils.data.texts import Texts
from utils.errors import InputError
from utils.plan.parts import Needs
from utils.plan.run_sizes import RunSizes
from utils.plan.terms import largest_terms
from utils.run.stages import Runs
from utils.runtime import Runtime

# -------------------------------- what a run folder holds


@dataclass(frozen=True)
class Vectors:
    """What labels are ranked by: score = E(x) . rows[l] / tau + bias[l].

    Attributes:
        rows: [L, D], perhaps mapped from disk.
        bias: [L] or None.
        tau: temperature of the scores.
    """

    rows: Tensor | np.ndarray
    bias: Tensor | None = None
    tau: float = 1.0


class Ranker(ABC):
    """A model that ranks labels for texts.

    Attributes:
        config: of its run.
        num_labels: L.
        folder: `model/` that it was loaded from, whose files `save` may link; None in training.
        reader: its encoder, for those that ask for embeddings; None without one.
        index: over all labels by inner product; None where it ranks by other means.
        decider: of a loaded model whose run had validation points: probabilities and thresholds.
    """

    takes: ClassVar[frozenset[str]] = frozenset()  # options of section eval: index, precision, ...
    at_once: ClassVar[int] = 16384  # texts opened together

    def __init__(
        self,
        config: Config,
        num_labels: int,
        folder: Path | None = None,
    ) -> None:
        self.config = config
        self.num_labels = num_labels
        self.folder = folder
        self.reader: Reader | None = None
        self.index: Index | None = None
        self.decider: Decider | None = None

    @abstractmethod
    def open(self, texts: Texts, given: bool = False) -> Scores:
        """Scores of some texts; never a collective.

        Args:
            given: `Scores.of` will be asked, so that what it needs is kept.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything that `load` needs; the main process alone calls it."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        config: Config,
        folder: Path,
        num_labels: int,
        runtime: Runtime,
    ) -> Ranker:
        """What `save` wrote, ready to answer; strict, needs no data set.

        Large arrays stay on disk (mapped); an index over all labels is that of `eval.index`.

        Raises:
            InputError: a file is missing, damaged, or does not fit the config.
        """

    def whole(self) -> Ranker | None:
        """What `save` writes: None on other processes than the main one; a collective.

        In training the labels may be sharded over the processes, and are put together here.
        """
        return self

    # ---- what others may ask for
    @property
    def score_is(self) -> str:
        """What its scores are, in a few words for who reads an answer."""
        return "score"

    def readers(self) -> list[Reader]:
        """All readers that `open` will ask: a fusion has those of its members."""
        return [] if self.reader is None else [self.reader]

    def queries(self, texts: Texts) -> Tensor:
        """What `index` searches with [n, D]."""
        assert self.reader is not None, "a ranker without a reader defines its own queries"
        return texts.embeddings(self.reader)

    def vectors(self) -> dict[str, Vectors]:
        """What it ranks labels by: the first is what `open` ranks by; {} for no inner product."""
        return {}

    def clusters(self) -> dict[str, sp.csr_matrix]:
        """Labels of the clusters of the lowest level of each tree or graph, by name; {} without.

        Returns:
            CSR [C, L] each, an entry where a label is in a cluster.
        """
        return {}

    def facts(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is told beside the metrics of a prediction, whose `Scores.sums` were added up."""
        return {}

    def probabilities(
        self,
        scores: np.ndarray,
        labels: np.ndarray,
        ranked: np.ndarray,
    ) -> np.ndarray | None:
        """How likely predictions are right; None where nothing tells that.

        Args:
            scores: of predictions [n, c], -inf = none.
            labels: their ids [n, c], -1 = none.
            ranked: the scores of the best labels of each text [n, w], best first, -inf = no more:
                of `utils.answering.judged.CONTEXT` labels or more, or of all.
        Returns:
            [n, c] within [0, 1], whatever where there is no prediction.
        """
        if self.decider is None or self.decider.calibration is None:
            return None
        return self.decider.calibration(scores, ranked)

    def with_labels(self, labels: Texts) -> Ranker:
        """The same model over these labels instead of the data set's; a collective.

        Raises:
            InputError: it knows labels by their points, not by their texts.
        """
        raise InputError(
            f"method {self.config.method.name} knows labels by their training points, not by "
            "their text; labels never seen in training need a dual encoder such as dexml"
        )

    def with_more_labels(self, labels: Texts) -> Ranker:
        """The same model over its labels and these, whose ids go on after its own; a collective.

        Raises:
            InputError: it knows labels by their points, not by their texts.
        """
        return self.with_labels(labels)  # which says why not


def write_facts(
    folder: Path,
    name: str,
    num_labels: int,
    **more: Any,
) -> None:
    """method.json of a saved model, which says which class reads the rest."""
    facts = {"method": name, "num_labels": num_labels, **more}
    (folder / "method.json").write_text(json.dumps(facts) + "\n")


# -------------------------------- what makes it

Group = dict[str, Any]  # of parameters: name, params, weight_decay, perhaps accumulate
Start = Callable[[], Ranker]  # loads the model of `run.start_from`, frozen


class Recipe(ABC):
    """Data set -> model.

    Attributes:
        config: of one stage, planned: its encoder's settings are resolved.
        data: what it learns from.
        start: loads the model of `run.start_from`, frozen; None without one. It is called after the
            recipe's own parameters are made, so that these draw the same random numbers with it and
            without; what is trained is copied from it.
    """

    Options: ClassVar[type[MethodConfig]]  # section `method` of its configs
    Answers: ClassVar[type[Ranker]]  # what loads `model/`
    reads_tokens: ClassVar[bool] = False  # of `encoder:`, which the data set is read with then
    has_epochs: ClassVar[bool] = False  # of which one is the best; False: fitted at once

    def __init__(
        self, config: Config, data: Dataset, start: Start | None, runtime: Runtime
    ) -> None:
        """A collective, as is everything that reads data."""
        self.config = config
        self.data = data
        self.runtime = runtime

    @classmethod
    def check(
        cls,
        config: Config,
        sizes: DataSizes,
        runs: Runs,
    ) -> None:
        """Refuse, before anything is loaded, what cannot be trained. Reads no matrix, text, weight.

        Args:
            config: with the encoder's settings resolved.
            sizes: of its data set, at most so many points where they are not known exactly.
            runs: finished ones and earlier stages, among them what `run.start_from` names.
        Raises:
            ConfigError: naming the key, what was expected and what came.
        """
        if config.run.start_from:
            cls.check_start(config, runs.start(config))

    @classmethod
    def check_start(cls, config: Config, before: Config) -> None:
        """ConfigError where a run of `config` cannot start from one of `before`."""
        check_encoders(config, before)

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        """Names of the parameter groups that `optim.group_lr` may name, known on paper."""
        return frozenset()

    @classmethod
    @abstractmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        """What a process holds and sends in training, beside the program and its data.

        Known on paper: reads headers of files at most.
        """

    def held_out_scores(self) -> sp.csr_matrix | None:
        """Scores of the validation points by models that were fitted without them.

        For a recipe that fits its ranker on these points: probabilities and thresholds are told by
        what it says of points that it does not know.

        Returns:
            CSR [n, L] on the main process, filter pairs removed; None = the ranker's own will do.
        """
        return None

    def taken_decider(self) -> Decider | None:
        """What tells probabilities and thresholds where there are no validation points."""
        return None

    @abstractmethod
    def ranker(self) -> Ranker:
        """The model as it is now; a collective.

        It may look at tensors that the next step changes: what asks for more than one step makes it
        anew. Of several processes each may hold its share of the labels (`models.sharded`).
        """

    def finish(self, folder: Path) -> None:
        """Draw plots; the main process alone calls it when the best model has been saved."""


class Learner(Recipe):
    """Trained by gradient. All its methods but `order` are collectives.

    The trainer calls `groups`, then `prepare` or, where a run goes on, `load_state`; in each epoch
    `begin`, `order`, for each batch `ahead` and `backward`, then `report`, and after the epoch
    `ranker` and `state`.
    """

    module: nn.Module  # every parameter and buffer of training, by the names of checkpoints
    reads_tokens: ClassVar[bool] = True
    has_epochs: ClassVar[bool] = True

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        return encoder_groups(config.encoder)

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        """The largest terms alone.

        A method that trains more than the encoder is taken to train a row for each label.
        """
        encoder = encoder_groups(config.encoder)
        groups = cls.group_names(config)
        return largest_terms(sizes, bool(encoder & groups), bool(groups - encoder))

    @abstractmethod
    def groups(self) -> list[Group]:
        """All trained parameters; several groups may have one name."""

    @abstractmethod
    def backward(self, batch: Batch) -> Tensor:
        """The loss of the whole batch, equal on all processes.

        This process's share of its gradient is left on the parameters.
        Of the batch, relevance, filters and points are those of all processes, `queries` this
        process's share (`utils.distributed.share`).
        """

    def ahead(self, batch: Batch) -> Any:
        """What of a step follows from its batch alone: labels, positives, random draws.

        A dataclass of tensors on the host, which `made` gives to `backward` on the device. Beside a
        GPU another thread makes it while the step before is computed: no collective, nothing that
        steps change, and no random number but those of `batch.rng()`.
        """
        return None

    def made(self, batch: Batch) -> Any:
        """What `ahead` has made of a batch, on the device."""
        if batch.ahead is None:
            batch.ahead = moved(self.ahead(batch), lambda part: part.to(self.runtime.device))
        return batch.ahead

    def prepare(self, folder: Path) -> None:
        """Once, before the first step; large fixed arrays go into the run folder."""

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch, not where a run goes on inside one: hard negatives."""

    def order(self, epoch: int) -> np.ndarray | None:
        """Order of the training points of an epoch [n], from state alone; None = shuffled."""
        return None

    def report(self) -> dict[str, float]:
        """What was measured in the epoch that ends, logged beside the loss."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside `module`; the main process's counts."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray], folder: Path) -> None:
        """Take back what `state` gave, and what `prepare` wrote into the run folder."""


class Solver(Recipe):
    """Fits at once, without gradients."""

    @classmethod
    def needs(cls, config: Config, sizes: RunSizes) -> Needs:
        """No plan."""
        return Needs(
            left_out="fitted without gradients: it has no plan of memory beyond the features or "
            "embeddings that it reads"
        )

    @abstractmethod
    def fit(self, folder: Path) -> None:
        """Fit; a collective.

        It goes on from whole files that an interrupted run has left in `folder`.
        """


# -------------------------------- starting from another run


def cannot_start(
    config: Config,
    before: Config,
    why: str,
) -> ConfigError:
    """The error for a run that does not go with the one that it starts from."""
    return ConfigError(
        f"run.start_from: a {config.method.name} run cannot start from a {before.method.name} "
        f"run: it is {why}"
    )


def check_encoders(config: Config, before: Config) -> None:
    """ConfigError where a run of `config` cannot take the encoder of one of `before`.

    As far as their settings tell: weights are not looked at.
    """
    if not before.method.has_encoder:
        raise cannot_start(config, before, "one without an encoder")
    ours = config.encoder
    theirs = before.encoder
    if (ours.name == "bag") != (theirs.name == "bag"):
        raise ConfigError(
            f"run.start_from: the encoder there is '{theirs.name}', this run's '{ours.name}' "
            "(encoder.name): a bag of tokens and a transformer have no parameters in common"
        )
    pairs: dict[str, tuple[Any, Any]] = {"projection": (ours.projection, theirs.projection)}
    if ours.name == "bag":
        pairs["residual"] = (ours.residual, theirs.residual)
    if ours.name == theirs.name:
        pairs["layers"] = (ours.layers, theirs.layers)
    for name, (wanted, given) in pairs.items():
        if wanted != given:
            raise ConfigError(
                f"run.start_from: its encoder.{name} is {given}, this run's {wanted}; its encoder "
                "would not fit"
            )


def check_label_vectors(config: Config, before: Config) -> None:
    """ConfigError where a run of `before` has no label vectors."""
    if not before.method.has_label_vectors:
        raise cannot_start(config, before, "one that has no label vectors to start from")


def check_labels_match(
    config: Config,
    start: Ranker,
    num_labels: int,
) -> None:
    """InputError where a run starts from one of another number of labels."""
    if start.num_labels != num_labels:
        raise InputError(
            f"run.start_from: that run has {start.num_labels} labels, this one {num_labels}"
        )


def take_encoder(encoder: nn.Module, start: Ranker) -> None:
    """Copy the encoder of the model that a run starts from.

    Raises:
        InputError: it has none, or one that does not fit.
    """
    if start.reader is None:
        raise InputError(
            f"run.start_from: a {start.config.method.name} run has no encoder to start from"
        )
    take_parameters(encoder, start.reader.encoder, "encoder")


def take_parameters(
    module: nn.Module,
    other: nn.Module,
    what: str,
) -> None:
    """Copy the parameters of another run's module; InputError if they do not fit."""
    try:
        module.load_state_dict(other.state_dict())
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"run.start_from: the {what} does not fit this config: {message}"
        ) from error


def label_vectors_of(start: Ranker) -> Tensor | np.ndarray:
    """Rows [L, D] of the model that a run starts from: what it ranks labels by.

    Raises:
        InputError: it ranks by no inner product.
    """
    for vectors in start.vectors().values():
        return vectors.rows
    raise InputError(
        f"run.start_from: a {start.config.method.name} run has no label vectors to start from"
    )
