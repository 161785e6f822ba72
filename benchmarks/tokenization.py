"""Tokenising a file against the bare fast-tokenizer call on the same lines, and opening the
finished token file.

    python -m benchmarks.tokenization [--texts FILE] [--repeat 5] [--json FILE]

Default texts: the training titles of Datasets/LF-DebianTitles-small, ten times over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from utils.text import iter_lines
from utils.tokenization_utils import Tokenizer, tokenize_file


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(path: Path, repeat: int) -> dict[str, float]:
    """Median seconds of the bare calls, of tokenising the file, and of opening the token file."""
    tokenizer = Tokenizer("minilm", 32)
    lines = list(iter_lines(path))
    names = (
        "transformers: tokenizer(lines)",
        "tokenizers: encode_batch(lines)",
        "tokenise the file",
        "open the token file",
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:
            found[names[0]].append(
                seconds(lambda: tokenizer.hf(lines, truncation=True, max_length=32)["input_ids"])
            )
            found[names[1]].append(
                seconds(lambda: tokenizer.hf.backend_tokenizer.encode_batch(lines))
            )
            for name in names[2:]:
                found[name].append(
                    seconds(lambda c=cache: tokenize_file(path, tokenizer, c, progress=False))
                )
    return {
        "lines": len(lines),
        **{name: statistics.median(values) for name, values in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", help="text file, one text a line")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.texts) if options.texts else Path(folder) / "titles.txt"
        if not options.texts:
            titles = Path("Datasets/LF-DebianTitles-small/raw/trn_X.txt").read_text(
                encoding="utf-8"
            )
            path.write_text(titles * 10, encoding="utf-8")
        result = measure(path, options.repeat)
    bare = result["tokenizers: encode_batch(lines)"]
    print(f"| {result['lines']:,} lines | seconds | of encode_batch |\n| --- | --- | --- |")
    for name in list(result)[1:]:
        print(f"| {name} | {result[name]:.3f} | {result[name] / bare:.3f} |")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
