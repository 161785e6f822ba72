"""Planned against measured memory.

    python -m benchmarks.plan [--markdown]

Trains each case in a process of its own, for few steps, and compares the peak resident size that
its metrics.jsonl reports with `engine.memory_plan`. The case `many labels` is made on the spot:
200,000 labels, where they dominate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs" / "LF-DebianTitles-small"
PLAN = (
    "import sys, train; from engine.memory_plan import plan; "
    "from utils.config.config import load_config; "
    "print(plan(load_config(sys.argv[1], sys.argv[2:])).total)"
)
CASES = {
    "dexml, bag, all labels": ("dexml.yaml", ["--train.epochs", "2"]),
    "dexml, bag, soft top-k": ("dexml-topk.yaml", ["--train.epochs", "1"]),
    "ova, bag": ("ova.yaml", ["--train.epochs", "2"]),
    "dexml, minilm, in-batch": (
        "dexml-minilm.yaml",
        [
            "--method.pool",
            "in-batch",
            "--train.epochs",
            "1",
            "--data.val_fraction",
            "0.9",
            "--data.val_max_points",
            "9000",
        ],
    ),
}
MANY = {"many labels, dexml": "dexml.yaml", "many labels, ova": "ova.yaml"}


def measure(
    config: Path,
    words: Sequence[str],
    folder: Path,
) -> tuple[float, float]:
    """(planned, measured) peak memory of a run, in MB."""
    words = [*words, "--run.dir", str(folder), "--run.threads", "1", "--run.tensorboard", "false"]
    planned = _python("-c", PLAN, str(config), *words)
    _python("train.py", str(config), *words)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return int(planned) / 2**20, max(line["memory_mb"] for line in lines if line["kind"] == "train")


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:2])}: {done.stderr[-2000:]}")
    return done.stdout


def write_many_labels(
    folder: Path,
    labels: int = 200_000,
    points: int = 3000,
) -> None:
    """A data set of random titles: words drawn by Zipf's law from the tracked data set's."""
    rng = np.random.default_rng(0)
    text = (REPOSITORY / "Datasets" / "LF-DebianTitles-small" / "raw" / "trn_X.txt").read_text(
        encoding="utf-8"
    )
    words = np.array(sorted({w for w in text.split() if w.isalpha()}))
    chances = 1 / (np.arange(len(words)) + 2.7)
    (folder / "raw").mkdir(parents=True)
    for name, count in (("trn_X", points), ("tst_X", 500), ("Y", labels)):
        drawn = rng.choice(words, (count, 6), p=chances / chances.sum())
        (folder / "raw" / f"{name}.txt").write_text(
            "".join(" ".join(row) + "\n" for row in drawn), encoding="utf-8"
        )
        if name != "Y":
            columns = (
                np.sort(rng.choice(labels, (count, 3)) // 3 * 3 + np.arange(3), axis=1) % labels
            )
            matrix = sp.csr_matrix(
                (np.ones(3 * count, np.float32), columns.ravel(), np.arange(0, 3 * count + 1, 3)),
                shape=(count, labels),
            )
            sp.save_npz(folder / f"Y.{name[:3]}.npz", matrix)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")
    markdown = parser.parse_args().markdown
    with tempfile.TemporaryDirectory() as root:
        write_many_labels(Path(root) / "many")
        cases = {
            name: (
                file,
                [
                    "--data.root",
                    root,
                    "--data.name",
                    "many",
                    "--train.epochs",
                    "2",
                    "--train.batch_size",
                    "512",
                    "--data.val_fraction",
                    "0.5",
                ],
            )
            for name, file in MANY.items()
        }
        rows = []
        for number, (name, (file, words)) in enumerate({**CASES, **cases}.items()):
            planned, measured = measure(CONFIGS / file, words, Path(root) / f"run{number}")
            rows.append(
                [
                    name,
                    f"{planned:,.0f}",
                    f"{measured:,.0f}",
                    f"{100 * (planned / measured - 1):+.1f} %",
                ]
            )
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["case", "planned MB", "measured MB", "difference"]
    bar = ["---"] * 4
    print(
        "\n".join(
            ("| " + " | ".join(row) + " |")
            if markdown
            else "  ".join(f"{cell:<24}" for cell in row)
            for row in [head, *([bar] if markdown else []), *rows]
        )
    )


if __name__ == "__main__":
    main()
