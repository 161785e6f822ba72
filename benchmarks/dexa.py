"""What DEXA's parts cost: a step as labels grow, and NGAME's batches against random ones.

    python -m benchmarks.dexa steps   [--labels 100000 1000000] [--steps 40]      # time of a step
    # time of training, hard negatives
    python -m benchmarks.dexa batches [CONFIG] [--epochs 11] [--seeds 0 1 2]

`steps`: a training step (backward and update) with in-batch pools on made labels, D = 64, batch
512: `dexa` with a vector a label and with 65,536 shared ones, `xc` on a frozen encoder. `batches`:
the first stage of a config trained with clustered and with random batches; processor time of
training and clustering together, without evaluation, and the mean share of in-batch negatives that
violate the margin from the first epoch with clusters on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

import train
from benchmarks.processes import made_data
from engine import trainer
from models.classifiers.label_rows import LabelRows
from models.classifiers.linear_ranker import LinearRanker
from models.encoders.building import build_encoder
from models.encoders.reader import Reader
from utils.config.config import Config, build_config, load_config, stage_config, to_mapping
from utils.config.methods import method_class
from utils.data.batches import training_batches
from utils.data.dataset import Dataset, load_dataset
from utils.pretrained.location import load_tokenizer
from utils.runtime import Runtime
from utils.training.optim import build_optimizers

TRIPLET = {"name": "triplet", "sample": True}
CASES = {
    "dexa, a vector a label": ({"name": "dexa", "num_vectors": "labels"}, TRIPLET),
    "dexa, 65,536 vectors": ({"name": "dexa", "num_vectors": 65536}, TRIPLET),
    "xc, frozen encoder": (
        {"name": "xc", "cluster_size": 32},
        {"name": "triplet", "hardest_positives": 3, "hardest_negatives": 5, "margin": 0.2},
    ),
}


def stepper(
    root: Path,
    encoder: Path,
    case: str,
) -> Callable[[], float]:
    """A function that takes one training step and returns its processor time in milliseconds."""
    method_settings, loss = CASES[case]
    config = build_config(
        {
            "data": {"root": str(root), "name": "made", "max_len": 8, "val_fraction": 0.05},
            "method": method_settings,
            "encoder": {
                "name": "bag",
                "init": str(encoder),
                "token_weights": "equal",
                "residual": False,
            },
            "loss": loss,
            "optim": {"lr": 1e-3},
            "train": {"batch_size": 512},
            "run": {"threads": 1},
        },
        {},
    )
    data = load_dataset(config, load_tokenizer(str(encoder)))
    runtime = Runtime(Accelerator(cpu=True))
    kind = method_class(config.method.name)
    start = partial(random_start, config, data, runtime) if config.method.name == "xc" else None
    learner = kind(config, data, start, runtime)
    if config.method.name == "dexa":  # clustering is measured elsewhere
        auxiliary = learner.module.auxiliary
        auxiliary.clusters.random_(len(auxiliary.table))
    optimizers = build_optimizers(learner.groups(), config.optim)
    batches = (
        b
        for epoch in itertools.count()
        for b in training_batches(data.splits["trn"], None, config, epoch)
    )

    def step() -> float:
        batch = next(batches)
        began = time.process_time()
        learner.backward(batch)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return 1000 * (time.process_time() - began)

    return step


def random_start(
    config: Config,
    data: Dataset,
    runtime: Runtime,
) -> LinearRanker:
    """What stands for the run before xc: an untrained encoder and random label vectors."""
    encoder = build_encoder(config.encoder, data)
    weight = torch.randn(data.num_labels, encoder.dim)
    rows = LabelRows(weight, torch.zeros(data.num_labels))
    return LinearRanker(config, Reader.frozen(encoder, config, runtime), rows)


def steps(labels: list[int], count: int) -> list[dict]:
    """Median time of a step; the label counts take turns, so that what else the machine does hits
    them alike."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        places = [
            (number, Path(folder) / f"{number}", Path(folder) / f"{number}-encoder")
            for number in labels
        ]
        for number, root, encoder in places:
            made_data(root, number, encoder)
        for case in CASES:
            steppers = [stepper(root, encoder, case) for _, root, encoder in places]
            times = np.array([[step() for step in steppers] for _ in range(count + 3)])[3:]
            medians = np.median(times, 0)
            found.append({"case": case, "labels": labels, "ms": medians.tolist()})
            print(
                f"| {case} | "
                + " | ".join(f"{value:.1f} ms" for value in medians)
                + f" | {medians[-1] / medians[0]:.2f} |",
                flush=True,
            )
    return found


def training_seconds(config: Config) -> float:
    """Processor seconds from the first epoch's first step to the last epoch's end, without
    evaluation and saving."""
    original = (trainer.train_epoch, trainer.keep_best)
    moments = []
    trainer.train_epoch = lambda *words: moments.append(time.process_time()) or original[0](*words)
    trainer.keep_best = lambda *_: moments.append(time.process_time())
    try:
        train.fit(config)
    finally:
        trainer.train_epoch, trainer.keep_best = original
    return moments[-1] - moments[0]


def batches(
    path: str,
    epochs: int,
    seeds: list[int],
) -> list[dict]:
    """Training with clustered and with random batches."""
    found = []
    config = load_config(path)
    first = to_mapping(stage_config(config, config.stages[0]) if config.stages else config)
    first.pop("stages", None)
    first["train"] |= {"epochs": epochs, "patience": None, "eval_interval": epochs}
    for kind in ("random", "clustered"):
        seconds, shares = [], []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = {
                    **first["run"],
                    "dir": folder + "/run",
                    "seed": seed,
                    "tensorboard": False,
                    "threads": 1,
                }
                current = build_config(
                    {**first, "run": run, "method": {**first["method"], "batches": kind}},
                    {},
                )
                seconds.append(training_seconds(current))
                lines = map(
                    json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
                )
                shares.append(
                    [line["violating_share"] for line in lines if "violating_share" in line]
                )
        after = first["method"]["curr_epochs"][0]
        found.append(
            {
                "batches": kind,
                "seconds": float(np.mean(seconds)),
                "violating_share": float(np.mean([s[after:] for s in shares])),
                "by epoch": np.mean(shares, 0).round(4).tolist(),
            }
        )
        print(found[-1], flush=True)
    print(
        f"time: {found[1]['seconds'] / found[0]['seconds']:.3f} times, violating negatives: "
        f"{found[1]['violating_share'] / found[0]['violating_share']:.2f} times those of random "
        "batches"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_steps = commands.add_parser("steps")
    of_steps.add_argument("--labels", nargs="+", type=int, default=[100_000, 1_000_000])
    of_steps.add_argument("--steps", type=int, default=40)
    of_batches = commands.add_parser("batches")
    of_batches.add_argument("config", nargs="?", default="configs/LF-DebianTitles-small/ngame.yaml")
    of_batches.add_argument("--epochs", type=int, default=11)
    of_batches.add_argument("--seeds", nargs="+", type=int, default=[0])
    for command in (of_steps, of_batches):
        command.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = (
        steps(options.labels, options.steps)
        if options.command == "steps"
        else batches(options.config, options.epochs, options.seeds)
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
