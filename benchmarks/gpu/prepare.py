"""`prepare`: what a machine with a card needs, made on one without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.correctness import computed
from benchmarks.gpu.made import write_encoder, write_set
from benchmarks.gpu.place import Place, Values
from utils.data.dataset import load_dataset
from utils.errors import InputError
from utils.pretrained.location import load_tokenizer


def prepare(folder: Path, tiny: bool) -> Place:
    """Write encoders, data sets and what a CPU computes of every case.

    Args:
        tiny: in the sizes of a dry run.
    Raises:
        InputError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new or an empty folder")
    place = Place(folder.resolve(), tiny)
    sizes = place.sizes
    for name in ("small", "distil", "bert"):
        write_encoder(place.encoder(name), getattr(sizes, name))
    write_set(place.data / "check", sizes.check, sizes.small.words)
    write_set(place.data / "titles", sizes.titles, sizes.distil.words)
    write_set(place.data / "texts", sizes.texts, sizes.distil.words)
    write_tokens(place, "titles", 32)
    write_tokens(place, "texts", 128)
    write_expected(place)
    place.close()
    return place


def write_tokens(place: Place, name: str, longest: int) -> None:
    """Cut the texts of a data set, which takes seconds that the card would be waiting."""
    encoder = str(place.encoder("distil"))
    wanted: Values = {
        "data": {"name": name, "max_len": longest},
        "encoder": {"name": encoder},
        "method": {"name": "dexml"},
    }
    load_dataset(place.config("tokens", wanted), load_tokenizer(encoder))


def write_expected(place: Place) -> None:
    """Compute every case and write what it comes to."""
    expected = {}
    for case in CASES:
        expected[case] = computed(place, case, f"expected {case}")
        losses = expected[case]["losses"]
        print(f"{case}: {len(losses)} steps, P@5 {expected[case]['P@5']:.2f}", flush=True)
    place.expected_file.write_text(json.dumps(expected) + "\n")
    shutil.rmtree(place.folder / "runs")


def megabytes(folder: Path) -> float:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
