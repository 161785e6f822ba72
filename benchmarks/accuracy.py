"""Train configs from scratch and evaluate them on the test split: the accuracy table of the README.

    # all configs of LF-DebianTitles-small, seed 0
    python -m benchmarks.accuracy
    python -m benchmarks.accuracy CONFIG... [--seeds 0 1 2] [--json FILE]

The checkpoint of each run is chosen on its validation split. Time is that of training alone, then
of everything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from eval import evaluate
from train import fit
from utils.config.config import load_config
from utils.run.environment import environment

DEFAULT = Path("configs/LF-DebianTitles-small")
COLUMNS = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@100")


def measure(
    path: Path,
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Train and evaluate one config with one seed."""
    started = time.perf_counter()
    overrides = {"run": {"dir": str(folder), "seed": seed, "tensorboard": False}}
    run = fit(load_config(path, overrides))
    metrics = evaluate(run)
    finished = json.loads((run / "finished").read_text())
    return {
        **{name: metrics[name] for name in COLUMNS},
        "best epoch": finished["best_epoch"],
        "train s": finished["train_seconds"],
        "all s": time.perf_counter() - started,
    }


def row(
    name: str,
    seeds: list[int],
    results: list[dict[str, float]],
) -> str:
    """A Markdown row; mean and standard deviation where there are several seeds."""
    cells = []
    for key in results[0]:
        values = [r[key] for r in results]
        text = f"{np.mean(values):.2f}" if "@" in key else f"{np.mean(values):.0f}"
        cells.append(f"{text} ± {np.std(values):.2f}" if len(values) > 1 and "@" in key else text)
    return f"| {name} | {', '.join(map(str, seeds))} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="config files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    paths = options.configs or [
        p for p in sorted(DEFAULT.glob("*.yaml")) if p.name != "dataset.yaml"
    ]
    found = {}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            name = f"{path.parent.name}/{path.stem}"
            found[name] = [
                measure(path, seed, Path(folder) / name / str(seed)) for seed in options.seeds
            ]
            lines.append(row(name, options.seeds, found[name]))
            print(lines[-1], flush=True)
    machine = environment("")
    print(
        f"\nOn {machine['cpu']}, {torch.get_num_threads()} threads, torch "
        f"{machine['versions']['torch']}:\n"
    )
    print("| config | seed | " + " | ".join(found[next(iter(found))][0]) + " |")
    print("| --- " * (len(found[next(iter(found))][0]) + 2) + "|")
    print("\n".join(lines))
    if options.json:
        Path(options.json).write_text(
            json.dumps({"machine": machine, "results": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
