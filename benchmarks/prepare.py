"""Speed and memory of utils.prepare.    python benchmarks/prepare.py [--lines 1000000] [--folder
/tmp]

Makes synthetic data of two sizes (a tenth of the lines and all of them; texts of 30 words, 3 labels
each), prepares it in every format in a process of its own and prints a Markdown table: lines per
second of wall time and the peak resident memory of the process, next to those of a run that only
prints its help. Linux only: memory is VmHWM of /proc/self/status, as getrusage would count the
parent's memory before exec too.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
NUM_LABELS = 100_000
RUN = """
import atexit, re, sys
from utils.prepare.command import main
status = "/proc/self/status"
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", open(status).read())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
main(sys.argv[1:])
"""


def points(lines: int) -> Iterator[tuple[str, list[int]]]:
    """(text, labels) of each point."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    for _ in range(lines):
        yield " ".join(chance.choices(words, k=30)), chance.sample(range(NUM_LABELS), 3)


def splits(lines: int) -> dict[str, Iterator[tuple[str, list[int]]]]:
    """Nine tenths for training, one tenth for test, drawn from one stream of points."""
    stream = points(lines)
    tests = lines // 10
    return {"trn": itertools.islice(stream, lines - tests), "tst": itertools.islice(stream, tests)}


def make_xml_repository(folder: Path, lines: int) -> list[str]:
    for split, part in splits(lines).items():
        with open(folder / f"{split}.json", "w") as file:
            for text, labels in part:
                record = {"uid": "0", "title": text, "content": "", "target_ind": labels}
                file.write(json.dumps(record | {"target_rel": [1.0] * 3}) + "\n")
    with open(folder / "lbl.json", "w") as file:
        file.writelines(
            json.dumps({"uid": str(i), "title": f"label {i}"}) + "\n" for i in range(NUM_LABELS)
        )
    return ["xml-repository", str(folder)]


def make_sparse_text(folder: Path, lines: int) -> list[str]:
    sizes = {"trn": lines - lines // 10, "tst": lines // 10}
    for split, part in splits(lines).items():
        with (
            open(folder / f"{split}_X_Y.txt", "w") as matrix,
            open(folder / f"{split}_X.txt", "w") as texts,
        ):
            matrix.write(f"{sizes[split]} {NUM_LABELS}\n")
            for text, labels in part:
                matrix.write(" ".join(f"{label}:1.0" for label in labels) + "\n")
                texts.write(text + "\n")
    return ["sparse-text", str(folder)]


def make_pecos(folder: Path, lines: int) -> list[str]:
    for split, part in splits(lines).items():
        indices = []
        with open(folder / f"X.{split}.txt", "w") as texts:
            for text, labels in part:
                indices.extend(labels)
                texts.write(text + "\n")
        starts = np.arange(0, len(indices) + 1, 3)
        sparse.save_npz(
            folder / f"Y.{split}.npz",
            sparse.csr_matrix(
                (np.ones(len(indices), np.float32), indices, starts),
                shape=(len(starts) - 1, NUM_LABELS),
            ),
        )
    return ["pecos", str(folder)]


def make_jsonl(folder: Path, lines: int) -> list[str]:
    with open(folder / "all.jsonl", "w") as file:
        file.writelines(
            json.dumps({"text": text, "labels": [f"label {i}" for i in labels]}) + "\n"
            for text, labels in points(lines)
        )
    return ["jsonl", "--train", str(folder / "all.jsonl")]


def make_csv(folder: Path, lines: int) -> list[str]:
    with open(folder / "all.csv", "w") as file:
        file.write("text,labels\n")
        file.writelines(
            f'"{text}",{"|".join(f"label {i}" for i in labels)}\n' for text, labels in points(lines)
        )
    return ["csv", "--train", str(folder / "all.csv")]


def make_jsonl_gz(folder: Path, lines: int) -> list[str]:
    *command, path = make_jsonl(folder, lines)
    subprocess.run(["gzip", "-1", path], check=True)
    return [*command, f"{path}.gz"]


MAKERS = {
    "xml-repository": make_xml_repository,
    "sparse-text": make_sparse_text,
    "pecos": make_pecos,
    "jsonl": make_jsonl,
    "jsonl, gzipped": make_jsonl_gz,
    "csv": make_csv,
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory in MB of one run of the command."""
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"utils.prepare {' '.join(arguments)}: {run.stderr}")
    return time.perf_counter() - start, int(run.stderr.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", default=None, help="for the data, removed again; default: the system's"
    )
    args = parser.parse_args()
    print("| format | lines | input MB | seconds | lines/s | peak RSS MB |")
    print("| --- | --: | --: | --: | --: | --: |")
    seconds, memory = measure(["--help"])
    print(f"| --help | | | {seconds:.2f} | | {memory:.0f} |")
    for name, make in MAKERS.items():
        for lines in (args.lines // 10, args.lines):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                data = Path(folder) / "in"
                data.mkdir()
                command = make(data, lines)
                size = sum(path.stat().st_size for path in data.iterdir()) / 1e6
                seconds, memory = measure([*command, "--out", str(Path(folder) / "out")])
            print(
                f"| {name} | {lines:,} | {size:.0f} | {seconds:.1f} | {lines / seconds:,.0f} | "
                f"{memory:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
