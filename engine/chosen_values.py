"""What `auto` becomes: a rule a key, from the sizes of the data set.

Every rule takes the config of one stage, in which the keys before it in RULES are known, and the
facts of its data set; its docstring says why it is what it is. A rule looks at sizes alone, never
at a name, a machine or the test split, so that the same config and data are the same run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from models.encoders.building import tokenizer_source
from utils.config.config import Config
from utils.config.methods import method_class
from utils.data.facts import DataFacts
from utils.pretrained.settings import longest_text

Rule = Callable[[Config, DataFacts], Any]
SHARE_KEPT = 0.99  # of the texts, whole
SHORTEST = 8  # tokens
HELD_OUT = 1000  # validation points that tell epochs apart
STEPS_AN_EPOCH = 20  # at least, where there are points for it
LARGEST_BATCH = {"bag": 512, "transformer": 128}
STEPS = 2000  # of a training, at most, but for FEWEST_EPOCHS
FEWEST_EPOCHS = 4
MOST_EPOCHS = 30
ALL_LABELS = 32_768  # labels that a step can meet, all of them
LEAF = 200  # labels of a cluster of a tree
FEWEST_CLUSTERS = 32


def _kind(config: Config) -> str:
    """Whether texts are encoded by a bag of tokens or by a transformer."""
    return "bag" if config.encoder.name == "bag" else "transformer"


def reads_tokens(config: Config) -> bool:
    """Whether the method of a stage reads texts as tokens."""
    return bool(method_class(config.method.name).reads_tokens)


def has_epochs(config: Config) -> bool:
    """Whether the method of a stage is trained by steps."""
    return bool(method_class(config.method.name).has_epochs)


def share_cut(lengths: np.ndarray, limit: int) -> float:
    """The share of texts that lose tokens at a limit."""
    return float((lengths > limit).mean()) if len(lengths) else 0.0


# -------------------------------- lengths of texts


def point_lengths(config: Config, facts: DataFacts) -> np.ndarray:
    """Tokens of a sample of the training texts [n]."""
    return _lengths(config, facts, "trn_X", config.encoder.point_prompt)


def label_lengths(config: Config, facts: DataFacts) -> np.ndarray:
    """Tokens of a sample of the labels' texts [n]."""
    return _lengths(config, facts, "Y", config.encoder.prompt_of_labels)


def _lengths(
    config: Config,
    facts: DataFacts,
    name: str,
    prompt: str,
) -> np.ndarray:
    source = tokenizer_source(config.encoder)
    return facts.token_lengths(name, source, prompt, config.encoder.trust_remote_code)


def _whole(config: Config, lengths: np.ndarray) -> int:
    """The 99th percentile of lengths, within what the encoder takes."""
    longest = max(int(np.ceil(np.quantile(lengths, SHARE_KEPT))), SHORTEST)
    limit = longest_text(config.encoder)
    return longest if limit is None else min(longest, limit.tokens)


def max_len(config: Config, facts: DataFacts) -> int:
    """Keep 99 of 100 texts whole, within the encoder's limit.

    A step costs the tokens that are there, not the limit, so that a high one is free but for the
    few longest texts, which alone would decide a batch's memory.
    """
    if not facts.has_texts or not reads_tokens(config):
        return _default(config, "data", "max_len")
    return _whole(config, point_lengths(config, facts))


def label_max_len(config: Config, facts: DataFacts) -> int:
    """The same of the labels' texts."""
    if not facts.has_label_texts or not reads_tokens(config):
        return config.data.max_len
    return _whole(config, label_lengths(config, facts))


# -------------------------------- validation and steps


def val_fraction(config: Config, facts: DataFacts) -> float:
    """A thousand points, at least a twentieth and at most a seventh of the points.

    With a thousand the error of a metric is about one point, which tells good epochs from bad; what
    is held out is not trained on.
    """
    return round(min(max(HELD_OUT / max(facts.points, 1), 0.05), 0.15), 4)


def batch_size(config: Config, facts: DataFacts) -> int:
    """A power of two: 512 for a bag, 128 for a transformer, fewer where there are few points.

    Losses are over all labels or the batch's, so that a larger batch gives a steadier gradient and
    costs less a point; an epoch of far fewer than 20 steps would learn too little between two
    validations.
    """
    wanted = max(facts.points / STEPS_AN_EPOCH, 1)
    nearest = 1 << round(math.log2(wanted))
    return min(max(nearest, 16), LARGEST_BATCH[_kind(config)])


def epochs(config: Config, facts: DataFacts) -> int:
    """As many as make 2,000 steps, from 4 to 30; the best one on validation is kept.

    Small sets need many passes, of a large one the fourth brings little. With a constant learning
    rate and `train.patience` the number is a bound, and training usually ends before it.
    """
    steps = math.ceil(facts.points / config.train.batch_size)
    return min(max(round(STEPS / max(steps, 1)), FEWEST_EPOCHS), MOST_EPOCHS)


def learning_rate(config: Config, facts: DataFacts) -> float:
    """By what is trained: 4e-3 for a bag's table, 1e-4 for a transformer, 1e-3 for classifiers."""
    if config.method.name == "xc":
        return 1e-3
    if config.method.name in ("elias-1", "elias-2"):
        return 2e-3 if _kind(config) == "bag" else 1e-3
    return 4e-3 if _kind(config) == "bag" else 1e-4


# -------------------------------- methods


def pool(config: Config, facts: DataFacts) -> str:
    """All labels in every step up to 32,768 of them; beyond, those of the batch and hard ones.

    A step against all labels learns most and costs B x L x D: at 32,768 labels about as long as all
    else in it, on a CPU a second.
    """
    if facts.labels <= ALL_LABELS:
        return "all"
    return "in-batch" if config.method.name == "xc" else "hnm"


def micro_batch_tokens(config: Config, facts: DataFacts) -> int:
    """131,072 tokens for a bag, 200 MB of vectors; 8,192 for a transformer's activations."""
    return 131_072 if _kind(config) == "bag" else 8192


def label_embedding(config: Config, facts: DataFacts) -> str:
    """Clusters of labels by their points, and by their own texts where they have some."""
    return "pifa+text" if facts.has_texts and facts.has_label_texts else "pifa"


def max_leaf(config: Config, facts: DataFacts) -> int:
    """200 labels in a cluster, fewer where there would be fewer than 32 clusters.

    A tree of few clusters ranks all labels for every text, which is slow and no better.
    """
    return max(min(LEAF, facts.labels // FEWEST_CLUSTERS), 5)


def num_clusters(config: Config, facts: DataFacts) -> int:
    """The largest power of two that leaves two labels a cluster, from 1 to 8,192.

    The surrogate task is to be as fine as its clusters can be learned: with one label each it would
    be one-versus-all, whose rare labels have too few points for an encoder.
    """
    half = max(facts.labels // 2, 1)
    return min(1 << (half.bit_length() - 1), 8192)


def _default(
    config: Config,
    section: str,
    key: str,
) -> Any:
    fields = {field.name: field for field in dataclasses.fields(getattr(config, section))}
    return fields[key].default


RULES: dict[str, Rule] = {  # in the order in which they are asked
    "data.max_len": max_len,
    "data.label_max_len": label_max_len,
    "data.val_fraction": val_fraction,
    "train.batch_size": batch_size,
    "train.epochs": epochs,
    "optim.lr": learning_rate,
    "method.pool": pool,
    "method.micro_batch_tokens": micro_batch_tokens,
    "method.label_embedding": label_embedding,
    "method.max_leaf": max_leaf,
    "method.num_clusters": num_clusters,
}
