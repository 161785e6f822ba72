"""What training a dual encoder holds and sends: the terms of dexml, ngame and dexa."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.batching.clustered_batches import ClusteredConfig
from models.batching.memory_needs import expected_distinct, query_bank
from models.contract import Ranker
from models.dual.options import DexmlConfig
from utils.plan.evaluation import evaluation_activations, label_vectors, score_block
from utils.plan.messages import encoder_messages, loss_messages, table_messages
from utils.plan.parts import EVALUATION, RUNNING, STEP, Needs, Part
from utils.plan.run_sizes import RunSizes
from utils.plan.step import (
    activations,
    graph_of,
    largest_micro_batch,
    query_embeddings,
    scores,
)
from utils.plan.weights import SHARED_OUT, Table, Weights, counted, encoder_weights, held

SMALLER_POOL = f"method.pool (hnm, in-batch), {SHARED_OUT}"


@dataclass(frozen=True)
class DualSizes:
    """Sizes of a run of a dual encoder.

    Attributes:
        pool: K, the labels of a step. own: k, this process's of them.
        vectors: DEXA's auxiliary vectors; 0 without.
    """

    run: RunSizes
    method: DexmlConfig
    pool: int
    vectors: int = 0

    @classmethod
    def of(cls, run: RunSizes, vectors: int = 0) -> DualSizes:
        """Expect as many labels in a step's pool as its options draw."""
        method = run.config.method
        labels = run.data.labels
        pool = labels
        if method.pool != "all":
            draws = min(method.num_positives, max(run.mean_positives, 1))
            if method.pool == "hnm":
                draws += method.num_negatives
            pool = expected_distinct(labels, run.batch * draws)
        return cls(run, method, pool, vectors)

    @property
    def own(self) -> int:
        return self.run.share(self.pool)


def dual_needs(sizes: DualSizes) -> Needs:
    """All terms of a dual encoder."""
    weights = _weights(sizes)
    parts = [
        *held(weights, sizes.run.cuda),
        *_label_data(sizes),
        *_step(sizes),
        *_evaluation(sizes),
    ]
    return Needs(counted(weights), parts, _messages(sizes))


def _weights(sizes: DualSizes) -> list[Weights | Table]:
    run = sizes.run
    tokens = run.queries.tokens + run.label_texts.tokens
    step = run.queries.of(run.own_batch) + run.label_texts.of(sizes.own)
    weights = encoder_weights(run, tokens, step)
    if sizes.vectors:
        step_rows = min(sizes.own, sizes.vectors)
        vectors = Table(
            "auxiliary vectors",
            sizes.vectors,
            sizes.vectors,
            run.encoder.dim,
            touched=sizes.vectors,
            step=step_rows,
            biases=0,
            smaller="method.num_vectors",
        )
        weights.append(vectors)
    return weights


def _label_data(sizes: DualSizes) -> Iterator[Part]:
    """What is kept of the labels beside weights: their texts, mined shortlists, assignments."""
    run = sizes.run
    method = sizes.method
    if method.pool == "all":
        own = run.share(run.data.labels)
        token = 8 if run.encoder.layers else 12 + 8 * run.cuda  # a bag keeps them by token too
        texts = 32 * own + token * run.label_texts.of(own)
        yield Part("label texts", texts, RUNNING, smaller=SHARED_OUT)
    if method.pool == "hnm":
        fewer = "method.shortlist_size"
        lists = 4 * run.data.points * method.shortlist_size
        # ids and scores of the own queries; sorted beside more of them than are kept, in blocks
        own = run.share(run.data.points)
        searched = min(own, Ranker.at_once) * (method.shortlist_size + 20)
        mined = lists + 8 * own * method.shortlist_size + 40 * searched
        yield Part("shortlists", lists, RUNNING, smaller=fewer, on_host=True)
        yield Part("shortlists: mining", mined, (EVALUATION,), smaller=fewer, on_host=True)
    if isinstance(method, ClusteredConfig):
        yield from query_bank(run)
    if sizes.vectors:
        yield Part("clusters of labels", 8 * run.data.labels, RUNNING, smaller="a smaller data set")


def _step(sizes: DualSizes) -> Iterator[Part]:
    """Both graphs, the embeddings of both sides, the scores."""
    run = sizes.run
    size = sizes.method.gc_batch_size
    row = 4 * run.encoder.dim
    labels = graph_of("labels", sizes.own, run.label_texts)
    queries = graph_of("queries", run.own_batch, run.queries)
    yield from activations(run, [labels, queries], size)
    yield query_embeddings(run)
    block = row * sizes.own
    yield Part("embeddings: labels", 2 * block, (STEP,), block, SMALLER_POOL)
    parts = largest_micro_batch(run, labels, size)
    if not parts.whole:  # the micro-batches' embeddings, before and while they are put together
        yield Part("embeddings: labels, parts", block, (STEP,), row * parts.texts, SMALLER_POOL)
    if sizes.vectors:  # their rows, the sum, the norm's gradient
        yield Part("embeddings: labels, vectors added", 3 * block, (STEP,), block, SMALLER_POOL)
    yield from scores(run, sizes.pool)
    if isinstance(sizes.method, ClusteredConfig) and sizes.method.pool != "all":
        # violations are counted after the loss: scores, negatives, those of each positive
        pairs = 4 * run.own_batch * sizes.pool
        yield Part("scores: violations", 4 * pairs, (STEP,), pairs, "train.batch_size")


def _evaluation(sizes: DualSizes) -> Iterator[Part]:
    run = sizes.run
    yield from label_vectors(run, run.data.labels)
    yield score_block(run)
    yield evaluation_activations(run, label_texts=True)
    if sizes.vectors:
        block = 4 * run.encoder.dim * run.share(run.data.labels)
        name = "evaluation: label vectors, sums"
        yield Part(name, 2 * block, (EVALUATION,), block, "encoder.projection")


def _messages(sizes: DualSizes) -> dict[str, float]:
    run = sizes.run
    tokens = run.own_batch * run.queries.longest + sizes.own * run.label_texts.longest
    sent = {**loss_messages(run, sizes.pool), **encoder_messages(run, tokens)}
    if sizes.vectors:
        rows = min(sizes.own, sizes.vectors)
        sent |= table_messages(run, "auxiliary vectors", rows, run.encoder.dim)
    return sent
