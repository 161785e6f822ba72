"""The typed sections of a config: every key with its default, its meaning and its limits.

They are the one home of defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from utils.config.plugins import Foreign

# Limits that no sane value meets: a typing error is met before memory or patience is at an end.
SMALLEST = 1e-6  # of temperatures and the like
LARGEST = 1e6  # of weights
MANY_LABELS = 10**9
MANY_TEXTS = 10**7  # in a step
MANY_TOKENS = 10**6  # of a text
MANY_STEP_TOKENS = 10**9  # of all texts of a step
MANY_EPOCHS = 10**6
MANY_DIMENSIONS = 10**5


def option(
    default: Any,
    meaning: str,
    *,
    starts: str = "",
    auto: str = "",
    **limits: float,
) -> Any:
    """Make a field of a section.

    Args:
        starts: how text begins where numbers are usual.
        auto: what the word `auto` becomes once the data set is known; empty = it is not taken.
        limits: `ge`, `gt`, `le`, `lt` of a number, and of every number in a list or mapping.
    """
    return dataclasses.field(
        default=default,
        metadata={"meaning": meaning, "starts": starts, "auto": auto, "limits": limits},
    )


@dataclass(frozen=True)
class DataConfig:
    root: str = option("Datasets", "folder that holds the data sets")
    name: str = option("", "data set: the folder <root>/<name>")
    max_len: int = option(
        32,
        "longest query in tokens, special tokens included; the rest is cut off",
        auto="the 99th percentile of the texts' lengths, within the encoder's limit",
        ge=3,
        le=MANY_TOKENS,
    )
    label_max_len: int | None = option(
        None,
        "longest label text in tokens; null = max_len",
        auto="the same of the labels' texts",
        ge=3,
        le=MANY_TOKENS,
    )
    val_fraction: float = option(
        0.05,
        "share of the training points held out for validation",
        auto="about 1,000 points, 5 to 15 %",
        ge=0,
        lt=1,
    )
    val_max_points: int = option(4000, "most points held out for validation", ge=0, le=MANY_LABELS)
    val_group_size: int = option(
        1,
        "hold out whole groups of about so many similar texts (by TF-IDF), as where a test split "
        "has no near-duplicates of training texts; 1 = each text by itself",
        ge=1,
        le=10**6,
    )
    propensity_a: float = option(
        0.55, "constant A of the propensity model (0.6 Amazon, 0.5 Wikipedia)", gt=0, le=100
    )
    propensity_b: float = option(
        1.5, "constant B of the propensity model (2.6 Amazon, 0.4 Wikipedia)", gt=0, le=1000
    )
    filters: Literal["optional", "required"] = option(
        "optional",
        "required: filter_labels_train.txt and filter_labels_test.txt, the pairs that published "
        "numbers leave out, must be there",
    )
    features: Literal["given", "texts"] = option(
        "given",
        "where TF-IDF comes from: X.{trn,tst}.npz of the data set, built from the texts where it "
        "has none; "
        "texts = built, whatever it has",
    )
    terms: Literal["auto", "words", "characters"] = option(
        "auto",
        "what built TF-IDF counts: words and pairs of them, or character n-grams; auto = "
        "characters where most texts have no blanks between words (Chinese, Japanese, Thai, Lao, "
        "Khmer, Burmese)",
    )
    feature_cache: str | None = option(
        None, "folder of TF-IDF that is built; null = <root>/<name>/features"
    )
    token_cache: str | None = option(None, "folder of token files; null = <root>/<name>/tokens")
    workers: int = option(
        0, "processes that assemble batches; 0 = in the training process", ge=0, le=256
    )


@dataclass(frozen=True)
class EncoderConfig:
    name: str = option(
        "minilm",
        "`bag`, `minilm`, or any Hugging Face id or folder, sentence-transformers' and RUN/model "
        "too",
    )
    init: str = option(
        "minilm", "`bag` only: encoder whose tokenizer and token embeddings it starts from"
    )
    token_weights: Literal["idf", "equal"] = option("idf", "`bag` only: token weights at the start")
    residual: bool = option(True, "`bag` only: add a residual layer behind the sum")
    tokenizer: str | None = option(
        None, "encoder or folder whose tokenizer to use; null = the encoder's own"
    )
    prompt: str | None = option(
        None,
        "put before the text of every point; null = as the model was made, nothing if it does "
        "not say",
    )
    label_prompt: str | None = option(
        None,
        "put before the text of every label; null = as the model was made, encoder.prompt if it "
        "does not say",
    )
    pooling: Literal["cls", "mean"] | None = option(
        None,
        "how a transformer's token states become one vector; null = as the model was made, mean "
        "if it does not say; cls is refused of causal models",
    )
    layers: int | None = option(
        None, "keep the first n transformer layers; null = all", ge=1, le=1000
    )
    projection: int | None = option(
        None,
        "project embeddings to this many dimensions; null = as the model was made, not at all if "
        "it does not say",
        ge=1,
        le=MANY_DIMENSIONS,
    )
    normalize: bool | None = option(
        None,
        "L2-normalise embeddings, so that scores are cosines; null = as the model was made, true "
        "if it does not say",
    )
    dropout: float | None = option(
        None, "dropout rate; null = the pretrained model's own (`bag`: 0)", ge=0, lt=1
    )
    gradient_checkpointing: bool = option(False, "recompute activations in backward to save memory")
    packing: bool | Literal["auto"] = option(
        "auto",
        "encode texts side by side, without padding: titles took 0.58 of the time on a CPU; auto = "
        "on a GPU, where the transformer's attention can (of BERT and its kin). "
        "Results are the same, but dropout draws other random numbers",
    )
    trust_remote_code: bool = option(
        False, "allow a Hugging Face repository to run its own Python code"
    )

    @property
    def point_prompt(self) -> str:
        """What stands before the text of every point."""
        return self.prompt or ""

    @property
    def prompt_of_labels(self) -> str:
        """What stands before the text of every label."""
        return self.point_prompt if self.label_prompt is None else self.label_prompt


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's own section.

    Each method adds its fields, and says what other runs can start from.
    """

    has_encoder: ClassVar[bool] = True
    has_label_vectors: ClassVar[bool] = False
    name: str = option("", "which method")


@dataclass(frozen=True)
class EncodingConfig(MethodConfig):
    """Base of the section of a method that trains a text encoder."""

    micro_batch_tokens: int | None = option(
        None,
        "tokens encoded at once, texts of similar length together, in place of a number of texts: "
        "short texts fill a GPU as long ones do; changes no result. Padding counts where texts "
        "are padded (encoder.packing)",
        auto="131,072 for a bag, 8,192 for a transformer",
        ge=1,
        le=MANY_STEP_TOKENS,
    )


@dataclass(frozen=True)
class LossConfig:
    name: Literal["softmax", "decoupled-softmax", "soft-topk", "bce", "triplet"] | Foreign = option(
        "decoupled-softmax", "which loss; my_module:my_loss = one outside of this repository"
    )
    sample: bool = option(
        False, "train on one sampled positive a query (soft-topk: min(k, positives)); rest absent"
    )
    weighted: bool = option(False, "multiply each positive's term by its graded relevance")
    k: int | Literal["num_pos"] = option(
        5, "soft-topk: k, or num_pos for the query's number of positives", ge=1, le=MANY_LABELS
    )
    alpha: float = option(2.0, "soft-topk: steepness of the sigmoid", ge=SMALLEST, le=LARGEST)
    margin: float = option(
        0.3, "triplet: by how much a positive's score should exceed a negative's", ge=0, le=LARGEST
    )
    hardest_negatives: int = option(
        10, "triplet: negatives of highest score that count for a query", ge=1, le=MANY_LABELS
    )
    hardest_positives: int | None = option(
        None, "triplet: positives of lowest score that count; null = all", ge=1, le=MANY_LABELS
    )
    hardness_tau: float = option(
        0.1,
        "triplet: temperature of the softmax that weighs the violating negatives",
        ge=SMALLEST,
        le=LARGEST,
    )


@dataclass(frozen=True)
class OptimConfig:
    lr: float = option(
        1e-4,
        "learning rate, as written: never multiplied by the number of processes",
        auto="by what is trained",
        ge=0,
        le=1000,
    )
    group_lr: Mapping[str, float] | None = option(
        None,
        "learning rates of single parameter groups by name (table, encoder, classifier); others "
        "take lr. One counts in those stages that have such a group",
        ge=0,
        le=1000,
    )
    weight_decay: float = option(
        0.01, "decoupled weight decay; biases, norms and tables go without", ge=0, le=1000
    )
    beta1: float = option(0.9, "AdamW's first moment decay", ge=0, lt=1)
    beta2: float = option(0.999, "AdamW's second moment decay", ge=0, lt=1)
    eps: float = option(1e-8, "AdamW's epsilon", ge=1e-30, le=1)
    schedule: Literal["linear", "constant"] = option("linear", "learning rate after the warm-up")
    warmup: float = option(
        0.1, "warm-up: share of all steps if below 1, else a number of steps", ge=0, le=10**9
    )
    clip_norm: float | None = option(
        1.0,
        "clip the gradient's norm (row-sparse tables excluded); null = never",
        ge=SMALLEST,
        le=1e12,
    )


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = option(
        10,
        "passes over the training split; 0 = no training",
        auto="about 2,000 steps, 4 to 30 epochs",
        ge=0,
        le=MANY_EPOCHS,
    )
    stop_epoch: int | str | None = option(
        None,
        "stop after so many epochs, with the learning rates of train.epochs; in a stage "
        "`best:NAME` = the best epoch of an earlier stage",
        starts="best:",
        ge=1,
        le=MANY_EPOCHS,
    )
    batch_size: int = option(
        512,
        "queries a step over all processes together",
        auto="512 for a bag, 128 for a transformer, less for few points",
        ge=1,
        le=MANY_TEXTS,
    )
    eval_interval: int = option(
        1, "epochs between two evaluations on the validation split", ge=1, le=MANY_EPOCHS
    )
    track_metric: str | None = option(
        None,
        "validation metric that selects the checkpoint; null = nDCG@5, or nDCG at the largest k "
        "if there are fewer labels; the loss if there is no split",
    )
    patience: int | None = option(
        None,
        "stop after this many evaluations without a better one; null = never",
        ge=1,
        le=MANY_EPOCHS,
    )
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] | None = option(
        None,
        "auto = bf16 on a GPU that has it, fp16 on an older one, no on a CPU; null = what "
        "accelerate is set to",
    )
    tf32: bool = option(
        True,
        "on a GPU products of float32 matrices are rounded to TF32 in training; in search never",
    )
    deterministic: bool = option(
        False,
        "on a GPU: the same run gives the same numbers to the last bit, by slower algorithms; on a "
        "CPU it does so anyway",
    )
    compile: bool = option(
        False,
        "compile transformers by torch.compile: minutes before the first step; no gain on a CPU, "
        "as far as measured. Dropout draws other random numbers. Needs a C++ compiler, on a GPU "
        "triton too",
    )


@dataclass(frozen=True)
class EvalConfig:
    ks: tuple[int, ...] | None = option(
        None,
        "the k of the metrics; null = 1, 3, 5, 10, 100 up to the label count",
        ge=1,
        le=MANY_LABELS,
    )
    top_k: int | None = option(
        None,
        "labels kept per point, at least the largest of ks; null = 100, or all labels if there "
        "are fewer",
        ge=1,
        le=MANY_LABELS,
    )
    batch_size: int = option(1024, "queries per prediction batch and process", ge=1, le=MANY_TEXTS)
    label_block: int = option(
        65536, "labels scored at once in exact search: bounds its memory", ge=1, le=MANY_LABELS
    )
    index: Literal["exact", "hnsw"] = option(
        "exact",
        "search of a saved model's labels; hnsw: approximate, needs faiss-cpu. Validation during "
        "training is always exact",
    )
    precision: Literal["float32", "bfloat16", "int8"] = option(
        "float32",
        "of a saved elias model's cluster and label classifiers: less memory, slightly other "
        "scores",
    )
    without: tuple[str, ...] | None = option(
        None, "members of a fusion that are left out at prediction"
    )
    threshold_for: Literal["micro_f1", "macro_f1", "precision"] = option(
        "micro_f1",
        "what `--threshold auto` and the F1 of an evaluation are for: the best micro-F1 or "
        "macro-F1 on validation points, or at least eval.wanted_precision. It can be chosen of a "
        "finished run",
    )
    wanted_precision: float = option(
        0.8, "threshold_for: precision: share of answers that are to be right", gt=0, le=1
    )
    label_thresholds: bool = option(
        True,
        "labels with enough validation points have a threshold of their own, where that was better "
        "on points it was not chosen on",
    )
    hnsw_m: int = option(100, "hnsw: neighbours a label keeps in the graph", ge=2, le=2048)
    hnsw_ef_construction: int = option(
        300, "hnsw: candidates looked at when a label is added to the graph", ge=1, le=10**6
    )
    hnsw_ef: int = option(
        300, "hnsw: candidates looked at in a search; at least the labels asked for", ge=1, le=10**6
    )


@dataclass(frozen=True)
class RunConfig:
    root: str = option("Results", "folder of all runs")
    project: str = option("XMCKit", "run folder: <root>/<project>/<data set>/<expname>")
    expname: str | None = option(None, "null = the name of the config file")
    dir: str | None = option(None, "run folder; overrides root, project and expname")
    seed: int = option(0, "seed of everything random", ge=0, le=2**32 - 1)
    threads: int | None = option(
        None,
        "CPU threads of a process; null = its share of the cores it may use (OMP_NUM_THREADS, "
        "which launchers set to 1, does not count)",
        ge=1,
        le=1024,
    )
    start_from: str | None = option(None, "a run folder whose model this run starts from")
    save_minutes: float = option(
        15.0,
        "minutes between two checkpoints; one is also saved at each evaluation",
        gt=0,
        le=10**6,
    )
    keep_last: bool = option(
        False,
        "keep what training could go on from (last/, levels/ of trees) when the run has "
        "finished; a later train.stop_epoch needs it",
    )
    profile: bool = option(
        False,
        "profile a few steps of the first epoch: a trace (profile.json), and in metrics.jsonl "
        "their time, that of the host, and how often it waited for the GPU",
    )
    log_every: int | None = option(
        20,
        "steps between two records of loss, learning rate, gradient norms and points/s in "
        "metrics.jsonl, TensorBoard and Weights & Biases; null = records of epochs "
        "alone",
        ge=1,
        le=10**9,
    )
    tensorboard: bool = option(True, "write TensorBoard events")
    wandb: bool = option(False, "log to Weights & Biases (install the package wandb)")


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "encoder": EncoderConfig,
    "method": MethodConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "run": RunConfig,
}
