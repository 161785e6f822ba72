"""What training a classifier holds and sends: the terms of ova, surrogate and xc."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.batching.memory_needs import expected_distinct, query_bank
from utils.plan.evaluation import evaluation_activations, score_block, whole_vectors
from utils.plan.messages import encoder_messages, loss_messages
from utils.plan.parts import EVALUATION, LOADING, RUNNING, STEP, Needs, Part
from utils.plan.run_sizes import RunSizes
from utils.plan.step import activations, graph_of, query_embeddings, scores
from utils.plan.weights import (
    SHARED_OUT,
    Table,
    Weights,
    counted,
    encoder_weights,
    held,
    label_rows,
)


def classifier_needs(
    sizes: RunSizes, rows: Weights | Table, pool: int, encoder_trained: bool = True
) -> Needs:
    """All terms of a classifier.

    Args:
        rows: of the classifier. pool: of them, those that a step sees, over all processes.
    """
    step_tokens = sizes.queries.of(sizes.own_batch)
    encoder = encoder_weights(sizes, sizes.queries.tokens, step_tokens, encoder_trained)
    weights = [*encoder, rows]
    messages = loss_messages(sizes, pool, encoder_trained)
    if encoder_trained:
        messages |= encoder_messages(sizes, sizes.own_batch * sizes.queries.longest)
    parts = [
        *held(weights, sizes.cuda),
        *_step(sizes, pool, encoder_trained),
        *_evaluation(sizes, rows),
    ]
    return Needs(counted(weights), parts, messages)


def _step(
    sizes: RunSizes,
    pool: int,
    encoder_trained: bool,
) -> Iterator[Part]:
    if encoder_trained:
        queries = graph_of("queries", sizes.own_batch, sizes.queries)
        yield from activations(sizes, [queries], sizes.config.method.gc_batch_size)
    yield query_embeddings(sizes)
    yield from scores(sizes, pool)


def _evaluation(sizes: RunSizes, rows: Weights | Table) -> Iterator[Part]:
    yield from whole_vectors(sizes, rows.whole // (sizes.encoder.dim + 1))
    yield score_block(sizes)
    yield evaluation_activations(sizes, label_texts=False)


# -------------------------------- methods that are one-versus-all with other rows or classes


def surrogate_needs(sizes: RunSizes, clusters: int) -> Needs:
    """One-versus-all over clusters of labels, which are made once, before the first step."""
    needs = classifier_needs(sizes, label_rows(sizes, clusters), clusters)
    labels = sizes.data.labels
    row = 4 * sizes.encoder.dim
    block = row * min(sizes.config.eval.label_block, labels)  # rows of labels, from clusters'
    sums = row * (sizes.training + labels)  # the main process clusters
    gathered = row * clusters if sizes.processes > 1 else 0  # one process ranks by them in place
    more = [
        Part("clusters of labels", 12 * labels, RUNNING, smaller="a smaller data set"),
        Part("evaluation: rows of labels", block, (EVALUATION,), block, "eval.label_block"),
        Part("evaluation: cluster rows", gathered, (EVALUATION,), gathered, "method.num_clusters"),
        Part(
            "clustering: embeddings and sums",
            sums,
            (LOADING,),
            smaller="encoder.projection",
            on_host=True,
            sure=False,
        ),
    ]
    return replace(needs, parts=[*needs.parts, *more])


def xc_needs(sizes: RunSizes) -> Needs:
    """A classifier on an encoder trained before, frozen unless `method.freeze` is false."""
    method = sizes.config.method
    labels = sizes.data.labels
    pool = labels
    rows: Weights | Table = label_rows(sizes, labels)
    if method.pool == "in-batch":
        pool = expected_distinct(labels, sizes.batch * max(sizes.mean_positives, 1))
        rows = _in_batch_rows(sizes, pool)
    needs = classifier_needs(sizes, rows, pool, encoder_trained=not method.freeze)
    return replace(needs, parts=[*needs.parts, *_of_xc(sizes, pool)])


def _in_batch_rows(sizes: RunSizes, pool: int) -> Table:
    """A row and a bias a label, of which a step moves those of its pool."""
    own = sizes.share(sizes.data.labels)
    return Table(
        "classifier",
        sizes.data.labels,
        own,
        sizes.encoder.dim,
        touched=own,
        step=sizes.share(pool),
        smaller=SHARED_OUT,
    )


def _of_xc(sizes: RunSizes, pool: int) -> Iterator[Part]:
    """The vectors that rows start from, embeddings of a frozen encoder, directions of rows."""
    method = sizes.config.method
    row = 4 * sizes.encoder.dim
    starts = row * sizes.data.labels
    yield Part("label vectors at the start", starts, smaller="encoder.projection", on_host=True)
    if method.freeze:
        frozen = row * sizes.training
        yield Part("embeddings: all queries", frozen, RUNNING, smaller="encoder.projection")
    rows = row * sizes.share(pool)
    # directions, their gradient, and what the norm's backward makes on the way
    count = (method.pool == "in-batch") + 6 * method.cosine
    yield Part("embeddings: rows of the step", count * rows, (STEP,), rows, SHARED_OUT)
    yield from query_bank(sizes, recorded=not method.freeze)
