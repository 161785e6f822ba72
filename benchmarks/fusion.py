"""How long a fused prediction takes: one text, and batches beside what the members take alone.

    python -m benchmarks.fusion Results/XMCKit/LF-DebianTitles-small/fusion

One thread, on the test split: wall time of one text, processor time of batches. Every member
predicts alone, with its own encoding; the memory gets its queries encoded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from models.encoders import frozen
from models.fusion.fusion import Fusion
from predict import Predictor
from utils.data.dataset import load_dataset
from utils.text import iter_lines

TEXTS, WARM_UP, TURNS = 200, 50, 5


def latency(predictor: Predictor, texts: list[str]) -> tuple[float, float]:
    """(median, 90th percentile) in milliseconds of wall time of one text after the other."""
    times = []
    for text in texts:
        start = time.perf_counter()
        predictor([text], k=5)
        times.append(1000 * (time.perf_counter() - start))
    return tuple(np.percentile(times[min(WARM_UP, len(times) // 5) :], [50, 90]))


def parts(fusion: Fusion, accelerator: Accelerator) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each member's own prediction of the test split, and the fusion's."""
    split = load_dataset(fusion.config, None).splits["tst"]
    points = np.arange(len(split))
    k = min(fusion.config.method.candidates, fusion.num_labels)
    calls = {}
    for name, member in fusion.members.items():
        own = (
            load_dataset(member.config, member.encoder.tokenizer).splits["tst"]
            if member.text_encoder
            else split
        )
        calls[name] = lambda member=member, own=own: member.score_points(
            own, points, k, accelerator
        )
    if fusion.memory is not None:
        queries = fusion.members[fusion.config.method.memory].embed_points(
            split, points, accelerator
        )
        calls["memory"] = lambda: fusion.memory.open(queries).best(k)
    return {**calls, "fusion": lambda: fusion.score_points(split, points, k, accelerator)}


@torch.no_grad()
def batch_times(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of seconds of processor time; all take turns, after one call that is not timed."""
    times = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            frozen.forget()  # every call encodes
            start = time.process_time()
            call()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: float(np.median(own)) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder of method fusion")
    predictor = Predictor(parser.parse_args().run, overrides=["--run.threads", "1"])
    fusion = predictor.method
    if not isinstance(fusion, Fusion):
        parser.error(f"expected a run of method fusion, got one of {fusion.config.method.name}")
    texts = list(iter_lines(Path(fusion.config.dataset_folder) / "raw" / "tst_X.txt"))
    some = np.random.default_rng(0).permutation(len(texts))[: TEXTS + WARM_UP]
    median, high = latency(predictor, [texts[i] for i in some])
    print(f"one text, one thread: median {median:.1f} ms, 90th percentile {high:.1f} ms")
    seconds = batch_times(parts(fusion, predictor.accelerator))
    fused = seconds.pop("fusion")
    alone = sum(seconds.values())
    print(
        f"{len(texts):,} points: "
        + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items())
        + f"; members {alone:.2f} s, fusion {fused:.2f} s: {100 * (fused / alone - 1):+.0f} %"
    )


if __name__ == "__main__":
    main()
