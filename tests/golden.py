"""The net of a refactoring: what every method computes, noted before it and compared after it.

    python -m tests.golden record FILE              # in a checkout of the code before
    python -m tests.golden check FILE               # in the code after; exit status 1 if it differs
    python -m tests.golden check FILE dexa elias-2  # these settings of tests/settings.py alone

For every setting of the conformance test it runs train.py, eval.py and predict.py with one thread
and notes the hash of every array that the run folder then holds (`last/`, `model/`, stages, scores
of the test split), of the other files of models, of the logged losses and of the answers to a few
texts. Only the command lines are used, so that one file serves old and new code. Hashes hold on one
machine with one set of packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file
from torch import Tensor, uint8

from engine.conformance.made import tiny_sections, write_dataset, write_encoder
from tests import commands
from tests.settings import SETTINGS

# what the server of the commands has before it imports torch and numba: they compute on one core
ONE_THREAD = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
EPOCHS = 15
TEXTS = ("the linux tool", "", "glyph and letter", "an unseen word beside vim")
Hashes = dict[str, str]  # name of an array or file -> hash of its content


def hash_of(*parts: bytes) -> str:
    """Hash some bytes, in 16 hexadecimal digits."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def hash_of_array(array: np.ndarray) -> str:
    """Hash type, shape and content."""
    content = np.ascontiguousarray(array).tobytes()
    return hash_of(array.dtype.str.encode(), str(array.shape).encode(), content)


def hash_of_tensor(tensor: Tensor) -> str:
    """Hash type, shape and content, of bfloat16 too, which numpy lacks."""
    content = tensor.contiguous().flatten().view(uint8).numpy().tobytes()
    return hash_of(str(tensor.dtype).encode(), str(tuple(tensor.shape)).encode(), content)


def hashes_of_file(path: Path) -> Hashes:
    """Hash the arrays of a file by their names; {} if it holds none.

    States of random generators are left out: they are no result.
    """
    match path.suffix:
        case ".safetensors":
            tensors = load_file(path)
            return {
                name: hash_of_tensor(tensor)
                for name, tensor in tensors.items()
                if not name.startswith("random.")
            }
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: hash_of_array(array) for name, array in arrays.items()}
        case ".npy":
            return {"": hash_of_array(np.load(path, allow_pickle=False))}
        case _:
            return {}


def hashes_of_folder(folder: Path, root: Path) -> Hashes:
    """Hash what a run folder holds: `file|array`; of models also the files without arrays.

    Args:
        root: a folder whose name in a file of a model does not count.
    """
    found: Hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        arrays = hashes_of_file(path)
        found |= {f"{name}|{array}": value for array, value in arrays.items()}
        if not arrays and "model" in path.parts and path.is_file():
            content = path.read_bytes().replace(str(root).encode(), b"ROOT")
            found[name] = hash_of(content)
    return found


def logged_losses(folder: Path) -> list[list[Any]]:
    """Losses that a run and its stages have logged, by step."""
    return [
        [path.relative_to(folder).as_posix(), record["step"], record["loss"]]
        for path in sorted(folder.rglob("metrics.jsonl"))
        for record in map(json.loads, path.read_text().splitlines())
        if record["kind"] == "train"
    ]


def hashes_of_setting(sections: Mapping[str, Any], root: Path, encoder: str) -> Hashes:
    """Train, evaluate and ask a method; hash what it has left and answered.

    Args:
        sections: of the config, and its stages.
        root: where the data set `tiny` lies, and the run may.
        encoder: folder of an encoder, read for its tokenizer.
    """
    with tempfile.TemporaryDirectory(dir=root) as place:
        folder = Path(place) / "run"
        wanted = {name: values for name, values in sections.items() if name != "stages"}
        wanted |= {"train": {"epochs": EPOCHS}, "run": {"threads": 1}}
        config: dict[str, Any] = dict(tiny_sections(root, encoder, folder, wanted))
        config["stages"] = list(sections.get("stages", ()))
        path = Path(place) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        commands.run("train.py", path)
        commands.run("eval.py", folder)
        texts = [word for text in TEXTS for word in ("--text", text)]
        answers = commands.run("predict.py", folder, *texts, "--k", 20).stdout
        losses = json.dumps(logged_losses(folder))
        found = hashes_of_folder(folder, Path(place))
        return {**found, "losses": hash_of(losses.encode()), "answers": hash_of(answers.encode())}


def hashes_of_settings(names: Sequence[str]) -> Iterator[tuple[str, Hashes]]:
    """Yield every setting with its hashes."""
    with tempfile.TemporaryDirectory(prefix="golden-") as place:
        root = Path(place)
        write_dataset(root / "tiny")
        encoder = write_encoder(root / "encoder")
        for name in names:
            started = time.perf_counter()
            found = hashes_of_setting(SETTINGS[name], root, encoder)
            seconds = time.perf_counter() - started
            print(f"{name}: {len(found)} hashes, {seconds:.1f} s", flush=True)
            yield name, found


def differences(before: Hashes, after: Hashes) -> Iterator[str]:
    """Yield a line for each array or file that is gone, new, renamed or differs."""
    places = {value: name for name, value in after.items() if name not in before}
    for name, value in before.items():
        if name in after and after[name] != value:
            yield f"{name} differs"
        elif name not in after and value in places:
            yield f"{name} is now {places[value]}, its content is the same"
        elif name not in after:
            yield f"{name} is gone"
    for name in after.keys() - before.keys():
        if after[name] not in before.values():
            yield f"{name} is new"


def record(file: Path, names: Sequence[str]) -> None:
    """Write the hashes of some settings."""
    found = dict(hashes_of_settings(names))
    file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def check(file: Path, names: Sequence[str]) -> int:
    """Print what differs from a recording; returns the number of differences."""
    recorded = json.loads(file.read_text())
    count = 0
    for name, found in hashes_of_settings([name for name in names if name in recorded]):
        lines = list(differences(recorded[name], found))
        count += len(lines)
        print("".join(f"    {line}\n" for line in sorted(lines)), end="", flush=True)
    for name in names:
        if name not in recorded:
            print(f"{name}: not recorded")
    print(f"{count} differences")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="JSON of hashes")
    parser.add_argument("settings", nargs="*", help="of tests/settings.py; all if none is named")
    options = parser.parse_args()
    names = options.settings or list(SETTINGS)
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"no settings: {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    os.environ.update(ONE_THREAD)
    if options.action == "record":
        record(options.file, names)
    else:
        sys.exit(1 if check(options.file, names) else 0)


if __name__ == "__main__":
    main()
