"""Sentence embeddings of the package sentence-transformers for `benchmarks.compare`, in an
environment of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from utils.sparse import topk_csr

if TYPE_CHECKING:
    from benchmarks.compare_worker import Task

BATCH = 256  # texts encoded at once


class SentenceTransformer:
    """all-MiniLM-L6-v2 fine-tuned by sentence-transformers on pairs of a title and the text of one
    of its labels, with CachedMultipleNegativesRankingLoss; labels are ranked by the inner product
    with all their vectors.

    Training ends with the budget, or when two epochs in a row are no better on the points that our
    configs hold out too (a twentieth); the best epoch is kept.
    """

    batch, rate, epochs, patience = 256, 2e-4, 20, 2

    def __init__(self, task: Task) -> None:
        import sentence_transformers
        import torch
        from sentence_transformers import losses
        from transformers import TrainerCallback

        from utils.config.config import DataConfig
        from utils.data import dataset as data
        from utils.data.filters import load_filters
        from utils.pretrained import location as pretrained

        torch.set_num_threads(task.threads)
        self.task, self.package, self.losses, self.torch, self.callback = (
            task,
            sentence_transformers,
            losses,
            torch,
            TrainerCallback,
        )
        self.minilm = pretrained.resolve("minilm")
        self.data = data
        self.data_config = DataConfig
        self.labels = self.model = None
        self.load_filters = load_filters
        self.reads_texts = True

    def before(self) -> None:
        pass

    def fresh(self) -> Any:
        return self.package.SentenceTransformer(self.minilm, device="cpu")

    def loss(self) -> Any:
        return self.losses.CachedMultipleNegativesRankingLoss(self.model, mini_batch_size=64)

    def train(self) -> dict[str, Any]:
        from datasets import Dataset

        deadline = time.process_time() + 60 * self.task.minutes * self.task.threads
        titles = self.task.texts("trn_X")
        label_texts = self.task.texts("Y")
        relevance = self.task.matrix("Y.trn")
        filters = self.load_filters(Path(self.task.data), {"trn": relevance.shape})["trn"]
        held_out = self.data.validation_rows(relevance, self.data_config(), Path(self.task.data))
        learned = relevance - relevance.multiply(filters)
        learned = (
            sp.diags((~np.isin(np.arange(len(titles)), held_out)).astype(np.float32)) @ learned
        )
        rows, labels = learned.nonzero()
        pairs = Dataset.from_dict(
            {"anchor": [titles[r] for r in rows], "positive": [label_texts[c] for c in labels]}
        )
        self.model = self.fresh()

        def precision() -> float:
            """P@1 on the points held out."""
            scores = self._encode([titles[r] for r in held_out]) @ self._encode(label_texts).T
            scores[filters[held_out].nonzero()] = -np.inf
            return float(np.mean(relevance[held_out, scores.argmax(axis=1)] > 0))

        keeper = self._keeper(precision, deadline)
        trainer = self._trainer(pairs, keeper)
        trainer.train()
        self.model.load_state_dict(keeper.best_state)
        self.model.save(str(self.task.model))
        np.save(self.task.model / "labels.npy", self._encode(label_texts))
        steps = trainer.state.global_step
        epochs = trainer.state.epoch
        stopped = f"stopped after {self.task.minutes:g} minutes, " if keeper.late else ""
        return {
            "notes": f"{steps} steps of {self.batch} pairs: {epochs:.2f} epochs of {len(rows):,} "
            f"pairs, {stopped}"
            f"best after {keeper.best_epoch:.2f}"
        }

    def _trainer(self, pairs: Any, keeper: Any) -> Any:
        arguments = self.package.SentenceTransformerTrainingArguments(
            output_dir=str(Path(self.task.work) / "trainer"),
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch,
            learning_rate=self.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            batch_sampler="no_duplicates",
            seed=self.task.seed,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        return self.package.SentenceTransformerTrainer(
            self.model, arguments, train_dataset=pairs, loss=self.loss(), callbacks=[keeper]
        )

    def _keeper(self, precision: Callable[[], float], deadline: float) -> Any:
        """A callback that keeps the best state of the model and says when to stop."""
        model = self.model
        patience = self.patience

        class Keeper(self.callback):
            best = -1.0
            best_epoch = 0.0
            best_state = None
            without_better = 0
            late = False

            def on_step_end(
                self,
                arguments: Any,
                state: Any,
                control: Any,
                **_: Any,
            ) -> None:
                if time.process_time() > deadline:
                    self.late = control.should_training_stop = True

            def on_epoch_end(
                self,
                arguments: Any,
                state: Any,
                control: Any,
                **_: Any,
            ) -> None:
                value = precision()
                print(
                    f"epoch {state.epoch:.2f}: validation P@1 {100 * value:.2f}",
                    file=sys.stderr,
                    flush=True,
                )
                self.without_better += 1
                if value > self.best:
                    self.best = value
                    self.best_epoch = state.epoch
                    self.without_better = 0
                    self.best_state = {
                        name: tensor.clone() for name, tensor in model.state_dict().items()
                    }
                if self.without_better == patience:
                    control.should_training_stop = True

        return Keeper()

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )

    def open(self) -> None:
        self.model = self.package.SentenceTransformer(str(self.task.model), device="cpu")
        self.labels = self.torch.from_numpy(np.load(self.task.model / "labels.npy"))

    def rank_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(scores, ids), each [n, top]."""
        scores = self.torch.from_numpy(self._encode(texts)) @ self.labels.T
        values, ids = scores.topk(self.task.top)
        return values.numpy(), ids.numpy()

    def rank_points(self) -> sp.csr_matrix:
        texts = self.task.texts("tst_X")
        parts = [self.rank_texts(texts[i : i + 1024]) for i in range(0, len(texts), 1024)]
        return topk_csr(
            *(np.concatenate(part) for part in zip(*parts, strict=True)), len(self.labels)
        )


class StaticEmbedding(SentenceTransformer):
    """The same with the mean of the token embeddings alone, at the start those of MiniLM. Its loss
    is the plain MultipleNegativesRankingLoss, which has the same value and gradient: the cached one
    does not take its inputs."""

    # of 2e-3, 1e-2 and 5e-2 the best on validation points of LF-DebianTitles-small
    batch, rate = 1024, 1e-2

    def fresh(self) -> Any:
        from sentence_transformers.models import StaticEmbedding as Mean

        transformer = super().fresh()
        table = transformer[0].auto_model.get_input_embeddings().weight.detach().numpy().copy()
        return self.package.SentenceTransformer(
            modules=[Mean(transformer.tokenizer, embedding_weights=table)], device="cpu"
        )

    def loss(self) -> Any:
        return self.losses.MultipleNegativesRankingLoss(self.model)
