"""How long a stage will take: its work, from sizes, times what a unit of it took when measured.

    costs = Costs(config, sizes, speed)
    costs.seconds()          # None of a method that nothing is known of

Measured in processor seconds of one thread of an AMD core; `Speed` scales them to this machine.
They are for bags of tokens; a transformer's work is counted by its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from utils.advise.machine import Speed
from utils.config.config import Config

STAGE = 1.2  # seconds of reading data, caches and saving
STARTING = 6.0  # of the program: libraries
STEP = 0.003  # of a step, whatever its size
TOKEN = 3.5e-7  # of a bag's token, forward and backward
READING = 1.5e-7  # of a bag's token, forward alone
PRODUCTS = 1.7e-11  # of a multiplication and addition of a matrix product
PASS = 7.0e-9  # of a number of the scores of a batch, over all passes of a loss
ROW = 2.0e-8  # of a number of a classifier's rows in a dense optimizer's step
WORD = 6.0e-6  # of a word in TF-IDF, its pair and both passes
RANKER = 1.5e-8  # of a feature of a point of a linear ranker, all passes of the solver
CANDIDATE = 5.0e-6  # of a member's score of a candidate in all fits of a fuser
PATH = 7.5e-10  # of a number of a label row that ELIAS's shortlist reads, forward and backward
TRANSFORMER = 6.0e-11  # of a parameter and token, forward and backward
USUAL_EPOCHS = 7  # that train.patience leaves of many
USUAL_CLASSIFIER_EPOCHS = 9
PROPOSALS = 2.0  # labels that members propose together, in those of one of them
WIDTH = 384  # of a bag's vectors
LEVELS = 2  # of a tree above its last


@dataclass(frozen=True)
class WorkSizes:
    """What the work of a stage goes by.

    Attributes:
        points: that it is trained on.
        held_out: validation points.
        labels: of the data set.
        pairs: of a training point and a label of it.
        tokens: of a text on average.
        label_tokens: of a label's text on average.
        words: of a text on average.
        parameters: of a transformer; 0 = a bag.
        members: of a fusion.
    """

    points: int
    held_out: int
    labels: int
    pairs: int
    tokens: float
    label_tokens: float
    words: float
    parameters: int = 0
    members: int = 0


class Costs:
    """Seconds of one stage."""

    def __init__(
        self,
        config: Config,
        sizes: WorkSizes,
        speed: Speed,
    ) -> None:
        self.config = config
        self.sizes = sizes
        self.speed = speed

    def seconds(self) -> float | None:
        """Seconds of training, with its validations; None where the method is not known."""
        work = WORK.get(self.config.method.name)
        if work is None:
            return None
        return STAGE * self.speed.loops + work(self)

    # ---- parts
    def encoding(self, tokens: float, trained: bool = True) -> float:
        """Seconds of so many tokens through the encoder."""
        if self.sizes.parameters:
            share = 1.0 if trained else 1 / 3
            unit = TRANSFORMER * self.sizes.parameters * share
            return tokens * unit * self.speed.products / self.speed.together
        unit = TOKEN if trained else READING
        return tokens * unit * self.speed.passes / self.speed.together

    def scoring(self, texts: float, rows: float) -> float:
        """Seconds of products of texts with label rows, forward alone."""
        unit = texts * rows * WIDTH * PRODUCTS
        return unit * self.speed.products / self.speed.together

    def loss(self, texts: float, rows: float) -> float:
        """Seconds of a loss over scores, of its products and gradients."""
        passes = texts * rows * PASS * self.speed.passes / self.speed.together
        return 3 * self.scoring(texts, rows) + passes

    @property
    def batch(self) -> int:
        return min(self.config.train.batch_size, max(self.sizes.points, 1))

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.sizes.points / self.batch)

    def epochs(self, usual: int) -> int:
        """How many epochs are usually trained."""
        stop = self.config.train.stop_epoch
        if self.config.train.patience is None and stop is None:
            return self.config.train.epochs
        left = 2 if stop is not None else 0  # the best one comes before patience ends
        return min(self.config.train.epochs, usual - left)

    def validation(self) -> float:
        """Seconds of one evaluation in training."""
        sizes = self.sizes
        texts = self.encoding(sizes.held_out * sizes.tokens, trained=False)
        return texts + self.scoring(sizes.held_out, sizes.labels)


# -------------------------------- methods


def _dual(costs: Costs) -> float:
    """A dual encoder: texts and labels through the encoder, a loss over the pool."""
    sizes = costs.sizes
    rows = sizes.labels
    mined = 0.0
    if costs.config.method.pool != "all":
        rows = min(2 * costs.batch, sizes.labels)
        mined = costs.encoding(sizes.points * sizes.tokens, trained=False)
        mined += costs.scoring(sizes.points, sizes.labels)
    step = STEP * costs.speed.loops + costs.loss(costs.batch, rows)
    step += costs.encoding(costs.batch * sizes.tokens + rows * sizes.label_tokens)
    step += _rows_step(costs, rows)
    labels = costs.encoding(sizes.labels * sizes.label_tokens, trained=False)
    epoch = costs.steps * step + costs.validation() + labels + mined
    return costs.epochs(USUAL_EPOCHS) * epoch


def _classifier(costs: Costs) -> float:
    """An encoder and a row a label."""
    return costs.epochs(USUAL_EPOCHS) * _classifier_epoch(costs, costs.sizes.labels)


def _surrogate(costs: Costs) -> float:
    """An encoder and a row a cluster of labels."""
    rows = costs.config.method.num_clusters
    return costs.epochs(USUAL_EPOCHS) * _classifier_epoch(costs, rows)


def _classifier_epoch(costs: Costs, rows: int) -> float:
    step = STEP * costs.speed.loops + costs.loss(costs.batch, rows) + _rows_step(costs, rows)
    step += costs.encoding(costs.batch * costs.sizes.tokens)
    return costs.steps * step + costs.validation()


def _rows_step(costs: Costs, rows: int) -> float:
    return rows * WIDTH * ROW * costs.speed.passes / costs.speed.together


def _frozen(costs: Costs) -> float:
    """Rows on a frozen encoder: every text is encoded once."""
    sizes = costs.sizes
    rows = sizes.labels
    if costs.config.method.pool != "all":
        rows = min(int(costs.batch * sizes.pairs / max(sizes.points, 1)), rows)
    step = STEP * costs.speed.loops + costs.loss(costs.batch, rows) + _rows_step(costs, rows)
    epoch = costs.steps * step + costs.scoring(sizes.held_out, sizes.labels)
    once = costs.encoding(sizes.points * sizes.tokens, trained=False)
    return once + costs.epochs(USUAL_CLASSIFIER_EPOCHS) * epoch


def _elias(costs: Costs) -> float:
    """A shortlist of K labels a query, their rows gathered and scattered."""
    sizes = costs.sizes
    scored = min(costs.config.method.K, sizes.labels)
    step = STEP * 3 * costs.speed.loops + costs.encoding(costs.batch * sizes.tokens)
    step += costs.batch * scored * WIDTH * PATH * costs.speed.passes / costs.speed.together
    epoch = costs.steps * step + 2 * costs.validation()
    return costs.epochs(USUAL_CLASSIFIER_EPOCHS) * epoch


def features_seconds(sizes: WorkSizes, speed: Speed) -> float:
    """Seconds of building TF-IDF, which a data set needs once."""
    return sizes.points * sizes.words * WORD * speed.loops


def _features_of_a_point(sizes: WorkSizes) -> float:
    """Terms of a text, of words and pairs: long texts repeat some, rare ones are dropped."""
    return 1.2 * sizes.words


def _tree(costs: Costs) -> float:
    """Linear rankers: each point trains those of the clusters of its labels, at every level."""
    method = costs.config.method
    sizes = costs.sizes
    split = min(method.splits, sizes.labels)
    leaf = min(method.max_leaf, sizes.labels)
    trained = LEVELS * sizes.points * split + sizes.pairs * leaf
    copies = getattr(method, "copies", 0)
    trained *= 1 + copies
    work = method.trees * trained * _features_of_a_point(sizes) * RANKER
    return work * costs.speed.loops / costs.speed.together


def _reranker(costs: Costs) -> float:
    """Linear rankers of labels, on the negatives that a model finds."""
    sizes = costs.sizes
    found = sizes.points * min(costs.config.method.negatives, sizes.labels)
    work = found * _features_of_a_point(sizes) * RANKER
    search = costs.encoding(sizes.points * sizes.tokens, trained=False)
    return search + work * costs.speed.loops / costs.speed.together


def _fusion(costs: Costs) -> float:
    """Fits of a fuser on the candidates of validation points; none where it is taken."""
    sizes = costs.sizes
    asked = min(costs.config.method.candidates, sizes.labels) * PROPOSALS
    fitted = sizes.held_out * min(asked, sizes.labels) * max(sizes.members, 1)
    return fitted * CANDIDATE * costs.speed.loops


WORK: dict[str, Callable[[Costs], float]] = {
    "dexml": _dual,
    "ngame": _dual,
    "dexa": _dual,
    "ova": _classifier,
    "surrogate": _surrogate,
    "xc": _frozen,
    "elias-1": _elias,
    "elias-2": _elias,
    "elias-ranker": _reranker,
    "xr-linear": _tree,
    "overlap": _tree,
    "fusion": _fusion,
}
