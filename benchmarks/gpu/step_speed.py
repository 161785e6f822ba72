"""Sections `dexml`, `ngame` and `elias`: time, TFLOP/s, waits and memory of a training step."""

from __future__ import annotations

import math
import time

from benchmarks.gpu.card import Waits, peak_mib, release, wait
from benchmarks.gpu.flops import Texts, streamed_loss
from benchmarks.gpu.made import draw_weights, write_graph
from benchmarks.gpu.place import Place, Values, merged
from benchmarks.gpu.report import Row
from benchmarks.gpu.sizes import Sizes, StepSize
from benchmarks.gpu.training import Enough, trained
from engine.memory_plan import plan
from utils.config.config import Config, to_mapping
from utils.errors import InputError

MOST_SECONDS = 12.0  # of the timed steps of a case
TFLOPS = 250.0  # of DEXML's step in bf16 on an H100
PRECISIONS = ("bf16", "fp16", "tf32")


class Stopwatch:
    """Looks at a run: some steps to warm up, one whose waits are counted, some that are timed.

    Attributes:
        seconds: of a timed step on average.
        waits: of the host for the card in a step; None without one.
    """

    def __init__(self, size: StepSize) -> None:
        self._size = size
        self._waits = Waits()
        self._started = 0.0
        self.seconds = float("nan")
        self.waits: int | None = None

    def __call__(self, steps: int) -> None:
        """Take note of a step that has been given to the card; raise Enough after the last."""
        counted = self._size.warm + 1
        if steps == self._size.warm:
            wait()
            self._waits.start()
        elif steps == counted:
            self.waits = self._waits.stop()
            wait()
            self._started = time.perf_counter()
        elif steps > counted:
            self._time(steps - counted)

    def _time(self, timed: int) -> None:
        late = time.perf_counter() - self._started > MOST_SECONDS
        if timed < self._size.timed and not late:
            return
        wait()
        self.seconds = (time.perf_counter() - self._started) / timed
        raise Enough


def measured(config: Config, size: StepSize, flops: float | None = None) -> Row:
    """Train a config for the steps of a measurement.

    Args:
        flops: of a step.
    """
    release()
    peak_mib(since_now=True)
    watch = Stopwatch(size)
    trained(config, watch=watch)
    peak = peak_mib()
    if math.isnan(watch.seconds):
        raise InputError(
            f"the data set is at an end before a step was timed: train.batch_size "
            f"{config.train.batch_size}, expected at most {size.batch}"
        )
    planned = plan(config).device / 2**20
    return {
        "s/step": watch.seconds,
        "points/s": config.train.batch_size / watch.seconds,
        "TFLOP/s": None if flops is None else flops / watch.seconds / 1e12,
        "waits a step": watch.waits,
        "peak MiB": peak,
        "planned MiB": planned or None,
    }


def step_config(place: Place, name: str, kind: str, encoder: str, *parts: Values) -> Config:
    """A config whose steps are timed.

    Args:
        kind: bf16, fp16, or tf32 (float32 with products in TF32).
        encoder: of the folder, its weights drawn where they are not there yet.
        parts: later ones over earlier ones, the overrides of the command line over all.
    """
    folder = place.encoder(encoder)
    draw_weights(folder)
    precision = "no" if kind == "tf32" else kind
    usual: Values = {
        "data": {"val_fraction": 0.0},
        "encoder": {"name": str(folder)},
        "optim": {"lr": 1e-4, "clip_norm": None},
        "train": {"epochs": 1, "mixed_precision": precision, "tf32": True},
    }
    return place.config(f"{name} {kind}", usual, *parts, words=place.words)


# -------------------------------- dexml

DEXML_CASES = {f"DEXML, {kind}": kind for kind in PRECISIONS}


def dexml(place: Place, name: str) -> Row:
    """DEXML against a quarter of LF-AmazonTitles-131K's labels, encoder of DistilBERT's size."""
    kind = DEXML_CASES[name]
    sizes = place.sizes
    size = sizes.dexml
    parts: Values = {
        "data": {"name": "titles", "max_len": 32},
        "encoder": {"pooling": "cls"},
        "method": {"name": "dexml", "tau": 0.05, "gc_batch_size": size.micro_batch},
        "loss": {"name": "decoupled-softmax", "sample": True},
        "train": {"batch_size": size.batch},
    }
    config = step_config(place, "dexml", kind, "distil", parts)
    row = measured(config, size, dexml_flops(config, sizes))
    if kind != "bf16":
        return row
    return {**row, f"target met ({TFLOPS:.0f} TFLOP/s, H100)": row["TFLOP/s"] >= TFLOPS}


def dexml_flops(config: Config, sizes: Sizes) -> float:
    """Floating-point operations of a step."""
    tokens = config.data.max_len
    at_once = texts_at_once(config)
    queries = config.train.batch_size
    labels = sizes.titles.labels
    encoded = (Texts(count, tokens, cached=count > at_once) for count in (queries, labels))
    loss = streamed_loss(queries, labels, sizes.distil.width)
    return loss + sum(texts.flops(sizes.distil) for texts in encoded)


def texts_at_once(config: Config) -> int:
    """Texts of the longest kind in a micro-batch."""
    options = to_mapping(config)["method"]
    tokens = options.get("micro_batch_tokens")
    return tokens // config.data.max_len if tokens else options["gc_batch_size"]


# -------------------------------- ngame

NGAME: Values = {"method": {"name": "ngame"}}
DEXA: Values = {"method": {"name": "dexa", "num_vectors": "labels", "vector_init": "zeros"}}
NGAME_CASES = {
    "NGAME, bf16": (NGAME, "bf16"),
    "NGAME, fp16": (NGAME, "fp16"),
    "DEXA with a vector a label, bf16": (DEXA, "bf16"),
}


def ngame(place: Place, name: str) -> Row:
    """NGAME and DEXA at the shape of amazon-670k: queries of 128 tokens, in-batch labels."""
    method, kind = NGAME_CASES[name]
    size = place.sizes.ngame
    parts: Values = {
        "data": {"name": "texts", "max_len": 128},
        "encoder": {"pooling": "mean"},
        "method": {"batches": "random", "gc_batch_size": size.micro_batch},
        "loss": {"name": "triplet", "sample": True, "margin": 0.1},
        "train": {"batch_size": size.batch},
    }
    run = method["method"]["name"]
    return measured(step_config(place, run, kind, "distil", merged(parts, method)), size)


# -------------------------------- elias

ELIAS_CASES = {f"ELIAS-2, {kind}": kind for kind in ("bf16", "tf32")}


def elias(place: Place, name: str) -> Row:
    """ELIAS stage 2 at the shape of amazon-670k: encoder of BERT's size, random graph."""
    kind = ELIAS_CASES[name]
    graph = place.sizes.graph
    file = place.folder / "graph.npz"
    write_graph(file, graph, place.sizes.texts.labels)
    parts: Values = {
        "data": {"name": "texts", "max_len": 128},
        "encoder": {"pooling": "cls", "normalize": False},
        "method": {
            "name": "elias-2",
            "graph": str(file),
            "kappa": graph.edges,
            "K": graph.scored,
            "beam": graph.beam,
            "dropout": 0.5,
        },
        "loss": {"name": "bce"},
        "train": {"batch_size": place.sizes.elias.batch},
    }
    return measured(step_config(place, "elias", kind, "bert", parts), place.sizes.elias)
