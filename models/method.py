"""The contract of a method, with its defaults.

Letters: B queries of a batch, L labels, N points, T tokens of a text, D embedding dimension, K
labels of a pool. A method implements `build`, `score` and, if it trains by gradient,
`compute_loss`; the rest only where its paper needs it. Losses are means over the GLOBAL batch:
every process computes its share of the gradient and the trainer sums the shares
(utils.training.gradients.sum_gradients), so 1 and G processes take the same step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.encoders.encoder import TextEncoder, encoder_groups, tokenizer_source
from models.scores import InnerProducts, MemberView, Scores, lowest_where_unreached
from utils import distributed
from utils.config.config import Config, ConfigError, MethodConfig
from utils.data.batches import Batch, TextBatch, sequential_batches
from utils.data.dataset import Dataset, Split, token_cache
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.reading.saved import check_answers, map_rows
from utils.run.stages import Runs
from utils.runtime import progress
from utils.sparse import keep_topk, remove_pairs, topk_csr
from utils.tokenization_utils import Ragged, Tokenizer, tokenize_file, tokenize_texts
from utils.training.optim import decay_groups


class Asked(Scores):
    """Of a method that is asked for proposals and for given labels by two calls of its own."""

    def __init__(self, propose: Callable, score: Callable) -> None:
        self._propose, self._score = propose, score

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._propose(k)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """A label that it cannot reach at all has the lowest score of the others of the point."""
        return lowest_where_unreached(self._score(labels))


class Method(nn.Module):
    """Base of every method. Attributes: config (the whole Config), num_labels (L), data (None after
    `load`)."""

    Options: type[MethodConfig]

    def __init__(self, config: Config, num_labels: int, data: Dataset | None) -> None:
        super().__init__()
        self.config, self.num_labels, self.data = config, num_labels, data

    @classmethod
    def tokenizer_source(cls, config: Config) -> str | None:
        """The tokenizer of its texts; None = it reads texts by other means and needs no tokens."""
        return tokenizer_source(config.encoder)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """Its attribute `encoder`; None for methods without one."""
        return getattr(self, "encoder", None)

    @property
    def epochs(self) -> int:
        """Passes over the training split; 0 = everything is done by `prepare`."""
        return self.config.train.epochs

    # ---- on paper
    @classmethod
    def check(cls, config: Config, sizes: DataSizes, runs: Runs) -> None:
        """Refuse, before anything is loaded, what cannot be trained. Reads no matrix, text or
        weight.

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
        if before.method.name != config.method.name:
            raise cannot_start(config, before, "of another method")
        check_encoders(config, before)

    # ---- what a method must define
    @classmethod
    def build(cls, config: Config, data: Dataset) -> Method:
        """A fresh method for training on `data`."""
        raise TypeError(f"{cls.__name__} must define build()")

    def score(self, queries: TextBatch, k: int) -> tuple[Tensor, Tensor]:
        """The k best labels of each query, best first: (scores [B, k], label ids [B, k])."""
        raise TypeError(f"{type(self).__name__} must define score()")

    def compute_loss(self, batch: Batch) -> Tensor:
        """Scalar loss, mean over the global batch; its gradient is this process's share."""
        raise TypeError(f"{type(self).__name__} is not trained by gradient")

    # ---- defaults
    def backward(self, batch: Batch, accelerator: Accelerator) -> Tensor:
        """Loss of the batch, its gradients added to the parameters."""
        with accelerator.autocast():
            loss = self.compute_loss(batch)
        accelerator.backward(loss)
        return loss.detach()

    @classmethod
    def group_names(cls, config: Config) -> frozenset[str]:
        """Names of `parameter_groups`, known before the method is built; the encoder's settings are
        resolved."""
        return encoder_groups(config.encoder)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Named groups for the optimizer: dicts of name, params, weight_decay."""
        return decay_groups(self, "encoder", self.config.optim.weight_decay)

    def batch_order(self, epoch: int) -> np.ndarray | None:
        """Order of the training points of an epoch [n]; None = shuffled."""
        return None

    def prepare(self, run_folder: Path, accelerator: Accelerator) -> None:
        """Once before training, on every process: clustering, a linear solver. A method may live
        here alone."""

    def on_epoch_start(self, epoch: int, accelerator: Accelerator) -> None:
        """Before each epoch, on every process: hard negatives, clusters, averaging."""

    def epoch_report(self) -> dict[str, float]:
        """What a method measured in the epoch that ends, on every process: logged beside the
        loss."""
        return {}

    def training_state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside the parameters, as arrays; every process calls it, the
        main one's counts."""
        return {}

    def load_training_state(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `training_state` gave."""

    def prepare_scoring(self, accelerator: Accelerator) -> None:
        """Before `score` after the parameters changed, on every process: label embeddings, an
        index."""

    def predict(self, split: Split, k: int, accelerator: Accelerator) -> sp.csr_matrix | None:
        """Top k of every point, its filter pairs removed first: CSR [n, L] on the main process,
        None on the others.

        Every process calls it and scores its share of the points.
        """
        removed = np.diff(split.filters.indptr)
        wanted = min(k + int(removed.max(initial=0)), self.num_labels)
        own = distributed.share(len(split))
        values, ids = self.score_points(split, np.arange(own.start, own.stop), wanted, accelerator)
        check_answers(values, "scores")
        values, ids = (distributed.gather_arrays(a, len(split)) for a in (values, ids))
        if values is None:
            return None
        rows, columns = split.filters.nonzero()
        scores = remove_pairs(topk_csr(values, ids, self.num_labels), rows, columns)
        return keep_topk(scores, k) if wanted > k else scores

    def score_points(
        self,
        split: Split,
        points: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of points of a split [n]: (scores [n, k] float32, label ids [n, k]
        int64, -1 = no more)."""
        return self.score_rows(split.tokens, split.rows[points], k, accelerator)

    def score_texts(
        self, texts: Sequence[str], k: int, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of new texts, as `score_points`."""
        return self.score_rows(
            tokenize_texts(texts, self.tokenizer), np.arange(len(texts)), k, accelerator
        )

    # ---- as a member of a fusion
    def open_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Scores:
        """Its scores of points of a split [n], which any tokenizer may have split: a member has its
        own."""
        return self.open_embeddings(self.embed_points(split, points, accelerator))

    def open_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Scores:
        """Its scores of new texts."""
        return self.open_embeddings(self.embed_texts(texts, accelerator))

    def open_embeddings(self, embeddings: Tensor) -> Scores:
        """Its scores for embeddings [n, D] of its encoder."""
        return InnerProducts(embeddings, self.index, self.config.eval.batch_size)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its encoder, for queries."""
        return self.encoder.point_tokenizer(self.config.data.max_len)

    def embed_points(self, split: Split, points: np.ndarray, accelerator: Accelerator) -> Tensor:
        """Embeddings of points of a split by its own encoder, which no longer changes, and
        tokenizer, by this process alone [n, D]."""
        from models.encoders.frozen import encode_frozen  # here: it encodes by this file's means

        tokens = tokenize_file(split.text_path, self.tokenizer, token_cache(self.config))
        return encode_frozen(
            self.encoder,
            tokens,
            split.rows[points],
            self.config.eval.batch_size,
            accelerator,
            "embed texts",
        )

    def embed_texts(self, texts: Sequence[str], accelerator: Accelerator) -> Tensor:
        """Embeddings of new texts [n, D]."""
        return encode_all(
            self.encoder,
            tokenize_texts(texts, self.tokenizer),
            np.arange(len(texts)),
            self.config.eval.batch_size,
            accelerator,
            "embed texts",
        )

    def probabilities(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """How likely predictions of `predict` are right, for methods that know; otherwise the
        scores themselves."""
        return scores

    def explain(
        self,
        split: Split,
        points: np.ndarray,
        labels: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> list[MemberView]:
        """What each member says of points of a split [n] and adds to the scores of `labels` [n,
        given]; [] for methods without members."""
        return []

    def label_clusters(self) -> dict[str, sp.csr_matrix]:
        """Labels of the clusters of the lowest level: for each tree or graph, by name, CSR [C, L],
        an entry where a label is in a cluster; {} for methods without."""
        return {}

    def facts(self) -> dict[str, float]:
        """What is to be told beside the metrics of the last prediction, for <split>_metrics.json
        and, in training, for metrics.jsonl; in training every process calls it."""
        return {}

    def on_finish(self, run_folder: Path) -> None:
        """After training, with the best model saved: plots. On every process."""

    @torch.no_grad()
    def score_rows(
        self,
        tokens: Ragged,
        rows: np.ndarray,
        k: int,
        accelerator: Accelerator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`score` of the texts at `rows`: (scores [n, k] float32, label ids [n, k] int64)."""
        training = self.training
        self.eval()
        values, ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), np.int64)
        size = self.config.eval.batch_size
        with progress(-(-len(rows) // size), "predict") as bar:
            for positions, texts in sequential_batches(tokens, rows, size):
                with accelerator.autocast():
                    scores, labels = self.score(texts.to(accelerator.device), k)
                values[positions], ids[positions] = (
                    scores.float().cpu().numpy(),
                    labels.cpu().numpy(),
                )
                bar.update()
        self.train(training)
        return values, ids

    # ---- saving
    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """Everything that `score` needs, into an existing folder. Every process calls it; the main
        one writes."""
        raise TypeError(f"{type(self).__name__} must define save()")

    @classmethod
    def load(cls, config: Config, folder: Path, num_labels: int) -> Method:
        """A method ready to `score`, from what `save` wrote; strict, needs no data set."""
        raise TypeError(f"{cls.__name__} must define load()")

    def rank_new_labels(self, labels: Sequence[str], accelerator: Accelerator) -> None:
        """From now on `score` ranks these label texts instead of the data set's labels."""
        raise InputError(
            f"method {self.config.method.name} knows labels by their training points, not by "
            "their text; labels never seen in training need a dual encoder such as dexml"
        )

    def label_vectors(self) -> Tensor | np.ndarray:
        """Vectors [L, D] of a loaded model that classifiers may start from."""
        raise InputError(f"a {self.config.method.name} run has no label vectors to start from")

    def search_vectors(self) -> dict[str, tuple[Tensor | np.ndarray, Tensor | None]]:
        """What a loaded model ranks labels by, for other programs: name -> (vectors [L, D], bias
        [L] or None), so that E(x) . vector + bias is a label's score. The first is what `score`
        ranks by; {} if that is no inner product."""
        return {}

    def start_from(self, other: Method) -> None:
        """Take the parameters of another run's model (`run.start_from`, or the stage before)."""
        if type(other) is not type(self):
            raise InputError(
                f"a {type(self).__name__} run cannot start from a {type(other).__name__} run"
            )
        take_parameters(self, other, "model")

    def start_from_encoder(self, other: Method) -> None:
        """Take the encoder of another run's model, whatever its method."""
        if other.text_encoder is None:
            raise InputError(
                f"a {self.config.method.name} run cannot start from a {other.config.method.name} "
                "run, which has no encoder"
            )
        take_parameters(self.encoder, other.encoder, "encoder")


def cannot_start(config: Config, before: Config, why: str) -> ConfigError:
    """The error for a run that does not go with the one that it starts from."""
    return ConfigError(
        f"run.start_from: a {config.method.name} run cannot start from a {before.method.name} "
        f"run: it is {why}"
    )


def check_encoders(config: Config, before: Config) -> None:
    """ConfigError where a run of `config` cannot take the encoder of one of `before`: as far as
    their settings tell."""
    if not before.method.has_encoder:
        raise cannot_start(config, before, "one without an encoder")
    ours = config.encoder
    theirs = before.encoder
    if (ours.name == "bag") != (theirs.name == "bag"):
        raise ConfigError(
            f"run.start_from: the encoder there is '{theirs.name}', this run's '{ours.name}' "
            "(encoder.name): a bag of tokens and a transformer have no parameters in common"
        )
    names = ["projection", "residual"] if ours.name == "bag" else ["projection"]
    if ours.name == theirs.name:
        names.append("layers")
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(
                f"run.start_from: its encoder.{name} is {getattr(theirs, name)}, this run's "
                f"{getattr(ours, name)}; its encoder would not fit"
            )


def check_label_vectors(config: Config, before: Config) -> None:
    """ConfigError where a run of `before` has no label vectors."""
    if not before.method.has_label_vectors:
        raise cannot_start(config, before, "one that has no label vectors to start from")


def take_parameters(module: nn.Module, other: nn.Module, what: str) -> None:
    """Copy the parameters of another run's module; ValueError if they do not fit."""
    try:
        module.load_state_dict(other.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"run.start_from: the {what} does not fit this config: {' '.join(str(error).split())}"
        ) from error


@torch.no_grad()
def embed_rows(
    encoder: nn.Module,
    tokens: Ragged,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    name: str,
    encode: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Embeddings of the texts at `rows`, each process encodes its share by `encode`, `encode_all`
    unless given: [n, D] on every process."""
    own = distributed.share(len(rows))
    part = (encode or encode_all)(
        encoder, tokens, rows[own.start : own.stop], batch_size, accelerator, name
    )
    return distributed.gather_rows(part, len(rows))


@torch.no_grad()
def encode_all(
    encoder: nn.Module,
    tokens: Ragged,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    name: str,
) -> Tensor:
    """Embeddings of the texts at `rows`, by this process alone: [n, D] in their order."""
    out = torch.empty(len(rows), encoder.dim, device=accelerator.device)
    for positions, block in encode_rows(encoder, tokens, rows, batch_size, accelerator, name):
        out[torch.from_numpy(positions).to(out.device)] = block
    return out


def write_method(folder: Path, name: str, num_labels: int, **more: Any) -> None:
    """method.json, which `load_method` reads first."""
    (folder / "method.json").write_text(
        json.dumps({"method": name, "num_labels": num_labels, **more}) + "\n"
    )


def load_label_embeddings(folder: Path, num_labels: int, dim: int) -> np.ndarray:
    """label_embeddings.npy of a saved model, memory-mapped [L, D]; ValueError if it has another
    shape."""
    return map_rows(folder / "label_embeddings.npy", (num_labels, dim))


@torch.no_grad()
def encode_rows(
    encoder: nn.Module,
    tokens: Ragged,
    rows: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    name: str,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Embeddings of texts, in batches of similar length: (positions in `rows`, embeddings [b, D])
    on the device."""
    training = encoder.training
    encoder.eval()
    with progress(-(-len(rows) // batch_size), name) as bar:
        for positions, texts in sequential_batches(tokens, rows, batch_size):
            with accelerator.autocast():
                yield positions, encoder(texts.to(accelerator.device)).float()
            bar.update()
    encoder.train(training)
