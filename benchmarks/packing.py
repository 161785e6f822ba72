"""A training pass of a transformer over titles: padded, by tokens, packed; in turns.

    python -m benchmarks.packing [--texts 512] [--tokens 2048] [--encoder minilm] [--layers 6]
        [--dropout 0.1] [--device cuda] [--precision bf16] [--rounds 5] [--compile] [--json FILE]

Each way embeds the same titles by gradient caching, in micro-batches, and carries a gradient back
to the parameters. On a CPU seconds are those of the processor (one thread), on a GPU of the clock.
`largest difference` is that of the embeddings from the first way's, dropout off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.table import show
from models.encoders.building import build_encoder
from models.encoders.text_encoder import TextEncoder
from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.data.dataset import Dataset
from utils.data.micro_batches import MicroBatches, MicroBatchSize
from utils.tokenization_utils import tokenize_texts
from utils.training.grad_cache import GradCache, backward_all

TITLES = Path(__file__).parent.parent / "Datasets/LF-DebianTitles-small/raw/trn_X.txt"


@dataclass(frozen=True)
class Way:
    """How texts are encoded."""

    name: str
    packing: bool
    tokens: int | None


@dataclass
class Step:
    """What a way computes, and the seconds of each of its rounds."""

    encoder: TextEncoder
    batches: MicroBatches
    gradient: Tensor
    precision: str
    seconds: list[float]

    def encode(self, texts: TextBatch) -> Tensor:
        device = texts.ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.encoder(texts)

    def run(self) -> Tensor:
        """One pass; returns the embeddings [n, D]."""
        self.encoder.zero_grad()
        cache = GradCache(self.encode, self.batches)
        embeddings = cache.embed()
        embeddings.backward(self.gradient)
        backward_all([cache])
        return embeddings.detach()

    def timed(self) -> None:
        on_gpu = self.gradient.is_cuda
        clock = time.perf_counter if on_gpu else time.process_time
        before = clock()
        self.run()
        if on_gpu:
            torch.cuda.synchronize()
        self.seconds.append(clock() - before)


def prepare(options: argparse.Namespace, way: Way) -> Step:
    """The encoder of a way, and the titles in its micro-batches."""
    config = EncoderConfig(
        name=options.encoder,
        layers=options.layers,
        dropout=options.dropout,
        packing=way.packing,
    )
    device = torch.device(options.device)
    encoder = build_encoder(config, NO_DATA).to(device).train()
    if options.compile:
        encoder.compile_parts()
    lines = TITLES.read_text(encoding="utf-8").splitlines()[: options.texts]
    tokens = tokenize_texts(lines, encoder.point_tokenizer(options.max_len))
    texts = TextBatch.take(tokens, np.arange(len(lines))).to(device)
    size = MicroBatchSize(options.gc_batch_size, way.tokens, encoder.pads(device))
    gradient = torch.randn(len(lines), encoder.dim, generator=torch.Generator().manual_seed(0))
    return Step(encoder, MicroBatches.of(texts, size), gradient.to(device), options.precision, [])


NO_DATA: Dataset = None  # type: ignore[assignment]  # a transformer needs none


def difference(step: Step, first: Step) -> float:
    """Of embeddings without dropout."""
    found = []
    for each in (step, first):
        each.encoder.eval()
        found.append(each.run())
        each.encoder.train()
    return float((found[0] - found[1]).abs().max())


def compare(options: argparse.Namespace) -> list[dict[str, object]]:
    ways = [
        Way("padded", False, None),
        Way("padded, by tokens", False, options.tokens),
        Way("packed", True, None),
        Way("packed, by tokens", True, options.tokens),
    ]
    steps = [prepare(options, way) for way in ways]
    differences = [difference(step, steps[0]) for step in steps]
    for step in steps:
        step.run()  # warm, compiled
    for _ in range(options.rounds):
        for step in steps:
            step.timed()
    lengths = np.concatenate([part.host_lengths for part in steps[0].batches.parts])
    print(
        f"{len(lengths)} titles of {lengths.mean():.1f} tokens on average, at most {lengths.max()}"
    )
    middle = statistics.median(steps[0].seconds)
    return [
        {
            "way": way.name,
            "micro-batches": len(step.batches.parts),
            "seconds": f"{statistics.median(step.seconds):.3f}",
            "from": f"{min(step.seconds):.3f}",
            "times faster": f"{middle / statistics.median(step.seconds):.2f}",
            "largest difference": f"{gap:.1e}",
        }
        for way, step, gap in zip(ways, steps, differences, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch by tokens")
    parser.add_argument("--gc-batch-size", type=int, default=256, help="of a micro-batch by texts")
    parser.add_argument("--max-len", type=int, default=32)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    show(compare(options), options.json)


if __name__ == "__main__":
    main()
