"""How long a fused prediction takes: one text, and batches beside what the members take alone.

    python -m benchmarks.fusion Results/XMCKit/LF-DebianTitles-small/fusion

One thread, on the test split: wall time of one text, processor time of batches. Every member
predicts alone, with its own encoding; the memory gets its queries encoded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from engine.predictor import Predictor
from models.contract import Ranker
from models.encoders import reader
from models.fusion.ranker import FusionRanker
from utils.data.dataset import load_dataset
from utils.data.texts import Texts
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


def parts(fusion: FusionRanker) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each member's own prediction of the test split, and the fusion's."""
    texts = load_dataset(fusion.config, None).splits["tst"].texts
    k = min(fusion.config.method.candidates, fusion.num_labels)
    calls: dict[str, Callable[[], object]] = {}
    for name, member in fusion.members.rankers.items():
        calls[name] = lambda member=member: predict(member, texts, k)
    memory = fusion.members.memory
    if memory is not None:
        queries = texts.embeddings(memory.reader)
        calls["memory"] = lambda: memory.search(queries).best(k)
    return {**calls, "fusion": lambda: predict(fusion, texts, k)}


def predict(
    ranker: Ranker,
    texts: Texts,
    k: int,
) -> None:
    """Ask for the best labels of all texts, in the ranker's blocks."""
    for start in range(0, len(texts), ranker.at_once):
        ranker.open(texts[start : start + ranker.at_once]).best(k)


@torch.no_grad()
def batch_times(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of seconds of processor time; all take turns, after one call that is not timed."""
    times = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():  # every call encodes
            reader.forget()
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
    fusion = predictor.ranker
    if not isinstance(fusion, FusionRanker):
        parser.error(f"expected a run of method fusion, got one of {fusion.config.method.name}")
    texts = list(iter_lines(fusion.config.dataset_folder / "raw" / "tst_X.txt"))
    some = np.random.default_rng(0).permutation(len(texts))[: TEXTS + WARM_UP]
    median, high = latency(predictor, [texts[i] for i in some])
    print(f"one text, one thread: median {median:.1f} ms, 90th percentile {high:.1f} ms")
    seconds = batch_times(parts(fusion))
    fused = seconds.pop("fusion")
    alone = sum(seconds.values())
    print(
        f"{len(texts):,} points: "
        + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items())
        + f"; members {alone:.2f} s, fusion {fused:.2f} s: {100 * (fused / alone - 1):+.0f} %"
    )


if __name__ == "__main__":
    main()
