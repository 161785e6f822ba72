"""What a step of training holds. B, L, K: of all processes together; b, l, k: of this one.

Assumptions (`python -m benchmarks.plan` measures them):
  - of a transformer, a token keeps 8 widths and 2 feed-forward widths a layer for backward; dropout
    adds 2 widths and, on a CPU, three attention matrices a text; mixed precision halves all that;
  - attention of packed texts keeps 4 more widths a layer for each place of the texts padded;
  - what a loss of LOSSES streams over is held in chunks; others hold whole rows of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from losses import LOSSES
from losses.stream import CHUNK_BYTES, WHOLE_BYTES
from utils.plan.parts import STEP, Part
from utils.plan.run_sizes import RunSizes
from utils.plan.sizes import Texts

FEWER_QUERIES = "train.batch_size"
FEWER_SCORES = (
    "train.batch_size or more processes (labels are shared out); only soft-topk holds batch x "
    "labels"
)
SMALLER_GRAPH = (
    "method.micro_batch_tokens (method.gc_batch_size where it is off) or "
    "encoder.gradient_checkpointing"
)
SHORTEST = 3  # tokens of a text, at least: with special ones


@dataclass(frozen=True)
class Graph:
    """Texts that are encoded with gradient.

    Attributes:
        texts: of this process in a step. longest: tokens of the longest.
        tokens: of all of them, without padding.
    """

    name: str
    texts: int
    longest: int
    tokens: int


def graph_of(
    name: str,
    count: int,
    texts: Texts,
) -> Graph:
    """The graph of so many of some texts."""
    return Graph(name, count, texts.longest, texts.of(count))


@dataclass(frozen=True)
class MicroBatch:
    """The largest one of a graph.

    Attributes:
        tokens: that are encoded, padding included where there is some.
        padded: tokens with padding, which the attention of packed texts has.
        longest: tokens of its longest text.
        whole: it holds all texts.
    """

    graph: Graph
    texts: int
    tokens: int
    padded: int
    longest: int
    whole: bool


def largest_micro_batch(sizes: RunSizes, graph: Graph, texts: int) -> MicroBatch:
    """By `method.micro_batch_tokens` where that is set, else of so many texts.

    Texts of one micro-batch are taken to be as long as the longest, unless all together have less.
    Those of several micro-batches by tokens are of similar length: padded, they have few more.
    """
    all_padded = graph.texts * graph.longest
    all_tokens = graph.tokens if sizes.unpadded else all_padded
    budget = sizes.config.method.micro_batch_tokens
    if budget is None:
        count = min(graph.texts, texts)
        padded = count * graph.longest
        tokens = min(padded, all_tokens)
        return MicroBatch(graph, count, tokens, padded, graph.longest, graph.texts <= texts)
    count = min(graph.texts, max(budget // SHORTEST, 1))
    tokens = min(max(budget, graph.longest), all_tokens)
    whole = all_tokens <= budget
    padded = all_padded if whole else tokens
    return MicroBatch(graph, count, tokens, padded, graph.longest, whole)


def activations(
    sizes: RunSizes,
    graphs: Sequence[Graph],
    texts: int,
) -> Iterator[Part]:
    """What graphs keep for backward, encoded by micro-batches of so many texts or tokens.

    Graphs live at once only if each is a single micro-batch; their backwards never do.
    """
    micro_batches = [largest_micro_batch(sizes, graph, texts) for graph in graphs]
    at_once = all(batch.whole for batch in micro_batches)
    largest = max(micro_batches, key=lambda batch: batch.tokens + batch.padded)
    for batch in micro_batches:
        if batch is largest or at_once:
            yield from _graph(sizes, batch, backward=batch is largest)


def _graph(
    sizes: RunSizes,
    batch: MicroBatch,
    backward: bool,
) -> Iterator[Part]:
    """Activations of one micro-batch; `backward`: and those of backward itself."""
    named = f"activations: {batch.graph.name}"
    if not sizes.encoder.layers:
        row = 4 * batch.texts * sizes.encoder.width
        count = 2 + 5 * backward + 3 * sizes.config.encoder.residual
        yield Part(named, count * row, (STEP,), row, SMALLER_GRAPH)
        return
    for name, block, count in _transformer_blocks(sizes, batch, backward):
        yield Part(f"{named}, {name}", count * block, (STEP,), block, SMALLER_GRAPH)


def _transformer_blocks(
    sizes: RunSizes, batch: MicroBatch, backward: bool
) -> Iterator[tuple[str, int, int]]:
    """(name, bytes of a tensor, number of tensors) of a transformer's activations."""
    encoder = sizes.encoder
    precisions = ("fp16", "bf16", "auto") if sizes.cuda else ("fp16", "bf16")
    half = sizes.config.train.mixed_precision in precisions
    size = 2 if half else 4
    tokens = batch.tokens * size
    padded = batch.padded * size
    layers = encoder.layers
    inputs = 0
    if sizes.config.encoder.gradient_checkpointing:
        layers = 1
        inputs = encoder.layers
    dropout = encoder.dropout > 0
    hidden = layers * (8 + 2 * dropout) + 2 + inputs + 3 * backward
    yield "hidden", tokens * encoder.width, hidden
    yield "feed-forward", tokens * encoder.ffn, 2 * (layers + backward)
    if sizes.unpadded:
        yield "padded for attention", padded * encoder.width, 4 * (layers + backward)
    if dropout and not sizes.cuda:
        yield "attention", padded * batch.longest * encoder.heads, 3 * (layers + backward)


def query_embeddings(sizes: RunSizes) -> Part:
    """Embeddings of a batch, gathered from all processes, and their gradients."""
    row = 4 * sizes.encoder.dim
    gathered = 3 * sizes.batch + (2 * sizes.batch if sizes.processes > 1 else 0)
    count = gathered + 2 * sizes.own_batch
    block = row * sizes.own_batch
    return Part("embeddings: queries", row * count, (STEP,), block, FEWER_QUERIES)


def scores(sizes: RunSizes, pool: int) -> Iterator[Part]:
    """Scores of a step against a pool of K labels.

    Losses of whole rows have the own queries and the labels of all processes: scores, negatives,
    and a gradient of each.
    """
    loss = sizes.config.loss.name
    if loss not in LOSSES:
        block = 4 * sizes.own_batch * pool
        yield Part("scores", 4 * block, (STEP,), block, FEWER_SCORES)
        if sizes.processes > 1:
            rows = 4 * pool * sizes.encoder.dim
            yield Part("embeddings: labels, gathered", 2 * rows, (STEP,), rows, FEWER_SCORES)
        return
    whole = 4 * sizes.batch * sizes.share(pool)
    streamed = whole > WHOLE_BYTES
    chunk = CHUNK_BYTES["cuda" if sizes.cuda else "cpu"] if streamed else whole
    if streamed and loss == "soft-topk":
        yield Part("scores", 2 * chunk + whole, (STEP,), whole, FEWER_SCORES)
    else:
        yield Part("scores", 2 * chunk, (STEP,), chunk, FEWER_SCORES)
