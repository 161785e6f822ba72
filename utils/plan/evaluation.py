"""What an evaluation in training holds: label vectors, a block of scores, activations."""

from __future__ import annotations

from collections.abc import Iterator

from utils.plan.parts import EVALUATION, RUNNING, Part
from utils.plan.run_sizes import RunSizes

SMALLER_EVALUATION = "eval.batch_size or eval.label_block"


def label_vectors(sizes: RunSizes, rows: int) -> Iterator[Part]:
    """Label vectors [rows, D] made for an evaluation; each process makes and keeps its share."""
    row = 4 * sizes.encoder.dim
    train = sizes.config.train
    again = train.epochs > train.eval_interval
    # the old ones are held while the new are made
    phases = RUNNING if again else (EVALUATION,)
    block = row * sizes.share(rows)
    name = "evaluation: label embeddings"
    smaller = "encoder.projection"
    yield Part(name, block, phases, block, smaller)
    yield Part(f"{name}, new", block if again else 0, (EVALUATION,), block, smaller)
    yield from whole_vectors(sizes, rows)


def whole_vectors(sizes: RunSizes, rows: int) -> Iterator[Part]:
    """Label vectors [rows, D] that the main process puts together to save them."""
    if sizes.processes > 1:
        name = "saving: label vectors of all"
        block = 4 * sizes.encoder.dim * rows
        yield Part(name, block, (EVALUATION,), block, "encoder.projection", on_host=True)


def score_block(sizes: RunSizes) -> Part:
    """Scores of a batch of queries against a block of labels."""
    labels = min(sizes.config.eval.label_block, sizes.data.labels)
    block = 4 * _evaluated(sizes) * labels
    return Part("evaluation: score block", block, (EVALUATION,), block, SMALLER_EVALUATION)


def evaluation_activations(sizes: RunSizes, label_texts: bool) -> Part:
    """Of a batch of texts that are encoded without gradient, queries or labels."""
    encoder = sizes.encoder
    texts = [(_evaluated(sizes), sizes.queries.longest)]
    if label_texts:
        own = sizes.share(sizes.data.labels)
        count = min(sizes.config.eval.batch_size, own)
        texts.append((count, sizes.label_texts.longest))
    tokens = max(count * (longest if encoder.layers else 1) for count, longest in texts)
    held_bytes = 4 * tokens * (3 * encoder.width + 2 * encoder.ffn)
    block = 4 * tokens * encoder.width
    name = "evaluation: activations"
    return Part(name, held_bytes, (EVALUATION,), block, SMALLER_EVALUATION)


def _evaluated(sizes: RunSizes) -> int:
    """Queries of a batch of an evaluation."""
    return min(sizes.config.eval.batch_size, max(sizes.share(sizes.held_out), 1))
