"""Terms of every method: program and data, and what dominates where a method says no more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from utils.plan.evaluation import label_vectors, score_block
from utils.plan.parts import LOADING, MB, Needs, Part
from utils.plan.run_sizes import RunSizes
from utils.plan.weights import counted, encoder_weights, held, label_rows

# program loaded after the plan: tokenizer, optimizer, the kernels a step uses
LATER = 175 * MB
LATER_TRANSFORMERS = 45 * MB


def program_and_data(sizes: RunSizes) -> Iterator[Part]:
    """The libraries, the relevance matrices, and the token files, which lie on the host."""
    data = sizes.data
    later = LATER + (LATER_TRANSFORMERS if sizes.encoder.layers else 0)
    matrices = 8 * (2 * sum(data.entries) + data.points + sizes.queries.count)
    loading = 16 * max(data.entries)
    tokens = sum(texts.file_bytes for texts in data.texts.values())
    fewer = "a smaller data set"
    yield Part("program and libraries", sizes.program + later, on_host=True)
    yield Part("relevance matrices", matrices, smaller=fewer, on_host=True)
    yield Part("relevance: loading", loading, (LOADING,), smaller=fewer, on_host=True)
    yield Part("token files", tokens, smaller="data.max_len", on_host=True, sure=False)


def largest_terms(
    sizes: RunSizes,
    encoder_trained: bool,
    rows_trained: bool,
) -> Needs:
    """What dominates for any method that is trained by gradient.

    The encoder and its training; label rows and theirs; label vectors and the block of scores of an
    evaluation. Only the encoder is sure: a method may keep less of its labels.
    """
    labels = sizes.data.labels
    encoder = encoder_weights(sizes, sizes.queries.tokens, 0, encoder_trained)
    rows = [label_rows(sizes, labels)] if rows_trained else []
    parts = [*held(rows, sizes.cuda)]
    if not rows_trained or sizes.processes > 1:
        parts += label_vectors(sizes, labels)
    parts.append(score_block(sizes))
    parts = [replace(part, sure=False) for part in parts]
    return Needs(
        counted([*encoder, *rows]),
        [*held(encoder, sizes.cuda), *parts],
        left_out="activations, what a step holds of its labels, and messages",
    )
