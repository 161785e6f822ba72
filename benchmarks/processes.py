"""Many processes: speed on two cores, and memory per process with a million labels.

    python -m benchmarks.processes speed  [--steps 16] [--batch-sizes 512 2048 4096] [--json FILE]
    python -m benchmarks.processes memory [--labels 1000000] [--processes 1 2 3] [--json FILE]

`speed`: steps/s of `dexml` all on LF-DebianTitles-small with the bag encoder and a fixed global
batch, one process pinned to one core against two processes on two cores (gloo). `memory`: largest
resident memory of a process in a few steps of `dexml` all and `ova` on made labels, D = 64, above
that of a process that has only imported the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

CONFIG = "configs/LF-DebianTitles-small/dexml.yaml"


def launch(
    processes: int,
    words: list[str],
    cores: set[int],
) -> dict:
    """Run the worker on `processes` processes pinned to `cores`; returns what the main one
    reports."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "configs/accelerate_cpu.yaml",
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
        "-m",
        "benchmarks.processes_worker",
        *words,
    ]
    got = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if got.returncode:
        raise RuntimeError(got.stderr[-3000:])
    return json.loads(got.stdout)


def speed(steps: int, batch_sizes: list[int]) -> list[dict]:
    found = []
    for size in batch_sizes:
        words = [CONFIG, str(steps), "--run.threads", "1", "--train.batch_size", str(size)]
        one, two = (steps / launch(n, words, set(range(n)))["seconds"] for n in (1, 2))
        found.append(
            {
                "global batch": size,
                "steps/s, 1 process, 1 core": one,
                "steps/s, 2 processes, 2 cores": two,
                "speed-up": two / one,
            }
        )
    return found


def made_data(
    root: Path,
    labels: int,
    encoder: Path,
) -> None:
    """A data set of 2,000 points and `labels` labels of three words, and a bag's table of 64
    dimensions."""
    from transformers import BertConfig, BertModel

    from utils.pretrained.location import load_tokenizer

    folder = root / "made"
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    words = np.array([f"w{i}" for i in range(1000)])
    for name, count in (("trn_X", 2000), ("tst_X", 100), ("Y", labels)):
        texts = map(" ".join, words[rng.integers(1000, size=(count, 3))])
        (folder / "raw" / f"{name}.txt").write_text("\n".join(texts))
    for split, count in (("trn", 2000), ("tst", 100)):
        columns = rng.integers(labels, size=count * 3)
        matrix = sp.csr_matrix(
            (np.ones(count * 3, np.float32), (np.repeat(np.arange(count), 3), columns)),
            shape=(count, labels),
        )
        sp.save_npz(folder / f"Y.{split}.npz", matrix)
    BertModel(
        BertConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(encoder)
    load_tokenizer("minilm").save_pretrained(encoder)


def memory(labels: int, counts: list[int]) -> list[dict]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root, encoder = Path(folder) / "Datasets", Path(folder) / "encoder"
        made_data(root, labels, encoder)
        for method in ("dexml", "ova"):
            config = Path(folder) / f"{method}.yaml"
            config.write_text(
                json.dumps(
                    {
                        "data": {"root": str(root), "name": "made", "max_len": 8},
                        "method": {"name": method},
                        "encoder": {
                            "name": "bag",
                            "init": str(encoder),
                            "token_weights": "equal",
                            "residual": False,
                        },
                        "train": {"batch_size": 128},
                    }
                )
            )
            for processes in counts:
                got = launch(processes, [str(config), "3"], set(range(os.cpu_count() or 1)))
                found.append(
                    {
                        "method": method,
                        "labels": labels,
                        "processes": processes,
                        "largest process MB": got["memory_mb"],
                        "above the program MB": got["memory_mb"] - got["start_mb"],
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    rows = (
        speed(options.steps, options.batch_sizes)
        if options.what == "speed"
        else memory(options.labels, options.processes)
    )
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        print(
            "| "
            + " | ".join(
                f"{v:.2f}"
                if isinstance(v, float) and v < 100
                else f"{v:,.0f}"
                if isinstance(v, float)
                else str(v)
                for v in row.values()
            )
            + " |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
