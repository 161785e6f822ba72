"""Will it fit? The memory and messages of a run, worked out before anything is loaded.

    python train.py CONFIG --plan [--processes G]
    python train.py CONFIG --plan --points 300000 --labels 131000 --tokens 12 --gpu 80   # elsewhere

Reads configs, headers of .npz and .safetensors files, offsets of token files or, where there are
none yet, the lengths of a text file's first lines: no weights, no text, no matrix. Assumptions
(`python -m benchmarks.plan` measures them):
  - of a transformer, a token keeps 8 widths and 2 feed-forward widths a layer for backward; dropout
    adds 2 widths and, on a CPU, three attention matrices a text; mixed precision halves all that;
  - n tokens of natural text hold 10 n^0.55 distinct ones (Heaps' law): the rows that move in a
  row-sparse table;
  - memory freed in blocks below 32 MB stays with the process: glibc's malloc (and CUDA's allocator
  does alike);
  - with a GPU, what is computed lies there; program, token files, matrices and shortlists on the
  host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import psutil
import torch

from losses.stream import CHUNK_BYTES, WHOLE_BYTES
from utils.config.config import Config, stage_config
from utils.errors import InputError
from utils.memory import host_memory
from utils.plan.sizes import Assumed, data_shape, encoder_sizes
from utils.pretrained.settings import check_lengths

MB, GB = 1 << 20, 1 << 30
HERE = Assumed()  # the data set and the cards of this machine
KEPT_BLOCK = 32 * MB  # freed blocks below this size stay with the process
# program loaded after this module: tokenizer, optimizer, the kernels a step uses
LATER = 175 * MB
LATER_TRANSFORMERS = 45 * MB
PLANNED = ("dexml", "ova")
LOADING, STEP, UPDATE, EVALUATION = "loading", "step", "update", "evaluation"
ALWAYS, RUNNING = (LOADING, STEP, UPDATE, EVALUATION), (STEP, UPDATE, EVALUATION)
# starts of the names of parts never on a GPU
HOST = ("program", "token files", "relevance", "shortlists")
# may be smaller, or leave memory for disk: no reason to refuse a run
UNSURE = ("row-sparse", "token files")
SHARDED = "more processes (labels are shared out) or encoder.projection"
ADVICE = {  # word in a part's name -> what makes it smaller; the first that matches
    "evaluation: label embeddings": "encoder.projection",
    "evaluation": "eval.batch_size or eval.label_block",
    "classifier": SHARDED,
    "embeddings: labels": f"method.pool (hnm, in-batch), {SHARDED}",
    "embeddings": "train.batch_size",
    "activations": "method.gc_batch_size or encoder.gradient_checkpointing",
    "encoder": "encoder.name or encoder.layers",
    "row-sparse": "encoder.init",
    "label texts": SHARDED,
    "scores": "train.batch_size or more processes (labels are shared out); only soft-topk holds "
    "batch x labels",
    "shortlists": "method.shortlist_size",
    "relevance": "a smaller data set",
}


# -------------------------------- the parts of one process


class Sizes:
    """Everything the formulas need. B, L, K: of all processes together; b, l, k: this process's
    share of them."""

    def __init__(self, config: Config, processes: int, assumed: Assumed) -> None:
        if processes < 1:
            raise InputError(f"expected at least one process, got {processes}")
        if config.method.name not in PLANNED:
            raise InputError(
                f"no plan for method '{config.method.name}'; planned: {', '.join(PLANNED)}"
            )
        shape = assumed.shape(config) or data_shape(config)
        self.config = config
        self.G = processes
        self.cuda = torch.cuda.is_available() or assumed.gpu is not None
        # now, for reading the encoder's sizes may import what LATER counts
        self.program = resident()
        data = config.data
        method = config.method
        self.points = shape.points
        self.L = shape.labels
        self.entries = shape.entries
        self.texts = shape.texts
        self.queries = self.texts["trn_X"]
        self.labels = self.texts["Y"]
        self.encoder = encoder_sizes(config)
        held_out = min(round(data.val_fraction * self.points), data.val_max_points)
        self.B = min(config.train.batch_size, max(self.points - held_out, 1))
        self.held_out = held_out
        self.classifier = method.name == "ova"
        self.K = (
            self.L
            if self.classifier or method.pool == "all"
            else self._drawn(self.entries[0] / max(self.points, 1))
        )
        self.b, self.l, self.k = (ceil(n / processes) for n in (self.B, self.L, self.K))
        self.distinct = self.heaps(
            self.queries.of(self.b) + (0 if self.classifier else self.labels.of(self.k))
        )

    def _drawn(self, mean_positives: float) -> int:
        """Distinct labels of `hnm` and `in-batch`: expected number of that many draws from all
        labels."""
        method = self.config.method
        draws = min(self.config.method.num_positives, max(mean_positives, 1))
        if method.pool == "hnm":
            draws += method.num_negatives
        return max(1, ceil(self.L * -np.expm1(-self.B * draws / self.L)))

    def heaps(self, tokens: int) -> int:
        """Rows of the row-sparse table that so many tokens touch."""
        return min(self.encoder.table, tokens, ceil(10 * tokens**0.55))


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    phases: tuple[str, ...] = ALWAYS
    block: float = KEPT_BLOCK  # bytes of one of its tensors


def _lasting(s: Sizes) -> Iterator[Part]:
    """What a process holds from the start, or from the first step, to the end."""
    e = s.encoder
    own = s.l * (s.encoder.dim + 1) if s.classifier else 0
    seen = s.heaps(s.queries.tokens + (0 if s.classifier else s.labels.tokens))
    # rows of the touched pages
    paged = e.table * (1 - (1 - seen / max(e.table, 1)) ** (1 + 1024 / e.width))
    yield Part("program and libraries", s.program + LATER + (LATER_TRANSFORMERS if e.layers else 0))
    yield Part("relevance matrices", 8 * (2 * sum(s.entries) + s.points + s.queries.count))
    yield Part("relevance: loading", 16 * max(s.entries), (LOADING,))
    yield Part("token files", sum(t.file_bytes for t in s.texts.values()))
    for kind, weights, state in (
        ("encoder, dense", e.dense, 2 * e.dense),
        ("classifier", own, 2 * own),
        ("row-sparse table", e.table * (e.width + 1), paged * (2 * e.width + 1)),
    ):
        yield Part(f"weights: {kind}", 4 * weights, RUNNING)
        yield Part(f"optimizer state: {kind}", 4 * state, RUNNING)
    if not s.classifier and s.config.method.pool == "all":
        yield Part("label texts", 32 * s.l + (8 if e.layers else 12) * s.labels.of(s.l), RUNNING)
    if not s.classifier and s.config.method.pool == "hnm":
        yield Part("shortlists", 8 * s.points * s.config.method.shortlist_size, RUNNING)
        yield Part(
            "shortlists: mining",
            40 * s.points * (s.config.method.shortlist_size + 20),
            (EVALUATION,),
        )


def _graph(s: Sizes, name: str, texts: int, longest: int, backward: bool) -> Iterator[Part]:
    """Activations that a micro-batch of so many texts keeps for backward; `backward`: and those of
    backward itself."""
    e = s.encoder
    settings = s.config.encoder
    if not e.layers:
        rows = 4 * texts * e.width
        yield Part(name, rows * (2 + 5 * backward + 3 * settings.residual), (STEP,), rows)
        return
    row = texts * longest * (2 if s.config.train.mixed_precision in ("fp16", "bf16") else 4)
    layers, inputs = (1, e.layers) if settings.gradient_checkpointing else (e.layers, 0)
    dropout = e.dropout > 0
    yield Part(
        f"{name}, hidden",
        row * e.width * (layers * (8 + 2 * dropout) + 2 + inputs + 3 * backward),
        (STEP,),
        row * e.width,
    )
    yield Part(f"{name}, feed-forward", row * e.ffn * 2 * (layers + backward), (STEP,), row * e.ffn)
    if dropout and not s.cuda:
        matrix = row * longest * e.heads
        yield Part(f"{name}, attention", matrix * 3 * (layers + backward), (STEP,), matrix)


def _graphs(s: Sizes) -> Iterator[Part]:
    """Queries' and labels' graphs live at once only if each is a single micro-batch; their
    backwards never do."""
    size = s.config.method.gc_batch_size
    graphs = [("activations: queries", min(size, s.b), s.queries.longest)]
    if not s.classifier:
        graphs.insert(0, ("activations: labels", min(size, s.k), s.labels.longest))
    largest = max(graphs, key=lambda graph: graph[1] * graph[2])
    for graph in graphs:
        if graph is largest or size >= max(s.b, s.k):
            yield from _graph(s, *graph, backward=graph is largest)


def _step(s: Sizes) -> Iterator[Part]:
    """Forward, backward and update of one batch."""
    e = s.encoder
    size = s.config.method.gc_batch_size
    own = s.l * (s.encoder.dim + 1) if s.classifier else 0
    row, whole = 4 * e.dim, 4 * s.B * s.k
    yield from _graphs(s)
    yield Part(
        "embeddings: queries",
        row * (3 * s.B + 2 * s.b + (2 * s.B if s.G > 1 else 0)),
        (STEP,),
        row * s.b,
    )
    if not s.classifier:
        yield Part("embeddings: labels", row * 2 * s.k, (STEP,), row * s.k)
        if size < s.k:  # the micro-batches' embeddings, before and while they are put together
            yield Part("embeddings: labels, parts", row * s.k, (STEP,), row * size)
    chunk = whole if whole <= WHOLE_BYTES else CHUNK_BYTES["cuda" if s.cuda else "cpu"]
    topk = s.config.loss.name == "soft-topk" and whole > WHOLE_BYTES
    yield Part("scores", 2 * chunk + (whole if topk else 0), (STEP,), whole if topk else chunk)
    table = 4 * s.distinct * (e.width + 1)
    yield Part("gradients: encoder, dense", 4 * e.dense, (STEP, UPDATE))
    yield Part("gradients: classifier", 4 * own, (STEP, UPDATE))
    yield Part("gradients: row-sparse table", 5 * table, (STEP, UPDATE), table)
    largest = e.dense + own if s.cuda else max(e.largest, s.l * e.dim if s.classifier else 0)
    yield Part(
        "optimizer's temporaries, " + ("classifier" if own > e.dense else "encoder"),
        8 * largest,
        (UPDATE,),
        4 * largest,
    )


def _evaluation(s: Sizes) -> Iterator[Part]:
    e = s.encoder
    section = s.config.eval
    row = 4 * s.encoder.dim * s.L
    # the old ones are held while the new are made
    again = s.config.train.epochs > s.config.train.eval_interval
    copies = 2 if s.G > 1 else 0  # received parts, then put together
    if not s.classifier or s.G > 1:
        yield Part("evaluation: label embeddings", row, RUNNING if again else (EVALUATION,), row)
        yield Part(
            "evaluation: label embeddings, new",
            row * copies + (4 * e.dim * s.l if again else 0),
            (EVALUATION,),
            row / s.G,
        )
    queries = min(section.batch_size, max(ceil(s.held_out / s.G), 1))
    block = 4 * queries * min(section.label_block, s.L)
    yield Part("evaluation: score block", block, (EVALUATION,), block)
    texts = [(queries, s.queries.longest)]
    if not s.classifier:
        texts.append((min(section.batch_size, s.l), s.labels.longest))
    tokens = max(n * longest for n, longest in texts) if e.layers else max(n for n, _ in texts)
    yield Part(
        "evaluation: activations",
        4 * tokens * (3 * e.width + 2 * e.ffn),
        (EVALUATION,),
        4 * tokens * e.width,
    )


def _exchanged(s: Sizes) -> dict[str, int]:
    """Bytes that a process sends in a step; an all-reduce of n bytes sends 2 n (G - 1) / G, as in a
    ring."""
    if s.G == 1:
        return {}
    e = s.encoder
    once = (s.G - 1) / s.G
    statistics = {
        "softmax": 12,
        "decoupled-softmax": 12,
        "bce": 0,
        "soft-topk": 4 * 128 + 16 + 4 * 40,
    }
    sent = {
        "queries gathered": once * 4 * s.B * e.dim,
        "queries' gradient, all-reduce": 2 * once * 4 * s.B * e.dim,
        "row statistics of the loss": 2 * once * (statistics.get(s.config.loss.name, 0) * s.B + 20),
        "gradients, encoder, dense, all-reduce": 2 * once * 4 * e.dense,
        "gradients, row-sparse table, at most": (s.G - 1)
        * min(e.table, s.b * s.queries.longest + (0 if s.classifier else s.k * s.labels.longest))
        * (4 * e.width + 20),
    }
    return {name: int(amount) for name, amount in sent.items() if amount}


# -------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """Bytes of one process. `parts`: memory by part; `total`: its peak, less than their sum, for
    not all parts live at once; `lower`: what it cannot do without; `exchanged`: sent in a step."""

    name: str
    processes: int
    parameters: dict[str, int]
    parts: dict[str, int]
    exchanged: dict[str, int]
    total: int
    lower: int
    host: int  # of `total`; all of it without a GPU
    device: int  # of `total`, on the GPU
    shared: int  # of `host`, held once by all processes of a machine


def plan(config: Config, processes: int = 1, assumed: Assumed = HERE) -> Plan:
    """What one of `processes` needs to train `config`, one stage of it if it has stages.

    Args:
        assumed: sizes of a data set, or a card, that is not here.

    Raises:
        ValueError: a file is missing or is not what it should be, or the method is not one that can
        be planned.
    """
    s = Sizes(config, processes, assumed)
    parts = [p for p in (*_lasting(s), *_step(s), *_evaluation(s)) if p.bytes >= 1]
    host = [p for p in parts if not s.cuda or p.name.startswith(HOST)]
    device = [p for p in parts if s.cuda and not p.name.startswith(HOST)]
    total = peak(host) + peak(device)
    sure = [p for p in parts if not any(word in p.name for word in UNSURE)]
    own = {
        "encoder, dense": s.encoder.dense,
        "row-sparse table": s.encoder.table * (s.encoder.width + 1),
        "classifier": s.L * (s.encoder.dim + 1) if s.classifier else 0,
    }
    return Plan(
        f"{config.method.name} on {config.data.name}",
        processes,
        {k: v for k, v in own.items() if v},
        {p.name: int(p.bytes) for p in parts},
        _exchanged(s),
        total,
        int(0.8 * peak(sure)),
        peak(host),
        peak(device),
        sum(int(p.bytes) for p in parts if p.name == "token files"),
    )


def peak(parts: list[Part]) -> int:
    """The largest phase; small blocks are not given back, so their largest phase and that of the
    large ones add up."""
    small, large = ([p for p in parts if (p.block < KEPT_BLOCK) is kind] for kind in (True, False))
    return sum(
        max(int(sum(p.bytes for p in group if phase in p.phases)) for phase in ALWAYS)
        for group in (small, large)
    )


def resident() -> int:
    """Bytes that this process holds now: the interpreter and the libraries that are loaded
    already."""
    return psutil.Process().memory_info().rss


def machine(assumed: Assumed = HERE) -> dict[str, int]:
    """Bytes that the machine has: memory, swap, available (all within the control group's limit),
    gpu (smallest, or the one that was said)."""
    found = host_memory()
    if assumed.gpu is not None:
        found["gpu"] = int(assumed.gpu * GB)
    elif torch.cuda.is_available():
        found["gpu"] = min(
            torch.cuda.get_device_properties(i).total_memory
            for i in range(torch.cuda.device_count())
        )
    return found


def advice(parts: Mapping[str, int]) -> str:
    """The largest part, and what makes it smaller."""
    name = max((n for n in parts if not n.startswith("program")), key=parts.get)
    change = next((change for word, change in ADVICE.items() if word in name), "data.max_len")
    return f"the largest part is '{name}', {_size(parts[name])}; it shrinks with {change}"


def impossible(found: Plan, has: Mapping[str, int]) -> str | None:
    """Why the run cannot fit whatever else happens on the machine, or None. All processes are on
    this machine."""
    room, need = has["memory"] + has.get("swap", 0), found.processes * found.lower
    if found.device:
        room = has["gpu"]
        need = found.lower - found.host
    if need <= room:
        return None
    where = "a GPU" if found.device else "this machine"
    return (
        f"{found.name} cannot fit: at least {_size(need)} are needed and {where} has "
        f"{_size(room)}; {advice(found.parts)}"
    )


def check_it_fits(config: Config, processes: int = 1) -> None:
    """ValueError where training needs more than the machine has, naming the largest part and what
    to change.

    Only where that is certain: with room left for estimates that are too high, and never for
    methods without a plan.
    """
    if config.method.name not in PLANNED:
        return
    # the others have their own memory
    here = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    if problem := impossible(replace(plan(config, processes), processes=here), machine()):
        raise InputError(problem)


def _size(count: float) -> str:
    return f"{count / GB:,.2f} GB" if count >= GB else f"{count / MB:,.1f} MB"


def describe(found: Plan, has: Mapping[str, int] | None = None) -> str:
    """The plan as a table, what the machine has, and a verdict."""
    has = machine() if has is None else has
    lines = [f"{found.name}, {found.processes} process{'es' if found.processes > 1 else ''}"]
    tables = (
        ("parameters", found.parameters, "{:,}".format),
        ("memory of a process", found.parts, _size),
        ("sent by a process in a step", found.exchanged, _size),
    )
    for title, rows, form in tables:
        lines += [f"\n{title}", *(f"  {name:<42}{form(value):>16}" for name, value in rows.items())]
        if rows is found.parts:
            lines.append(f"  {'peak (not all parts live at once)':<42}{_size(found.total):>16}")
        elif not rows:
            lines.append("  nothing")
    need = found.processes * (found.host - found.shared) + found.shared
    lines.append(
        f"\nneeded by all processes: {_size(need)} of memory; this machine has "
        f"{_size(has['memory'])}, "
        f"{_size(has['available'])} of it free"
    )
    if found.device:
        lines.append(f"needed on each GPU: {_size(found.device)} of {_size(has['gpu'])}")
    fits = need <= has["available"] and found.device <= has.get("gpu", 0)
    lines.append("It fits." if fits else f"It does not fit now: {advice(found.parts)}.")
    return "\n".join(lines)


def report(config: Config, processes: int, assumed: Assumed = HERE) -> str:
    """`describe` of every stage that has a plan; the others are named.

    Raises:
        InputError: no stage has a plan, or one cannot fit; with the tables before it.
    """
    texts = []
    stages = config.stages or ({},)
    configs = [stage_config(config, stage) if stage else config for stage in stages]
    if not any(stage.method.name in PLANNED for stage in configs):
        plan(configs[0], processes, assumed)  # says so
    has = machine(assumed)
    for stage, current in zip(stages, configs, strict=True):
        place = f", stage {stage['name']}" if stage else ""
        if current.method.name not in PLANNED:
            texts.append(
                f"{current.method.name} on {current.data.name}{place}: no plan for this method"
            )
            continue
        check_lengths(current)
        found = plan(current, processes, assumed)
        texts.append(describe(replace(found, name=f"{found.name}{place}"), has))
        if problem := impossible(found, has):
            raise InputError("\n\n".join([*texts, problem]))
    return "\n\n".join(texts)
