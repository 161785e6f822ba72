"""Does the demo still reach its score, in its time? What continuous integration asks beside the
tests.

    # in the folder of the README; trains the demo again, in place of its run
    python -m benchmarks.gate

Machines differ, and a shared one differs from hour to hour, so the demo's seconds are held against
those of a fixed piece of work (`reference_work`) which runs before and after it on the same
machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
METRICS = ROOT / "Results/XMCKit/LF-DebianTitles-small/fusion/tst_metrics.json"
LEAST_P1 = 52.5  # seed 0: 53.11; seeds 0, 1, 2: 52.73 +- 0.34
# seconds of the demo over those of the reference work: 27 to 42 on two cores, the
MOST_TIME = 60.0
# larger where a clean checkout compiles its kernels first
ROUNDS = 3  # of the reference work, on each side of the demo


def reference_work() -> float:
    """Products, sorting, gathers from memory and plain Python, as the demo mixes them; seconds."""
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.standard_normal((2048, 2048), dtype=np.float32))
    values = rng.random(4_000_000, dtype=np.float32)
    rows = rng.integers(0, len(matrix), 200_000)
    counts: dict[int, int] = {}
    start = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    for _ in range(4):
        np.sort(values)
    for _ in range(4):
        matrix[torch.from_numpy(rows)].sum()
    for value in range(2_000_000):
        counts[value % 1000] = counts.get(value % 1000, 0) + 1
    return time.perf_counter() - start


def timed_demo() -> float:
    """Seconds of `make demo`, whose environment is set up already.

    Raises:
        subprocess.CalledProcessError: the demo failed.
    """
    start = time.perf_counter()
    subprocess.run(["make", "--no-print-directory", "demo"], cwd=ROOT, check=True)
    return time.perf_counter() - start


def verdicts(p1: float, ratio: float) -> list[str]:
    """What is amiss, a sentence each; [] if nothing is."""
    amiss = []
    if p1 < LEAST_P1:
        amiss.append(f"the demo's P@1 is {p1:.2f}, expected at least {LEAST_P1}")
    if ratio > MOST_TIME:
        amiss.append(
            f"the demo took {ratio:.1f} times the reference work, expected at most {MOST_TIME}"
        )
    return amiss


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(2)
    reference_work()  # the first call pays for pages and threads
    before = [reference_work() for _ in range(ROUNDS)]
    seconds = timed_demo()
    after = [reference_work() for _ in range(ROUNDS)]
    reference = float(np.median(before + after))
    p1 = json.loads(METRICS.read_text())["P@1"]
    ratio = seconds / reference
    print(
        f"demo: P@1 {p1:.2f}, {seconds:.0f} s, {ratio:.1f} times the reference work "
        f"({reference:.2f} s)"
    )
    if amiss := verdicts(p1, ratio):
        sys.exit("\n".join(f"error: {sentence}" for sentence in amiss))


if __name__ == "__main__":
    main()
